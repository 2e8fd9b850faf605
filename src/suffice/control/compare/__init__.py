"""Comparison of two versions, or of an experiment's arms, on the same evidence."""
