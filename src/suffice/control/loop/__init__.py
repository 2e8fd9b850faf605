"""The certification loop of one route: evidence in, decisions out, with the checks that pause it."""
