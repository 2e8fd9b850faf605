"""Tallies of all routes at the end of the log: those that the job `rollup` keeps, and the rows behind them.

    rollups (kept) ──┐
    rows behind them ┴▶ changes ──▶ tallies_now

The worker and every reader fold the same changes, so a figure does not depend on who computed it. Reading takes time
in proportion to the rows that no worker has summed up yet; where there are none it does not depend on the log's length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from suffice.assurance.runs import Match, RunNumbers, Tally, measure_run
from suffice.store.database.views import (
    EpisodeWithLabels,
    LogReader,
    StoredLabel,
    decoded,
    episodes_of_response,
    find_event,
    locate_event,
    query_rows,
    read_labels,
)
from suffice.store.routes import rollups
from suffice.store.rows.records import FeedbackEvent, RequestCount
from suffice.telemetry import LOG
from suffice.types import Episode, Outcome, RecalledRun, Request

PAGE_ROWS: Final = 5_000

# The plus keeps SQLite from the index of kinds, behind which it would have to sort.
_ROWS: Final = """
    SELECT seq, at_s, kind, key, episode_id, route, CASE kind WHEN 'request' THEN '' ELSE body END FROM events
    WHERE seq > ? AND +kind IN ('request', 'outcome', 'feedback', 'requests_counted') ORDER BY seq LIMIT ?"""


@dataclass(frozen=True, slots=True)
class RequestStart:
    route: str


@dataclass(frozen=True, slots=True)
class RunEnd:
    """A run ended; what was said about it by the end of the stretch belongs to it."""

    at_s: float
    item: EpisodeWithLabels


@dataclass(frozen=True, slots=True)
class UnwrittenRequests:
    at_s: float
    event: RequestCount


@dataclass(frozen=True, slots=True)
class LabelChange:
    """Somebody said something of a run that ended in an earlier stretch."""

    at_s: float  # of its end
    before: EpisodeWithLabels
    after: EpisodeWithLabels


@dataclass(frozen=True, slots=True)
class UnwrittenLabel:
    """Somebody said something of a run that left no rows, and that its gateway still knew."""

    about: RecalledRun
    before: EpisodeWithLabels
    after: EpisodeWithLabels


Change: TypeAlias = RequestStart | RunEnd | UnwrittenRequests | LabelChange | UnwrittenLabel


@dataclass(frozen=True, slots=True)
class Stretch:
    changes: tuple[Change, ...]
    n_rows: int
    last: int  # place of the last one; where there are none, of the row before them


def read_stretch(connection: LogReader, since: int, limit: int) -> Stretch:
    """What the next rows behind a place change. Raises StoreError."""
    rows = query_rows(connection, _ROWS, (since, limit))
    last, changes = rows[-1][0] if rows else since, list[Change | None]()
    for seq, at_s, kind, key, episode_id, route, body in rows:
        if kind == "request":
            changes.append(RequestStart(route or ""))
        elif kind == "outcome":
            changes.append(_ended(connection, seq, at_s, key, body, until_seq=last))
        elif kind == "requests_counted":
            changes.append(UnwrittenRequests(at_s, decoded(seq, RequestCount, body)))
        else:
            given = decoded(seq, FeedbackEvent, body)
            changes.append(_relabelled(connection, seq, episode_id, given, since_seq=since))
    return Stretch(tuple(one for one in changes if one is not None), len(rows), last)


def _ended(connection: LogReader, seq: int, at_s: float, name: str, body: str, *, until_seq: int) -> RunEnd | None:
    request = find_event(connection, Request, name)
    if request is None:
        return None
    outcome = decoded(seq, Outcome, body)
    labels = read_labels(connection, name, outcome.response_id, until_seq=until_seq)
    episode = Episode(request=request, outcome=outcome)
    return RunEnd(at_s, EpisodeWithLabels(seq=seq, episode=episode, labels=labels))


def _relabelled(
    connection: LogReader, seq: int, episode_id: str | None, given: FeedbackEvent, *, since_seq: int
) -> LabelChange | UnwrittenLabel | None:
    """None: there is no such run yet, or it ended in this stretch and is counted with all of its labels."""
    name = episode_id or _by_response(connection, given.feedback.response_id)
    end = locate_event(connection, Outcome, name) if name is not None else None
    if name is None or end is None:
        return _recalled(connection, seq, given)
    end_seq, end_at_s, outcome = end
    request = find_event(connection, Request, name)
    if request is None or end_seq > since_seq:
        return None
    labels = read_labels(connection, name, outcome.response_id, until_seq=seq)
    after = EpisodeWithLabels(seq=seq, episode=Episode(request=request, outcome=outcome), labels=labels)
    return LabelChange(end_at_s, replace(after, labels=tuple(label for label in labels if label.seq < seq)), after)


def _recalled(connection: LogReader, seq: int, given: FeedbackEvent) -> UnwrittenLabel | None:
    def labels_of(episode_id: str | None, response_id: str | None) -> tuple[StoredLabel, ...]:
        return read_labels(connection, episode_id, response_id, until_seq=seq, shared=True)

    about = given.about or first_about(labels_of(given.feedback.episode_id, given.feedback.response_id))
    if about is None:
        return None
    labels = labels_of(about.episode_id, about.response_id)
    after = EpisodeWithLabels(seq=seq, episode=_episode(about), labels=labels)
    return UnwrittenLabel(about, replace(after, labels=labels[:-1]), after)


def first_about(labels: Iterable[StoredLabel]) -> RecalledRun | None:
    """The run without rows that these labels are about; None: no gateway knew it."""
    return next((label.about for label in labels if label.about is not None), None)


def _episode(about: RecalledRun) -> Episode:
    """The run as far as a label is about it; nothing else of this episode is known."""
    request = Request(
        episode_id=about.episode_id,
        route=about.route,
        kind="reasoning",
        mode="enforce",
        model="",
        stream=False,
        n_samples=1,
        audit=False,
        propensity=1.0,
        policy_version=about.policy_version,
        certified=False,
        question_key="",
        ungoverned=None,
        received_at_s=0.0,
    )
    outcome = Outcome(
        episode_id=about.episode_id,
        end_reason=about.end_reason,
        status=0,
        answer=about.answer,
        response_id=about.response_id,
        usage=None,
        stopped=about.stopped,
    )
    return Episode(request=request, outcome=outcome)


def _by_response(connection: LogReader, response_id: str | None) -> str | None:
    """The episode whose answer had this id; None: none has yet, or two have, and nobody can say which is meant."""
    episodes = [] if response_id is None else episodes_of_response(connection, response_id, most=2)
    return episodes[0] if len(episodes) == 1 else None


def measure_governed_run(item: EpisodeWithLabels, match: Match) -> RunNumbers:
    """One governed run in numbers; a label that cannot be compared is left out and said in the process's log."""
    try:
        return measure_run(item, match)
    except Exception as error:  # noqa: BLE001 - a scorer that fails on one label costs that label
        LOG.warning("a label of route %s cannot be compared: %s", item.episode.request.route, type(error).__name__)
        return measure_run(replace(item, labels=()), match)


