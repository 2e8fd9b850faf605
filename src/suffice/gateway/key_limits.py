"""What each key has used, and whether it may use more: requests a minute, requests at once, tokens a day.

Counted in this process alone: of several gateways, each keeps the limits for itself. What was used today is written
to the log, so a restart does not give it back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from suffice.errors import OverloadError
from suffice.gateway.auth import Caller
from suffice.store.rows.records import KeyUsage

MINUTE_S: Final = 60.0
DAY_S: Final = 86_400

Limit: TypeAlias = Literal["requests_per_minute", "concurrency", "tokens_per_day"]


class KeyLimitError(OverloadError):
    """A key is at one of its limits."""

    def __init__(self, message: str, *, limit: Limit, retry_after_s: float) -> None:
        code = "insufficient_quota" if limit == "tokens_per_day" else "rate_limit_exceeded"
        super().__init__(message, retry_after_s=max(1, math.ceil(retry_after_s)), code=code)
        self.limit = limit


@dataclass(slots=True)
class _Use:
    """What one key has used."""

    began_s: deque[float] = field(default_factory=deque)  # monotonic: its requests of the last minute
    n_live: int = 0
    day: str = ""  # UTC, that the tokens are of
    n_tokens: int = 0
    n_unwritten: int = 0  # of them, those that the log does not know yet


class KeyLimits:
    """The limits of all keys. Every key is one that the settings name, so memory is bounded."""

    def __init__(self, callers: Iterable[Caller] = ()) -> None:
        self._uses = {one.id: _Use() for one in callers if _is_limited(one)}

    def enter(self, caller: Caller, *, spends: bool, now_s: float, wall_s: float) -> None:
        """A request of `caller` begins. Raises KeyLimitError, and then nothing is counted.

        spends  it may cost tokens
        now_s   monotonic
        wall_s  Unix time
        """
        use, permits = self._uses.get(caller.id), caller.permits
        if use is None:
            return
        if spends and permits.tokens_per_day is not None:
            self._turn(use, wall_s)
            if use.n_tokens >= permits.tokens_per_day:
                message = f"this key has used its {permits.tokens_per_day} tokens of today (UTC)"
                raise KeyLimitError(message, limit="tokens_per_day", retry_after_s=DAY_S - wall_s % DAY_S)
        if permits.concurrency is not None and use.n_live >= permits.concurrency:
            message = f"this key may have {permits.concurrency} requests at once"
            raise KeyLimitError(message, limit="concurrency", retry_after_s=1)
        if permits.requests_per_minute is not None:
            while use.began_s and now_s - use.began_s[0] >= MINUTE_S:
                use.began_s.popleft()
            if len(use.began_s) >= permits.requests_per_minute:
                message = f"this key may send {permits.requests_per_minute} requests in a minute"
                wait_s = MINUTE_S - (now_s - use.began_s[0])
                raise KeyLimitError(message, limit="requests_per_minute", retry_after_s=wait_s)
            use.began_s.append(now_s)
        use.n_live += 1

    def leave(self, caller: Caller) -> None:
        """A request that `enter` has let in ended."""
        use = self._uses.get(caller.id)
        if use is not None:
            use.n_live -= 1

    def spend(self, sender: str, n_tokens: int, *, wall_s: float) -> None:
        """A request of `sender` has used tokens."""
        use = self._uses.get(sender)
        if use is not None:
            self._turn(use, wall_s)
            use.n_tokens += n_tokens
            use.n_unwritten += n_tokens

    def restore(self, used: Iterable[KeyUsage]) -> None:
        """Take in what the log says was used; it was used before anything that this process has counted."""
        for one in used:
            use = self._uses.get(one.sender)
            if use is not None and use.day in ("", one.day):
                use.day, use.n_tokens = one.day, use.n_tokens + one.n_tokens

    def unwritten(self) -> list[KeyUsage]:
        """What was used since this was asked last."""
        found = [
            KeyUsage(usage_id="", sender=sender, day=use.day, n_tokens=use.n_unwritten)
            for sender, use in self._uses.items()
            if use.n_unwritten
        ]
        for use in self._uses.values():
            use.n_unwritten = 0
        return found

    @staticmethod
    def _turn(use: _Use, wall_s: float) -> None:
        """Begin a new day, if it is one. What is unwritten of the old one is a matter of seconds."""
        day = utc_day(wall_s)
        if day != use.day:
            use.day, use.n_tokens, use.n_unwritten = day, 0, 0


def _is_limited(caller: Caller) -> bool:
    permits = caller.permits
    limits = permits.requests_per_minute, permits.concurrency, permits.tokens_per_day
    return any(limit is not None for limit in limits)


def utc_day(wall_s: float) -> str:
    """The UTC day of a Unix time, as 2026-01-31."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d")
