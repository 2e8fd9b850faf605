"""Connections to the two databases that can hold a log, and the one dialect in which `store` writes its queries."""
