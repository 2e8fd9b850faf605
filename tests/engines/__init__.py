"""Real engines on this machine: an environment for each, a server, and the gateway judged in front of it.

None of this runs in CI: an environment is about 3 GB, and an engine takes minutes to start.
"""