@dataclass(frozen=True, slots=True)
class RouteScorer:
    name: str  # "": to the letter
    match: Match


def fold_changes(
    tallies: dict[str, Tally],
    changes: Iterable[Change],
    scoring: Callable[[str], RouteScorer],
    *,
    only: Collection[str] | None = None,
) -> None:
    """Add changes to the tallies of their routes."""
    for change in changes:
        route = change_route(change)
        if isinstance(change, UnwrittenLabel) or (only is not None and route not in only):
            continue  # an unwritten run is among those that were counted, and no tally tells their labels apart
        tally = tallies.get(route) or tallies.setdefault(route, Tally(scorer=scoring(route).name))
        if isinstance(change, RequestStart):
            tally.ask()
        elif isinstance(change, UnwrittenRequests):
            for cell in change.event.cells:
                tally.add_unkept(cell)
        elif isinstance(change, RunEnd):
            episode = change.item.episode
            governed = episode.request.ungoverned is None
            run = measure_governed_run(change.item, scoring(route).match) if governed else None
            tally.add(episode.request, episode.outcome, run)
        elif change.after.episode.request.ungoverned is None:
            match = scoring(route).match
            tally.relabel(measure_governed_run(change.before, match), measure_governed_run(change.after, match))


def change_route(change: Change) -> str:
    if isinstance(change, RequestStart):
        return change.route
    if isinstance(change, UnwrittenRequests):
        return change.event.route
    if isinstance(change, UnwrittenLabel):
        return change.about.route
    item = change.item if isinstance(change, RunEnd) else change.after
    return item.episode.request.route


def tallies_now(connection: LogReader, scoring: Callable[[str], RouteScorer]) -> dict[str, Tally]:
    """The tally of every route that the log has seen, by name, up to the log's last row. Raises StoreError.

    A route whose labels were compared by another scorer than `scoring` names is read again from the beginning.
    """
    tallies = rollups.read_tallies(connection)
    fold_changes(tallies, _changes(connection, rollups.read_to(connection).seq), scoring)
    other = {name for name, one in tallies.items() if one.scorer != scoring(name).name and one.counts.get("labelled")}
    if other:
        tallies = {name: one for name, one in tallies.items() if name not in other}
        fold_changes(tallies, _changes(connection, 0), scoring, only=other)
    return dict(sorted(tallies.items()))


def _changes(connection: LogReader, since: int) -> Iterator[Change]:
    while True:
        stretch = read_stretch(connection, since, PAGE_ROWS)
        yield from stretch.changes
        if stretch.n_rows < PAGE_ROWS:
            return
        since = stretch.last


@contextmanager
def snapshot(connection: LogReader) -> Iterator[LogReader]:
    """All that is read inside is of one moment, whatever a worker writes meanwhile."""
    connection.execute("BEGIN")
    try:
        yield connection
    finally:
        connection.execute("ROLLBACK")
