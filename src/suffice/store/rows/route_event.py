"""What most rows of the log have in common: they are about a route or an upstream, not about one episode."""

from __future__ import annotations


class OfNoEpisode:
    """A row that belongs to no episode."""

    __slots__ = ()

    @property
    def episode_id(self) -> str | None:
        """None: it belongs to no episode."""
        return None
