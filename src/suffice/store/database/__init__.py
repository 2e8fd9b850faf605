"""The SQLite file that holds the log: its shape, its one writer, its readers, and decisions under a lease."""
