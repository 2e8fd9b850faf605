"""The pages of runs: a list that can be searched, sorted and exported, and one run with all its steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import floor, inf, log10
from operator import eq
from typing import Final

from suffice.assurance.runs import ENDED, UNKNOWN_ENDS, Match, current_label, is_right
from suffice.assurance.saving import saved_tokens
from suffice.console.context import UnknownNameError, ViewContext, ViewRecord, page_of
from suffice.console.views.decision_path import AnswerTwin, DecisionPath, read_path, summarize_end
from suffice.edge.math import match_by
from suffice.episode.stream_relay import LiveRunView
from suffice.errors import BadRequest, ConfigError
from suffice.scoring.base import build_scorer, scorer_label
from suffice.signals.query import class_of
from suffice.store.database.run_search import find_names, place_at, read_runs_before, runs_of_question
from suffice.store.database.views import LOOKED, decoded, find_event, find_runs, last_place, locate_event, read_labels
from suffice.store.people.preferences import read_saved_views
from suffice.store.routes.period import PeriodFigures, read_total
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S, read_rollups, read_to
from suffice.store.rows.preferences import SavedView
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
COUNTED: Final[Mapping[str, str]] = {"stopped": "n_stopped", "failed": "n_failed", "degraded": "n_degraded"}
LABEL_FILTERS: Final[Mapping[str, str]] = {
    "": "labelled or not",
    "labelled": "labelled",
    "unlabelled": "not labelled",
    "wrong": "labelled wrong",
}


SORTS: Final[Mapping[str, str]] = {
    "": "latest first",
    "tokens": "most tokens first",
    "saved": "most tokens saved first",
    "steps": "most steps first",
    "duration": "slowest first",
}
_SORT_KEYS: Final[Mapping[str, Callable[[EpisodeRow], float | None]]] = {
    "tokens": lambda line: line.tokens,
    "saved": lambda line: line.saved_tokens if line.stopped else None,
    "steps": lambda line: line.n_steps,
    "duration": lambda line: line.duration_s,
}
FILTER_FIELDS: Final = ("route", "end", "label", "class", "q", "sort")
MOST_SORTED: Final = 500  # of the latest runs that match
MOST_SEARCH: Final = 200  # characters
MOST_NAMED: Final = 20  # runs whose id begins with what is searched
N_BINS: Final = 24
NEAR_ROWS: Final = 2_000  # of the log, in which twins of a run are looked for
MOST_TWINS: Final = 5


class Filter(ViewRecord, frozen=True):
    route: str | None  # None: all
    end: str  # a key of ENDS
    label: str  # a key of LABEL_FILTERS
    query_class: str  # "": any
    text: str  # of metadata, class, model, tenant or answer; "": any
    sort: str  # a key of SORTS
    since_hour: int  # since 1970; 0: no bound
    until_hour: int  # exclusive; 0: no bound
    range_fields: Mapping[str, str]  # of the URL, for the hours
    before: int  # position in the log before which runs are listed; 0: the latest

    @property
    def fields(self) -> dict[str, str]:
        route = {} if self.route is None else {"route": self.route}
        named = (
            ("end", self.end),
            ("label", self.label),
            ("class", self.query_class),
            ("q", self.text),
            ("sort", self.sort),
        )
        return {**route, **{name: value for name, value in named if value}, **self.range_fields}

    @property
    def chips(self) -> tuple[tuple[str, str], ...]:
        """The conditions in words, each with the query's field that it stands for."""
        named = (
            ("route", "" if self.route is None else f"route {self.route or 'none'}"),
            ("end", ENDS[self.end] if self.end else ""),
            ("label", LABEL_FILTERS[self.label] if self.label else ""),
            ("class", f"class {self.query_class}" if self.query_class else ""),
            ("q", f"with “{self.text}”" if self.text else ""),
        )
        return tuple((name, words) for name, words in named if words)


class RunName(ViewRecord, frozen=True):
    episode_id: str
    at_s: float


class HistogramBin(ViewRecord, frozen=True):
    low: float  # tokens
    high: float
    n: int


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
    duration_s: float


