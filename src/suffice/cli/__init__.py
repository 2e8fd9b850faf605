"""The `suffice` command. `main` lists all commands; `shell` holds their shared parts."""
