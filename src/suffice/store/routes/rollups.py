"""Hourly sums by route, class and version, daily ones of tenants, and a tally of each route: a cache of the log.

It can be dropped at any time. Daily sums let a page read hundreds of rows instead of hundreds of thousands. The worker
and every reader fold the same changes, so a figure does not depend on who computed it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec.structs import astuple, fields

from suffice.assurance.runs import Match, RunNumbers, Tally, measure_run
from suffice.formatting import format_time
from suffice.store.database import views
from suffice.store.rows.events import FeedbackEvent, RequestCount
from suffice.store.rows.sums import COLUMNS, NO_SUMS, RollupKey, RollupSums
from suffice.telemetry import LOG
from suffice.types import Episode, Outcome, Query, RecalledRun, Request

FORMAT: Final = 6  # of the sums; a cache of another format is rebuilt
HOUR_S: Final = 3_600
DAY_HOURS: Final = 24

Group: TypeAlias = Literal["route", "query_class", "version", "hour", "day"]
_EXPRESSIONS: Final[Mapping[Group, str]] = {
    "route": "route",
    "query_class": "query_class",
    "version": "version",
    "hour": "hour",
    "day": "hour / 24",
}


_KEYS: Final = ("grain", *RollupKey._fields)
_ADD: Final = (
    f"INSERT INTO rollups ({', '.join((*_KEYS, *COLUMNS))})"  # noqa: S608 - names of fields
    f" VALUES ({', '.join('?' * (len(_KEYS) + len(COLUMNS)))}) ON CONFLICT ({', '.join(_KEYS)}) DO UPDATE SET "
    + ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in COLUMNS)
)
# PostgreSQL's sum of integers is a decimal number.
_SUMS: Final = ", ".join(
    f"coalesce(CAST(sum({one.name}) AS {'DOUBLE PRECISION' if isinstance(one.default, float) else 'BIGINT'}), 0)"
    for one in fields(RollupSums)
)
_DECODER: Final = msgspec.json.Decoder(Tally)
_BY_HOUR, _BY_DAY, _BY_CLASS, _BY_VERSION, _BY_TENANT = range(5)  # rows of a tenant have its name as their class


NO_TENANTS: Final[Mapping[RollupKey, RollupSums]] = {}


def tenant_key(place: RollupKey, tenant: str) -> RollupKey:
    return RollupKey(place.route, tenant, "", place.hour - place.hour % DAY_HOURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTo:
    seq: int  # place in the log; 0: nothing is summed up
    last: int  # place of the log's last row
    at_s: float  # Unix time of that row; 0: never

    @property
    def n_behind(self) -> int:
        return max(0, self.last - self.seq)

    @property
    def lag(self) -> str:
        """Say by how much the sums are older than the log, where no reader makes up for it; "": they are not."""
        if self.n_behind <= MOST_ROWS:
            return ""
        since = f"the worker last did at {format_time(self.at_s)}" if self.seq else "no worker has done so yet"
        return f"figures are {self.n_behind:,} rows of the log behind, which are not summed up: {since}"


def read_to(connection: views.LogReader) -> ReadTo:
    rows = views.query_rows(connection, "SELECT seq, at_s FROM rolled WHERE format = ?", (FORMAT,))
    seq, at_s = rows[0] if rows else (0, 0.0)
    return ReadTo(seq=seq, last=views.last_place(connection), at_s=at_s)


def add_rollups(
    connection: views.LogReader,
    sums: Mapping[RollupKey, RollupSums],
    tallies: Mapping[str, Tally],
    *,
    tenants: Mapping[RollupKey, RollupSums] = NO_TENANTS,
    since: int,
    seq: int,
    at_s: float,
) -> bool:
    """Return False if another writer has gone on from `since`; then nothing was written. tenants: by `tenant_key`."""
    rows = views.query_rows(connection, "SELECT seq FROM rolled WHERE format = ?", (FORMAT,))
    if (rows[0][0] if rows else 0) != since:
        return False
    if not rows:
        clear(connection)
    grained = _grained(sums) | {(_BY_TENANT, place): one for place, one in tenants.items()}
    connection.executemany(_ADD, [(grain, *place, *astuple(one)) for (grain, place), one in grained.items()])
    connection.executemany(
        "INSERT INTO tallies (route, seq, body) VALUES (?, ?, ?)"
        " ON CONFLICT (route) DO UPDATE SET seq = excluded.seq, body = excluded.body",
        [(name, seq, msgspec.json.encode(one).decode()) for name, one in tallies.items()],
    )
    connection.execute(
        "INSERT INTO rolled (id, format, seq, at_s) VALUES (1, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET format = excluded.format, seq = excluded.seq, at_s = excluded.at_s",
        (FORMAT, seq, at_s),
    )
    return True


def clear(connection: views.LogReader) -> None:
    for table in ("rollups", "tallies", "rolled"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - a constant


def read_tallies(
    connection: views.LogReader, routes: Collection[str] | None = None, *, since: int = 0
) -> dict[str, Tally]:
    if not read_to(connection).seq:
        return {}
    where = "" if routes is None else f" AND route IN ({', '.join('?' * len(routes))})"
    query = f"SELECT route, body FROM tallies WHERE seq > ?{where}"  # noqa: S608 - marks
    rows = views.query_rows(connection, query, (since, *(routes or ())))
    return {route: _DECODER.decode(body) for route, body in rows}


def _grained(sums: Mapping[RollupKey, RollupSums]) -> dict[tuple[int, RollupKey], RollupSums]:
    grouped_sums: dict[tuple[int, RollupKey], RollupSums] = {}
    for place, one in sums.items():
        day = place.hour - place.hour % DAY_HOURS
        for grain, where in (
            (_BY_HOUR, place),
            (_BY_DAY, RollupKey(place.route, "", "", day)),
            (_BY_CLASS, RollupKey(place.route, place.query_class, "", day)),
            (_BY_VERSION, RollupKey(place.route, "", place.version, day)),
        ):
            grouped_sums[grain, where] = grouped_sums.get((grain, where), NO_SUMS).plus(one)
    return {key: one for key, one in grouped_sums.items() if any(astuple(one))}


def read_rollups(
    connection: views.LogReader,
    by: tuple[Group, ...],
    *,
    route: str | None = None,
    query_class: str | None = None,
    version: str | None = None,
    since_hour: int = 0,
    until_hour: int | None = None,
    tenant: str | None = None,
) -> dict[tuple[str | int, ...], RollupSums]:
    """Return sums for each value of `by`, in order; () gives one total. Hours at midnight read far less.

    until_hour  the first hour that no longer counts; None: all
    tenant      its requests alone, by route and whole days; None: all requests
    """
    filters: dict[str, str | int | None] = {"route": route, "query_class": query_class, "version": version}
    equal = [name for name, value in filters.items() if value is not None]
    grain = _grain_for({*by, *equal}, since_hour, until_hour)
    if tenant is not None:
        if grain != _BY_DAY:
            raise ValueError("the sums of a tenant are by route and whole days")
        filters["query_class"] = tenant
        equal = [*equal, "query_class"]
        grain = _BY_TENANT
    groups = ", ".join(_EXPRESSIONS[name] for name in by)
    grouped = f" GROUP BY {groups} ORDER BY {groups}" if by else ""
    where = "".join(f" AND {name} = ?" for name in equal) + (" AND hour < ?" if until_hour else "")
    rows = views.query_rows(
        connection,
        f"SELECT {groups + ', ' if by else ''}{_SUMS} FROM rollups"  # noqa: S608 - as above
        f" WHERE grain = ? AND hour >= ?{where}{grouped}",
        (grain, since_hour, *(filters[name] for name in equal), *((until_hour,) if until_hour else ())),
    )
    return {tuple(row[: len(by)]): RollupSums(*row[len(by) :]) for row in rows}


def first_hour(connection: views.LogReader) -> int | None:
    """Return the first hour with a sum; None: there is none."""
    return next((int(hour) for (hour,) in views.query_rows(connection, "first_hour")), None)


def _grain_for(by: Collection[str], since_hour: int, until_hour: int | None) -> int:
    both = "query_class" in by and "version" in by
    if "hour" in by or both or since_hour % DAY_HOURS or (until_hour or 0) % DAY_HOURS:
        return _BY_HOUR
    return _BY_CLASS if "query_class" in by else _BY_VERSION if "version" in by else _BY_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class RollupGroups:
    """Names that sums exist for, each sorted, at most `MOST_GROUPS`."""

    routes: tuple[str, ...]
    classes: tuple[str, ...]
    versions: tuple[str, ...]


MOST_GROUPS: Final = 500


def read_groups(connection: views.LogReader, route: str | None) -> RollupGroups:
    """Return the routes, and the classes and versions of one route; None: the classes of all, and no versions."""

    def names(column: str, grain: int, of: str | None) -> tuple[str, ...]:
        where, names_of = ("", ()) if of is None else (" AND route = ?", (of,))
        query = f"SELECT DISTINCT {column} FROM rollups WHERE grain = ?{where} ORDER BY 1 LIMIT ?"  # noqa: S608
        rows = views.query_rows(connection, query, (grain, *names_of, MOST_GROUPS))
        return tuple(str(one) for (one,) in rows if one)

    return RollupGroups(
        routes=names("route", _BY_DAY, None),
        classes=names("query_class", _BY_CLASS, route),
        versions=names("version", _BY_VERSION, route) if route is not None else (),
    )


def classes_of(connection: views.LogReader) -> dict[str, set[str]]:
    classes: dict[str, set[str]] = {}
    query = "SELECT DISTINCT route, query_class FROM rollups WHERE grain = ?"
    for route, query_class in views.query_rows(connection, query, (_BY_CLASS,)):
        classes.setdefault(route, set()).add(query_class)
    return classes


def degraded_runs(connection: views.LogReader, hour: int) -> list[tuple[str, int, int]]:
    query = """SELECT route, CAST(sum(n_requests) AS BIGINT), CAST(sum(n_degraded) AS BIGINT)
               FROM rollups WHERE grain = ? AND hour = ? GROUP BY route"""
    return views.query_rows(connection, query, (_BY_HOUR, hour))


PAGE_ROWS: Final = 5_000
MOST_ROWS: Final = 10_000  # not summed up, that a reader reads itself: less than a second of CPU


@dataclass(frozen=True, slots=True)
class RequestStart:
    route: str


@dataclass(frozen=True, slots=True)
class UnwrittenRequests:
    at_s: float
    event: RequestCount

    @property
    def route(self) -> str:
        return self.event.route


@dataclass(frozen=True, slots=True)
class RunChange:
    """A run that ended, or that a later label changes."""

    at_s: float  # of its end
    before: views.EpisodeWithLabels | None  # None: it ended just now
    after: views.EpisodeWithLabels
    is_written: bool = True  # False: it has no rows, and was counted when it ended

    @property
    def route(self) -> str:
        return self.after.episode.request.route


Change: TypeAlias = RequestStart | UnwrittenRequests | RunChange


@dataclass(frozen=True, slots=True)
class Stretch:
    changes: tuple[Change, ...]
    n_rows: int
    last: int  # place of the last one; without any, of the row before them


def read_stretch(connection: views.LogReader, since: int, limit: int) -> Stretch:
    rows = views.query_rows(connection, "rows_to_fold", (since, limit))
    last, changes = rows[-1][0] if rows else since, list[Change | None]()
    labels = {row[0]: views.decoded(row[0], FeedbackEvent, row[-1]) for row in rows if row[2] == "feedback"}
    named = _named_by(connection, {row[0]: row[4] for row in rows if row[2] == "feedback"}, labels)
    ended = (row[3] for row in rows if row[2] == "outcome")
    runs = views.find_runs(connection, {*ended, *named.values()}, until_seq=last) if rows else {}
    for seq, at_s, kind, key, _, route, body in rows:
        if kind == "request":
            changes.append(RequestStart(route or ""))
        elif kind == "outcome":
            changes.append(RunChange(at_s, None, runs[key][1]) if key in runs else None)
        elif kind == "requests_counted":
            changes.append(UnwrittenRequests(at_s, views.decoded(seq, RequestCount, body)))
        elif (run := runs.get(named.get(seq, ""))) is None:
            changes.append(_recalled(connection, seq, labels[seq]))
        elif run[1].seq <= since:  # one that ended in this stretch is counted with all of its labels
            changes.append(_relabelled(*run, seq))
    return Stretch(tuple(one for one in changes if one is not None), len(rows), last)


def _named_by(
    connection: views.LogReader, episodes: Mapping[int, str | None], labels: Mapping[int, FeedbackEvent]
) -> dict[int, str]:
    """Return the episode that each label is about, by its place."""
    responses = {seq: labels[seq].feedback.response_id for seq, episode in episodes.items() if not episode}
    answers = views.find_answers(connection, {one for one in responses.values() if one})
    named = {seq: episode or answers.get(responses.get(seq) or "") for seq, episode in episodes.items()}
    return {seq: name for seq, name in named.items() if name}


def _relabelled(end_at_s: float, run: views.EpisodeWithLabels, seq: int) -> RunChange:
    after = replace(run, labels=tuple(label for label in run.labels if label.seq <= seq))
    return RunChange(end_at_s, replace(after, labels=tuple(label for label in after.labels if label.seq < seq)), after)


def _recalled(connection: views.LogReader, seq: int, given: FeedbackEvent) -> RunChange | None:
    def labels_of(episode_id: str | None, response_id: str | None) -> tuple[views.StoredLabel, ...]:
        return views.read_labels(connection, episode_id, response_id, until_seq=seq, shared=True)

    about = given.about or first_about(labels_of(given.feedback.episode_id, given.feedback.response_id))
    if about is None:
        return None
    labels = labels_of(about.episode_id, about.response_id)
    after = views.EpisodeWithLabels(seq=seq, episode=_episode(about), labels=labels)
    return RunChange(about.ended_at_s, replace(after, labels=labels[:-1]), after, is_written=False)


def first_about(labels: Iterable[views.StoredLabel]) -> RecalledRun | None:
    return next((label.about for label in labels if label.about is not None), None)


def _episode(about: RecalledRun) -> Episode:
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
        tenant=about.tenant,
        certified=False,
        question_key="",
        query=Query(query_class=about.query_class),
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


def measure_governed_run(item: views.EpisodeWithLabels, match: Match) -> RunNumbers:
    try:
        return measure_run(item, match)
    except Exception as error:  # noqa: BLE001 - a scorer that fails on one label costs that label
        LOG.warning("a label of route %s cannot be compared: %s", item.episode.request.route, type(error).__name__)
        return measure_run(replace(item, labels=()), match)


@dataclass(frozen=True, slots=True)
class RouteScorer:
    name: str  # "": exact comparison
    match: Match
    is_gone: bool = False  # nothing serves the route any more: its sums keep the scorer that they were made with

    def differs_from(self, tally: Tally) -> bool:
        """Return whether a served route's labels were compared by another scorer."""
        return bool(tally.counts.get("labelled")) and tally.scorer != self.name and not self.is_gone


