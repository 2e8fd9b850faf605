"""Settings that need more than their types to be right."""
