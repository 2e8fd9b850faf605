"""What an audit shows of each arm of an experiment: the answer that the arm would have given.

    audits of one route ──▶ the full run's answer; each policy, replayed; each level, by the version of its time
                        ──▶ the second call, where the audit was asked twice with that very arm

A run that was broken off, or has a checkpoint that nobody saw before an arm's stop, shows nothing of that arm. Which of
two answers is right is asked where they differ (`judged`). Knows recorded runs and policies; refuses to know what the
difference between two arms is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from suffice.assurance.runs import Match
from suffice.control.evidence.audits import Audit, verdicts
from suffice.control.evidence.audits import audits_to_rows as as_rows
from suffice.control.evidence.fitting import ServedVersion
from suffice.control.evidence.stops import answer_of, policy_stops
from suffice.learn.dataset import is_right, recorded_columns
from suffice.learn.features import FeatureSelection
from suffice.learn.version import as_served
from suffice.policy.base import build_policy
from suffice.rollout.experiment import Arm, with_arm
from suffice.rollout.results import ArmEvidence
from suffice.settings import Route
from suffice.types import Publication

_WHOLE: Final = ("full", "unprobed")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfRoute:
    """What audits of one route are read with.

    published  what was in force at a place of the log; None: nothing
    load       the version under an address; None: it is gone
    """

    route: Route
    match: Match
    published: Callable[[int], Publication | None]
    load: Callable[[str], ServedVersion | None]

    def replayable(self, arm: Arm) -> bool:
        """Do audits of this route show the arm?"""
        return arm.full or self._asked_ahead(arm) is None or self._asked_twice(arm)

    def arm(self, arm: Arm, audits: Sequence[Audit]) -> list[ArmEvidence | None]:
        """What each audit shows of an arm, not judged yet; None: nothing that anybody could ever see."""
        if arm.full:
            return [self._full(audit) for audit in audits]
        if self._asked_ahead(arm) is not None:
            return [self._twice(arm, audit) if self._asked_twice(arm) else None for audit in audits]
        served = with_arm(self.route, arm)
        if served.policy:
            told = [audit for audit in audits if audit.fate == "full"]
            stops = policy_stops(build_policy(served.policy), self.route.kind, told)
        else:
            stops = self._levels(arm, audits)
        return [self._at(audit, stops.get(audit.id)) for audit in audits]

    def at_level(self, version: ServedVersion, level: int, audits: Sequence[Audit]) -> list[ArmEvidence]:
        """What each audit shows of a learned version at one of its levels, not judged yet."""
        told = [audit for audit in audits if audit.fate == "full" and len(audit.episode.outcome.steps) > 1]
        found = self._at_level(version, level, told) if told and level else {}
        return [self._at(audit, found.get(audit.id)) for audit in audits]

    def judged(
        self, audits: Sequence[Audit], shown: Mapping[str, Mapping[str, ArmEvidence]], callers: Collection[str]
    ) -> dict[str, dict[str, ArmEvidence]]:
        """The same with what counts as said (`assurance.label_precedence`) where arms differ, by audit and arm.

        shown    by audit and arm
        callers  senders whose keys also ask the model: users, whatever they call themselves
        """
        differing = [audit for audit in audits if len({one.answer for one in shown[audit.id].values() if one.seen}) > 1]
        counts, _ = verdicts(differing, self.match, callers=callers)
        return {
            audit.id: {
                arm: replace(one, right=is_right(one.answer, audit.episode.outcome.answer, label, self.match))
                for arm, one in shown[audit.id].items()
            }
            for audit in differing
            if (label := counts.get(audit.id)) is not None
        }

    # ---- effort and budget: asked twice ----------------------------------------------------------

    def _asked_ahead(self, arm: Arm) -> str | None:
        """What the arm asks for before the call, as outcomes name it; None: nothing, so that a replay shows it."""
        served = with_arm(self.route, arm)
        if served.effort is not None:
            return f"effort={served.effort}"
        return None if served.budget_tokens is None else f"budget_tokens={served.budget_tokens}"

    def _asked_twice(self, arm: Arm) -> bool:
        """Is it the route's own, which is what the second call of an audit is made with?"""
        return self._asked_ahead(arm) == self._asked_ahead(Arm(name="", weight=1.0))

    def _twice(self, arm: Arm, audit: Audit) -> ArmEvidence | None:
        outcome = audit.episode.outcome
        if outcome.pair_arm is None or outcome.pair_arm != self._asked_ahead(arm):
            return None
        return ArmEvidence(answer=outcome.pair_answer, right=None)

    # ---- stops: replayed -------------------------------------------------------------------------

    def _full(self, audit: Audit) -> ArmEvidence:
        outcome = audit.episode.outcome
        if audit.fate not in _WHOLE:
            return ArmEvidence(answer=None, right=None, seen=False)
        return ArmEvidence(answer=outcome.answer, right=None, tokens=_generated(audit, None))

    def _at(self, audit: Audit, stop: tuple[int, str | None] | None) -> ArmEvidence:
        """The answer behind a stop; None: the arm lets the run come to its end."""
        steps = audit.episode.outcome.steps
        first = next((at for at, step in enumerate(steps) if step.missing), len(steps))
        behind = len(steps) - 1 if stop is None else stop[0]
        if audit.fate not in _WHOLE or first <= behind:
            return ArmEvidence(answer=None, right=None, seen=False)
        if stop is None:
            return self._full(audit)
        return ArmEvidence(answer=stop[1], right=None, tokens=_generated(audit, stop[0]))

    def _levels(self, arm: Arm, audits: Sequence[Audit]) -> dict[str, tuple[int, str | None]]:
        """Step and answer of the stop at a level of what was certified when the audit ran, by episode."""
        groups: dict[tuple[str, int], list[Audit]] = {}
        for audit in audits:
            made = self.published(audit.seq)
            level = 0 if made is None or not made.certified else made.level
            level = level if arm.level is None else min(level, arm.level)
            if made is not None and level and audit.fate == "full" and len(audit.episode.outcome.steps) > 1:
                groups.setdefault((made.fit, level), []).append(audit)
        found: dict[str, tuple[int, str | None]] = {}
        for (fit, level), members in groups.items():
            version = self.load(fit)
            if version is not None:
                found.update(self._at_level(version, level, members))
        return found

    def _at_level(
        self, version: ServedVersion, level: int, audits: Sequence[Audit]
    ) -> Mapping[str, tuple[int, str | None]]:
        chosen = FeatureSelection(tuple(version.version.models[0].features), ())
        rows = as_rows(audits, chosen=chosen, match=self.match, wave=self.route.wave, counts={})
        assert rows is not None
        steps = version.rows_at(as_served(rows, version.version), level) - rows.starts[:-1]
        runs = [(one.episode.request.query, one.episode.outcome.steps) for one in audits]
        columns = recorded_columns((), self.route.kind, runs)
        return {
            audit.id: (int(step), answer_of(columns.answer[start + step], columns.answers))
            for audit, step, start, end in zip(audits, steps, columns.starts[:-1], columns.starts[1:], strict=True)
            if start + step < end - 1
        }


def _generated(audit: Audit, stop: int | None) -> float:
    """Tokens of the run up to a step, and of the answer that is written behind a thought; None: of all of it."""
    outcome = audit.episode.outcome
    if outcome.usage is None:
        return 0.0
    if stop is None:
        return float(outcome.usage.completion_tokens)
    written = outcome.usage.completion_tokens - outcome.usage.reasoning_tokens
    said = max(0, written) if audit.episode.request.kind == "reasoning" else 0
    return float(sum(step.tokens for step in outcome.steps[: stop + 1]) + said)
