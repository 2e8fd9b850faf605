"""Runs: the latest that fit a filter, and one with its whole chain of steps, its decision and what was said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from suffice.assurance.runs import current_label, measure_run
from suffice.console.auth import Principal
from suffice.console.exchange import ConsoleRequest
from suffice.console.view_context import NotThere, ViewContext, page_of
from suffice.errors import BadRequest, ConfigError
from suffice.scoring.base import build_scorer, scorer_label
from suffice.signals.query import class_of
from suffice.store.database.views import (
    EpisodeWithLabels,
    StoredLabel,
    decoded,
    find_event,
    locate_event,
    read_labels,
    read_runs_before,
)
from suffice.types import Episode, Feedback, LabelRequest, Outcome, Request

PAGE: Final = 50  # runs on one page
MOST_PAGE: Final = 500  # in one answer to a program
CHUNK: Final = 200

End = Literal["", "stopped", "full", "audit", "differs", "failed", "degraded"]
ENDS: Final[Mapping[str, str]] = {
    "": "any end",
    "stopped": "stopped early",
    "full": "ran in full",
    "audit": "audits",
    "differs": "audits whose stop would have answered otherwise",
    "failed": "failed or broken off",
    "degraded": "Suffice failed open",
}
SAID: Final[Mapping[str, str]] = {
    "": "labelled or not",
    "labelled": "labelled",
    "unlabelled": "not labelled",
    "wrong": "labelled wrong",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs are wanted."""

    route: str | None  # None: all
    end: str  # a key of ENDS
    said: str  # a key of SAID
    query_class: str  # "": any
    before: int  # place in the log behind which nothing is shown; 0: begin with the latest

    @property
    def fields(self) -> dict[str, str]:
        """The filter as an address has it, without the place."""
        route = {} if self.route is None else {"route": self.route}
        return route | {k: v for k, v in (("end", self.end), ("said", self.said), ("class", self.query_class)) if v}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRow:
    """One run in a list."""

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
    differs: bool  # would a stop have answered otherwise?
    correct: bool | None  # as the latest label says, compared by the route's scorer
    tokens: int | None  # generated for the answer
    saved_tokens: int | None
    degraded: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """A page of runs, the latest first."""

    wanted: Filter
    lines: tuple[EpisodeRow, ...]
    older: int | None  # place to go on from; None: these were all
    cut_short: bool  # did the look stop before the page was full? The older ones were not looked at
    routes: tuple[str, ...]  # to choose from

    @property
    def ends(self) -> Mapping[str, str]:
        """Ends to choose from, in words."""
        return ENDS

    @property
    def saids(self) -> Mapping[str, str]:
        """What may have been said, in words."""
        return SAID


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRow:
    """One word about a run."""

    seq: int
    feedback: Feedback
    counts: bool  # is this the word that says whether it was right?


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePage:
    """One run."""

    at_s: float
    request: Request
    outcome: Outcome | None  # None: it is still running, or its process died
    labels: tuple[FeedbackRow, ...]  # oldest first
    scorer: str
    correct: bool | None  # was the delivered answer right? None: nobody said
    would_be_correct: bool | None  # would the stop's answer have been right? None: as above, or it made none
    differs: bool  # would a stop have answered otherwise than the full run?
    wanted: LabelRequest | None  # why somebody should say whether it was right; None: nobody asked


def episodes(look: ViewContext, asked: ConsoleRequest, _visitor: Principal) -> Episodes:
    """The latest runs that fit. Raises StoreError, and BadRequest for a filter that there is not."""
    wanted = filter_of(asked.query)
    limit = whole_of(asked.query, "limit", PAGE, most=MOST_PAGE)
    lines, older, cut_short = page_of(look, _looked_through(look, wanted, _Right(look)), limit)
    return Episodes(wanted=wanted, lines=lines, older=older, cut_short=cut_short, routes=tuple(look.settings.routes))


def filter_of(query: Mapping[str, str]) -> Filter:
    """The filter in an address. Raises BadRequest."""
    for name, allowed in (("end", ENDS), ("said", SAID)):
        if query.get(name, "") not in allowed:
            known = ", ".join(one for one in allowed if one)
            raise BadRequest(f"{name}: got {query[name][:40]!r}; allowed: {known}", param=name)
    route = query.get("route")
    return Filter(
        route=None if route in (None, "*") else route,
        end=query.get("end", ""),
        said=query.get("said", ""),
        query_class=query.get("class", ""),
        before=whole_of(query, "before", 0, most=2**53),
    )


