"""The `suffice` command. `main` lists all commands; `shell` holds what they share."""
