"""The library: govern a loop of your own, in this process or through a server."""

from suffice.governor.governor import AsyncEpisode, Episode, Governor, RoundRecord

__all__ = ["AsyncEpisode", "Episode", "Governor", "RoundRecord"]
