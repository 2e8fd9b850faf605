"""Rate limits in headers: every spelling in use, and nonsense, which is unknown and never an error."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.upstream.allowance import MAX_RESET_S, LimitWindow, duration_s, read_limits, retry_after_s

NOW_S = 1_764_000_000.0
IN_90_S = datetime.fromtimestamp(NOW_S + 90, UTC)

TEXTS = st.text(max_size=80) | st.from_regex(r"[\d.]{1,12}(ms|s|m|h|d)?([\d.]{1,6}s)?", fullmatch=True)
NAMES = st.sampled_from(
    [
        "retry-after",
        "Retry-After-Ms",
        "ratelimit",
        "RateLimit-Policy",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "x-ratelimit-limit-requests",
        "X-RateLimit-Remaining-Requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ]
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("1m30.5s", 90.5),
        ("200ms", 0.2),
        ("6m0s", 360.0),
        ("1h", 3_600.0),
        ("2d1h", 176_400.0),
        (format_datetime(IN_90_S, usegmt=True), 90.0),
        (IN_90_S.isoformat(), 90.0),
        (IN_90_S.strftime("%Y-%m-%dT%H:%M:%SZ"), 90.0),
        (str(int(NOW_S + 90)), 90.0),
        (str(int(NOW_S + 90) * 1_000), 90.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_durations_and_moments(text: str, seconds: float) -> None:
    assert duration_s(text, wall_s=NOW_S) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "soon",
        "-5",
        "nan",
        "inf",
        "1e3",
        "1_000",
        "5 s later",
        "٣",
        "1x",
        "s",
        "9" * 30,
        "99999999d",
        "Mon, 99 Foo 2025 00:00:00 GMT",
        "0001-01-01T00:00:00+14:00x",
    ],
)
def test_nonsense_is_unknown(text: str | None) -> None:
    assert duration_s(text, wall_s=NOW_S) is None


def test_every_spelling_in_use() -> None:
    openai = [
        ("X-RateLimit-Limit-Requests", "500"),
        ("x-ratelimit-remaining-requests", "499"),
        ("x-ratelimit-reset-requests", "120ms"),
        ("x-ratelimit-limit-tokens", "30000"),
        ("x-ratelimit-remaining-tokens", "29000"),
        ("x-ratelimit-reset-tokens", "1m2s"),
    ]
    assert read_limits(openai, wall_s=NOW_S) == {
        "requests": LimitWindow(remaining=499, reset_s=0.12),
        "tokens": LimitWindow(remaining=29_000, reset_s=62.0),
    }
    anthropic = [
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-requests-reset", IN_90_S.isoformat()),
        ("anthropic-ratelimit-input-tokens-remaining", "7000"),
    ]
    assert read_limits(anthropic, wall_s=NOW_S) == {
        "requests": LimitWindow(remaining=49, reset_s=90.0),
        "tokens": LimitWindow(remaining=7_000),
    }
    now = [("RateLimit", '"default";r=50;t=30'), ("RateLimit-Policy", '"default";q=100;w=60')]
    assert read_limits(now, wall_s=NOW_S) == {"requests": LimitWindow(remaining=50, reset_s=30.0)}
    before = [("ratelimit", "limit=100, remaining=40, reset=5")]
    assert read_limits(before, wall_s=NOW_S) == {"requests": LimitWindow(remaining=40, reset_s=5.0)}
    parts = [("ratelimit-limit", "100"), ("ratelimit-remaining", "3"), ("ratelimit-reset", "5")]
    assert read_limits(parts, wall_s=NOW_S) == {"requests": LimitWindow(remaining=3, reset_s=5.0)}
    assert read_limits([("ratelimit", '"b";r=9'), ("ratelimit-policy", '"b";q=9;qu="content-bytes"')], wall_s=0) == {}
    assert retry_after_s([("Retry-After", "7")], wall_s=NOW_S) == 7.0
    assert retry_after_s([("retry-after", "7"), ("retry-after-ms", "1500")], wall_s=NOW_S) == 1.5
    assert retry_after_s([], wall_s=NOW_S) is None


@given(headers=st.lists(st.tuples(NAMES, TEXTS), max_size=8))
def test_no_header_is_an_error_and_no_number_is_out_of_range(headers: list[tuple[str, str]]) -> None:
    for window in read_limits(headers, wall_s=NOW_S).values():
        assert window.remaining >= 0
        assert window.reset_s is None or 0 <= window.reset_s <= MAX_RESET_S
    request = retry_after_s(headers, wall_s=NOW_S)
    assert request is None or 0 <= request <= MAX_RESET_S
