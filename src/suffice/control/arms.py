"""The job `tune`: is a route's effort or budget proved on audits that were asked twice, and worth proposing?

    pairs in the log, with their odds ──▶ learn.tuner.Tuner ──▶ ArmProposed: this arm, or back to full runs

Off unless the owner turns it on. It reads what the gateway's lot has drawn and logged; it draws nothing, moves no live
traffic and puts nothing in force. A route has one arm, its own `effort` or `budget_tokens`, and all questions are one
class: with more of either, the tuner needs live draws that the gateway does not make.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from suffice.assurance.judge import JUDGE
from suffice.assurance.runs import Match
from suffice.assurance.trust import Label, trust_of
from suffice.control.jobs import Desk, LeaseLost, Report
from suffice.control.loops import LONGEST_REST_S, LOOK_BACK, Matches
from suffice.errors import StoreError, SufficeError
from suffice.learn.arms import effort_arms
from suffice.learn.effort import judge_pair
from suffice.learn.shadow import ShadowAudit
from suffice.learn.tuner import Tuner
from suffice.learn.tuning import Tuning
from suffice.settings import Route, Settings
from suffice.store.advice import newest_arm
from suffice.store.advice_events import ArmProposed, ArmWorth
from suffice.store.epochs import last_place, place_before
from suffice.store.in_force import InForce, read_decided
from suffice.store.views import Labelled, read_episodes, reading
from suffice.telemetry import LOG

ASK_S: Final = 300.0   # between two looks: pairs come slowly
EVERYBODY: Final = "all"
FULL: Final = "full"


@dataclass(slots=True, kw_only=True)
class Tune:
    """Proposes arms for routes with an effort or a budget, where `[control] tune` is on.

    matches  how answers of a route are compared with references
    now      Unix time: a pair counts once its label is due
    """

    settings: Settings
    path: Path
    author: str
    matches: Matches
    monotonic_s: Callable[[], float]
    now: Callable[[], float]
    name: str = "tune"
    _rests: dict[str, float] = field(default_factory=dict)  # routes that are left alone until then, monotonic

    def forget(self) -> None:
        """Ask about every route anew."""
        self._rests.clear()

    def run(self, desk: Desk) -> Sequence[Report]:
        """Look at the pairs. Raises LeaseLost and StoreError."""
        now_s = self.monotonic_s()
        routes = {
            name: route for name, route in self.settings.routes.items()
            if arm_of(route) and route.mode != "off" and self._rests.get(name, now_s) <= now_s
        }  # fmt: skip
        if not self.settings.control.tune or not routes or not self.path.is_file():
            return ()
        reports = []
        with reading(self.path) as connection:
            decided = read_decided(connection)
            for name, route in routes.items():
                self._rests[name] = now_s + ASK_S
                reports.append(self._alone(name, route, decided.of(name), connection, desk))
        return reports

    def _alone(
        self, name: str, route: Route, held: InForce, connection: sqlite3.Connection, desk: Desk
    ) -> Report:
        """Do a route's work; one that fails is left alone for a while."""
        until = last_place(connection)
        try:
            said = self._look(name, route, held, connection, desk, until)
        except (LeaseLost, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - one route's trouble is not the others'
            why = str(error) if isinstance(error, SufficeError) else type(error).__name__
            self._rests[name] = self.monotonic_s() + LONGEST_REST_S
            LOG.error("tune: route %s is left alone for a while: %s", name, why)
            LOG.debug("the same, with its traceback", exc_info=True)
            return Report(said=f"nothing proposed: {why}", route=name, ok=False, read_to_seq=until)
        return Report(said=said, route=name, read_to_seq=until)

    def _look(
        self, name: str, route: Route, held: InForce, connection: sqlite3.Connection, desk: Desk, until: int
    ) -> str:
        since = place_before(connection, name, LOOK_BACK)
        if held.epoch is not None:
            since = max(since, held.epoch.since_seq)
        with self.matches(route) as match:
            worth = look(name, route, read_episodes(connection, name, since), match, now_s=self.now())
        before = newest_arm(connection, name)
        if (before.arm if before is not None else FULL) == worth.arm:
            return ""
        worth = replace(worth, read_to_seq=until, author=self.author)
        desk.write([ArmProposed(worth)])
        return f"{worth.arm} proposed: {worth.reason}"


def arm_of(route: Route) -> str | None:
    """The route's arm as outcomes name it; None: it asks for nothing before the call."""
    if route.effort is not None:
        return f"effort={route.effort}"
    return None if route.budget_tokens is None else f"budget_tokens={route.budget_tokens}"


def look(name: str, route: Route, items: Iterator[Labelled], match: Match, *, now_s: float) -> ArmWorth:
    """What the tuner proposes on these runs: the route's arm where it is proved and worth it, else full runs."""
    arms = effort_arms((route.effort,)) if route.effort is not None else effort_arms((), (route.budget_tokens or 1,))
    tuner = Tuner(Tuning(
        arms=arms, classes=(EVERYBODY,), max_em_drop=route.max_em_drop, confidence=route.confidence
    ))  # fmt: skip
    n_pairs = sum(_take(tuner, item, arms[1].name, match, route.label_timeout_s or 0.0) for item in items)
    tick = tuner.tick(now_s)
    made = tick.proposal
    if made is None:
        why = f"not proposed on {n_pairs:,} pairs: {tick.refusal}"
        return ArmWorth(route=name, arm=FULL, before=arms[1].name, n_pairs=n_pairs, reason=why)
    return ArmWorth(
        route=name, arm=arms[1].name, before=FULL, n_pairs=n_pairs, reason=made.reason,
        log_e=made.log_e[EVERYBODY], gain=made.change.value, gain_error=made.change.error, price=made.price,
    )  # fmt: skip


def _take(tuner: Tuner, item: Labelled, arm: str, match: Match, timeout_s: float) -> bool:
    """Show the tuner a run that was asked twice, with that arm; was it one?"""
    request, outcome = item.episode.request, item.episode.outcome
    if not request.audit or outcome.pair_arm != arm or outcome.pair_propensity is None:
        return False
    full = float(outcome.usage.completion_tokens if outcome.usage is not None else 0)
    short = float(outcome.pair_tokens or 0)
    disagrees = outcome.answer != outcome.pair_answer
    # The full run has odds 0 in a pair, and the lot knows one arm: given that it was no repeat, it was this one.
    tuner.audited(ShadowAudit(
        audit_id=request.episode_id, query_class=EVERYBODY, arm=1, odds=(0.0, 1.0), disagrees=disagrees,
        due_s=request.received_at_s + outcome.duration_s + timeout_s, full_tokens=full, arm_tokens=short,
    ))  # fmt: skip
    tuner.spent(EVERYBODY, 0, tokens=full)
    tuner.spent(EVERYBODY, 1, tokens=short)
    for said in item.labels:
        given = said.feedback
        z = int(given.correct) if given.correct is not None else None
        if given.gold is not None:
            _, z = judge_pair(outcome.answer, outcome.pair_answer, given.gold, match)
        if z is not None and given.source != JUDGE:
            tuner.labelled(Label(
                audit=request.episode_id, seq=said.seq, source=given.source, key=given.sender,
                trust=trust_of(given.source), verdict=z,
            ))  # fmt: skip
    return True
