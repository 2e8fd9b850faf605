"""From rows of the log to what a certificate, a rollout or an account can count."""
