"""Commands for feedback, reviews and erasure."""
