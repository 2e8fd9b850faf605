"""The job `certify`: one pass over the log for the loops of all routes.

    log ──▶ each row to each loop ──▶ what a loop decides is written at once, under the lease

A loop that fails takes its own route down and nothing else: what was certified there stays in force, nothing new is,
and a later round builds it anew from the log. One whose history does not follow from the log begins a new epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from suffice.assurance.runs import Match
from suffice.control.evidence.audits import Audit, GivenLabel, sees_only_drawn
from suffice.control.evidence.cold_start import burst_of
from suffice.control.evidence.versions import ServedVersion, read_back
from suffice.control.jobs.base import (
    FIRST_REST_S,
    LONGEST_REST_S,
    LOOK_BACK,
    ComparisonJob,
    JobReport,
    JobWriter,
    LeaseLost,
    rows_since,
    why_of,
)
from suffice.control.loop.epoch import ReplayMismatch, Resolution, RouteContext
from suffice.control.loop.route_loop import RouteLoop
from suffice.errors import ConfigError, StoreError
from suffice.settings import Control, Route
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader, open_reader
from suffice.store.people.holds import NOTHING_HELD, Holds, last_at_s, read_holds
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.windows import (
    last_place,
    place_before,
    read_publications,
    read_requested_labels,
    whole_episodes,
)
from suffice.store.rows.records import FeedbackEvent
from suffice.telemetry import LOG
from suffice.types import Episode, Epoch, Outcome, Request


@dataclass(slots=True)
class _Rest:
    lasts_s: float
    until_s: float  # monotonic


@dataclass(slots=True)
class _Round:
    """One pass over the log: what it says, route by route."""

    connection: LogReader
    desk: JobWriter
    said: dict[str, list[str]]
    failed: dict[str, str] = field(default_factory=dict)
    last: int = 0

    def write(self, name: str, resolution: Resolution | None) -> None:
        if resolution is not None:
            self.desk.write(resolution.events, resolution.artefacts)
            self.said[name].append(resolution.said)


@dataclass(slots=True, kw_only=True)
class Certify(ComparisonJob):
    """Certifies what may act on each route: learned levels, its owner's policy, an effort or a budget."""

    name: str = "certify"
    _loops: dict[str, RouteLoop] = field(default_factory=dict)
    _rests: dict[str, _Rest] = field(default_factory=dict)
    _holds: Holds = NOTHING_HELD
    _at_s: float = 0.0  # Unix time of the log's last row

    def forget(self) -> None:
        self._loops.clear()

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        now_s = self.monotonic_s()
        routes = {
            name: route
            for name, route in self.settings.routes.items()
            if route.certifies_itself and (name not in self._rests or self._rests[name].until_s <= now_s)
        }
        if not routes or not self.path.is_file():
            return ()
        with open_reader(self.path) as connection:
            self._holds, self._at_s = read_holds(connection, self._holds), last_at_s(connection)
            here = _Round(connection, desk, {name: [] for name in routes})
            for name, route in routes.items():
                if name not in self._loops:
                    with self._alone(name, here):
                        self._loops[name] = self._built(name, route, here)
            self._read(here)
            for name, loop in list(self._loops.items()):
                with self._alone(name, here):
                    loop.holds, loop.at_s = self._holds.of(name), self._at_s
                    here.write(name, loop.settle())
        return [self._report(name, here) for name in routes]

    def _report(self, name: str, here: _Round) -> JobReport:
        loop, failed = self._loops.get(name), here.failed.get(name)
        if failed is None:
            self._rests.pop(name, None)
        said = "; ".join([*here.said[name], *([failed] if failed else [])])
        at = loop.n if loop is not None else 0
        return JobReport(said=said, route=name, ok=failed is None, read_to_seq=here.last, at=at)

    @contextlib.contextmanager
    def _alone(self, name: str, here: _Round) -> Iterator[None]:
        """Do a route's work; if it fails, that route is left as it is for a while."""
        try:
            with here.desk.timed(name):
                yield
        except (LeaseLost, StoreError):
            raise
        except ReplayMismatch as error:
            self._begin_anew(name, str(error), here)
        except Exception as error:  # noqa: BLE001 - one route's trouble is not the others'
            self._loops.pop(name, None)
            why = why_of(error)
            before = self._rests.get(name)
            lasts_s = FIRST_REST_S if before is None else min(LONGEST_REST_S, 2 * before.lasts_s)
            self._rests[name] = _Rest(lasts_s, self.monotonic_s() + lasts_s)
            here.failed[name] = f"left as it is: {why}"
            LOG.error("control: route %s is left as it is: %s", name, why)
            LOG.debug("the same, with its traceback", exc_info=True)

    # ---- loops -----------------------------------------------------------------------------------

    def _built(self, name: str, route: Route, here: _Round) -> RouteLoop:
        """A loop for the route, from where its epoch began; its first epoch is begun."""
        connection = here.connection
        held = read_decided(connection).of(name)
        if held.epoch is None:
            held = self._begin(name, held, here, place_before(connection, name, LOOK_BACK), "cold start", at=0)
        return loop_of(
            name,
            route,
            held,
            connection,
            control=self.settings.control,
            match=self._matched.of(name, route, self.matches),
            load=self._load,
            author=self.author,
        )

    def _begin(self, name: str, held: InForce, here: _Round, since_seq: int, reason: str, *, at: int) -> InForce:
        route = self.settings.routes[name]
        budget = self._holds.of(name).in_effect(self._at_s).budget(route.max_em_drop)
        began = Epoch(
            route=name,
            number=held.n_epochs + 1,
            at=at,
            since_seq=since_seq,
            reason=reason,
            author=self.author,
            burst=burst_of(route, self.settings.control),
            max_em_drop=budget,
            confidence=route.confidence,
            promise=route.promise,
        )
        here.write(name, Resolution((began,)))
        return held.after(began)

    def _begin_anew(self, name: str, why: str, here: _Round) -> None:
        """What the log says cannot be reproduced: nothing of it is built on. The next round builds the loop."""
        loop = self._loops.pop(name, None)
        held = read_decided(here.connection).of(name)
        at = loop.n if loop is not None else held.epoch.at if held.epoch is not None else 0
        self._begin(name, held, here, last_place(here.connection), why, at=at)

    def _load(self, address: str) -> ServedVersion:
        with open_reader(self.path) as connection:
            body = read_artefact(connection, address)
        try:
            return read_back(address, body)
        except ConfigError as error:
            raise ReplayMismatch(str(error)) from None

    # ---- the pass --------------------------------------------------------------------------------

    def _read(self, here: _Round) -> None:
        here.last = min((loop.seq for loop in self._loops.values()), default=0)
        for stored in rows_since(here.connection, here.last, here.desk):
            here.last = stored.seq
            for name, loop in list(self._loops.items()):
                with self._alone(name, here):
                    here.write(name, loop.feed(stored))


