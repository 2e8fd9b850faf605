"""What serves the requests of a route: its publication, its overrides, its experiments and its rollouts."""
