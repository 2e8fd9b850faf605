"""What can happen, as rows of the log: one frozen record a kind, and their JSON."""