def whole_of(query: Mapping[str, str], name: str, usual: int, *, most: int) -> int:
    """A whole number in an address. Raises BadRequest."""
    text = query.get(name) or str(usual)
    if not text.isascii() or not text.isdecimal() or len(text) > 16 or int(text) > most:
        raise BadRequest(f"{name}: got {text[:40]!r}; a whole number from 0 to {most}", param=name)
    return int(text)


def _looked_through(look: ViewContext, wanted: Filter, right: _Right) -> Iterator[tuple[int, EpisodeRow | None]]:
    """Every run from there on, the latest first: its place, and its line if it fits."""
    before = wanted.before or 2**62
    while True:
        rows = read_runs_before(look.connection, before, wanted.route, CHUNK)
        for seq, at_s, ended, asked, said in rows:
            if (wanted.said == "unlabelled" and said) or (wanted.said in ("labelled", "wrong") and not said):
                yield seq, None
                continue
            request = decoded(seq, Request, asked)
            outcome = decoded(seq, Outcome, ended)
            if not _fits(wanted, request, outcome):
                yield seq, None
                continue
            line = _line(request, outcome, at_s, right(request, outcome) if said else None)
            yield seq, None if wanted.said == "wrong" and line.correct is not False else line
        if len(rows) < CHUNK:
            return
        before = rows[-1][0]


def _fits(wanted: Filter, request: Request, outcome: Outcome) -> bool:
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


def _line(request: Request, outcome: Outcome, at_s: float, correct: bool | None) -> EpisodeRow:
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


class _Right:
    """Was a run right, as its labels say? Compares as the route does, without asking a judge of formulas."""

    def __init__(self, look: ViewContext) -> None:
        self._look = look
        self._matches: dict[str, Callable[[str | None, str], bool]] = {}

    def __call__(self, request: Request, outcome: Outcome) -> bool | None:
        labels = read_labels(self._look.connection, request.episode_id, outcome.response_id)
        item = EpisodeWithLabels(seq=0, episode=Episode(request=request, outcome=outcome), labels=labels)
        return measure_run(item, self.match(request.route)).correct

    def match(self, name: str) -> Callable[[str | None, str], bool]:
        """How a route compares."""
        if name not in self._matches:
            self._matches[name] = self._built(name)
        return self._matches[name]

    def _built(self, name: str) -> Callable[[str | None, str], bool]:
        route = self._look.route(name)
        try:
            scorer = build_scorer(route.scorer if route is not None else "text")
        except ConfigError:
            return lambda answer, gold: answer == gold

        def match(answer: str | None, gold: str) -> bool:
            reference = scorer.normalise(gold)
            return reference is not None and scorer.match(answer, reference)

        return match


def episode(look: ViewContext, asked: ConsoleRequest, _visitor: Principal) -> EpisodePage:
    """One run, by its id. Raises NotThere and StoreError."""
    name = asked.fields["id"]
    seen = locate_event(look.connection, Request, name)
    if seen is None:
        raise NotThere(f"episode: the log has none called {name[:80]!r}")
    request, outcome = seen[2], find_event(look.connection, Outcome, name)
    labels = read_labels(look.connection, name, outcome.response_id if outcome is not None else None)
    counting = current_label(labels)
    right = _Right(look)
    match, route = right.match(request.route), look.route(request.route)
    return EpisodePage(
        at_s=seen[1],
        request=request,
        outcome=outcome,
        labels=tuple(
            FeedbackRow(seq=one.seq, feedback=one.feedback, counts=one.feedback is counting) for one in labels
        ),
        scorer=scorer_label(route.scorer) if route is not None else "text",
        correct=_correct(request, outcome, labels, match),
        would_be_correct=_would_be(outcome, counting, match),
        differs=outcome is not None and _differs(outcome),
        wanted=find_event(look.connection, LabelRequest, name),
    )


def _correct(
    request: Request, outcome: Outcome | None, labels: tuple[StoredLabel, ...], match: Callable[[str | None, str], bool]
) -> bool | None:
    if outcome is None:
        return None
    return measure_run(
        EpisodeWithLabels(seq=0, episode=Episode(request=request, outcome=outcome), labels=labels), match
    ).correct


def _would_be(outcome: Outcome | None, label: Feedback | None, match: Callable[[str | None, str], bool]) -> bool | None:
    if outcome is None or outcome.stop_step is None or outcome.stopped or label is None or label.gold is None:
        return None
    return outcome.would_answer is not None and match(outcome.would_answer, label.gold)
