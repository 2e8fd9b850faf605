"""The job `advance`: it looks at every rollout that runs, and takes the step that the evidence calls for.

    requests, outcomes, labels since it began ──▶ gather ──▶ Evidence ──▶ rollout.stages.advance ──▶ RolloutMoved

Audits are replayed under the candidate and under the version in force, so EM is compared pair by pair; live runs of
both arms say what no replay can. Everything is a fold over the log: whoever looks at the same rows takes the same
step, and of two workers that take it one has written it. Looking takes a twentieth of the time at most.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from suffice.assurance.runs import ENDED
from suffice.assurance.satisfaction import by_people
from suffice.control.audits import Audit, Said, is_evidence
from suffice.control.by_route import ByRoute
from suffice.control.jobs import Desk
from suffice.control.matched import Matches
from suffice.control.shown import OfRoute
from suffice.rollout.evidence import ArmName, Evidence, Run, Z
from suffice.rollout.experiment import Arm
from suffice.rollout.results import Shown
from suffice.rollout.rules import Rules
from suffice.rollout.stages import Standing, advance, look
from suffice.rollout.versions import Version
from suffice.settings import Route
from suffice.signals.query import class_of
from suffice.store.in_force import InForce
from suffice.store.rollout_events import Moved, RolloutMoved
from suffice.store.rollouts import Held, governed_runs, read_rollouts, running, version_at
from suffice.store.views import Labelled
from suffice.types import ArmDraw

LEAST_REST: Final = 20.0  # between two looks at a rollout: so many times what the last one took, at least
_CANDIDATE, _IN_FORCE = "candidate", "in force"
_ERRORS: Final = ("upstream_error", "timeout", "internal_error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a rollout stands on at one look."""

    held: Held
    evidence: Evidence
    standing: Standing
    at: int              # requests of the route since it began


@dataclass(slots=True, kw_only=True)
class Advance(ByRoute):
    """Moves the rollout of every route whose owner wrote a policy down.

    secret  of the deployment, which signed the versions
    now     Unix time
    """

    rests_s: ClassVar[float] = 5.0
    failing: ClassVar[str] = "stays where it is"

    secret: str
    now: Callable[[], float]
    name: str = "advance"
    rules: Rules = field(default_factory=Rules)

    def concerns(self, route: Route) -> bool:
        """May a rollout run there?"""
        return bool(route.policy) and route.mode != "off"

    def propose(
        self, name: str, route: Route, held: InForce,  # noqa: ARG002 - a rollout stands in rows of its own
        connection: sqlite3.Connection, desk: Desk, until: int,  # noqa: ARG002 - as above
    ) -> str | None:  # fmt: skip
        """Take the step that the evidence calls for; what was done, or "". None: no rollout runs there."""
        trial = running(read_rollouts(connection)).get(name)
        if trial is None:
            return None
        began_s = self.monotonic_s()
        seen = standing_of(
            connection, trial, route, self.matches, self.rules, secret=self.secret, now_s=self.now()
        )
        ended_s = self.monotonic_s()
        self._rests[name] = max(self._rests[name], ended_s + LEAST_REST * (ended_s - began_s))
        desk.renew()
        moved = advance(trial.state, seen.evidence, self.rules, at=seen.at, now_s=self.now())
        if moved is None:
            return ""
        desk.write([RolloutMoved(Moved(route=name, author=self.author, reason=moved.reason, transition=moved))])
        return f"rollout {trial.state.rollout}: {moved.move}, {moved.stage} at {moved.share:.0%}: {moved.reason}"


def look_at(
    connection: sqlite3.Connection, held: Held, of_route: OfRoute, rules: Rules, *, secret: str, now_s: float
) -> Looked:
    """What the log says of a rollout now. Raises ConfigError for a version that cannot be read, and StoreError."""
    versions = {
        name: version_at(connection, address, secret=secret)
        for name, address in ((_CANDIDATE, held.state.candidate), (_IN_FORCE, held.state.in_force))
    }
    governed = list(governed_runs(connection, held))
    evidence = gather(held, governed, of_route, versions, rules)
    at = len(governed)
    return Looked(
        held=held, evidence=evidence, standing=look(held.state, evidence, rules, at=at, now_s=now_s), at=at
    )


