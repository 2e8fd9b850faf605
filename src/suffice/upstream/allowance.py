"""The limits on extra calls to an upstream: calls, tokens, slots, a share of its rate limits. Pure.

Extra calls are probes, further samples and continuations. No call waits: a probe is refused if anything here speaks
against it, a continuation only during a pause, a main call never. A continuation takes the slot of the call that was
cancelled for it, so it is no reason to refuse a probe for concurrency. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Literal, NamedTuple

from suffice.settings import Extra

LimitKind = Literal["requests", "tokens"]
Refusal = Literal["paused", "slots", "concurrency", "calls_per_s", "tokens_per_s", "rate_limit"]

MAX_COUNT = 10**15
MAX_RESET_S = 30 * 86_400.0  # longer windows are ignored
FIRST_PAUSE_S = 10.0  # after a 429 without a duration
LONGEST_OWN_PAUSE_S = 300.0
LONGEST_PAUSE_S = 3_600.0  # after an hour a server that requested more is called again
MEMORY_S = 60.0  # how long a limit without a reset time is kept

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|s|m|h|d)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PAIR = re.compile(r"\b(remaining|reset|r|t)\s*=\s*(\d+(?:\.\d+)?)")
# The spellings of each kind's headers, the more specific ones first.
_SPELLINGS: Mapping[LimitKind, tuple[str, ...]] = {
    "requests": ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}", "ratelimit-{}", "x-ratelimit-{}"),
    "tokens": ("x-ratelimit-{}-tokens", "anthropic-ratelimit-tokens-{}", "anthropic-ratelimit-input-tokens-{}"),
}


class LimitWindow(NamedTuple):
    """One rate limit at the time of a response."""

    remaining: int
    reset_s: float | None = None  # seconds until it is full again; None: not given


def read_limits(headers: Iterable[tuple[str, str]], *, wall_s: float) -> dict[LimitKind, LimitWindow]:
    """Return the rate limits in a response's headers; {} if none can be read: a bad header must not cost a response.

    x-ratelimit-limit-requests, -remaining-, -reset-; …-tokens   OpenAI, Groq, Mistral, vLLM routers
    anthropic-ratelimit-requests-limit, -remaining, -reset; …-tokens, …-input-tokens
    ratelimit: "name";r=50;t=30 with ratelimit-policy: "name";q=100;w=60    IETF draft
    ratelimit: limit=100, remaining=50, reset=30; ratelimit-limit, …        earlier IETF drafts

    wall_s  Unix time now, for servers that give a moment instead of a duration
    """
    given = _by_name(headers)
    windows: dict[LimitKind, LimitWindow] = {}
    for kind, spellings in _SPELLINGS.items():
        for spelling in spellings:
            left = _count(given.get(spelling.format("remaining")))
            if left is not None:
                windows[kind] = LimitWindow(left, duration_s(given.get(spelling.format("reset")), wall_s=wall_s))
                break
    if "requests" not in windows and "ratelimit" in given:
        window = _structured(given["ratelimit"], given.get("ratelimit-policy", ""))
        if window is not None:
            windows["requests"] = window
    return windows


def _by_name(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in reversed([*headers])}  # the first value of each name


def _structured(value: str, policy: str) -> LimitWindow | None:
    """Parse the IETF field: `"default";r=50;t=30`, or the pairs of earlier drafts. The first policy counts."""
    if "qu=" in policy and 'qu="requests"' not in policy:
        return None  # bytes or connections, which are not counted here
    pairs = dict(reversed(_PAIR.findall(value)))
    left, reset_s = _count(pairs.get("remaining", pairs.get("r"))), _number(pairs.get("reset", pairs.get("t")))
    if left is None:
        return None
    return LimitWindow(left, None if reset_s is None or reset_s > MAX_RESET_S else reset_s)


def retry_after_s(headers: Iterable[tuple[str, str]], *, wall_s: float) -> float | None:
    """Return how long the server requests a pause, in seconds, at least 0; None if it does not."""
    given = _by_name(headers)
    in_ms = _number(given.get("retry-after-ms"))
    if in_ms is not None:
        return min(in_ms / 1e3, MAX_RESET_S)
    return duration_s(given.get("retry-after"), wall_s=wall_s)


def duration_s(text: str | None, *, wall_s: float) -> float | None:
    """Parse `30`, `1m30.5s`, `200ms`, an HTTP date, an ISO time or Unix (milli)seconds as seconds from now, or None."""
    if text is None:
        return None
    text = text.strip()
    number = _number(text)
    if number is not None:
        number = number / 1e3 - wall_s if number > 1e11 else number - wall_s if number > 1e8 else number
    elif text and not _DURATION.sub("", text):
        number = sum(float(size) * _UNIT_S[unit] for size, unit in _DURATION.findall(text))
    else:
        at_s = _moment_s(text)
        number = None if at_s is None else at_s - wall_s
    if number is None or not isfinite(number) or number > MAX_RESET_S:
        return None
    return max(0.0, number)


def _moment_s(text: str) -> float | None:
    if len(text) > 64:
        return None
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(text)
            return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def _number(text: str | None) -> float | None:
    """Parse a plain number of at least 0; unlike float(), refuse `1_000`, `nan` and `1e9`."""
    if text is None or not re.fullmatch(r"\s*\d{1,20}(\.\d{1,20})?\s*", text, re.ASCII):
        return None
    return float(text)


def _count(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None or number > MAX_COUNT else int(number)


@dataclass(slots=True)
class Bucket:
    """A token bucket: it refills at `rate_per_s` up to `size`; taking more than it holds leaves a debt."""

    rate_per_s: float
    size: float
    level: float
    at_s: float | None = None  # when `level` was true; None: never touched

    @classmethod
    def full(cls, rate_per_s: float) -> Bucket:
        """Return a full bucket that holds the inflow of one second, at least 1; nothing at rate 0."""
        size = max(1.0, rate_per_s) if rate_per_s else 0.0
        return cls(rate_per_s, size, size)

    def left(self, now_s: float) -> float:
        if self.at_s is not None and now_s > self.at_s:
            self.level = min(self.size, self.level + (now_s - self.at_s) * self.rate_per_s)
        self.at_s = now_s if self.at_s is None else max(self.at_s, now_s)
        return self.level

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount`, even beyond the level: the debt is paid off first."""
        self.left(now_s)
        self.level -= amount


