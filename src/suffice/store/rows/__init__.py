"""The events of the log: one frozen record per kind, and their JSON."""
