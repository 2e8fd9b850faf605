"""Looks for runs: latest first, with a text, by how their id begins, of one question, at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from suffice.store.database.views import last_place, query_rows
from suffice.store.sql import LogReader
from suffice.types import Request

# Written so that SQLite goes backwards through the log instead of sorting all of it, and that PostgreSQL looks for the
# labels of these runs: for EXISTS, it may read all labels first.
_RUNS_BEFORE: Final = """
    SELECT o.seq, o.at_s, o.body, r.body,
        (SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = o.key LIMIT 1) IS NOT NULL
    FROM events o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE +o.kind = 'outcome' AND o.seq < :before AND o.seq >= :since
        AND (CAST(:route AS TEXT) IS NULL OR r.route = :route){of_tenants}{with_text}
    ORDER BY o.seq DESC LIMIT :limit"""
# Of the bodies as they are stored: the caller looks at the fields of what is found.
_WITH_TEXT: Final = " AND (lower(r.body) LIKE :text ESCAPE '!' OR lower(o.body) LIKE :text ESCAPE '!')"
_NAMED_LIKE: Final = """
    SELECT key, at_s FROM events WHERE kind = :kind AND key >= :prefix AND key < :prefix || :behind
    ORDER BY key DESC LIMIT :limit"""
_PLAIN: Final = re.compile(r"[ !#-<>-\[\]-~]+")
_OF_QUESTION: Final = """
    SELECT key FROM (
        SELECT seq, key, body FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route
            AND seq > :since AND seq < :until ORDER BY seq DESC LIMIT :looked
    ) latest WHERE json_extract(body, '$.request.question_key') = :question ORDER BY seq DESC LIMIT :limit"""
_OF_TENANTS: Final = " AND coalesce(json_extract(r.body, '$.request.tenant'), '') IN ({names})"


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
    # Parameters of both databases are named by letters.
    values: dict[str, object] = {f"tenant_{'i' * at}": name for at, name in enumerate(tenants or (), 1)}
    if tenants is not None and not values:
        return []
    of_tenants = _OF_TENANTS.format(names=", ".join(f":{name}" for name in values)) if values else ""
    if text:
        # Only ASCII has one lower case on both databases, and only without marks that JSON escapes or splits at.
        part = max(_PLAIN.findall(text.lower()), key=len, default="")
        values["text"] = "%" + re.sub("([!%_])", r"!\1", part) + "%"
    query = _RUNS_BEFORE.format(of_tenants=of_tenants, with_text=_WITH_TEXT if text else "")
    return query_rows(reader, query, {"before": before, "since": since_seq, "route": route, "limit": n, **values})


def find_names(reader: LogReader, prefix: str, *, most: int) -> list[tuple[str, float]]:
    """Return the runs whose id begins with a text, and when they began, found by the index of ids."""
    wanted = {"kind": "request", "prefix": prefix, "behind": "\U0010ffff", "limit": most}
    return [(key, at_s) for key, at_s in query_rows(reader, _NAMED_LIKE, wanted)]


def runs_of_question(reader: LogReader, request: Request, *, near: int, looked: int, most: int) -> list[str]:
    """Return runs of a request's question on its route among those that began within `looked` rows of a place."""
    wanted = {"route": request.route, "question": request.question_key, "looked": looked, "limit": most}
    wanted |= {"since": near - looked, "until": near + looked}
    return [key for (key,) in query_rows(reader, _OF_QUESTION, wanted)]


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
