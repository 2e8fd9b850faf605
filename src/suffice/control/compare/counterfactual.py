"""Replays audits under both versions of a rollout, and under the arms of an experiment.

A learned candidate is replayed at the level that its certificate allowed when the request arrived; else there is no
pair.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from suffice.assurance.runs import Match, is_right
from suffice.control.compare.candidate_certificate import CandidateCertificate, CandidateEvidence
from suffice.control.compare.rollout_evidence import EvidenceFold, ReplayedPair, RolloutAudit
from suffice.control.evidence.audits import Audit, audits_to_rows, verdicts
from suffice.control.evidence.cold_start import window_size
from suffice.control.evidence.versions import (
    ServedVersion,
    answer_of,
    as_served_version,
    loader,
    policy_stops,
    published_on,
)
from suffice.learn.dataset import recorded_columns
from suffice.learn.version import as_served
from suffice.policy.base import build_policy
from suffice.rollout.experiment import Arm, with_arm
from suffice.rollout.results import ArmEvidence
from suffice.settings import Control, Route
from suffice.store.database.views import LogReader
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.routes.rollouts import RolloutRun, models_of, version_at
from suffice.types import LabelRequest, Publication

ACTIVE_ARM: Final = Arm(name="in force", weight=1.0)
_OWN: Final = Arm(name="", weight=1.0)
_WHOLE: Final = ("full", "unprobed")
_UNSEEN: Final = ArmEvidence(answer=None, right=None, seen=False)

Stop: TypeAlias = tuple[int, str | None]  # step, from 0, and answer


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReplay:
    route: Route
    match: Match
    published: Callable[[int], Publication | None] = lambda _: None
    load: Callable[[str], ServedVersion | None] = lambda _: None

    def replayable(self, arm: Arm) -> bool:
        return arm.full or self._requested_arm(arm) is None or self._is_paired(arm)

    def arm(self, arm: Arm, audits: Sequence[Audit]) -> list[ArmEvidence | None]:
        """Replay audits under an arm, without labels; None: the arm's result on that audit cannot be known."""
        if arm.full:
            return [self._full(audit) for audit in audits]
        ahead = self._requested_arm(arm)
        if ahead is not None:
            calls = (audit.outcome if self._is_paired(arm) else None for audit in audits)
            return [
                ArmEvidence(answer=one.pair_answer, right=None) if one is not None and one.pair_arm == ahead else None
                for one in calls
            ]
        served = with_arm(self.route, arm)
        if served.policy:
            seen = [audit for audit in audits if audit.fate == "full"]
            stops = policy_stops(build_policy(served.policy), self.route.kind, seen)
        else:
            stops = self._levels(arm, audits)
        return [self._at(audit, stops.get(audit.id)) for audit in audits]

    def at_level(self, version: ServedVersion, level: int, audits: Sequence[Audit]) -> list[ArmEvidence]:
        stops = self._stops(version, level, [audit for audit in audits if audit.is_replayable])
        return [self._at(audit, stops.get(audit.id)) for audit in audits]

    def judged(
        self, audits: Sequence[Audit], replays: Mapping[str, Mapping[str, ArmEvidence]], callers: Collection[str]
    ) -> dict[str, dict[str, ArmEvidence]]:
        """Add the labels that count (`assurance.labels`) to replays whose arms differ, by audit and arm."""
        differing = [
            audit for audit in audits if len({one.answer for one in replays[audit.id].values() if one.seen}) > 1
        ]
        counts = verdicts(differing, self.match, callers=callers)
        return {
            audit.id: {
                arm: replace(one, right=is_right(one.answer, audit.outcome.answer, label, self.match))
                for arm, one in replays[audit.id].items()
            }
            for audit in differing
            if (label := counts.get(audit.id)) is not None
        }

    # ---- effort and budget: from the paired call --------------------------------------------------

    def _requested_arm(self, arm: Arm) -> str | None:
        """The effort or budget that the arm requests before the call, as outcomes name it; None: neither."""
        return next(iter(with_arm(self.route, arm).arms), None)

    def _is_paired(self, arm: Arm) -> bool:
        return self._requested_arm(arm) == self._requested_arm(_OWN)

    # ---- stops: replayed -------------------------------------------------------------------------

    def _full(self, audit: Audit) -> ArmEvidence:
        if audit.fate not in _WHOLE:
            return _UNSEEN
        return ArmEvidence(answer=audit.outcome.answer, right=None, tokens=_generated(audit, None))

    def _at(self, audit: Audit, stop: Stop | None) -> ArmEvidence:
        behind = len(audit.outcome.steps) - 1 if stop is None else stop[0]
        if audit.fate not in _WHOLE or (audit.gap is not None and audit.gap <= behind):
            return _UNSEEN
        if stop is None:
            return self._full(audit)
        return ArmEvidence(answer=stop[1], right=None, tokens=_generated(audit, stop[0]))

    def _levels(self, arm: Arm, audits: Sequence[Audit]) -> dict[str, Stop]:
        groups: dict[tuple[str, int], list[Audit]] = {}
        for audit in audits:
            made = self.published(audit.seq)
            level = 0 if made is None or not made.certified else made.level
            level = level if arm.level is None else min(level, arm.level)
            if made is not None and level and audit.is_replayable:
                groups.setdefault((made.fit, level), []).append(audit)
        stops: dict[str, Stop] = {}
        for (fit, level), members in groups.items():
            version = self.load(fit)
            if version is not None:
                stops.update(self._stops(version, level, members))
        return stops

    def _stops(self, version: ServedVersion, level: int, audits: Sequence[Audit]) -> Mapping[str, Stop]:
        rows = audits_to_rows(audits, chosen=version.features, match=self.match, wave=self.route.wave, counts={})
        if not level:
            return {}
        steps = version.rows_at(as_served(rows, version.version), level) - rows.starts[:-1]
        runs = [(one.episode.request.query, one.outcome.steps) for one in audits]
        columns = recorded_columns((), self.route.kind, runs)
        return {
            audit.id: (int(step), answer_of(columns.answer[start + step], columns.answers))
            for audit, step, start, end in zip(audits, steps, columns.starts[:-1], columns.starts[1:], strict=True)
            if start + step < end - 1
        }