class Episodes(ViewRecord, frozen=True):
    wanted: Filter
    lines: tuple[EpisodeRow, ...]
    older: int | None  # position for the next page; None: no older ones
    cut_short: bool  # the search stopped before the page was full; older ones were not searched
    looked_to_s: float | None  # Unix time of the oldest run that was looked at; None: of none
    n_matched: int  # of the runs looked at; of more than a page when they are sorted
    named: tuple[RunName, ...]  # whose id begins with what is searched
    bins: tuple[HistogramBin, ...]  # of the tokens of the runs that match
    routes: tuple[str, ...]  # to choose from
    saved: tuple[SavedView, ...]  # of this person
    figures: PeriodFigures | None  # of all runs of the visitor's tenants on the route, by whole days; None: of none

    @property
    def ends(self) -> Mapping[str, str]:
        return ENDS

    @property
    def label_filters(self) -> Mapping[str, str]:
        return LABEL_FILTERS

    @property
    def sorts(self) -> Mapping[str, str]:
        return SORTS


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
    path: DecisionPath | None  # what the policy compared at each step; None: its reasons hold no numbers
    twins: tuple[AnswerTwin, ...]  # other runs of the same question
    summary: str  # how it ended and why, in a sentence


def episodes(view: ViewContext) -> Episodes:
    wanted, search = parse_filter(view), RunSearch(view)
    limit = parse_whole_number(view.query, "limit", PAGE, most=MOST_PAGE)
    names = find_names(view.connection, wanted.text, most=MOST_NAMED) if _may_be_id(wanted.text) else []
    names = [one for one in names if is_own_run(view, one[0])]
    entries = () if names else search.entries(wanted)  # an id was meant: texts are not searched for it
    lines, older, cut_short = page_of(view, entries, MOST_SORTED if wanted.sort else limit)
    listed = sort_runs(lines, wanted.sort)[:limit] if wanted.sort else lines
    return Episodes(
        wanted=wanted,
        lines=listed,
        older=older,
        cut_short=cut_short,
        looked_to_s=search.looked_to_s,
        n_matched=len(lines),
        named=tuple(RunName(episode_id=name, at_s=at_s) for name, at_s in names),
        bins=histogram([one.tokens for one in lines if one.tokens is not None]),
        routes=tuple(view.settings.routes),
        saved=read_saved_views(view.connection, view.visit.principal.name),
        figures=None if view.tenants is None else _own_figures(view, wanted, view.tenants),
    )


