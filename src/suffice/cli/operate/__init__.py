"""Commands that change what is served."""
