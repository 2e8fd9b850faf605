"""The audit log: who decided what, when and why, the latest first, with the row that it was written in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from suffice.console.auth import Principal
from suffice.console.exchange import ConsoleRequest
from suffice.console.view_context import ViewContext, page_of
from suffice.console.views.episodes import whole_of
from suffice.errors import BadRequest
from suffice.store.audit.chain import Head, head
from suffice.store.people.audit_view import AuditEntry, entry_of, rows_before
from suffice.store.rows.events import EVENTS

PAGE: Final = 50
CHUNK: Final = 500
# What the log is full of, and nobody decides: it has pages of its own, or says nothing to a person …
HIDDEN: Final = frozenset(
    {
        "request",
        "outcome",
        "feedback",
        "route_monitored",
        "job_ran",
        "label_wanted",
        "requests_counted",
    }
)
# … and what is shown where somebody asks for it.
QUIET: Final = HIDDEN | {
    "review_asked",
    "review_drawn",
    "review_leased",
    "review_returned",
    "question_kept",
    "sources_kept",
    "alert_sent",
}
MOST_BODY_CHARS: Final = 6_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One row of the audit log, as `suffice audit` says it too."""

    seq: int  # its place in the log
    place: int | None  # in the chain that vouches for it; None: this log has no chain
    at_s: float
    kind: str
    route: str
    author: str  # a person, or a worker; "": nobody is named
    before: str  # what held, in words; "": there was nothing, or it is in no row
    after: str  # what holds, in words
    reason: str
    body: str  # the whole record as JSON, cut where it is long


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """A page of the audit log."""

    lines: tuple[AuditRow, ...]
    older: int | None  # place to go on from; None: these were all
    cut_short: bool  # did the look stop before the page was full?
    kind: str  # only this one; "": all
    route: str  # only this one; "": all
    kinds: tuple[str, ...]  # to choose from
    routes: tuple[str, ...]
    head: Head | None  # where the chain ends now; None: this log has none


def changes(look: ViewContext, asked: ConsoleRequest, _visitor: Principal) -> Changes:
    """The latest changes that fit. Raises StoreError, and BadRequest for a kind that there is not."""
    kind, route = asked.query.get("kind", ""), asked.query.get("route", "")
    kinds = tuple(sorted(set(EVENTS) - HIDDEN))
    if kind and kind not in kinds and kind != "feedback":
        raise BadRequest(f"kind: got {kind[:40]!r}; allowed: {', '.join(kinds)}", param="kind")
    before = whole_of(asked.query, "before", 0, most=2**53)
    lines, older, cut_short = page_of(look, _looked_through(look, before or 2**62, kind, route), PAGE)
    return Changes(
        lines=lines,
        older=older,
        cut_short=cut_short,
        kind=kind,
        route=route,
        kinds=kinds,
        routes=tuple(look.settings.routes),
        head=head(look.connection),
    )


def _looked_through(look: ViewContext, before: int, kind: str, route: str) -> Iterator[tuple[int, AuditRow | None]]:
    chained = head(look.connection) is not None
    while True:
        rows = rows_before(look.connection, before, CHUNK, chained=chained)
        for row in rows:
            place, its_kind, its_route = row[0], row[4], row[7]
            fits = its_kind == kind if kind else its_kind not in QUIET
            if not fits or (route and its_route != route):
                yield place, None
            else:
                yield place, _change(entry_of(look.connection, row), chained=chained)
        if len(rows) < CHUNK:
            return
        before = rows[-1][0]


def _change(entry: AuditEntry, *, chained: bool) -> AuditRow:
    return AuditRow(
        seq=entry.seq,
        place=entry.place if chained else None,
        at_s=entry.at_s,
        kind=entry.kind,
        route=entry.route or "",
        author=entry.who,
        before=entry.before,
        after=entry.after,
        reason=entry.why,
        body=_pretty(entry.body),
    )


def _pretty(body: str) -> str:
    """The record for a reader."""
    text = msgspec.json.format(body, indent=2)
    return text if len(text) <= MOST_BODY_CHARS else f"{text[:MOST_BODY_CHARS]}\n… ({len(text):,} characters)"