def _own_figures(view: ViewContext, wanted: Filter, tenants: tuple[str, ...]) -> PeriodFigures:
    until_hour = wanted.until_hour or int(view.now_s // HOUR_S) + 1
    hours = {
        "since_hour": wanted.since_hour - wanted.since_hour % DAY_HOURS,
        "until_hour": until_hour + -until_hour % DAY_HOURS,
    }
    return read_total(view.connection, wanted.route, tenants=tenants, **hours)


def _may_be_id(text: str) -> bool:
    return len(text) >= 3 and text.replace("_", "").replace("-", "").isalnum() and text.isascii()


def is_own_run(view: ViewContext, name: str | None) -> bool:
    """Whether a run is one of the visitor's tenants; what is about no run (None) is the whole deployment's."""
    if view.tenants is None:
        return True
    request = None if name is None else find_event(view.connection, Request, name)
    return request is not None and is_visible(request, view.tenants)


def sort_runs(lines: Sequence[EpisodeRow], sort: str) -> tuple[EpisodeRow, ...]:
    """Sort by a key of SORTS; runs without a value come last."""
    key = _SORT_KEYS[sort]
    return tuple(sorted(lines, key=lambda line: -inf if (value := key(line)) is None else value, reverse=True))


def histogram(values: Sequence[float]) -> tuple[HistogramBin, ...]:
    """Count values in bins of one width, a round number."""
    if len(values) < 2:
        return ()
    most = max(*values, 1)
    power = 10.0 ** floor(log10(most / N_BINS))
    width = next(power * step for step in (1, 2, 5, 10, 20) if most < power * step * N_BINS)
    counts = Counter(int(value // width) for value in values)
    return tuple(
        HistogramBin(low=at * width, high=(at + 1) * width, n=counts[at]) for at in range(min(counts), max(counts) + 1)
    )


def parse_filter(view: ViewContext) -> Filter:
    query, scope = view.query, view.scope
    for name, allowed in (("end", ENDS), ("label", LABEL_FILTERS), ("sort", SORTS)):
        if query.get(name, "") not in allowed:
            known = ", ".join(one for one in allowed if one)
            raise BadRequest(f"{name}: got {query[name][:40]!r}; allowed: {known}", param=name)
    text = query.get("q", "").strip()
    if len(text) > MOST_SEARCH:
        raise BadRequest(f"q: at most {MOST_SEARCH} characters", param="q")
    route = query.get("route")
    return Filter(
        route=None if route in (None, "*") else route,
        end=query.get("end", ""),
        label=query.get("label", ""),
        query_class=query.get("class", ""),
        text=text,
        sort=query.get("sort", ""),
        since_hour=scope.range.since_hour,
        until_hour=scope.range.until_hour,
        range_fields={name: scope.fields[name] for name in ("days", "from", "to") if name in scope.fields},
        before=parse_whole_number(query, "before", 0, most=2**53),
    )


def parse_whole_number(query: Mapping[str, str], name: str, usual: int, *, most: int) -> int:
    """Parse an integer of a query string. Raises BadRequest."""
    text = query.get(name) or str(usual)
    if not text.isascii() or not text.isdecimal() or len(text) > 16 or int(text) > most:
        raise BadRequest(f"{name}: got {text[:40]!r}; a whole number from 0 to {most}", param=name)
    return int(text)


def walk_runs(
    view: ViewContext, route: str | None, *, before: int, first: int, text: str = ""
) -> Iterator[tuple[int, tuple[float, Episode, bool] | None]]:
    """Yield runs that ended in [first, before) of the log, latest first: place, time, run, whether it is labelled.

    None stands for a place up to which there was none. A text narrows the runs to some that may contain it.
    """
    while before > first:
        since = max(first, before - LOOKED * CHUNK)
        rows = read_runs_before(view.connection, before, route, CHUNK, tenants=view.tenants, since_seq=since, text=text)
        for seq, at_s, outcome, request, is_labelled in rows:
            episode = Episode(request=decoded(seq, Request, request), outcome=decoded(seq, Outcome, outcome))
            yield seq, (at_s, episode, bool(is_labelled))
        before = rows[-1][0] if len(rows) == CHUNK else since
        if before:
            yield before, None


class RunSearch:
    """Walks back through the runs of a log, and remembers how far it has come."""

    def __init__(self, view: ViewContext) -> None:
        self._view, self._judge = view, Correctness(view)
        self.looked_to_s: float | None = None

    def entries(self, wanted: Filter) -> Iterator[tuple[int, EpisodeRow | None]]:
        """Yield the place of each row looked at, latest first, with the run if it matches."""
        log, view = self._view.connection, self._view
        before, first = last_place(log) + 1, place_at(log, wanted.since_hour * HOUR_S) if wanted.since_hour else 0
        if wanted.until_hour and wanted.until_hour * HOUR_S <= view.now_s:
            before = place_at(log, wanted.until_hour * HOUR_S) + 1
        before = min(wanted.before or 2**62, before)
        text = wanted.text.lower()
        for low, high in self._stretches(wanted, first, before):
            for place, run in walk_runs(view, wanted.route, before=high, first=low, text=text):
                if run is None:
                    yield place, None
                    continue
                self.looked_to_s, episode, is_labelled = run
                yield place, self._match(wanted, episode, run[0], is_labelled=is_labelled)

    def _stretches(self, wanted: Filter, first: int, before: int) -> Iterator[tuple[int, int]]:
        """Yield parts of [first, before), latest first, in which runs can match: the sums say which days have none."""
        log, counted = self._view.connection, COUNTED.get(wanted.end)
        if counted is None:
            yield first, before
            return
        low, day_s = max(first, min(before, read_to(log).seq + 1)), DAY_HOURS * HOUR_S
        if low < before:
            yield low, before  # not summed up yet
        for (day,), sums in reversed(read_rollups(log, ("day",), route=wanted.route).items()):
            if getattr(sums, counted) and low > first:
                # An hour more on both sides: the clocks of several machines differ.
                high = min(low, place_at(log, (int(day) + 1) * day_s + HOUR_S) + 1)
                low = max(first, place_at(log, int(day) * day_s - HOUR_S))
                if low < high:
                    yield low, high

    def _match(self, wanted: Filter, episode: Episode, at_s: float, *, is_labelled: bool) -> EpisodeRow | None:
        labelled = {"labelled": True, "wrong": True, "unlabelled": False}.get(wanted.label)
        if (labelled is not None and is_labelled != labelled) or not _fits(wanted, episode):
            return None
        line = _line(episode, at_s, self._judge(episode) if is_labelled else None)
        return None if wanted.label == "wrong" and line.correct is not False else line


def _fits(wanted: Filter, episode: Episode) -> bool:
    request, outcome = episode.request, episode.outcome
    if wanted.query_class and class_of(request.query) != wanted.query_class:
        return False
    if wanted.text and not any(wanted.text.lower() in one.lower() for one in searched_texts(episode)):
        return False
    full = request.ungoverned is None and (request.mode != "enforce" or request.audit)
    return {
        "": True,
        "stopped": outcome.stopped,
        "full": full,
        "audit": request.audit and request.ungoverned is None,
        "differs": full and _differs(outcome),
        "failed": outcome.end_reason not in ENDED,
        "degraded": bool(outcome.degraded),
    }[wanted.end]


def searched_texts(episode: Episode) -> Iterator[str]:
    """What a search of runs reads: ids, metadata, class, model, tenant and answers."""
    request, outcome = episode.request, episode.outcome
    yield from (request.episode_id, request.model, request.tenant, class_of(request.query))
    if request.query is not None:
        yield from (f"{name}={value}" for name, value in request.query.metadata)
    yield from filter(None, (outcome.response_id, outcome.answer, outcome.would_answer, outcome.model))


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
        saved_tokens=saved_tokens(request, outcome),
        degraded=outcome.degraded,
        duration_s=outcome.duration_s,
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
    path = read_path(outcome.steps) if outcome is not None else None
    twins = _twins(view, located[0], request, outcome)
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
        path=path,
        twins=twins,
        summary=summarize_end(request, outcome, path, twins),
    )


def _twins(view: ViewContext, seq: int, request: Request, outcome: Outcome | None) -> tuple[AnswerTwin, ...]:
    """Other runs of the same question that began near it in the log."""
    if outcome is None or not request.question_key:
        return ()
    log = view.connection
    names = runs_of_question(log, request, near=seq, looked=NEAR_ROWS, most=MOST_TWINS + 1)
    by_name = find_runs(log, [one for one in names if one != request.episode_id], until_seq=last_place(log))
    episodes = [run.episode for _, run in by_name.values() if is_visible(run.episode.request, view.tenants)]
    match = Correctness(view).match(request.route)
    return tuple(
        AnswerTwin(
            episode_id=one.request.episode_id,
            audit=one.request.audit,
            stopped=one.outcome.stopped,
            answer=one.outcome.answer,
            same=one.outcome.answer is not None
            and outcome.answer is not None
            and match(one.outcome.answer, outcome.answer),
        )
        for one in sorted(episodes, key=lambda one: (not one.request.audit, one.request.episode_id))[:MOST_TWINS]
    )


def _would_be(outcome: Outcome | None, label: Feedback | None, match: Match) -> bool | None:
    if outcome is None or outcome.stop_step is None or outcome.stopped or label is None or label.gold is None:
        return None
    return outcome.would_answer is not None and match(outcome.would_answer, label.gold)


def is_visible(request: Request, tenants: tuple[str, ...] | None) -> bool:
    return tenants is None or request.tenant in tenants


MOST_LIVE: Final = 200


class LiveRunsPage(ViewRecord, frozen=True):
    lines: tuple[LiveRunView, ...]  # the longest running first
    n_running: int
    replica: str  # whose requests these are
    is_here: bool  # whether a gateway runs in this process


def live_runs(view: ViewContext) -> LiveRunsPage:
    live, route = view.services.live, view.query.get("route") or ""
    runs = [] if live is None else [one for one in live.runs() if route in ("", "*", one.route)]
    runs.sort(key=lambda one: one.began_at_s)
    return LiveRunsPage(
        lines=tuple(runs[:MOST_LIVE]),
        n_running=len(runs),
        replica=view.settings.server.replica,
        is_here=live is not None,
    )
