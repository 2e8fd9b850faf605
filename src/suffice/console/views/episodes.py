"""The pages of runs (a list, and one run with all its steps) and of the audit log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import eq
from typing import Final

import msgspec

from suffice.assurance.runs import UNKNOWN_ENDS, Match, current_label, is_right
from suffice.console.context import UnknownNameError, ViewContext, ViewRecord, page_of
from suffice.edge.math import match_by
from suffice.errors import BadRequest, ConfigError
from suffice.scoring.base import build_scorer, scorer_label
from suffice.signals.query import class_of
from suffice.store.audit.chain import Head, head
from suffice.store.database.views import (
    LOOKED,
    decoded,
    find_event,
    last_place,
    locate_event,
    read_labels,
    read_runs_before,
)
from suffice.store.people.audit_view import AuditEntry, entry_of, rows_before
from suffice.store.rows.events import EVENTS
from suffice.types import Episode, Feedback, LabelRequest, Outcome, Request

PAGE: Final = 50  # runs on one page
MOST_PAGE: Final = 500  # in one API response
CHUNK: Final = 200

ENDS: Final[Mapping[str, str]] = {
    "": "any end",
    "stopped": "stopped early",
    "full": "ran in full",
    "audit": "audits",
    "differs": "audits whose stop would have answered otherwise",
    "failed": "failed or broken off",
    "degraded": "Suffice failed open",
}
LABEL_FILTERS: Final[Mapping[str, str]] = {
    "": "labelled or not",
    "labelled": "labelled",
    "unlabelled": "not labelled",
    "wrong": "labelled wrong",
}


class Filter(ViewRecord, frozen=True):
    route: str | None  # None: all
    end: str  # a key of ENDS
    label: str  # a key of LABEL_FILTERS
    query_class: str  # "": any
    before: int  # position in the log before which runs are listed; 0: the latest

    @property
    def fields(self) -> dict[str, str]:
        route = {} if self.route is None else {"route": self.route}
        return route | {k: v for k, v in (("end", self.end), ("label", self.label), ("class", self.query_class)) if v}


class EpisodeRow(ViewRecord, frozen=True):
    episode_id: str
    at_s: float
    route: str
    query_class: str
    kind: str
    end_reason: str
    stopped: bool
    audit: bool
    n_steps: int
    stop_step: int | None
    answer: str | None
    would_answer: str | None
    differs: bool  # whether a stop would have given another answer
    correct: bool | None  # by the label that counts, compared by the route's scorer
    tokens: int | None  # generated for the answer
    saved_tokens: int | None
    degraded: tuple[str, ...]


class Episodes(ViewRecord, frozen=True):
    wanted: Filter
    lines: tuple[EpisodeRow, ...]
    older: int | None  # position for the next page; None: no older ones
    cut_short: bool  # the search stopped before the page was full; older ones were not searched
    routes: tuple[str, ...]  # to choose from

    @property
    def ends(self) -> Mapping[str, str]:
        return ENDS

    @property
    def label_filters(self) -> Mapping[str, str]:
        return LABEL_FILTERS


class FeedbackRow(ViewRecord, frozen=True):
    seq: int
    feedback: Feedback
    counts: bool  # whether this label decides the correctness


class EpisodePage(ViewRecord, frozen=True):
    at_s: float
    request: Request
    outcome: Outcome | None  # None: still running, or its process died
    labels: tuple[FeedbackRow, ...]  # oldest first
    scorer: str
    correct: bool | None  # the delivered answer; None: unlabelled
    would_be_correct: bool | None  # the stop's answer; None: as above, or there was none
    differs: bool  # whether a stop would have given another answer than the full run
    wanted: LabelRequest | None  # why a label was requested; None: none was


def episodes(view: ViewContext) -> Episodes:
    wanted = parse_filter(view.query)
    limit = parse_whole_number(view.query, "limit", PAGE, most=MOST_PAGE)
    lines, older, cut_short = page_of(view, _search(view, wanted), limit)
    return Episodes(wanted=wanted, lines=lines, older=older, cut_short=cut_short, routes=tuple(view.settings.routes))


def parse_filter(query: Mapping[str, str]) -> Filter:
    for name, allowed in (("end", ENDS), ("label", LABEL_FILTERS)):
        if query.get(name, "") not in allowed:
            known = ", ".join(one for one in allowed if one)
            raise BadRequest(f"{name}: got {query[name][:40]!r}; allowed: {known}", param=name)
    route = query.get("route")
    return Filter(
        route=None if route in (None, "*") else route,
        end=query.get("end", ""),
        label=query.get("label", ""),
        query_class=query.get("class", ""),
        before=parse_whole_number(query, "before", 0, most=2**53),
    )


def parse_whole_number(query: Mapping[str, str], name: str, usual: int, *, most: int) -> int:
    """Parse an integer of a query string. Raises BadRequest."""
    text = query.get(name) or str(usual)
    if not text.isascii() or not text.isdecimal() or len(text) > 16 or int(text) > most:
        raise BadRequest(f"{name}: got {text[:40]!r}; a whole number from 0 to {most}", param=name)
    return int(text)


def _search(view: ViewContext, wanted: Filter) -> Iterator[tuple[int, EpisodeRow | None]]:
    before, judge = min(wanted.before or 2**62, last_place(view.connection) + 1), Correctness(view)
    labelled = {"labelled": True, "wrong": True, "unlabelled": False}.get(wanted.label)
    while True:
        since = max(0, before - LOOKED * CHUNK)
        rows = read_runs_before(view.connection, before, wanted.route, CHUNK, tenants=view.tenants, since_seq=since)
        for seq, at_s, outcome, request, is_labelled in rows:
            if labelled is not None and bool(is_labelled) != labelled:
                yield seq, None
                continue
            episode = Episode(request=decoded(seq, Request, request), outcome=decoded(seq, Outcome, outcome))
            if not _fits(wanted, episode):
                yield seq, None
                continue
            line = _line(episode, at_s, judge(episode) if is_labelled else None)
            yield seq, None if wanted.label == "wrong" and line.correct is not False else line
        before = rows[-1][0] if len(rows) == CHUNK else since
        if not before:
            return
        yield before, None


def _fits(wanted: Filter, episode: Episode) -> bool:
    request, outcome = episode.request, episode.outcome
    if wanted.query_class and class_of(request.query) != wanted.query_class:
        return False
    full = request.ungoverned is None and (request.mode != "enforce" or request.audit)
    return {
        "": True,
        "stopped": outcome.stopped,
        "full": full,
        "audit": request.audit and request.ungoverned is None,
        "differs": full and _differs(outcome),
        "failed": outcome.end_reason not in ("done", "stopped", "truncated"),
        "degraded": bool(outcome.degraded),
    }[wanted.end]


def _differs(outcome: Outcome) -> bool:
    return outcome.stop_step is not None and not outcome.stopped and outcome.would_answer != outcome.answer


def _line(episode: Episode, at_s: float, correct: bool | None) -> EpisodeRow:
    request, outcome = episode.request, episode.outcome
    return EpisodeRow(
        episode_id=request.episode_id,
        at_s=at_s,
        route=request.route,
        query_class=class_of(request.query),
        kind=request.kind,
        end_reason=outcome.end_reason,
        stopped=outcome.stopped,
        audit=request.audit,
        n_steps=len(outcome.steps),
        stop_step=outcome.stop_step,
        answer=outcome.answer,
        would_answer=outcome.would_answer,
        differs=_differs(outcome),
        correct=correct,
        tokens=outcome.usage.completion_tokens if outcome.usage is not None else None,
        saved_tokens=outcome.tokens_saved_estimate,
        degraded=outcome.degraded,
    )


class Correctness:
    def __init__(self, view: ViewContext) -> None:
        self._view = view
        self._matches: dict[str, Match] = {}

    def __call__(self, episode: Episode) -> bool | None:
        request, outcome = episode.request, episode.outcome
        if outcome.end_reason in UNKNOWN_ENDS:
            return None
        label = current_label(read_labels(self._view.connection, request.episode_id, outcome.response_id))
        return is_right(outcome.answer, outcome.answer, label, self.match(request.route))

    def match(self, name: str) -> Match:
        if name not in self._matches:
            route = self._view.settings.routes.get(name)
            try:
                self._matches[name] = match_by(build_scorer(route.scorer if route is not None else "text"))
            except ConfigError:
                self._matches[name] = eq
        return self._matches[name]


def episode(view: ViewContext) -> EpisodePage:
    name, log = view.visit.request.fields["id"], view.connection
    located = locate_event(log, Request, name)
    if located is None or not is_visible(located[2], view.tenants):
        raise UnknownNameError(f"episode: no episode {name[:80]!r} in the log")
    _, at_s, request = located
    outcome, route, judge = find_event(log, Outcome, name), view.settings.routes.get(request.route), Correctness(view)
    labels = read_labels(log, name, outcome.response_id if outcome is not None else None)
    counting = current_label(labels)
    return EpisodePage(
        at_s=at_s,
        request=request,
        outcome=outcome,
        labels=tuple(
            FeedbackRow(seq=one.seq, feedback=one.feedback, counts=one.feedback is counting) for one in labels
        ),
        scorer=scorer_label(route.scorer) if route is not None else "text",
        correct=judge(Episode(request=request, outcome=outcome)) if outcome is not None else None,
        would_be_correct=_would_be(outcome, counting, judge.match(request.route)),
        differs=outcome is not None and _differs(outcome),
        wanted=find_event(log, LabelRequest, name),
    )


def _would_be(outcome: Outcome | None, label: Feedback | None, match: Match) -> bool | None:
    if outcome is None or outcome.stop_step is None or outcome.stopped or label is None or label.gold is None:
        return None
    return outcome.would_answer is not None and match(outcome.would_answer, label.gold)


AUDIT_CHUNK: Final = 500
# Bulk rows without a decision: they have pages of their own, or tell a person nothing …
HIDDEN: Final = {"request", "outcome", "feedback", "route_monitored", "job_ran", "label_wanted", "requests_counted"}
# … and rows that are listed only on request.
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


class AuditRow(ViewRecord, frozen=True):
    seq: int  # position in the log
    place: int | None  # index in the hash chain; None: this log has no chain
    at_s: float
    kind: str
    route: str
    author: str  # a person, or a worker; "": none
    before: str  # the state before, in words; "": none, or not recorded
    after: str  # the state after, in words
    reason: str
    body: str  # the whole record as JSON, truncated


class Changes(ViewRecord, frozen=True):
    lines: tuple[AuditRow, ...]
    older: int | None  # position for the next page; None: no older ones
    cut_short: bool  # the search stopped before the page was full
    kind: str  # filter; "": all
    route: str  # filter; "": all
    kinds: tuple[str, ...]  # all kinds of the filter
    routes: tuple[str, ...]
    head: Head | None  # the chain's present head; None: this log has none


def changes(view: ViewContext) -> Changes:
    kind, route = view.query.get("kind", ""), view.query.get("route", "")
    kinds = tuple(sorted(set(EVENTS) - HIDDEN))
    if kind and kind not in kinds and kind != "feedback":
        raise BadRequest(f"kind: got {kind[:40]!r}; allowed: {', '.join(kinds)}", param="kind")
    before, end = parse_whole_number(view.query, "before", 0, most=2**53) or 2**62, head(view.connection)
    rows = _search_changes(view, before, kind, route, chained=end is not None)
    lines, older, cut_short = page_of(view, rows, PAGE)
    return Changes(
        lines=lines,
        older=older,
        cut_short=cut_short,
        kind=kind,
        route=route,
        kinds=kinds,
        routes=tuple(view.settings.routes),
        head=end,
    )


def _search_changes(
    view: ViewContext, before: int, kind: str, route: str, *, chained: bool
) -> Iterator[tuple[int, AuditRow | None]]:
    while True:
        rows = rows_before(view.connection, before, AUDIT_CHUNK, chained=chained)
        for row in rows:
            place, its_kind, its_route = row[0], row[4], row[7]
            fits = its_kind == kind if kind else its_kind not in QUIET
            if not fits or (route and its_route != route) or not _is_own(view, row[6]):
                yield place, None
            else:
                yield place, _change(entry_of(view.connection, row), chained=chained)
        if len(rows) < AUDIT_CHUNK:
            return
        before = rows[-1][0]


def is_visible(request: Request, tenants: tuple[str, ...] | None) -> bool:
    return tenants is None or request.tenant in tenants


def _is_own(view: ViewContext, episode_id: str | None) -> bool:
    """Whether a row is about a run of the visitor's tenants; rows about no run are the whole deployment's."""
    if view.tenants is None:
        return True
    request = None if episode_id is None else find_event(view.connection, Request, episode_id)
    return request is not None and is_visible(request, view.tenants)


def _change(entry: AuditEntry, *, chained: bool) -> AuditRow:
    body = msgspec.json.format(entry.body, indent=2)
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
        body=body if len(body) <= MOST_BODY_CHARS else f"{body[:MOST_BODY_CHARS]}\n… ({len(body):,} characters)",
    )
