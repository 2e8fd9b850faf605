"""Commands that measure on recorded runs and logs, before anything is served."""