def fold_changes(
    tallies: dict[str, Tally],
    changes: Iterable[Change],
    scoring: Callable[[str], RouteScorer],
    *,
    only: Collection[str] | None = None,
) -> None:
    for change in changes:
        route = change.route
        if (isinstance(change, RunChange) and not change.is_written) or (only is not None and route not in only):
            continue  # an unlogged run was counted, and no tally separates its labels
        tally = tallies.get(route) or tallies.setdefault(route, Tally(scorer=scoring(route).name))
        if isinstance(change, RequestStart):
            tally.n_begun += 1
        elif isinstance(change, UnwrittenRequests):
            for cell in change.event.cells:
                tally.add_unkept(cell)
        else:
            _fold_run(tally, change, scoring(route).match)


def _fold_run(tally: Tally, change: RunChange, match: Match) -> None:
    episode = change.after.episode
    run = None if episode.request.ungoverned is not None else measure_governed_run(change.after, match)
    if change.before is None:
        tally.add(episode.request, episode.outcome, run)
    elif run is not None:
        tally.relabel(measure_governed_run(change.before, match), run)


def logged_routes(connection: views.LogReader) -> list[str]:
    """Return the routes that have requests in the log, sorted: one look into the index for each."""
    names, rows = list[str](), views.query_rows(connection, "first_route")
    while rows:
        names.append(rows[0][0])
        rows = views.query_rows(connection, "next_route", (names[-1],))
    return names


