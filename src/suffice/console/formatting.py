"""Numbers and times as people read them: with their unit, rounded as far as they say something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from suffice.assurance.money import usd
from suffice.assurance.satisfaction import EVENTS, SATISFACTION, SatisfactionEffect
from suffice.rollout.results import metric_of
from suffice.sanitize import plural

UNKNOWN: Final = "not measured"
MINUS: Final = "\N{MINUS SIGN}"
_STEPS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent.

    >>> [format_percent(x) for x in (0.3141, 1, None)]
    ['31.4 %', '100.0 %', 'not measured']
    """
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def format_points(value: float | None, digits: int = 2) -> str:
    """A difference of two rates in points, with its sign.

    >>> [format_points(x) for x in (0.0123, -0.004, 0.0)]
    ['+1.23 points', '−0.40 points', '0.00 points']
    """
    if value is None:
        return UNKNOWN
    size = f"{abs(100 * value):.{digits}f}"
    sign = "" if float(size) == 0 else "+" if value > 0 else MINUS
    return f"{sign}{size} points"


def between(low: float | None, high: float | None, show: str = "percent", digits: int = 1) -> str:
    """Both ends behind a value that has its unit already; "" where there is no interval.

    >>> [between(0.667, 0.806), between(-0.0375, 0.0439, "points", 2), between(None, None)]
    ['66.7 to 80.6', '−3.75 to +4.39', '']
    """
    if low is None or high is None:
        return ""
    if show == "points":
        return " to ".join(format_points(one, digits).removesuffix(" points") for one in (low, high))
    if show == "percent":
        return " to ".join(format_percent(one, digits).removesuffix(" %") for one in (low, high))
    return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", MINUS)


def format_count(value: float | None) -> str:
    """A count."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def format_large(value: float | None) -> str:
    """A large count with three digits that say something.

    >>> [format_large(x) for x in (12, 999, 1_234, 12_345_678, 2.5e9)]
    ['12', '999', '1.23 k', '12.3 M', '2.50 G']
    """
    if value is None:
        return UNKNOWN
    for size, unit in _STEPS:
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0}f} {unit}"
    return f"{value:,.0f}"


def money(value: float | None) -> str:
    """US dollars."""
    return UNKNOWN if value is None else usd(value).replace("-", MINUS)


def format_number(value: float | None, digits: int = 3) -> str:
    """A plain number."""
    return "–" if value is None else f"{value:.{digits}f}"


def format_moment(at_s: float | None) -> str:
    """A moment, UTC."""
    if not at_s:
        return "never"
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(at_s: float | None) -> str:
    """A moment as machines read it."""
    return datetime.fromtimestamp(at_s or 0, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def format_day(day: int) -> str:
    """A day that is counted since 1970."""
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def lasted(seconds: float | None) -> str:
    """A length of time.

    >>> [lasted(x) for x in (0.0421, 1.5, 75, 7_300, 200_000)]
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


def ago(at_s: float | None, now_s: float) -> str:
    """How long ago a moment was."""
    return "never" if not at_s else f"{lasted(max(0.0, now_s - at_s))} ago"


def size(n_bytes: float) -> str:
    """An amount of bytes."""
    return (
        f"{n_bytes / 1e9:.2f} GB"
        if n_bytes >= 1e9
        else f"{n_bytes / 1e6:.1f} MB"
        if n_bytes >= 1e5
        else f"{n_bytes:,.0f} bytes"
    )


def format_difference(value: float | None, metric: str) -> str:
    """A difference between two arms of an experiment, in the metric's own unit and with its sign.

    >>> [format_difference(-0.0224, "em"), format_difference(0.3, "satisfaction"), format_difference(-482.94, "tokens")]
    ['−2.24', '+30.0', '−482.9']
    """
    if value is None:
        return "–"
    of = metric_of(metric)
    size = of.size(value)
    sign = "" if not float(size.replace(",", "")) else "+" if value > 0 else MINUS
    return f"{sign}{size}"


def format_name(name: str, instead: str = "none") -> str:
    """A name, or what stands for an empty one."""
    return name or instead


def query(fields: Mapping[str, Any]) -> str:
    """Fields as an address has them. Any: they are turned into text."""
    return urlencode({key: str(value) for key, value in fields.items()})


def format_verdict(liking: SatisfactionEffect) -> str:
    """What stopping surely does to a measure: "worse", "better", or "" where no difference is proven."""
    effect = liking.effect
    if effect is None or effect.low is None or effect.high is None or effect.low <= 0 <= effect.high:
        return ""
    return "better" if (effect.low > 0) == (liking.better == "higher") else "worse"


def is_rate(liking: SatisfactionEffect) -> bool:
    """Is a measure a share of 1, and not a declared metric in a unit of its own?"""
    return liking.measure in (SATISFACTION, *EVENTS.values()) or "=" in liking.measure


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "percent": format_percent,
    "points": format_points,
    "whole": format_count,
    "short": format_large,
    "money": money,
    "number": format_number,
    "when": format_moment,
    "iso": iso,
    "date": format_day,
    "lasted": lasted,
    "ago": ago,
    "size": size,
    "named": format_name,
    "difference": format_difference,
    "query": query,
    "plural": plural,
    "verdict": format_verdict,
    "between": between,
    "is_rate": is_rate,
}