def gather(
    held: Held, runs: Sequence[Labelled], of_route: OfRoute, versions: Mapping[str, Version], rules: Rules
) -> Evidence:
    """What governed runs say of a rollout, in the order in which they ended.

    versions  the candidate's and the one in force
    """
    evidence, units, rated = Evidence(), set[str](), set[str]()
    audits = dict[str, Audit]()
    probes = of_route.route.probe is not None
    for at, item in enumerate(runs, start=1):
        request, outcome = item.episode.request, item.episode.outcome
        evidence = evidence.with_request(class_of(request.query))
        if is_evidence(request, outcome, probes=probes):
            labels = tuple(Said(label.seq, label.feedback) for label in item.labels)
            audit = Audit(seq=item.seq, at=at, ended_at_s=request.received_at_s, episode=item.episode, labels=labels)
            audits.setdefault(audit.unit, audit)
        drawn = _drawn(held, item)
        if drawn is None or not held.at(at).counts(at, request.received_at_s, rules):
            continue
        arm: ArmName = "candidate" if drawn.arm == "candidate" else "control"
        if drawn.unit not in units:
            units.add(drawn.unit)
            evidence = evidence.with_run(arm, _run(item), rules)
        liked = next((v for v in (by_people(label.feedback) for label in item.labels) if v is not None), None)
        if liked is not None and drawn.unit not in rated:
            rated.add(drawn.unit)
            evidence = evidence.with_rating(arm, liked)
    return _with_audits(evidence, list(audits.values()), of_route, versions)


def _drawn(held: Held, item: Labelled) -> ArmDraw | None:
    """The arm of the rollout that a live run stands for; an audit runs in full and stands for none."""
    request = item.episode.request
    if request.audit:
        return None
    name = f"rollout {held.state.rollout}"
    return next((one for one in request.arms if one.experiment == name), None)


def _run(item: Labelled) -> Run:
    outcome = item.episode.outcome
    ended = outcome.end_reason in ENDED
    return Run(
        query_class=class_of(item.episode.request.query), seconds=outcome.duration_s if ended else None,
        error=outcome.end_reason in _ERRORS, no_answer=ended and outcome.answer is None,
    )


# --------------------------------------------------------------------------- audits, replayed under both


def _with_audits(
    evidence: Evidence, audits: Sequence[Audit], of_route: OfRoute, versions: Mapping[str, Version]
) -> Evidence:
    """With every audit as both versions would have ended it."""
    shown = {audit.id: dict[str, Shown]() for audit in audits}
    for name, version in versions.items():
        arm = Arm(name=name, weight=1.0, policy=json.dumps(version.plain()["body"], sort_keys=True))
        for audit, told in zip(audits, of_route.arm(arm, audits), strict=True):
            if told is not None:
                shown[audit.id][name] = told
    judged = of_route.judged(audits, shown, {audit.episode.request.sender for audit in audits} - {""})
    for audit in audits:
        both = {**shown[audit.id], **judged.get(audit.id, {})}
        z = _z(both[_CANDIDATE], both[_IN_FORCE])
        usage = audit.episode.outcome.usage
        evidence = evidence.with_audit(
            class_of(audit.episode.request.query), z, full=0.0 if usage is None else float(usage.completion_tokens),
            in_force=both[_IN_FORCE].tokens, candidate=both[_CANDIDATE].tokens,
        )  # fmt: skip
    return evidence


def _z(candidate: Shown, in_force: Shown) -> Z | None:
    """EM of the version in force minus the candidate's; what nobody saw of the candidate counts as lost.

    None: they differ, and nobody said which is right. However late that is, it proves nothing and is no harm either.
    """
    if not candidate.seen:
        return 1 if in_force.seen else 0
    if candidate.answer == in_force.answer or not in_force.seen:
        return 0
    if candidate.right is None or in_force.right is None:
        return None
    if candidate.right == in_force.right:
        return 0
    return -1 if candidate.right else 1


def standing_of(
    connection: sqlite3.Connection, held: Held, route: Route, matches: Matches, rules: Rules, *, secret: str,
    now_s: float,
) -> Looked:  # fmt: skip
    """The same for a person who asks. Raises ConfigError and StoreError."""
    with matches(route) as match:
        of_route = OfRoute(route=route, match=match, published=lambda _: None, load=lambda _: None)
        return look_at(connection, held, of_route, rules, secret=secret, now_s=now_s)