def tally_now(connection: views.LogReader, route: str, scorer: RouteScorer) -> Tally | None:
    """Return the tally of one route up to the log's last row; None: it has none, or sums lag. Raise StoreError."""
    if read_to(connection).lag:
        return None
    tallies = read_tallies(connection, (route,))
    fold_changes(tallies, _changes(connection, read_to(connection).seq), lambda _: scorer, only=(route,))
    return tallies.get(route)


def tallies_now(connection: views.LogReader, scoring: Callable[[str], RouteScorer]) -> dict[str, Tally]:
    """Return the tally of every route up to the log's last row. Raise StoreError.

    Where the sums lag (`ReadTo.lag`), only these are returned, as of their row. Else a route whose labels were compared
    by another scorer than `scoring` names is read again from the beginning, if the log has at most `MOST_ROWS` rows.
    """
    tallies, to = read_tallies(connection), read_to(connection)
    if to.lag:
        return dict(sorted(tallies.items()))
    fold_changes(tallies, _changes(connection, to.seq), scoring)
    other = {name for name, one in tallies.items() if scoring(name).differs_from(one)}
    if other and to.last <= MOST_ROWS:
        tallies = {name: one for name, one in tallies.items() if name not in other}
        fold_changes(tallies, _changes(connection, 0), scoring, only=other)
    return dict(sorted(tallies.items()))


def _changes(connection: views.LogReader, since: int) -> Iterator[Change]:
    while True:
        stretch = read_stretch(connection, since, PAGE_ROWS)
        yield from stretch.changes
        if stretch.n_rows < PAGE_ROWS:
            return
        since = stretch.last