def loop_of(
    name: str,
    route: Route,
    held: InForce,
    connection: LogReader,
    *,
    control: Control,
    match: Match,
    load: Callable[[str], ServedVersion],
    author: str,
) -> RouteLoop:
    """A route's loop at the beginning of an epoch, with what was published in it still to come. Raises StoreError.

    held  what is in force, with the epoch
    """
    epoch = held.epoch
    assert epoch is not None
    return RouteLoop(
        RouteContext(name=name, route=route, control=control, match=match, load=load, author=author),
        held,
        expected=[made for _, made in read_publications(connection, name, epoch=epoch.number)],
        kept=_kept(connection, epoch, route),
        asked=read_requested_labels(connection, name),
    )


def _kept(connection: LogReader, epoch: Epoch, route: Route) -> list[Audit]:
    if len(epoch.kept) != len(epoch.kept_at):
        raise ReplayMismatch(f"route {epoch.route}: the audits that epoch {epoch.number} keeps have no numbers")
    kept, numbers = list[Audit](), dict(zip(epoch.kept, epoch.kept_at, strict=True))
    for asked, ended, labels in whole_episodes(connection, epoch.kept, epoch.since_seq):
        assert isinstance(asked.event, Request)
        assert isinstance(ended.event, Outcome)
        audit = Audit(
            seq=ended.seq,
            at=numbers[asked.event.episode_id],
            ended_at_s=ended.at_s,
            episode=Episode(request=asked.event, outcome=ended.event),
            only_drawn=sees_only_drawn(route),
        )
        for label in labels:
            assert isinstance(label.event, FeedbackEvent)
            audit = audit.with_label(GivenLabel(label.seq, label.event.feedback, label.at_s), epoch.at)
        kept.append(audit)
    return kept
