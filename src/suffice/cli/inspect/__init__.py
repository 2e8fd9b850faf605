"""Commands that show what happens."""