@dataclass(slots=True)
class KnownLimit:
    remaining: int
    known_until_s: float  # the report expires then
    ends_s: float  # `used` restarts then
    used_before: float  # taken by extra calls in this window up to the report
    used: float  # and up to now

    def leaves(self, amount: float, share: float) -> bool:
        """Return whether extra calls may use `amount` more, within `share` of what other calls left."""
        return self.used + amount <= share * (self.remaining + self.used_before)


@dataclass(slots=True)
class Allowance:
    settings: Extra
    slots: int
    n_open: int = 0  # probes in flight
    paused_until_s: float = float("-inf")
    next_pause_s: float = FIRST_PAUSE_S
    limits: dict[LimitKind, KnownLimit] = field(default_factory=dict)
    calls: Bucket | None = field(init=False)  # None: no limit
    tokens: Bucket | None = field(init=False)

    def __post_init__(self) -> None:
        calls_per_s, tokens_per_s = self.settings.calls_per_s, self.settings.tokens_per_s
        self.calls = None if calls_per_s is None else Bucket.full(calls_per_s)
        self.tokens = None if tokens_per_s is None else Bucket.full(tokens_per_s)

    def is_paused(self, now_s: float) -> bool:
        return now_s < self.paused_until_s

    def refusal(self, *, now_s: float, n_other: int) -> Refusal | None:
        """Return why a probe may not be sent now, beside `n_other` calls that are none; None if it may."""
        if self.is_paused(now_s):
            return "paused"
        if self.n_open >= max(1, int(self.settings.concurrency_share * self.slots)):
            return "concurrency"
        # One slot is also the default if the operator gave no number: allow one run and one probe of it.
        if self.settings.when_busy != "queue" and n_other + self.n_open >= max(2, self.slots):
            return "slots"
        if self.calls is not None and self.calls.left(now_s) < 1:
            return "calls_per_s"
        if self.tokens is not None and self.tokens.left(now_s) <= 0:
            return "tokens_per_s"
        share = self.settings.rate_limit_share
        for kind, limit in self.limits.items():
            if now_s < limit.known_until_s and not limit.leaves(1.0 if kind == "requests" else 0.0, share):
                return "rate_limit"
        return None

    def begin(self, now_s: float, *, is_probe: bool = True) -> None:
        self.n_open += is_probe
        if self.calls is not None:
            self.calls.take(1, now_s)
        self._use("requests", 1, now_s)

    def end(self, n_tokens: int, now_s: float, *, is_probe: bool = True) -> None:
        self.n_open -= is_probe
        if self.tokens is not None:
            self.tokens.take(n_tokens, now_s)
        self._use("tokens", n_tokens, now_s)

    def _use(self, kind: LimitKind, amount: float, now_s: float) -> None:
        limit = self.limits.get(kind)
        if limit is not None and now_s < limit.known_until_s:
            limit.used += amount

    def note(
        self, status: int, headers: Sequence[tuple[str, str]], *, extra: bool, now_s: float, wall_s: float
    ) -> bool:
        """Learn from a response's head; return True if it requests fewer calls, which pauses extra calls."""
        pause_s = None
        if headers:
            for kind, window in read_limits(headers, wall_s=wall_s).items():
                self._learn(kind, window, now_s)
            pause_s = retry_after_s(headers, wall_s=wall_s)
        if status == 429 or (status == 503 and pause_s is not None):
            self._pause(pause_s, now_s)
            return True
        if extra and status == 200:
            self.next_pause_s = FIRST_PAUSE_S
        return False

    def _pause(self, pause_s: float | None, now_s: float) -> None:
        if pause_s is None:
            if self.is_paused(now_s):
                return  # calls already in flight at the first refusal add nothing
            pause_s = self.next_pause_s
            self.next_pause_s = min(2 * self.next_pause_s, LONGEST_OWN_PAUSE_S)
        self.paused_until_s = max(self.paused_until_s, now_s + min(pause_s, LONGEST_PAUSE_S))

    def _learn(self, kind: LimitKind, window: LimitWindow, now_s: float) -> None:
        known_until_s = now_s + (MEMORY_S if window.reset_s is None else window.reset_s)
        before = self.limits.get(kind)
        used, ends_s = 0.0, known_until_s
        if before is not None and now_s < before.ends_s:  # still the window of the previous response
            used, ends_s = before.used, before.ends_s
        self.limits[kind] = KnownLimit(window.remaining, known_until_s, ends_s, used_before=used, used=used)
