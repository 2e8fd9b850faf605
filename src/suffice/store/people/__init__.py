"""What people said, hold and are told, as the log has it."""
