"""What people hold on a route and what waits for them, as `suffice status` says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from suffice.review.override import Override
    from suffice.review.queue import ItemState
    from suffice.store.database.views import LogReader
    from suffice.store.people.holds import Holds


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHoldings:
    """One route, as far as people are concerned."""

    overrides: tuple[str, ...]  # that hold now, in words, with who and until when
    incidents: tuple[str, ...]  # that wait for a decision: name and summary
    n_to_review: int  # items that a reviewer can take now
    n_contradicted: int  # of them: reviewers contradict each other


def read_held(connection: LogReader, holds: Holds, *, now_s: float) -> dict[str, RouteHoldings]:
    """Every route on which people hold something, or on which something waits for them. Raises StoreError."""
    from suffice.store.people.reviews import read_reviews

    waiting: dict[str, list[ItemState]] = {}
    for one in read_reviews(connection).queue.waiting(now_s=now_s):
        waiting.setdefault(one.item.route, []).append(one)
    found = dict[str, RouteHoldings]()
    for name in {*holds.routes, *waiting}:
        held, mine = holds.of(name), waiting.get(name, [])
        found[name] = RouteHoldings(
            overrides=override_words(held.overrides, now_s),
            incidents=tuple(f"{case.incident.incident}: {case.incident.summary}" for case in held.open_cases),
            n_to_review=len(mine),
            n_contradicted=sum(one.needs_third for one in mine),
        )
    return found


def override_words(overrides: Iterable[Override], now_s: float) -> tuple[str, ...]:
    """Those that hold now: what, until when, by whom and why."""
    from suffice.cli.deciding import format_time
    from suffice.review.override import describe_override, standing

    return tuple(
        f"{describe_override(one)} until {format_time(one.expires_at_s)}, by {one.author}: {one.reason}"
        for one in standing(overrides, now_s)
    )


def held_lines(one: RouteHoldings | None) -> list[tuple[str, str]]:
    """What a reader sees; nothing where nobody is concerned."""
    if one is None:
        return []
    from suffice.sanitize import plural, printable

    lines = [("INCIDENT", f"WAITS FOR A DECISION: {printable(said)}") for said in one.incidents]
    lines += [("held by a person", printable(said)) for said in one.overrides]
    if one.n_to_review:
        third = f", {one.n_contradicted:,} of them contradicted" if one.n_contradicted else ""
        lines.append(("to review", f"{plural(one.n_to_review, 'run')}{third}: suffice review next"))
    return lines
