"""The job `sampling`: at which rate live requests of each class keep their rows, from what the kept ones show.

    outcomes, labels, counts since the last look ──▶ a stratum for each class ──▶ allocate ──▶ RowRates

Each run is read once, a look after it ended, so that its label has had time to come. Each request writes the rate into
its row that was in force when it came, so estimates keep the right expectation while rates move. Nothing that anybody
is served depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from suffice.assurance.runs import Match, measure_run
from suffice.assurance.sampling import Rates, Stratum, allocate, live_rate, moved
from suffice.control.jobs.base import JobPass, ProposalJob
from suffice.settings import Route
from suffice.signals.query import class_of
from suffice.store.database.views import EpisodeWithLabels
from suffice.store.routes.in_force import InForce
from suffice.store.routes.windows import counted_cells, drawn_runs, newest_rates, place_before, requests_since
from suffice.store.rows.records import RowRates

STEP_REQUESTS: Final = 1_000  # of a route between two looks
FIRST_REQUESTS: Final = 1_000  # with rows that the first look reads
FADING: Final = 0.7  # that each look leaves of what earlier ones saw: what is uncertain moves with the traffic
MOVED: Final = 0.15  # part of a rate that it must move by to be set anew
MOST_CLASSES: Final = 50  # that have a rate of their own, the largest ones
_SUMS: Final = ("n_requests", "n_runs", "tokens", "squares", "n_labelled", "n_right")  # of a `Stratum`


@dataclass(slots=True)
class LiveSums:
    read_to: int  # place in the log up to which runs were taken in
    looked_to: int  # … up to which the log had come at the last look
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    n_live: float = 0.0  # runs
    shares: float = 0.0  # of audits, as they were drawn: summed over runs

    def fade(self, part: float) -> None:
        self.n_live, self.shares = part * self.n_live, part * self.shares
        self.classes = {
            name: {key: part * value for key, value in sums.items()}
            for name, sums in self.classes.items()
            if sums["n_requests"] >= 1
        }

    def of_class(self, name: str) -> dict[str, float]:
        return self.classes.setdefault(name, dict.fromkeys(_SUMS, 0.0))

    def add(self, items: Iterable[EpisodeWithLabels], match: Match) -> None:
        for item in items:
            request = item.episode.request
            if request.ungoverned is not None:
                continue
            run, sums = measure_run(item, match), self.of_class(class_of(request.query))
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


@dataclass(kw_only=True)
class SamplingJob(ProposalJob):
    name = "sampling"
    failing = "rates left as they are"
    rests_s = 30.0
    _looks: dict[str, LiveSums] = field(init=False, default_factory=dict)

    def forget(self) -> None:
        super().forget()
        self._looks.clear()

    def concerns(self, route: Route) -> bool:
        return self.settings.monitoring.adapt and route.mode == "enforce" and self.settings.sample_rate_on(route) < 1

    def propose(self, name: str, held: InForce, here: JobPass) -> str | None:  # noqa: ARG002 - whatever is in force
        """Look at what is new, and set rates that have moved; None: too little is new."""
        log, seen = here.log, self._looks.get(name)
        if seen is None:
            seen = self._looks[name] = LiveSums(place_before(log, name, FIRST_REQUESTS), here.until)
        elif requests_since(log, name, seen.looked_to) < STEP_REQUESTS:
            return None
        since, to = seen.read_to, seen.looked_to
        seen.read_to, seen.looked_to = to, here.until
        seen.fade(FADING)
        seen.add(drawn_runs(log, name, since, to), self.match(name))
        for cell in counted_cells(log, name, since_seq=since, until_seq=to):
            if not cell.ungoverned:
                seen.of_class(cell.query_class)["n_requests"] += cell.n
        if not seen.n_live:
            return None
        share, sample_rate = seen.shares / seen.n_live, self.settings.sample_rate_of(name)
        before, even = newest_rates(log, name), live_rate(sample_rate, share)
        rates, was = allocate(seen.strata(), rate=even), Rates(other=even)
        if before is not None and before.sample_rate == sample_rate:
            was = Rates(other=before.other, by_class=before.after)
        if not moved(was, rates, by=MOVED):
            return ""
        kept = f"{sample_rate:.1%} of requests have rows, audits ({share:.1%}) among them"
        row = RowRates(
            route=name,
            number=1 if before is None else before.number + 1,
            sample_rate=sample_rate,
            read_to_seq=here.until,
            other=rates.other,
            after=rates.by_class,
            before=was.by_class,
            author=self.author,
            reason=f"{kept}; classes by what is uncertain in the latest {seen.n_live:,.0f} live runs",
        )
        here.desk.write([row])
        return f"rates of {len(rates.by_class)} classes set: {kept}"
