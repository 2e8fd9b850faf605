"""Feedback, reviews, incidents, overrides and alerts, as the log has them."""
