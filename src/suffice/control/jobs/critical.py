"""The job `critical`: the critical EM of routes that no control loop certifies, because their owner wrote the policy.

    outcomes, labels ──▶ CriticalEM ──▶ below: Pause and Incident, for a person

Routes that certify themselves are watched by their own loop, with the same `CriticalEM`. Time is the log's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from suffice.assurance.runs import Match
from suffice.assurance.sampling import weight_of
from suffice.control.evidence.audits import GivenLabel
from suffice.control.evidence.run_join import LabelJoin, remember
from suffice.control.jobs.base import LOOK_BACK, ComparisonJob, JobReport, JobWriter, rows_since
from suffice.control.loop.safety_checks import CriticalEM
from suffice.review.holds import RouteHolds, of_pause
from suffice.settings import Route
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, open_reader
from suffice.store.people.holds import NOTHING_HELD, Holds, last_at_s, read_holds
from suffice.store.routes.in_force import read_decided
from suffice.store.routes.windows import place_before
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Outcome, Pause, Request, Resumption


@dataclass(slots=True, kw_only=True)
class Watch:
    """What is known of one route's delivered answers, since a person last looked."""

    name: str
    critical_em: CriticalEM
    match: Match
    seq: int  # place of the last row that was read
    _joining: LabelJoin = field(default_factory=LabelJoin)
    _open: dict[str, Request] = field(default_factory=dict)

    def feed(self, stored: StoredEvent) -> None:
        """Take the next row of the log in; one that was read before changes nothing."""
        if stored.seq <= self.seq:
            return
        self.seq, event = stored.seq, stored.event
        if isinstance(event, Request):
            if event.route == self.name and event.ungoverned is None:
                remember(self._open, event.episode_id, event)
        elif isinstance(event, Outcome) and event.episode_id in self._open:
            request = self._open.pop(event.episode_id)
            for said in self._joining.ended(event, weight_of(request, event)):
                self.critical_em.note_label(event.episode_id, said.feedback, self._joining, self.match)
        elif isinstance(event, FeedbackEvent):
            name = self._joining.find_episode(GivenLabel(stored.seq, event.feedback, stored.at_s))
            if name is not None:
                self.critical_em.note_label(name, event.feedback, self._joining, self.match)
        elif isinstance(event, Resumption) and event.route == self.name:
            self.critical_em.forget()


@dataclass(slots=True, kw_only=True)
class Critical(ComparisonJob):
    """Pauses routes whose EM is surely below what their owner calls critical."""

    name: str = "critical"
    _watches: dict[str, Watch] = field(default_factory=dict)
    _holds: Holds = NOTHING_HELD

    def forget(self) -> None:
        self._watches.clear()

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        routes = {name: route for name, route in self.settings.routes.items() if concerns(route)}
        if not routes or not self.path.is_file():
            return ()
        with open_reader(self.path) as connection:
            for name, route in routes.items():
                if name not in self._watches:
                    with desk.timed(name):
                        self._watches[name] = self._built(name, route, connection)
            last = min(watch.seq for watch in self._watches.values())
            for stored in rows_since(connection, last, desk):
                last = stored.seq
                for name, watch in self._watches.items():
                    with desk.timed(name):
                        watch.feed(stored)
            self._holds, at_s = read_holds(connection, self._holds), last_at_s(connection)
            decided = read_decided(connection)
            reports = []
            for name in routes:
                with desk.timed(name):
                    why = self._why(name, self._holds.of(name), at_s)
                    if why is not None:
                        self._pause(name, why, decided.of(name).n_pauses + 1, at_s, desk)
                reports.append(
                    JobReport(said=f"enforcement paused ({why})" if why else "", route=name, read_to_seq=last)
                )
        return reports

    def _built(self, name: str, route: Route, connection: LogReader) -> Watch:
        critical_em = CriticalEM(route.critical_em, delta=1 - route.confidence)
        since = place_before(connection, name, LOOK_BACK)
        return Watch(name=name, critical_em=critical_em, match=self._matched.of(name, route, self.matches), seq=since)

    def _why(self, name: str, held: RouteHolds, at_s: float) -> str | None:
        if held.pause is not None or held.accepted(at_s) is not None:
            return None
        return self._watches[name].critical_em.below()

    def _pause(self, name: str, why: str, number: int, at_s: float, desk: JobWriter) -> None:
        right = self._watches[name].critical_em.right
        pause = Pause(route=name, number=number, cause="critical_em", reason=why, author=self.author)
        told = f"{sum(right.values()):,} of the last {len(right):,} labelled answers were right"
        desk.write([pause, of_pause(pause, opened_at_s=at_s, evidence=(told,))])


def concerns(route: Route) -> bool:
    return route.mode == "enforce" and not route.certifies_itself and route.critical_em is not None
