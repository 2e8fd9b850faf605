"""Attacks, each with its expected answer."""
