"""The certification loop of one route: evidence in, decisions out, and all that may stop it."""
