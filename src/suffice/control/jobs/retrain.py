"""The job `retrain`: on schedule and after drift, a version that might be better, with its report card.

    episodes of the epoch, version in force ──▶ learn.retrain ──▶ ProposedVersion, and the version as an artefact

It puts nothing in force: a person may read the card, and a certificate decides. Where the settings say so, it begins a
rollout of what is better than the version in force. Fits are the dearest thing that a worker does, so a route is asked
whether one is due twice a minute at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from suffice.assurance.labels import JUDGE
from suffice.assurance.runs import SequencedLabel, current_label
from suffice.control.compare.assessment import barred
from suffice.control.evidence.cold_start import burst_requests
from suffice.control.evidence.versions import version_in_force, written
from suffice.control.jobs.base import JobPass, ProposalJob, since
from suffice.learn.dataset import build_dataset
from suffice.learn.retrain import Reason, Schedule, VersionProposal, refit_reason, retrain
from suffice.learn.version import FoldedVersion
from suffice.rollout.evidence import rules_of
from suffice.settings import Control, Route
from suffice.store.database.views import LogReader, read_episodes
from suffice.store.routes.candidates import as_candidate
from suffice.store.routes.in_force import InForce, read_decided, read_holds
from suffice.store.routes.rollouts import beginning, kept_with, read_rollouts
from suffice.store.routes.windows import counts_since, newest_proposal
from suffice.store.rows.records import ProposedVersion
from suffice.types import Feedback


@dataclass(kw_only=True)
class Retrain(ProposalJob):
    """Proposes versions for every route without a policy of its owner's."""

    name = "retrain"
    rests_s = 30.0  # between two questions whether a fit is due
    _tried: dict[str, int] = field(init=False, default_factory=dict)  # place up to which nothing could be learned

    def forget(self) -> None:
        super().forget()
        self._tried.clear()

    def concerns(self, route: Route) -> bool:
        return route.is_learned

    def propose(self, name: str, held: InForce, here: JobPass) -> str:
        """Propose what is due; what was proposed, or ""."""
        route, reason = self.settings.routes[name], self._due(name, held, here.log)
        if reason is None:
            return ""
        self._tried[name] = here.until
        served = version_in_force(here.log, held)
        parent = None if served is None else served.version
        here.desk.renew()
        with self.matches(route) as match:
            data = build_dataset(
                read_episodes(here.log, name, since(name, held, here.log)),
                match=match,
                wave=route.wave,
                also=() if parent is None else parent.models[0].features,
                label_of=_of_people,
            )
        result = retrain(data, parent, max_em_drop=route.max_em_drop, reason=reason)
        here.desk.renew()
        if result.version is None:
            return f"nothing to propose: {result.why}"
        proposed, body = self._record(name, result, result.version, here.until), written(result.version)
        here.desk.write([proposed], {proposed.address: body})
        said = f"{proposed.address} proposed: {result.verdict} ({result.why})"
        if route.rollout.automatic and result.verdict == "better":
            said = f"{said}; {self._try(proposed, body, here)}"
        return said

    def _record(self, name: str, result: VersionProposal, version: FoldedVersion, until: int) -> ProposedVersion:
        card, lineage = result.card, result.lineage
        own = None if card is None else next(p for p in card.frontier if p.max_em_drop == card.max_em_drop)
        return ProposedVersion(
            route=name,
            read_to_seq=until,
            address=version.address,
            parent=lineage.parent,
            reason=lineage.reason,
            verdict=result.verdict,
            why=result.why,
            n_runs=lineage.n_runs,
            saving=None if own is None else own.saving,
            drop=None if own is None else own.drop,
            lineage=asdict(lineage),
            card=None if card is None else asdict(card),
            author=self.author,
        )

    def _try(self, proposed: ProposedVersion, body: str, here: JobPass) -> str:
        """Begin a rollout of a proposal, where nothing speaks against it; what became of it."""
        name, route = proposed.route, self.settings.routes[proposed.route]
        held, now_s = read_decided(here.log).of(name), self.now()
        candidate = as_candidate(name, route, held, proposed, body, by=self.author, why=proposed.why, now_s=now_s)
        if isinstance(candidate, str):
            return f"not tried: {candidate}"
        event = beginning(
            read_rollouts(here.log),
            candidate,
            author=self.author,
            reason=proposed.why,
            name=f"{name}-{proposed.read_to_seq}",
            rules=rules_of(route),
            now_s=now_s,
            by_person=False,
            held_by=barred(held, read_holds(here.log).of(name), now_s=now_s),
        )
        if isinstance(event, str):
            return f"not tried: {event}"
        here.desk.write([event], kept_with(candidate, secret=self.secret))
        return "tried from here on, in shadow"

    def _due(self, name: str, held: InForce, log: LogReader) -> Reason | None:
        before, epoch, alarm = newest_proposal(log, name), held.epoch, held.alarm
        last = max(before.read_to_seq if before is not None else 0, self._tried.get(name, 0))
        n_requests, n_full = counts_since(log, name, last or since(name, held, log))
        n_since_alarm = None
        if epoch is not None and alarm is not None and alarm.epoch == epoch.number - 1 and epoch.since_seq > last > 0:
            n_since_alarm = counts_since(log, name, epoch.since_seq)[1]
        return refit_reason(
            schedule_of(self.settings.control, self.settings.routes[name].max_em_drop),
            n_requests=n_requests,
            n_new_runs=n_full,
            n_runs_since_alarm=n_since_alarm,
        )


def schedule_of(control: Control, max_em_drop: float) -> Schedule:
    """When a refit is due, by the settings: as often as the certify loop fits, and behind a burst."""
    usual, burst = Schedule(), burst_requests(control, max_em_drop)
    return Schedule(
        every_requests=control.refit_requests,
        burst_runs=min(usual.burst_runs, burst),
        rest_requests=min(usual.rest_requests, control.refit_requests),
    )


def _of_people(labels: Sequence[SequencedLabel]) -> Feedback | None:
    """The label that counts, a judge model's left out: nothing here takes its error off (`assurance.labels`)."""
    return current_label([one for one in labels if one.feedback.source != JUDGE])
