"""The composition root: builds running objects; no package below it reads the environment or the clock."""
