"""The chain over the rows of the log, its exported heads, and what of a row is in people's words."""
