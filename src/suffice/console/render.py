"""Renders templates, which escape all values and show what no page may obey, and serves static files.

Without jinja2 only `/api` works.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlencode

from suffice import formatting
from suffice.assurance.clusters import describe_clusters
from suffice.assurance.satisfaction import EVENTS, SATISFACTION, SatisfactionEffect
from suffice.console.views.precision import describe_needed, says_nothing
from suffice.extras import how_to_install
from suffice.rollout.results import metric_of
from suffice.sanitize import plural, printable_text
from suffice.store.people.audit_view import describe_level
from suffice.store.routes.period import PeriodFigures
from suffice.store.routes.rollups import DAY_HOURS

if TYPE_CHECKING:
    from jinja2 import Environment


def format_difference(value: float | None, metric: str) -> str:
    """A difference between two arms of an experiment, in the metric's own unit and with its sign.

    >>> [format_difference(-0.0224, "em"), format_difference(0.3, "satisfaction"), format_difference(-482.94, "tokens")]
    ['−2.24', '+30.0', '−482.9']
    """
    if value is None:
        return "–"
    size = metric_of(metric).size(value)
    sign = "" if not float(size.replace(",", "")) else "+" if value > 0 else formatting.MINUS
    return f"{sign}{size}"


def format_verdict(satisfaction: SatisfactionEffect) -> str:
    effect = satisfaction.effect
    if effect is None or effect.low is None or effect.high is None or effect.low <= 0 <= effect.high:
        return ""
    return "better" if (effect.low > 0) == (satisfaction.better == "higher") else "worse"


def is_rate(satisfaction: SatisfactionEffect) -> bool:
    return satisfaction.measure in (SATISFACTION, *EVENTS.values()) or "=" in satisfaction.measure


def format_bucket(begin_s: int, hours: int) -> str:
    """A bucket of time by its beginning, UTC.

    >>> [format_bucket(1_790_002_800, 1), format_bucket(1_789_948_800, 24)]
    ['2026-09-21 15:00', '2026-09-21']
    """
    return formatting.format_iso(begin_s, " ")[: 16 if hours < DAY_HOURS else 10]


def spark_points(buckets: Sequence[PeriodFigures], of: Literal["drop", "saved", "requests"]) -> str:
    """The points of a line 60 wide and 16 high, with 0 within its height."""
    values = [_SPARKS[of](one) for one in buckets]
    known = [(one.begin_hour, value) for one, value in zip(buckets, values, strict=True) if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(0.0, *(value for _, value in known)), max(0.0, *(value for _, value in known))
    first, last = known[0][0], known[-1][0]
    return " ".join(
        f"{60 * (hour - first) / (last - first):.1f},{15 - 14 * (value - low) / ((high - low) or 1.0):.1f}"
        for hour, value in known
    )


_SPARKS: Final[Mapping[str, Callable[[PeriodFigures], float | None]]] = {
    "drop": lambda one: None if one.em_drop is None else one.em_drop.value,
    "saved": lambda one: one.saved_tokens,
    "requests": lambda one: float(one.sums.n_requests),
}
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "percent": formatting.format_percent,
    "points": formatting.format_points,
    "whole": formatting.format_count,
    "short": formatting.format_large,
    "money": formatting.format_usd,
    "number": formatting.format_number,
    "when": formatting.format_moment,
    "iso": formatting.format_iso,
    "date": formatting.format_day,
    "lasted": formatting.format_duration,
    "ago": formatting.format_age,
    "size": formatting.format_bytes,
    "between": formatting.format_bounds,
    "named": lambda name, instead="none": name or instead,
    "query": lambda fields: urlencode({key: str(value) for key, value in fields.items()}),
    "difference": format_difference,
    "plural": plural,
    "clusters": describe_clusters,
    "verdict": format_verdict,
    "is_rate": is_rate,
    "bucket": format_bucket,
    "spark": spark_points,
    "says_nothing": says_nothing,
    "needed": describe_needed,
    "level": describe_level,
}
HERE: Final = Path(__file__).parent
KINDS: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
STATIC: Final = {path.name: KINDS[path.suffix] for path in (HERE / "static").iterdir() if path.suffix in KINDS}


def can_render() -> bool:
    return find_spec("jinja2") is not None


def missing_package_page() -> bytes:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Suffice</title><h1>The console needs a package</h1>"
        f"<p>Run <code>{html.escape(how_to_install('console'))}</code>, and start again."
        " The API below <code>/api</code> works without it."
    ).encode()


def page(template: str, values: Mapping[str, Any]) -> bytes:
    text: str = _environment().get_template(template).render(values)
    return text.encode("utf-8", "replace")


def _show(value: object) -> object:
    """Replace what could hide or turn text on a page, such as ESC and marks of direction; markup is our own."""
    return printable_text(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        autoescape=True,
        finalize=_show,
        undefined=StrictUndefined,
        loader=FileSystemLoader(HERE / "templates"),
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    made.globals["static"] = asset_url
    return made


@lru_cache(maxsize=len(STATIC) + 1)
def static(name: str) -> tuple[bytes, str]:
    """Return a static file and its media type. Raises KeyError for an unknown name."""
    return (HERE / "static" / name).read_bytes(), STATIC[name]


@lru_cache(maxsize=len(STATIC))
def asset_url(name: str) -> str:
    return f"/console/static/{hashlib.sha256(static(name)[0]).hexdigest()[:12]}/{name}"
