"""The job `tune`: is a route's effort or budget proved on audits that were asked twice, and worth proposing?

    pairs in the log, with their odds ──▶ learn.tuner.Tuner ──▶ ArmWorth: this arm, or back to full runs

Off unless the owner turns it on. It reads pairs that the gateway has drawn and logged, and puts nothing in force. A
route has one arm, its own `effort` or `budget_tokens`, and all questions are one class: with more of either, the tuner
needs live draws that the gateway does not make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from suffice.assurance.runs import Match
from suffice.control.evidence.audits import GivenLabel, trusted_label
from suffice.control.jobs.base import JobPass, ProposalJob, since
from suffice.control.loop.paired import FULL, pair_loss
from suffice.learn.effort import effort_arms
from suffice.learn.shadow import ShadowAudit
from suffice.learn.tuner import Tuner, TuningBounds
from suffice.settings import Route
from suffice.store.database.views import EpisodeWithLabels, read_episodes
from suffice.store.routes.in_force import InForce
from suffice.store.routes.windows import newest_arm
from suffice.store.rows.records import ArmWorth

EVERYBODY: Final = "all"


@dataclass(kw_only=True)
class Tune(ProposalJob):
    """Proposes arms for routes with an effort or a budget, where `[control] tune` is on."""

    name = "tune"
    rests_s = 300.0  # pairs come slowly

    def concerns(self, route: Route) -> bool:
        return self.settings.control.tune and bool(route.arms) and route.mode != "off"

    def propose(self, name: str, held: InForce, here: JobPass) -> str:
        """Look at the pairs; what was proposed, or ""."""
        route = self.settings.routes[name]
        items = read_episodes(here.log, name, since(name, held, here.log))
        with self.matches(route) as match:
            worth = propose_arm(name, route, items, match, now_s=self.now())  # a pair counts once its label is due
        before = newest_arm(here.log, name)
        if (before.arm if before is not None else FULL) == worth.arm:
            return ""
        here.desk.write([replace(worth, read_to_seq=here.until, author=self.author)])
        return f"{worth.arm} proposed: {worth.reason}"


def propose_arm(name: str, route: Route, items: Iterator[EpisodeWithLabels], match: Match, *, now_s: float) -> ArmWorth:
    """What the tuner proposes on these runs: the route's arm where it is proved and worth it, else full runs."""
    arms = effort_arms((route.effort,)) if route.effort is not None else effort_arms((), (route.budget_tokens or 1,))
    arm, n_pairs = arms[1].name, 0
    tuner = Tuner(
        TuningBounds(arms=arms, classes=(EVERYBODY,), max_em_drop=route.max_em_drop, confidence=route.confidence)
    )
    labels, callers = list[tuple[str, GivenLabel, int]](), set[str]()
    for item in items:
        outcome = item.episode.outcome
        callers.add(item.episode.request.sender)
        n_pairs += _take(tuner, item, arm, route.label_timeout_s or 0.0)
        for label in item.labels if outcome.pair_arm is not None else ():
            loss = pair_loss(outcome, label.feedback, match)
            if loss is not None:
                labels.append((outcome.episode_id, GivenLabel(label.seq, label.feedback), loss))
    for episode, given, loss in labels:
        tuner.labelled(trusted_label(episode, given, loss, callers - {""}))
    tick = tuner.tick(now_s)
    made = tick.proposal
    if made is None:
        why = f"not proposed on {n_pairs:,} pairs: {tick.refusal}"
        return ArmWorth(route=name, arm=FULL, before=arm, n_pairs=n_pairs, reason=why)
    return ArmWorth(
        route=name,
        arm=arm,
        before=FULL,
        n_pairs=n_pairs,
        reason=made.reason,
        log_e=made.log_e[EVERYBODY],
        gain=made.change.value,
        gain_error=made.change.error,
        price=made.price,
    )


def _take(tuner: Tuner, item: EpisodeWithLabels, arm: str, timeout_s: float) -> bool:
    """Show the tuner a run that was asked twice, with that arm; was it one?"""
    request, outcome = item.episode.request, item.episode.outcome
    if not request.audit or outcome.pair_arm != arm or outcome.pair_propensity is None:
        return False
    full = float(outcome.usage.completion_tokens if outcome.usage is not None else 0)
    short = float(outcome.pair_tokens or 0)
    tuner.audited(
        ShadowAudit(
            audit_id=request.episode_id,
            query_class=EVERYBODY,
            arm=1,
            # The full run has odds 0 in a pair, and there is one arm: given that it was no repeat, it was this one.
            odds=(0.0, 1.0),
            disagrees=outcome.answer != outcome.pair_answer,
            due_s=request.received_at_s + outcome.duration_s + timeout_s,
            full_tokens=full,
            arm_tokens=short,
        )
    )
    tuner.spent(EVERYBODY, 0, tokens=full)
    tuner.spent(EVERYBODY, 1, tokens=short)
    return True
