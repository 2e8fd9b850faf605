"""Turns rows of the log into what a certificate, a rollout or an account can count."""
