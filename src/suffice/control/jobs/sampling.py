"""The job `sampling`: at which rate live requests of each class keep their rows, from what the kept ones show.

    outcomes, labels, counts since the last look ──▶ a stratum for each class ──▶ allocate ──▶ RowRates

Each run is read once, a look after it ended, so that its label has had time to come. Rates hold for requests to come:
each request writes the rate into its row that was in force when it came, so estimates keep the right expectation while
rates move. A look every thousand requests of a route; rates that hardly moved are not set anew. Nothing that anybody
is served depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from suffice.assurance.runs import Match, measure_run
from suffice.assurance.sampling import Rates, Stratum, allocate, live_rate, moved
from suffice.control.jobs.base import ByRoute, JobWriter
from suffice.settings import Route
from suffice.signals.query import class_of
from suffice.store.database.views import EpisodeWithLabels, LogReader
from suffice.store.routes.in_force import InForce
from suffice.store.routes.windows import counted_cells, drawn_runs, newest_rates, place_before, requests_since
from suffice.store.rows.records import RowRates

STEP_REQUESTS: Final = 1_000  # of a route between two looks
LOOK_BACK: Final = 1_000  # requests with rows that the first look reads
FADING: Final = 0.7  # that each look leaves of what earlier ones saw: what is uncertain moves with the traffic
MOVED: Final = 0.15  # part of a rate that it must move by to be set anew
MOST_CLASSES: Final = 50  # that have a rate of their own, the largest ones


@dataclass(slots=True)
class _Seen:
    """What looks add up, by class; earlier ones fade."""

    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    n_live: float = 0.0  # runs
    shares: float = 0.0  # of audits, as their lots were drawn: summed over runs

    def fade(self, part: float) -> None:
        self.n_live, self.shares = part * self.n_live, part * self.shares
        self.classes = {
            name: {key: part * value for key, value in sums.items()}
            for name, sums in self.classes.items()
            if sums["n_requests"] >= 1
        }

    @property
    def audit_share(self) -> float:
        return self.shares / self.n_live if self.n_live else 0.0

    def of(self, query_class: str) -> dict[str, float]:
        found = self.classes.get(query_class)
        if found is None:
            names = ("n_requests", "n_runs", "tokens", "squares", "n_labelled", "n_right")
            found = self.classes[query_class] = dict.fromkeys(names, 0.0)
        return found

    def read(self, items: Iterable[EpisodeWithLabels], match: Match) -> None:
        """Take live runs in that were drawn to have rows."""
        for item in items:
            request = item.episode.request
            if request.ungoverned is not None:
                continue
            run, sums = measure_run(item, match), self.of(class_of(request.query))
            self.n_live += 1
            self.shares += 1 - request.propensity
            sums["n_requests"] += 1
            if run.spent is not None:
                sums["n_runs"] += 1
                sums["tokens"] += run.spent
                sums["squares"] += run.spent * run.spent
            if run.correct is not None:
                sums["n_labelled"] += 1
                sums["n_right"] += run.correct

    def strata(self) -> list[Stratum]:
        largest = sorted(self.classes, key=lambda name: -self.classes[name]["n_requests"])[:MOST_CLASSES]
        return [Stratum(query_class=name, **self.classes[name]) for name in largest]


@dataclass(slots=True)
class _Looks:
    seen: _Seen
    read_to: int  # place in the log up to which runs were taken in
    looked_to: int  # … up to which the log had come at the last look


@dataclass(slots=True, kw_only=True)
class SamplingJob(ByRoute):
    """Sets the rates of every route that keeps only some of its requests."""

    rests_s: ClassVar[float] = 30.0
    failing: ClassVar[str] = "rates left as they are"

    name: str = "sampling"
    _looks: dict[str, _Looks] = field(default_factory=dict)

    def forget(self) -> None:
        ByRoute.forget(self)
        self._looks.clear()

    def concerns(self, route: Route) -> bool:
        return self.settings.monitoring.adapt and route.mode == "enforce" and self.settings.sample_rate_on(route) < 1

    def propose(
        self,
        name: str,
        route: Route,
        held: InForce,  # noqa: ARG002
        connection: LogReader,
        desk: JobWriter,
        until: int,
    ) -> str | None:
        """Look at what is new, and set rates that have moved; None: too little is new."""
        looks = self._looks.get(name)
        if looks is None:
            since = place_before(connection, name, LOOK_BACK)
            looks = self._looks[name] = _Looks(_Seen(), since, until)
        elif requests_since(connection, name, looks.looked_to) < STEP_REQUESTS:
            return None
        seen, since, to = looks.seen, looks.read_to, looks.looked_to
        looks.read_to, looks.looked_to = to, until
        seen.fade(FADING)
        seen.read(drawn_runs(connection, name, since, to), self._matched.of(name, route, self.matches))
        for cell in counted_cells(connection, name, since_seq=since, until_seq=to):
            if not cell.ungoverned:
                seen.of(cell.query_class)["n_requests"] += cell.n
        if not seen.n_live:
            return None
        sample_rate, before = self.settings.sample_rate_of(name), newest_rates(connection, name)
        even = live_rate(sample_rate, seen.audit_share)
        rates, number, was = allocate(seen.strata(), rate=even), 1, Rates(other=even)
        if before is not None:
            number = before.number + 1
            if before.sample_rate == sample_rate:
                was = Rates(other=before.other, by_class=before.after)
        if not moved(was, rates, by=MOVED):
            return ""
        told = f"{sample_rate:.1%} of requests have rows, audits ({seen.audit_share:.1%}) among them"
        desk.write(
            [
                RowRates(
                    route=name,
                    number=number,
                    sample_rate=sample_rate,
                    read_to_seq=until,
                    other=rates.other,
                    after=rates.by_class,
                    before=was.by_class,
                    author=self.author,
                    reason=f"{told}; classes by what is uncertain in the latest {seen.n_live:,.0f} live runs",
                )
            ]
        )
        return f"rates of {len(rates.by_class)} classes set: {told}"
