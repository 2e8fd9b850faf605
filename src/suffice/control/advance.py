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
from pathlib import Path
from typing import Final

from suffice.assurance.judge import JUDGE
from suffice.assurance.runs import FINISHED_ENDS
from suffice.assurance.satisfaction import satisfaction_of
from suffice.control.audits import Audit, Said, is_evidence
from suffice.control.jobs import Desk, LeaseLost, Report
from suffice.control.loops import LONGEST_REST_S, Matches, why_of
from suffice.control.shown import OfRoute
from suffice.errors import StoreError
from suffice.rollout.evidence import ArmName, Evidence, Run, Z
from suffice.rollout.experiment import Arm
from suffice.rollout.results import Shown
from suffice.rollout.rules import Rules
from suffice.rollout.stages import Standing, advance, look
from suffice.rollout.versions import Version
from suffice.settings import Route, Settings
from suffice.signals.query import class_of
from suffice.store.rollout_events import Moved, RolloutMoved
from suffice.store.rollouts import Held, read_rollouts, running, version_at
from suffice.store.views import Labelled, read_episodes, reading
from suffice.telemetry import LOG
from suffice.types import ArmDraw, Feedback

RESTS_S: Final = 5.0             # between two looks at a rollout, at least
LEAST_REST: Final = 20.0         # … and so many times what the last look took
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
class Advance:
    """Moves rollouts of every route.

    matches  how answers of a route are compared with references
    secret   of the deployment, which signed the versions
    now      Unix time
    """

    settings: Settings
    path: Path
    author: str
    matches: Matches
    secret: str
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    name: str = "advance"
    rules: Rules = field(default_factory=Rules)
    _rests: dict[str, float] = field(default_factory=dict)  # rollouts that are left alone until then, monotonic

    def forget(self) -> None:
        """Look at every rollout anew."""
        self._rests.clear()

    def run(self, desk: Desk) -> Sequence[Report]:
        """Look at what is due. Raises LeaseLost and StoreError."""
        if not self.path.is_file():
            return ()
        reports = []
        with reading(self.path) as connection:
            for name, held in running(read_rollouts(connection)).items():
                began_s = self.monotonic_s()
                if name not in self.settings.routes or self._rests.get(held.state.rollout, began_s) > began_s:
                    continue
                reports.append(self._alone(name, held, connection, desk))
                took_s = self.monotonic_s() - began_s
                rest_s = max(RESTS_S, LEAST_REST * took_s) if reports[-1].ok else LONGEST_REST_S
                self._rests[held.state.rollout] = self.monotonic_s() + rest_s
        return reports

    def _alone(self, name: str, held: Held, connection: sqlite3.Connection, desk: Desk) -> Report:
        """Look at one rollout; one that fails stays where it is."""
        try:
            said = self._step(name, held, connection, desk)
        except (LeaseLost, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - one rollout's trouble is not the others'
            why = why_of(error)
            LOG.error("advance: the rollout on route %s stays where it is: %s", name, why)
            LOG.debug("the same, with its traceback", exc_info=True)
            return Report(said=f"stays where it is: {why}", route=name, ok=False)
        return Report(said=said, route=name)

    def _step(self, name: str, held: Held, connection: sqlite3.Connection, desk: Desk) -> str:
        with self.matches(self.settings.routes[name]) as match:
            of_route = OfRoute(
                route=self.settings.routes[name], match=match, published=lambda _: None, load=lambda _: None
            )
            seen = look_at(connection, held, of_route, self.rules, secret=self.secret, now_s=self.now())
        desk.renew()
        moved = advance(held.state, seen.evidence, self.rules, at=seen.at, now_s=self.now())
        if moved is None:
            return ""
        desk.write([RolloutMoved(Moved(route=name, author=self.author, reason=moved.reason, transition=moved))])
        return f"rollout {held.state.rollout}: {moved.move}, {moved.stage} at {moved.share:.0%}: {moved.reason}"


def look_at(
    connection: sqlite3.Connection, held: Held, of_route: OfRoute, rules: Rules, *, secret: str, now_s: float
) -> Looked:
    """What the log says of a rollout now. Raises ConfigError for a version that cannot be read, and StoreError."""
    versions = {
        name: version_at(connection, address, secret=secret)
        for name, address in ((_CANDIDATE, held.state.candidate), (_IN_FORCE, held.state.in_force))
    }
    runs = list(read_episodes(connection, held.state.route, held.seq))
    governed = [item for item in runs if item.episode.request.ungoverned is None]
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
        liked = next((v for v in (_liked(label.feedback) for label in item.labels) if v is not None), None)
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
    ended = outcome.end_reason in (*FINISHED_ENDS, "stopped")
    return Run(
        query_class=class_of(item.episode.request.query), seconds=outcome.duration_s if ended else None,
        error=outcome.end_reason in _ERRORS, no_answer=ended and outcome.answer is None,
    )


def _liked(given: Feedback) -> float | None:
    """How satisfied somebody was; a judge model is nobody."""
    return None if given.source == JUDGE else satisfaction_of(given)


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
