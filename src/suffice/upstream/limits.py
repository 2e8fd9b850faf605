"""Rate limits as model servers tell them in headers, read tolerantly. Pure.

It knows the spellings in use and refuses to know what follows from them (`allowance`). What makes
no sense is unknown, never an error: a header must not cost an answer.

    x-ratelimit-limit-requests, -remaining-, -reset-; …-tokens   OpenAI, Groq, Mistral, vLLM routers
    anthropic-ratelimit-requests-limit, -remaining, -reset; …-tokens, …-input-tokens
    ratelimit: "name";r=50;t=30 with ratelimit-policy: "name";q=100;w=60    IETF draft
    ratelimit: limit=100, remaining=50, reset=30; ratelimit-limit, …        IETF drafts before
    retry-after: seconds or an HTTP date; retry-after-ms
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Literal

LimitKind = Literal["requests", "tokens"]
MAX_COUNT = 10**15
MAX_RESET_S = 30 * 86_400.0  # longer windows are not believed

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|s|m|h|d)")
_UNIT_S: Mapping[str, float] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3_600.0,
    "d": 86_400.0,
}
_PAIR = re.compile(r"\b(limit|remaining|reset|r|t|q)\s*=\s*(\d+(?:\.\d+)?)")
# For each kind, spellings of (limit, remaining, reset), the more particular ones first.
_SPELLINGS: Mapping[LimitKind, tuple[tuple[str, str, str], ...]] = {
    "requests": (
        ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        (
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
            "anthropic-ratelimit-requests-reset",
        ),
        ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
        ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),
    ),
    "tokens": (
        ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        (
            "anthropic-ratelimit-tokens-limit",
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-tokens-reset",
        ),
        (
            "anthropic-ratelimit-input-tokens-limit",
            "anthropic-ratelimit-input-tokens-remaining",
            "anthropic-ratelimit-input-tokens-reset",
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWindow:
    """One rate limit as it stood when the answer came. None: it was not told."""

    remaining: int
    limit: int | None = None
    reset_s: float | None = None  # seconds until it is full again


def read_limits(headers: Iterable[tuple[str, str]], *, wall_s: float) -> dict[LimitKind, LimitWindow]:
    """The limits that an answer tells; {} when it tells none that can be read.

    wall_s  Unix time now, for servers that tell a moment instead of a duration
    """
    given: dict[str, str] = {}
    for name, value in headers:
        # A header may come twice; the first one counts.
        given.setdefault(name.lower(), value)
    found: dict[LimitKind, LimitWindow] = {}
    for kind, spellings in _SPELLINGS.items():
        for limit, remaining, reset in spellings:
            left = _count(given.get(remaining))
            if left is not None:
                found[kind] = LimitWindow(
                    remaining=left,
                    limit=_count(given.get(limit)),
                    reset_s=duration_s(given.get(reset), wall_s=wall_s),
                )
                break
    if "requests" not in found and "ratelimit" in given:
        window = _structured(given["ratelimit"], given.get("ratelimit-policy", ""))
        if window is not None:
            found["requests"] = window
    return found


def _structured(value: str, policy: str) -> LimitWindow | None:
    """The IETF field: `"default";r=50;t=30`, or the pairs of earlier drafts. The first policy counts."""
    if "qu=" in policy and 'qu="requests"' not in policy:
        return None  # bytes or connections: nothing that a call could be counted in
    pairs = {key: float(number) for key, number in reversed(_PAIR.findall(value))}
    left = pairs.get("remaining", pairs.get("r"))
    if left is None or left > MAX_COUNT:
        return None
    quota = dict(reversed(_PAIR.findall(policy))).get("q")
    limit = pairs.get("limit", None if quota is None else float(quota))
    reset = pairs.get("reset", pairs.get("t"))
    return LimitWindow(
        remaining=int(left),
        limit=None if limit is None or limit > MAX_COUNT else int(limit),
        reset_s=None if reset is None or reset > MAX_RESET_S else reset,
    )


def retry_after_s(headers: Iterable[tuple[str, str]], *, wall_s: float) -> float | None:
    """How long the server asks to be left alone, in seconds, at least 0; None: it does not say."""
    given = {name.lower(): value for name, value in headers}
    in_ms = _number(given.get("retry-after-ms"))
    if in_ms is not None:
        return min(in_ms / 1e3, MAX_RESET_S)
    return duration_s(given.get("retry-after"), wall_s=wall_s)


def duration_s(text: str | None, *, wall_s: float) -> float | None:
    """Seconds from now, from `30`, `1m30.5s`, `200ms`, an HTTP date, an ISO time or Unix seconds; else None."""
    if text is None:
        return None
    text = text.strip()
    number = _number(text)
    if number is not None:
        number = _since(number, wall_s)
    elif text and not _DURATION.sub("", text):
        number = sum(float(size) * _UNIT_S[unit] for size, unit in _DURATION.findall(text))
    else:
        at_s = _moment_s(text)
        number = None if at_s is None else at_s - wall_s
    if number is None or not isfinite(number) or number > MAX_RESET_S:
        return None
    return max(0.0, number)


def _since(number: float, wall_s: float) -> float:
    """A bare number: a duration, or a moment in Unix seconds or milliseconds."""
    if number > 1e11:
        return number / 1e3 - wall_s
    return number - wall_s if number > 1e8 else number


def _moment_s(text: str) -> float | None:
    """Unix time of an HTTP date or an ISO time, UTC where neither says; None: it is neither."""
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
    """A plain number of at least 0. Not what Python reads more: no `1_000`, no `nan`, no `1e9`."""
    if text is None or not re.fullmatch(r"\s*\d{1,20}(\.\d{1,20})?\s*", text, re.ASCII):
        return None
    return float(text)


def _count(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None or number > MAX_COUNT else int(number)
