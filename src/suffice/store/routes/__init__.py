"""What the log says of each route: what is in force, being tried, proposed, counted."""
