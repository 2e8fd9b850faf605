"""What is known of a route, read once from the log, for everything that shows it."""
