"""What API keys have made and used, as rows of the log.

    ObjectMade   a key made an object that an upstream keeps: only that key may ask for it again
    KeyUsed      tokens that a key with a budget has used since its gateway last said so

Knows the shape of a row; refuses to know keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object that an upstream keeps: a response, a file, a batch."""

    object_id: str  # as the upstream named it
    sender: str  # keyed hash of the key that made it
    upstream: str  # name of the upstream that keeps it


@dataclass(frozen=True, slots=True)
class ObjectMade(OfNoEpisode):
    """A key made an object. The first row of an id counts: nobody can take over an id that exists."""

    kind: ClassVar[Literal["object_made"]] = "object_made"
    made: StoredObject

    @property
    def key(self) -> str:
        """What may exist once: the object's id."""
        return self.made.object_id

    @property
    def route(self) -> str | None:
        """None: it belongs to an upstream."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsage:
    """Tokens that one key has used."""

    usage_id: str
    sender: str  # keyed hash of the key
    day: str  # UTC, as 2026-01-31
    n_tokens: int  # prompt and answer


@dataclass(frozen=True, slots=True)
class KeyUsed(OfNoEpisode):
    """A key with a budget has used tokens."""

    kind: ClassVar[Literal["key_used"]] = "key_used"
    usage: KeyUsage

    @property
    def key(self) -> str:
        """What may exist once. It begins with the day, so that the rows of a day are found by it."""
        return f"{self.usage.day}:{self.usage.usage_id}"

    @property
    def route(self) -> str | None:
        """None: a key may use several routes."""
        return None
