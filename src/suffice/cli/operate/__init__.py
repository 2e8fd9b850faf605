"""Commands by which people change what happens."""
