"""One small program for each client. Each runs in that client's environment and imports nothing of Suffice."""
