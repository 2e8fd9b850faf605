"""The library's face: govern a loop of your own, in this process or against a server.

`face` opens and closes, `episode` is one run, `local` and `remote` judge its steps.
"""

from suffice.governor.episode import AsyncEpisode, Episode, RoundRecord
from suffice.governor.governor import Governor

__all__ = ["AsyncEpisode", "Episode", "Governor", "RoundRecord"]
