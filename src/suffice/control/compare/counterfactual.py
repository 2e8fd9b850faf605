"""Both versions of a rollout, as audits are replayed under them: two policies, or learned models beside those in force.

    audits ──▶ PolicyVersions.replay | LearnedVersions.replay ──▶ what each would have answered and generated

A learned candidate is replayed at the level that its own certificate let act when the request came: before that it
would have run in full, which is no pair. So what is compared is what would have been served, whatever was learned of it
later. Knows recorded runs and versions; refuses to know what the difference is worth.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from suffice.control.compare.candidate_certificate import CandidateCertificate, CandidateEvidence
from suffice.control.compare.differing import worth_a_label
from suffice.control.compare.rollout_evidence import Both, EvidenceFold, Witness
from suffice.control.compare.shown import OfRoute
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.fitting import ServedVersion, as_served_version
from suffice.control.evidence.loading import loader, published_on
from suffice.control.evidence.window_size import window_size
from suffice.rollout.experiment import Arm
from suffice.rollout.results import ArmEvidence
from suffice.settings import Control
from suffice.store.database.views import LogReader
from suffice.store.routes.candidates import models_of
from suffice.store.routes.in_force import InForce
from suffice.store.routes.rollouts import RolloutRun, version_at
from suffice.types import LabelRequest

AS_IT_IS: Final = Arm(name="in force", weight=1.0)


class Sides(Protocol):
    """What a look at a rollout asks of its two versions."""

    def begin(self, connection: LogReader) -> None:
        """Read what a look needs of the log. Raises StoreError."""

    def replay(self, witnesses: Sequence[Witness]) -> list[Both | None]:
        """New audits as both versions would have ended them; None: it is no pair."""

    def watch(self, audits: Sequence[Audit]) -> set[str]:
        """Take new audits in; the episodes whose labels may still change something."""

    def certify(self, gathering: EvidenceFold, decided: InForce, budget: float) -> CandidateCertificate | None:
        """What the candidate's own certificate lets act; None: it has none, or nothing can be tested now."""

    def wanted(self, gathering: EvidenceFold, asked: Collection[str]) -> list[LabelRequest]:
        """Labels that are worth asking for, and were not."""


def sides_of(connection: LogReader, held: RolloutRun, of_route: OfRoute, control: Control, *, secret: str) -> Sides:
    """Those of a rollout. Raises ConfigError for a version that cannot be read, and StoreError."""
    candidate = version_at(connection, held.state.candidate, secret=secret)
    if held.state.fit:
        trying = CandidateEvidence(
            version=as_served_version(models_of(candidate)),
            match=of_route.match,
            wave=of_route.route.wave,
            number=held.number,
            window=window_size(control, of_route.route.max_em_drop),
        )
        return LearnedVersions(held=held, of_route=of_route, trying=trying)
    in_force = version_at(connection, held.state.in_force, secret=secret)
    bodies = (json.dumps(one.plain()["body"], sort_keys=True) for one in (candidate, in_force))
    arms = tuple(Arm(name="", weight=1.0, policy=body) for body in bodies)
    return PolicyVersions(of_route=of_route, arms=arms)


@dataclass(slots=True, kw_only=True, eq=False)
class PolicyVersions:
    """Two policies: the candidate's, then that of the version in force."""

    of_route: OfRoute
    arms: tuple[Arm, ...]

    def begin(self, connection: LogReader) -> None:
        """Nothing more is needed."""

    def replay(self, witnesses: Sequence[Witness]) -> list[Both | None]:
        """As `Sides` has it."""
        audits = [one.audit for one in witnesses]
        return _pairs(*(self.of_route.arm(arm, audits) for arm in self.arms))

    def watch(self, audits: Sequence[Audit]) -> set[str]:  # noqa: ARG002 - as `Sides` has it
        """A policy has no certificate."""
        return set()

    def certify(self, gathering: EvidenceFold, decided: InForce, budget: float) -> None:
        """A policy has no certificate."""

    def wanted(self, gathering: EvidenceFold, asked: Collection[str]) -> list[LabelRequest]:
        """As `Sides` has it."""
        return list(worth_a_label(gathering, asked))


@dataclass(slots=True, kw_only=True, eq=False)
class LearnedVersions:
    """Learned models, beside what the certify loop has in force."""

    held: RolloutRun
    of_route: OfRoute
    trying: CandidateEvidence
    _known: dict[str, ServedVersion | None] = field(default_factory=dict)

    def begin(self, connection: LogReader) -> None:
        """Know what was in force when."""
        self.of_route = replace(
            self.of_route,
            published=published_on(connection, self.held.state.route),
            load=loader(connection, self._known),
        )

    def replay(self, witnesses: Sequence[Witness]) -> list[Both | None]:
        """As `Sides` has it."""
        candidate: dict[str, ArmEvidence] = {}
        for level in sorted({one.state.level for one in witnesses} - {0}):
            audits = [one.audit for one in witnesses if one.state.level == level]
            found = self.of_route.at_level(self.trying.version, level, audits)
            candidate |= {audit.id: shown for audit, shown in zip(audits, found, strict=True)}
        audits = [one.audit for one in witnesses]
        return _pairs([candidate.get(audit.id) for audit in audits], self.of_route.arm(AS_IT_IS, audits))

    def watch(self, audits: Sequence[Audit]) -> set[str]:
        """As `Sides` has it."""
        return self.trying.take(audits)

    def certify(self, gathering: EvidenceFold, decided: InForce, budget: float) -> CandidateCertificate | None:
        """Under the same budget as the version in force, less what was charged to that; else nothing is tested."""
        made, epoch = decided.publication, decided.epoch
        if made is None or epoch is None or not made.certified or made.fit != self.held.state.in_force:
            return None
        self.trying.hear(gathering.watched, gathering.callers)
        if made.evidence.max_em_drop is None:
            return None
        # The epoch's confidence: a publication's is the loop's own part of delta, which is no measure of this one's.
        return self.trying.certificate(
            pending=gathering.pending,
            windows=gathering.windows,
            max_em_drop=min(budget, made.evidence.max_em_drop),
            confidence=max(epoch.confidence, self.of_route.route.confidence),
            harm_confidence=self.held.rules.harm_confidence,
        )

    def wanted(self, gathering: EvidenceFold, asked: Collection[str]) -> list[LabelRequest]:
        """As `Sides` has it."""
        return list(worth_a_label(gathering, asked, self.of_route, self.trying))


def _pairs(candidate: Sequence[ArmEvidence | None], in_force: Sequence[ArmEvidence | None]) -> list[Both | None]:
    return [
        None if one is None or two is None else Both(candidate=one, in_force=two)
        for one, two in zip(candidate, in_force, strict=True)
    ]
