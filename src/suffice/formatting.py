"""Format numbers, intervals and times for people, with units and sensible rounding."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.money import usd
from suffice.sanitize import plural

UNKNOWN: Final = "not measured"
MINUS: Final = "\N{MINUS SIGN}"
_STEPS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_LAST_S: Final = 253_402_300_800.0  # Unix time of the year 10000
_FIRST_S: Final = datetime.min.replace(tzinfo=UTC).timestamp()


def format_percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction in per cent.

    >>> [format_percent(x) for x in (0.3141, 1, None)]
    ['31.4 %', '100.0 %', 'not measured']
    """
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def format_points(value: float | None, digits: int = 2) -> str:
    """Format a difference of two rates in percentage points, with its sign.

    >>> [format_points(x) for x in (0.0123, -0.004, 0.0)]
    ['+1.23 points', '−0.40 points', '0.00 points']
    """
    if value is None:
        return UNKNOWN
    size = f"{abs(100 * value):.{digits}f}"
    sign = "" if float(size) == 0 else "+" if value > 0 else MINUS
    return f"{sign}{size} points"


def format_bounds(low: float | None, high: float | None, show: str = "percent", digits: int = 1) -> str:
    """Format an interval without its unit, which the value before it carries; "" for no interval.

    >>> [format_bounds(0.667, 0.806), format_bounds(-0.0375, 0.0439, "points", 2), format_bounds(None, None)]
    ['66.7 to 80.6', '−3.75 to +4.39', '']
    """
    if low is None or high is None:
        return ""
    if show not in ("points", "percent"):
        return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", MINUS)
    format_one = format_points if show == "points" else format_percent
    return " to ".join(format_one(one, digits).rpartition(" ")[0] for one in (low, high))


def format_count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def format_large(value: float | None) -> str:
    """Format a large count with three significant digits.

    >>> [format_large(x) for x in (12, 999, 1_234, 12_345_678, 2.5e9)]
    ['12', '999', '1.23 k', '12.3 M', '2.50 G']
    """
    for size, unit in _STEPS:
        if value is not None and abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0}f} {unit}"
    return format_count(value)


def format_usd(value: float | None) -> str:
    return UNKNOWN if value is None else usd(value).replace("-", MINUS)


def format_number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def format_moment(at_s: float | None) -> str:
    return datetime.fromtimestamp(max(at_s, _FIRST_S), UTC).strftime("%Y-%m-%d %H:%M:%S") if at_s else "never"


def format_iso(at_s: float | None, sep: str = "T") -> str:
    return datetime.fromtimestamp(at_s or 0, UTC).isoformat(sep, "seconds").replace("+00:00", "Z")


def format_day(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def format_duration(seconds: float | None) -> str:
    """Format a duration.

    >>> [format_duration(x) for x in (0.0421, 1.5, 75, 7_300, 200_000)]
    ['42 ms', '1.50 s', '75 s', '2.0 hours', '2.3 days']
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{1_000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3_600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def format_age(at_s: float | None, now_s: float) -> str:
    return "never" if not at_s else f"{format_duration(max(0.0, now_s - at_s))} ago"


def format_bytes(n_bytes: float) -> str:
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes:,.0f} bytes"


def format_time(at_s: float | None) -> str:
    """Format a Unix time; None, and what lies beyond the calendar's last year, is never.

    >>> format_time(1_790_003_600.0), format_time(1e17)
    ('2026-09-21 15:13 UTC', 'never')
    """
    if at_s is None or at_s >= _LAST_S:
        return "never"
    return datetime.fromtimestamp(max(at_s, _FIRST_S), UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_estimate(one: IntervalEstimate | None, show: Callable[[float], str], sure: str, *, unit: str = "") -> str:
    """Format an estimate with its interval, sample size and note.

    sure  the interval's confidence, as "95%"
    unit  what n counts; "": written as n=…
    """
    if one is None:
        return UNKNOWN
    ends = "" if one.low is None or one.high is None else f" [{show(one.low)}, {show(one.high)}] at {sure}"
    counted = plural(one.n, unit) if unit else f"n={one.n:,}"
    return f"{show(one.value)}{ends}, {counted}" + (f" ({one.note})" if one.note else "")
