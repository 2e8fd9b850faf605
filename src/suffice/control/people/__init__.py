"""Whom to ask about which run, and what came of the answer."""
