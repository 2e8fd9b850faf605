"""Replays audits under the arms of an experiment, and under a version at one of its levels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from suffice.assurance.runs import Match, is_right
from suffice.control.evidence.audits import Audit, verdicts
from suffice.control.evidence.versions import answer_of, policy_stops, version_rows
from suffice.learn.dataset import recorded_columns
from suffice.learn.version import ServedVersion
from suffice.policy.base import build_policy
from suffice.rollout.experiment import Arm, with_arm
from suffice.rollout.results import ArmEvidence
from suffice.settings import Route
from suffice.types import Publication

ACTIVE_ARM: Final = Arm(name="in force", weight=1.0)
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
        return self._requested_arm(arm) in self.route.arms

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
        if not level:
            return {}
        rows = version_rows(version, audits, match=self.match, wave=self.route.wave, counts={})
        steps = version.rows_at(rows, level) - rows.starts[:-1]
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
