"""Looks for runs: latest first, with a text, by how their id begins, of one question, at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from suffice.store.database.views import last_place, names_in, query_rows
from suffice.store.sql import LogReader
from suffice.types import Request

_PLAIN: Final = re.compile(r"[ !#-<>-\[\]-~]+")


def read_runs_before(
    reader: LogReader,
    before: int,
    route: str | None,
    n: int,
    *,
    tenants: Sequence[str] | None,
    since_seq: int = 0,
    text: str = "",
) -> list[tuple[int, float, str, str, bool]]:
    """Return the runs that ended before a place, latest first: place, time, both bodies, and whether it has a label.

    tenants    only theirs; None: of all
    since_seq  only runs that ended from this place on: a route may have few
    text       only runs that may have it in a field, in either case; "": all. The caller looks at the fields
    """
    if tenants is not None and not tenants:
        return []
    part = None
    if text:
        # Only ASCII has one lower case on both databases, and only without marks that JSON escapes or splits at.
        plain = max(_PLAIN.findall(text.lower()), key=len, default="")
        part = "%" + re.sub("([!%_])", r"!\1", plain) + "%"
    of = None if tenants is None else names_in(tenants)
    return query_rows(reader, "runs_before", (before, since_seq, route, of, part, n))


def find_names(reader: LogReader, prefix: str, *, most: int) -> list[tuple[str, float]]:
    """Return the runs whose id begins with a text, and when they began, found by the index of ids."""
    wanted = {"kind": "request", "prefix": prefix, "behind": "\U0010ffff", "limit": most}
    return [(key, at_s) for key, at_s in query_rows(reader, "runs_named", wanted)]


def runs_of_question(reader: LogReader, request: Request, *, near: int, looked: int, most: int) -> list[str]:
    """Return runs of a request's question on its route among those that began within `looked` rows of a place."""
    wanted = {"route": request.route, "question": request.question_key, "looked": looked, "limit": most}
    wanted |= {"since": near - looked, "until": near + looked}
    return [key for (key,) in query_rows(reader, "runs_of_question", wanted)]


def place_at(reader: LogReader, at_s: float) -> int:
    """Return the place after which rows are as late as a time, by halving: the log has no index of times."""
    low, high = 0, last_place(reader)
    while low < high:
        middle = (low + high + 1) // 2
        rows = query_rows(reader, "SELECT seq, at_s FROM events WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,))
        if rows and rows[0][0] <= high and rows[0][1] < at_s:
            low = rows[0][0]
        else:
            high = middle - 1
    return low
