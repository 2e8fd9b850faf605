"""The SQLite database of the log: schema, writer thread, readers, and transactions under a lease."""
