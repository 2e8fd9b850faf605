"""Who may use the console and the control API, as rows of the log. Nothing of a secret is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessGrant:
    """Somebody may come in, with another secret, or not any more."""

    access_id: str  # of this change
    name: str
    what: Literal["added", "reset", "removed"]
    role: str  # "": removed
    author: str  # the user of the computer that it was done on
    reason: str


@dataclass(frozen=True, slots=True)
class AccessChanged(OfNoEpisode):
    """Who may come in has changed."""

    kind: ClassVar[Literal["access_changed"]] = "access_changed"
    access: AccessGrant

    @property
    def key(self) -> str:
        """What may exist once: the change."""
        return self.access.access_id

    @property
    def route(self) -> str | None:
        """None: it is about all routes."""
        return None
