"""The job `tune`: is a route's effort or budget proved on audits that were asked twice, and worth proposing?

    pairs in the log, with their odds ──▶ learn.tuner.Tuner ──▶ ArmWorth: this arm, or back to full runs

Off unless the owner turns it on. It reads what the gateway's lot has drawn and logged; it draws nothing, moves no live
traffic and puts nothing in force. A route has one arm, its own `effort` or `budget_tokens`, and all questions are one
class: with more of either, the tuner needs live draws that the gateway does not make.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from suffice.assurance.labels import JUDGE, TrustedLabel, rank_of
from suffice.assurance.runs import Match
from suffice.control.jobs.base import ByRoute, JobWriter, since
from suffice.learn.effort import effort_arms, judge_pair
from suffice.learn.shadow import ShadowAudit
from suffice.learn.tuner import Tuner, TuningBounds
from suffice.settings import Route
from suffice.store.database.views import EpisodeWithLabels, LogReader, read_episodes
from suffice.store.routes.in_force import InForce
from suffice.store.routes.windows import newest_arm
from suffice.store.rows.records import ArmWorth
from suffice.types import Feedback

EVERYBODY: Final = "all"
FULL: Final = "full"


@dataclass(slots=True, kw_only=True)
class Tune(ByRoute):
    """Proposes arms for routes with an effort or a budget, where `[control] tune` is on.

    now  Unix time: a pair counts once its label is due
    """

    rests_s: ClassVar[float] = 300.0  # pairs come slowly

    now: Callable[[], float]
    name: str = "tune"

    def concerns(self, route: Route) -> bool:
        return self.settings.control.tune and arm_name(route) is not None and route.mode != "off"

    def propose(
        self, name: str, route: Route, held: InForce, connection: LogReader, desk: JobWriter, until: int
    ) -> str:
        """Look at the pairs; what was proposed, or ""."""
        items = read_episodes(connection, name, since(name, held, connection))
        with self.matches(route) as match:
            worth = propose_arm(name, route, items, match, now_s=self.now())
        before = newest_arm(connection, name)
        if (before.arm if before is not None else FULL) == worth.arm:
            return ""
        worth = replace(worth, read_to_seq=until, author=self.author)
        desk.write([worth])
        return f"{worth.arm} proposed: {worth.reason}"


def arm_name(route: Route) -> str | None:
    """The route's arm as outcomes name it; None: it asks for nothing before the call."""
    return next(iter(route.arms), None)


def propose_arm(name: str, route: Route, items: Iterator[EpisodeWithLabels], match: Match, *, now_s: float) -> ArmWorth:
    """What the tuner proposes on these runs: the route's arm where it is proved and worth it, else full runs."""
    arms = effort_arms((route.effort,)) if route.effort is not None else effort_arms((), (route.budget_tokens or 1,))
    tuner = Tuner(
        TuningBounds(arms=arms, classes=(EVERYBODY,), max_em_drop=route.max_em_drop, confidence=route.confidence)
    )
    words, callers, n_pairs = list[_Word](), set[str](), 0
    for item in items:
        callers.add(item.episode.request.sender)
        n_pairs += _take(tuner, item, arms[1].name, route.label_timeout_s or 0.0)
        words += _words(item, match)
    for word in words:
        tuner.labelled(word.label(callers - {""}))
    tick = tuner.tick(now_s)
    made = tick.proposal
    if made is None:
        why = f"not proposed on {n_pairs:,} pairs: {tick.refusal}"
        return ArmWorth(route=name, arm=FULL, before=arms[1].name, n_pairs=n_pairs, reason=why)
    return ArmWorth(
        route=name,
        arm=arms[1].name,
        before=FULL,
        n_pairs=n_pairs,
        reason=made.reason,
        log_e=made.log_e[EVERYBODY],
        gain=made.change.value,
        gain_error=made.change.error,
        price=made.price,
    )


@dataclass(frozen=True, slots=True)
class _Word:
    audit: str
    seq: int
    said: Feedback
    z: int

    def label(self, callers: Collection[str]) -> TrustedLabel:
        """The word with its weight. callers: senders that are users whatever they call themselves."""
        return TrustedLabel(
            audit=self.audit,
            seq=self.seq,
            source=self.said.source,
            key=self.said.sender,
            trust=rank_of(self.said, callers),
            verdict=self.z,
        )


def _words(item: EpisodeWithLabels, match: Match) -> list[_Word]:
    outcome, found = item.episode.outcome, list[_Word]()
    for said in item.labels if outcome.pair_arm is not None else ():
        given = said.feedback
        z = int(given.correct) if given.correct is not None else None
        if given.gold is not None:
            _, z = judge_pair(outcome.answer, outcome.pair_answer, given.gold, match)
        if z is not None and given.source != JUDGE:
            found.append(_Word(outcome.episode_id, said.seq, given, z))
    return found


def _take(tuner: Tuner, item: EpisodeWithLabels, arm: str, timeout_s: float) -> bool:
    """Show the tuner a run that was asked twice, with that arm; was it one?"""
    request, outcome = item.episode.request, item.episode.outcome
    if not request.audit or outcome.pair_arm != arm or outcome.pair_propensity is None:
        return False
    full = float(outcome.usage.completion_tokens if outcome.usage is not None else 0)
    short = float(outcome.pair_tokens or 0)
    disagrees = outcome.answer != outcome.pair_answer
    # The full run has odds 0 in a pair, and the lot knows one arm: given that it was no repeat, it was this one.
    tuner.audited(
        ShadowAudit(
            audit_id=request.episode_id,
            query_class=EVERYBODY,
            arm=1,
            odds=(0.0, 1.0),
            disagrees=disagrees,
            due_s=request.received_at_s + outcome.duration_s + timeout_s,
            full_tokens=full,
            arm_tokens=short,
        )
    )
    tuner.spent(EVERYBODY, 0, tokens=full)
    tuner.spent(EVERYBODY, 1, tokens=short)
    return True
