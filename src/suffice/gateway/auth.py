"""Who sends a request, and what its key permits. Where no key is configured, everybody may do everything.

    headers ──▶ KeyRing ──▶ Caller ──▶ routes, sources of feedback, objects

A header that is malformed is treated as absent, and an absent one is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from suffice.errors import BadRequest, OverloadError
from suffice.gateway.exchange import Scope
from suffice.settings import Key, Route
from suffice.store.rows.records import KeyUsage
from suffice.upstream.client import KEY_HEADERS

HEADER_LIMIT_CHARS = 4096
TRUSTED_SOURCES: Final = ("reviewer", "gold", "judge")  # that a key must be allowed by name, or be for feedback alone
_CALLER: Final = "suffice.caller"  # where the scope keeps who sends its request
_PLAIN: Final = Key(key_env="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever holds a key.

    A key without `routes` may use every route that requests come to by themselves. By name it may choose those that
    are safe for anybody to choose: no route that is off, and none that acts uncertified.
    """

    id: str = ""  # keyed hash, as `Request.sender`; "": no key was asked for
    name: str = ""  # of its key in the settings; "": its key has no table of its own
    namespace: str = ""  # tells the ids that clients choose apart
    permits: Key = field(default=_PLAIN)
    only_feedback: bool = False  # its key sends feedback, from any source, and nothing else

    @property
    def is_restricted(self) -> bool:
        return self.permits.routes is not None

    @property
    def sees_all(self) -> bool:
        return not self.id or not self.may_ask or self.permits.all_objects

    @property
    def may_ask(self) -> bool:
        return not self.only_feedback and self.permits.routes != ()

    def may_use(self, name: str, route: Route, *, by_name: bool) -> bool:
        """May its requests go to a route?

        by_name  the request names the route, instead of being matched
        """
        if self.permits.routes is not None:
            return name in self.permits.routes
        is_reserved = route.mode == "off" or (route.mode == "enforce" and route.uncertified)
        return not (self.id and by_name and is_reserved)

    def may_write(self, source: str) -> bool:
        if not self.id or self.only_feedback:
            return True
        if self.permits.sources is not None:
            return source in self.permits.sources
        return source.strip().casefold() not in TRUSTED_SOURCES


ANYONE: Final = Caller()


class KeyRing:
    """The keys that a gateway accepts.

    callers  who holds each key
    """

    def __init__(self, callers: Mapping[str, Caller] | None = None) -> None:
        # Looked up by digest, so that the time of a comparison says nothing about a key.
        self._by_digest = {_digest(key): caller for key, caller in (callers or {}).items()}
        by_id = {caller.id: caller for caller in self._by_digest.values()}
        self.callers: tuple[Caller, ...] = tuple(by_id.values())
        self.asks_for_keys = any(not one.only_feedback for one in self.callers)
        self.has_tenants = sum(one.may_ask for one in self.callers) > 1  # what one of them makes is hidden from others

    def find(self, headers: Iterable[tuple[str, str]], *, x_api_key: bool = False) -> Caller | None:
        """Who sends a request; None: it carries no key of this gateway."""
        named = list(headers)
        given = [_bearer(v) for v in _once(named, "authorization")]
        given += _once(named, "x-api-key") if x_api_key else []
        known = (self._by_digest.get(_digest(key)) for key in given if key and " " not in key)
        return next((caller for caller in known if caller is not None), None)

    def require(self, headers: list[tuple[str, str]], *, feedback: bool = False, x_api_key: bool = False) -> Caller:
        """Who sends a request. Raises BadRequest 401 where a key is needed and none of this gateway's is there.

        feedback   of a path that keys for feedback open as well
        x_api_key  the header `x-api-key: KEY` is as good as `authorization: Bearer KEY`
        """
        if not (self.callers if feedback else self.asks_for_keys):
            return Caller(namespace=dict(headers).get("authorization", ""))
        caller = self.find(headers, x_api_key=x_api_key)
        if caller is None or (caller.only_feedback and not feedback):
            message = "authorization: needs 'Bearer KEY' with a key of this gateway"
            raise BadRequest(message, status=401, code="invalid_api_key")
        return caller

    def without_keys(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Headers fit to be sent upstream: where the gateway has keys of its own, no header with a key is."""
        return [(k, v) for k, v in headers if k not in KEY_HEADERS] if self.asks_for_keys else headers


def set_caller(scope: Scope, caller: Caller) -> None:
    scope[_CALLER] = caller


def caller_of(scope: Scope) -> Caller:
    caller: Caller = scope.get(_CALLER, ANYONE)
    return caller


def _once(headers: list[tuple[str, str]], name: str) -> list[str]:
    given = [v for k, v in headers if k == name]
    return given if len(given) == 1 and len(given[0]) <= HEADER_LIMIT_CHARS else []


def _bearer(value: str) -> str:
    kind, _, key = value.partition(" ")
    return key if kind.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


MINUTE_S: Final = 60.0
DAY_S: Final = 86_400

Limit: TypeAlias = Literal["requests_per_minute", "concurrency", "tokens_per_day"]


class KeyLimitError(OverloadError):
    def __init__(self, message: str, *, limit: Limit, retry_after_s: float) -> None:
        code = "insufficient_quota" if limit == "tokens_per_day" else "rate_limit_exceeded"
        super().__init__(message, retry_after_s=max(1, math.ceil(retry_after_s)), code=code)
        self.limit = limit


@dataclass(slots=True)
class _Use:
    began_s: deque[float] = field(default_factory=deque)  # monotonic: its requests of the last minute
    n_live: int = 0
    day: str = ""  # UTC, that the tokens are of
    n_tokens: int = 0
    n_unwritten: int = 0  # of them, those that the log does not know yet


class KeyLimits:
    """The limits of all keys: requests a minute, requests at once, tokens a day.

    Counted in this process alone: of several gateways, each keeps the limits for itself. What was used today is
    written to the log, so a restart does not give it back. The settings name every key, so memory is bounded.
    """

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
        use = self._uses.get(caller.id)
        if use is not None:
            use.n_live -= 1

    def spend(self, sender: str, n_tokens: int, *, wall_s: float) -> None:
        use = self._uses.get(sender)
        if use is not None:
            self._turn(use, wall_s)
            use.n_tokens += n_tokens
            use.n_unwritten += n_tokens

    def restore(self, used: Iterable[KeyUsage]) -> None:
        for one in used:
            use = self._uses.get(one.sender)
            if use is not None and use.day in ("", one.day):
                use.day, use.n_tokens = one.day, use.n_tokens + one.n_tokens

    def unwritten(self) -> list[KeyUsage]:
        """What was used since this was asked last."""
        usages = [
            KeyUsage(usage_id="", sender=sender, day=use.day, n_tokens=use.n_unwritten)
            for sender, use in self._uses.items()
            if use.n_unwritten
        ]
        for use in self._uses.values():
            use.n_unwritten = 0
        return usages

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
