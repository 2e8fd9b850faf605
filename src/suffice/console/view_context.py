"""What a view may look at, and how it says that there is nothing to see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlencode

from suffice.errors import BadRequest
from suffice.settings import Route, Settings
from suffice.store.database.views import LogReader
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S

T = TypeVar("T")

LOOK_S: Final = 0.3  # a filter that hardly anything fits looks through so much, and says where it stopped
DAY_S: Final = 86_400
WINDOWS: Final[Mapping[str, int]] = {"1": 1, "7": 7, "30": 30, "90": 90, "all": 0}  # days of the totals; 0: all of it
USUAL_WINDOW: Final = "30"


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewContext:
    """One look at the log."""

    connection: LogReader  # reads only
    settings: Settings
    path: Path  # of the log
    now_s: float  # Unix time
    monotonic_s: Callable[[], float]
    begun_s: float = 0.0  # Unix time since which these pages are there
    killed: bool = False  # is the kill switch on?

    def route(self, name: str) -> Route | None:
        """A route's settings; None: the log knows it, and the settings do not."""
        return self.settings.routes.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRange:
    """Which stretch of time totals are of."""

    name: str  # a key of WINDOWS
    days: int  # 0: all of it
    since_hour: int  # since 1970, UTC

    @property
    def said(self) -> str:
        """In words."""
        return (
            "since the beginning" if not self.days else "last 24 hours" if self.days == 1 else f"last {self.days} days"
        )


def page_of(
    look: ViewContext, found: Iterable[tuple[int, T | None]], limit: int
) -> tuple[tuple[T, ...], int | None, bool]:
    """What fits, up to `limit`; the place to go on from, None: nothing is older; and whether time ran out first.

    found  places, newest first, each with what fits there; None: nothing
    """
    lines, older, end_s = list[T](), 0, look.monotonic_s() + LOOK_S
    for place, line in found:
        older = place
        if line is not None:
            lines.append(line)
        if len(lines) == limit:
            return tuple(lines), older, False
        if look.monotonic_s() > end_s:
            return tuple(lines), older, True
    return tuple(lines), None, False


class NotThere(BadRequest):
    """What was asked for is not in the log."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404, code="not_found")


def parse_window(query: Mapping[str, str], now_s: float) -> TimeRange:
    """The stretch that was asked for. Raises BadRequest for one that is not offered."""
    name = query.get("days") or USUAL_WINDOW
    if name not in WINDOWS:
        raise BadRequest(f"days: got {name[:40]!r}; allowed: {', '.join(WINDOWS)}", param="days")
    days = WINDOWS[name]
    if days == 1:
        return TimeRange(name=name, days=days, since_hour=int((now_s - DAY_S) // HOUR_S))
    first_day = int(now_s // DAY_S) - days + 1  # whole days, today among them
    return TimeRange(name=name, days=days, since_hour=DAY_HOURS * first_day if days else 0)


def route_url(name: str) -> str:
    """Where a route's own page is. A name may hold anything, also a slash, so it stands in the query."""
    return f"/console/route?{urlencode({'name': name})}"
