"""Archives: what is written, what reads it, and what is refused."""
