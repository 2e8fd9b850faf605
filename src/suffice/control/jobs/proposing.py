"""The job `retrain`: on schedule and after drift, a version that might be better, with its report card.

    episodes of the epoch, version in force ──▶ learn.retrain ──▶ ProposedVersion, and the version as an artefact

It puts nothing in force: a person may read the card, and a certificate decides. Where the settings say so, it begins a
rollout of what is better than the version in force. Fits are the dearest thing that a worker does, so a route is asked
whether one is due twice a minute at most. A route whose fit fails is left alone for a while, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from suffice.assurance.labels import JUDGE
from suffice.assurance.runs import SequencedLabel, current_label
from suffice.control.compare.assessment import barred
from suffice.control.evidence.cold_start import burst_requests
from suffice.control.evidence.versions import read_back, written
from suffice.control.jobs.base import ByRoute, JobWriter, since
from suffice.errors import ConfigError
from suffice.learn.dataset import build_dataset
from suffice.learn.retrain import Reason, Schedule, VersionProposal, refit_reason, retrain
from suffice.learn.version import FoldedVersion
from suffice.rollout.evidence import rules_of
from suffice.settings import Control, Route
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader, read_episodes
from suffice.store.people.holds import read_holds
from suffice.store.routes.candidates import as_candidate
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.rollouts import beginning, kept_with, read_rollouts
from suffice.store.routes.windows import counts_since, newest_proposal
from suffice.store.rows.records import ProposedVersion
from suffice.types import Feedback


@dataclass(slots=True, kw_only=True)
class Retrain(ByRoute):
    """Proposes versions for every route that has no policy of its owner's.

    secret  of the deployment, which signs what is tried
    now     Unix time
    """

    rests_s: ClassVar[float] = 30.0  # between two questions whether a fit is due

    secret: str
    now: Callable[[], float]
    name: str = "retrain"
    _tried: dict[str, int] = field(default_factory=dict)  # place up to which nothing could be learned

    def forget(self) -> None:
        ByRoute.forget(self)
        self._tried.clear()

    def concerns(self, route: Route) -> bool:
        return route.is_learned

    def propose(
        self, name: str, route: Route, held: InForce, connection: LogReader, desk: JobWriter, until: int
    ) -> str:
        """Propose what is due; what was proposed, or ""."""
        reason = self._due(name, held, connection)
        if reason is None:
            return ""
        self._tried[name] = until
        parent = _parent(held, connection)
        desk.renew()
        with self.matches(route) as match:
            data = build_dataset(
                read_episodes(connection, name, since(name, held, connection)),
                match=match,
                wave=route.wave,
                also=() if parent is None else parent.models[0].features,
                label_of=_of_people,
            )
        found = retrain(data, parent, max_em_drop=route.max_em_drop, reason=reason)
        desk.renew()
        if found.version is None:
            return f"nothing to propose: {found.why}"
        proposed, body = _plain(name, found, until, self.author), written(found.version)
        desk.write([proposed], {found.version.address: body})
        said = f"{found.version.address} proposed: {found.verdict} ({found.why})"
        if route.rollout.automatic and found.verdict == "better":
            said = f"{said}; {self._try(name, route, proposed, body, connection, desk)}"
        return said

    def _try(
        self,
        name: str,
        route: Route,
        proposed: ProposedVersion,
        body: str,
        connection: LogReader,
        desk: JobWriter,
    ) -> str:
        """Begin a rollout of a proposal, where nothing speaks against it; what became of it."""
        held, now_s = read_decided(connection).of(name), self.now()
        one = as_candidate(name, route, held, proposed, body, by=self.author, why=proposed.why, now_s=now_s)
        if isinstance(one, str):
            return f"not tried: {one}"
        event = beginning(
            read_rollouts(connection),
            one,
            author=self.author,
            reason=proposed.why,
            name=f"{name}-{proposed.read_to_seq}",
            rules=rules_of(route),
            now_s=now_s,
            by_person=False,
            held_by=barred(held, read_holds(connection).of(name), now_s=now_s),
        )
        if isinstance(event, str):
            return f"not tried: {event}"
        desk.write([event], kept_with(one, secret=self.secret))
        return "tried from here on, in shadow"

    def _due(self, name: str, held: InForce, connection: LogReader) -> Reason | None:
        before = newest_proposal(connection, name)
        last = max(before.read_to_seq if before is not None else 0, self._tried.get(name, 0))
        begins = last or since(name, held, connection)
        n_requests, n_full = counts_since(connection, name, begins)
        epoch, alarm = held.epoch, held.alarm
        n_since_alarm = None
        if epoch is not None and alarm is not None and alarm.epoch == epoch.number - 1 and epoch.since_seq > last > 0:
            n_since_alarm = counts_since(connection, name, epoch.since_seq)[1]
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


def _parent(held: InForce, connection: LogReader) -> FoldedVersion | None:
    """The version in force; None: there is none, or it cannot be read."""
    made = held.publication
    if made is None or not made.fit:
        return None
    try:
        return read_back(made.fit, read_artefact(connection, made.fit)).version
    except ConfigError:
        return None


def _of_people(labels: Sequence[SequencedLabel]) -> Feedback | None:
    """The label that counts, a judge model's left out: nothing here takes its error off (`assurance.labels`)."""
    return current_label([one for one in labels if one.feedback.source != JUDGE])


def _plain(name: str, found: VersionProposal, until: int, author: str) -> ProposedVersion:
    card, version = found.card, found.version
    assert version is not None
    own = None if card is None else next(p for p in card.frontier if p.max_em_drop == card.max_em_drop)
    return ProposedVersion(
        route=name,
        read_to_seq=until,
        address=version.address,
        parent=found.lineage.parent,
        reason=found.lineage.reason,
        verdict=found.verdict,
        why=found.why,
        n_runs=found.lineage.n_runs,
        saving=None if own is None else own.saving,
        drop=None if own is None else own.drop,
        lineage=asdict(found.lineage),
        card=None if card is None else asdict(card),
        author=author,
    )
