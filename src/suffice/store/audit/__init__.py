"""The hash chain over the log, its exported heads, and the personal text in rows."""
