"""The keys of clients in the log: rows with their hashes, who made them, and until when they are accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, LogSource, read_kinds
from suffice.store.rows.events import Event, KeyEnd, KeyIssue

KEY_KINDS: Final = ("key_issued", "key_ended")
PREFIX: Final = "sk-sfc-"  # of every key, for scanners that look for leaked ones


@dataclass(frozen=True, slots=True)
class NewKey:
    key: str  # shown once
    issue: KeyIssue


def valid_keys(source: LogSource) -> tuple[KeyIssue, ...]:
    """Return the keys that were issued, each until the earliest time at which it ends."""
    keys = dict[str, KeyIssue]()
    for row in read_kinds(source, *KEY_KINDS):
        event = row.event
        if isinstance(event, KeyIssue):
            keys[event.key_id] = event
        elif isinstance(event, KeyEnd) and event.key_id in keys:
            known = keys[event.key_id]
            if known.until_s is None or event.ends_at_s < known.until_s:
                keys[event.key_id] = replace(known, until_s=event.ends_at_s)
    return tuple(keys.values())


def live_keys(keys: Sequence[KeyIssue], now_s: float) -> list[KeyIssue]:
    return [one for one in keys if one.until_s is None or now_s < one.until_s]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOffice:
    """Issues, rotates and revokes keys. Each method returns a sentence where it refuses, and raises StoreError."""

    writer: Decisions
    author: str
    reason: str
    now_s: float  # Unix time
    random_bytes: Callable[[int], bytes]

    def issue(self, name: str, permits: Mapping[str, Any], *, until_s: float | None = None) -> NewKey | str:
        def step(log: LogReader) -> tuple[Sequence[Event], NewKey] | str:
            if any(one.name == name for one in live_keys(valid_keys(log), self.now_s)):
                return f"has a key; rotate it, or revoke it first: suffice key rotate {name}"
            made = self._made(name, permits, until_s)
            return [made.issue], made

        return self.writer.decide(step)

    def rotate(self, name: str, *, overlap_s: float) -> NewKey | str:
        """Issue another key with the same permissions; the present ones end after `overlap_s`."""

        def step(log: LogReader) -> tuple[Sequence[Event], NewKey] | str:
            live = [one for one in live_keys(valid_keys(log), self.now_s) if one.name == name]
            if not live:
                return "has no key to rotate"
            made = self._made(name, live[-1].permits, live[-1].until_s)
            ends_at_s = self.now_s + overlap_s
            later = [one for one in live if one.until_s is None or one.until_s > ends_at_s]
            return [made.issue, *(self._end(one, ends_at_s) for one in later)], made

        return self.writer.decide(step)

    def revoke(self, name: str) -> int | str:
        """End all keys of a name, or the one with this id, now; return how many."""

        def step(log: LogReader) -> tuple[Sequence[Event], int] | str:
            live = [one for one in live_keys(valid_keys(log), self.now_s) if name in (one.name, one.key_id)]
            if not live:
                return "has no key to revoke"
            return [self._end(one, self.now_s) for one in live], len(live)

        return self.writer.decide(step)

    def _made(self, name: str, permits: Mapping[str, Any], until_s: float | None) -> NewKey:
        key_id = self.random_bytes(6).hex()
        key = f"{PREFIX}{key_id}-{self.random_bytes(32).hex()}"
        issue = KeyIssue(
            key_id=key_id,
            name=name,
            digest=sha256(key.encode()).hexdigest(),
            permits=dict(permits),
            until_s=until_s,
            author=self.author,
            reason=self.reason,
        )
        return NewKey(key, issue)

    def _end(self, key: KeyIssue, ends_at_s: float) -> KeyEnd:
        return KeyEnd(key_id=key.key_id, name=key.name, ends_at_s=ends_at_s, author=self.author, reason=self.reason)