def _generated(audit: Audit, stop: int | None) -> float:
    usage = audit.outcome.usage
    if usage is None:
        return 0.0
    if stop is None:
        return float(usage.completion_tokens)
    written = usage.completion_tokens - usage.reasoning_tokens
    answer_tokens = max(0, written) if audit.episode.request.kind == "reasoning" else 0
    return float(sum(step.tokens for step in audit.outcome.steps[: stop + 1]) + answer_tokens)


# --------------------------------------------------------------------------- the two versions of a rollout


class VersionPair:
    """Both versions of a rollout: `arms` if they are policies, `evidence` if the candidate is learned."""

    def __init__(
        self, log: LogReader, held: RolloutRun, of_route: AuditReplay, control: Control, *, secret: str
    ) -> None:
        """Raises ConfigError for a version that cannot be read, and StoreError."""
        self.held, self.of_route = held, of_route
        self.arms: tuple[Arm, ...] = ()
        self.evidence: CandidateEvidence | None = None
        self._known: dict[str, ServedVersion | None] = {}
        candidate = version_at(log, held.state.candidate, secret=secret)
        if held.state.fit:
            self.evidence = CandidateEvidence(
                version=as_served_version(models_of(candidate)),
                match=of_route.match,
                wave=of_route.route.wave,
                number=held.number,
                window=window_size(control, of_route.route.max_em_drop),
            )
            return
        other = version_at(log, held.state.in_force, secret=secret)
        bodies = (json.dumps(one.plain()["body"], sort_keys=True) for one in (candidate, other))
        self.arms = tuple(Arm(name="", weight=1.0, policy=body) for body in bodies)

    def begin(self, log: LogReader) -> None:
        """Raises StoreError."""
        if self.evidence is not None:
            published = published_on(log, self.held.state.route)
            self.of_route = replace(self.of_route, published=published, load=loader(log, self._known))

    def replay(self, witnesses: Sequence[RolloutAudit]) -> list[ReplayedPair | None]:
        """Replay new audits under both versions; None: there is no pair."""
        audits = [one.audit for one in witnesses]
        if self.evidence is None:
            candidate, other = (self.of_route.arm(arm, audits) for arm in self.arms)
        else:
            by_id: dict[str, ArmEvidence] = {}
            for level in sorted({one.state.level for one in witnesses} - {0}):
                at_level = [one.audit for one in witnesses if one.state.level == level]
                replayed = self.of_route.at_level(self.evidence.version, level, at_level)
                by_id |= {audit.id: evidence for audit, evidence in zip(at_level, replayed, strict=True)}
            candidate, other = [by_id.get(audit.id) for audit in audits], self.of_route.arm(ACTIVE_ARM, audits)
        return [
            None if one is None or two is None else ReplayedPair(candidate=one, active=two)
            for one, two in zip(candidate, other, strict=True)
        ]

    def watch(self, audits: Sequence[Audit]) -> set[str]:
        """Add new audits; return the episodes whose labels can still change the candidate's certificate."""
        return set() if self.evidence is None else self.evidence.add(audits)

    def certify(self, gathering: EvidenceFold, decided: RouteDeployment, budget: float) -> CandidateCertificate | None:
        """Test the candidate on the active version's budget; None: it has no certificate, or cannot be tested now."""
        made, epoch, evidence = decided.publication, decided.epoch, self.evidence
        if evidence is None or made is None or epoch is None:
            return None
        if not made.certified or made.fit != self.held.state.in_force:
            return None
        evidence.note_labels(gathering.watched, gathering.callers)
        if made.evidence.max_em_drop is None:
            return None
        # The epoch's confidence: a publication's holds the loop's part of delta, which does not apply to this one.
        return evidence.certificate(
            pending=gathering.pending,
            windows=gathering.windows,
            max_em_drop=min(budget, made.evidence.max_em_drop),
            confidence=max(epoch.confidence, self.of_route.route.confidence),
            harm_confidence=self.held.rules.harm_confidence,
        )

    def label_requests(self, gathering: EvidenceFold, requested: set[str]) -> list[LabelRequest]:
        """Request unlabelled audits on which the versions differ, or that the candidate's certificate needs."""
        requests = dict[str, LabelRequest]()
        for audit, both in gathering.unjudged():
            answer, other = both.candidate.answer, both.active.answer
            answer = answer if answer != audit.outcome.answer else other
            why = "the candidate would have given a different answer from the active version"
            requests[audit.id] = _request(audit, 1, answer, why)
        for audit, level in () if self.evidence is None else self.evidence.unjudged(gathering.watched):
            if audit.id not in requests and audit.id not in requested and self.evidence is not None:
                (evidence,) = self.of_route.at_level(self.evidence.version, level, [audit])
                why = f"level {level} of the candidate would have given a different answer from the full run"
                requests[audit.id] = _request(audit, level, evidence.answer, why)
        return [request for name, request in requests.items() if name not in requested]


def _request(audit: Audit, level: int, would_answer: str | None, why: str) -> LabelRequest:
    return LabelRequest(
        episode_id=audit.id,
        route=audit.episode.request.route,
        level=level,
        would_answer=would_answer,
        answer=audit.outcome.answer,
        why=why,
    )
