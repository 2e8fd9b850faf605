"""The tuner: a contextual bandit over arms that no audit can replay, restricted by certificates.

By itself it only draws among eligible arms, between a floor and a ceiling, and falls back to a safer arm when one loses
its certificate. Anything else is a proposal that the caller accepts. Only audits make an arm eligible, and never one
that keeps next to nothing. Certificates are by class and arm, so audits need no weighting. Pure: the caller passes time
and points in [0, 1), and the state is `plain()` data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, Final, Literal

import msgspec
import numpy as np

from suffice.assurance.certify import Counts, log_wealth
from suffice.assurance.drift import ShiryaevRoberts
from suffice.assurance.labels import TrustedLabel
from suffice.assurance.paired import BETS
from suffice.learn.arm_values import (
    Costs,
    GainComparison,
    PriceBounds,
    ShadowAudit,
    ShadowAudits,
    ShadowLog,
    compare_gain,
    count_losses,
    estimate_losses,
    estimate_potential,
    next_price,
    pick_arm,
    weigh_audits,
    weigh_by_inverse_gap,
)
from suffice.learn.audits import Bools, Floats
from suffice.learn.effort import TunedArm, check_arms

OFF_BELOW_REQUESTS: Final = 20_000  # with 10,000 the evidence costs what it brings (docs/reference/tuner.md)

Refusal = Literal[
    "cooling_down",  # too soon after the last proposal
    "day_is_full",  # the most proposals of a day
    "none_better",  # no certified arm is worth more than the active ones
    "not_shown",  # off-policy evaluation speaks against the change
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningBounds:
    arms: tuple[TunedArm, ...]  # 0 is the full run; ordered from the safe end
    classes: tuple[str, ...]  # query classes that are tuned; others run in full
    max_em_drop: float = 0.02  # of every class, a fraction
    confidence: float = 0.95  # of the certificates of all classes together
    expected_requests: int = 0  # expected lifetime of a change; below OFF_BELOW_REQUESTS: off
    burst_share: float = 1.0  # of requests that are audits while evidence pays
    watch_share: float = 0.03  # of requests that are audits while it does not
    price: PriceBounds = field(default_factory=PriceBounds)
    latency_price: float = 0.0  # EM that a second is worth, a fraction
    explore_floor: float = 0.02  # least share of live requests of an eligible arm
    explore_ceiling: float = 0.15  # largest share of live requests without the active arm
    explore_sharpness: float = 4.0  # preference for better arms in exploration; 0: all alike
    least_kept: float = 0.1  # arms that keep a smaller part of the tokens are never eligible
    largest_step: float = 0.6  # part of a class's full tokens that one proposal may save
    least_gain: float = 0.002  # expected EM value of a change, a fraction
    window: int = 1_500  # audits of a class and arm that count
    half_life: float = 4_000.0  # draws after which a cost counts half
    least_audits: int = 200  # of a class and arm before it may be eligible
    key_cap: float = 0.05  # part of the disagreeing audits that one untrusted key may label
    cool_down_s: float = 3_600.0  # between two proposals
    proposals_a_day: int = 6

    def __post_init__(self) -> None:
        check_arms(self.arms)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: got {self.classes}; one or more, each once")
        for name in ("max_em_drop", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; above 0 and below 1")
        if not 0 <= self.explore_floor <= self.explore_ceiling < 1 or self.explore_sharpness < 0:
            raise ValueError("need 0 <= explore_floor <= explore_ceiling < 1, explore_sharpness >= 0")
        if not 0 <= self.least_kept < 1 or not 0 < self.largest_step <= 1 or not 0 <= self.key_cap <= 1:
            raise ValueError("need 0 <= least_kept < 1, 0 < largest_step <= 1, 0 <= key_cap <= 1")
        if min(self.window, self.least_audits, self.proposals_a_day) < 1:
            raise ValueError("window, least_audits, proposals_a_day: need 1 or more")
        if self.half_life <= 0 or min(self.cool_down_s, self.expected_requests, self.least_gain) < 0:
            raise ValueError("need half_life > 0, and cool_down_s, expected_requests and least_gain of 0 or more")
        if not 0 <= self.watch_share <= self.burst_share <= 1:
            raise ValueError("watch_share, burst_share: need 0 <= watch <= burst <= 1")

    @property
    def lasting_requests(self) -> int:
        """Requests over which evidence may pay back; 0: too few, so the tuner is off."""
        return self.expected_requests if self.expected_requests >= OFF_BELOW_REQUESTS else 0

    @property
    def cell_delta(self) -> float:
        """Error probability of one class and arm: all of them together keep 1 - confidence."""
        return (1 - self.confidence) / (len(self.classes) * (len(self.arms) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningDraw:
    query_class: str
    arm: int
    odds: tuple[float, ...]  # of every arm at the draw; they sum to 1

    @property
    def propensity(self) -> float:
        return self.odds[self.arm]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningProposal:
    number: int  # of this tuner's proposals, from 1
    before: Mapping[str, int]  # active arm by class; the proposal is void after a change
    after: Mapping[str, int]
    log_e: Mapping[str, float]  # by changed class with a new arm above 0: evidence that it keeps the budget
    n_audits: Mapping[str, int]  # of that evidence
    change: GainComparison  # by off-policy evaluation
    price: float  # of the tokens of a mean full run, in EM
    epoch: int  # count of discards of evidence; the proposal is void in another epoch
    at_s: float
    reason: str  # one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    query_class: str
    arm: int
    to: int
    at_s: float
    reason: str  # one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerTick:
    proposal: TuningProposal | None = None
    refusal: Refusal | None = None  # reason for no proposal
    withdrawn: tuple[Withdrawal, ...] = ()
    eligible: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # eligible arms by class


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proof:
    counts: Counts
    log_e: Floats  # (K,): against "this arm loses the budget or more"
    n_waiting: Sequence[int]  # audits of each arm that do not count yet, shape (K,)

    def passes(self, delta: float) -> Bools:
        return np.asarray(self.log_e >= log(1 / delta))


def prove(counts: Counts, n_waiting: Sequence[int], tuning: TuningBounds) -> Proof:
    log_e = log_wealth(counts, max_em_drop=tuning.max_em_drop, bets=BETS)
    return Proof(counts=counts, log_e=log_e, n_waiting=n_waiting)


def find_shadow_arms(shares: Floats, tuning: TuningBounds) -> Bools:
    return np.asarray(shares < tuning.least_kept * shares[0])


def select_eligible_arms(proof: Proof, shares: Floats, before: Sequence[int], tuning: TuningBounds) -> tuple[int, ...]:
    """An arm becomes eligible when proved at its part of delta, and stays while proved at all of delta (hysteresis)."""
    stays = np.isin(np.arange(len(shares)), before)
    proved = proof.passes(tuning.cell_delta) | (stays & proof.passes(1 - tuning.confidence))
    proved &= (proof.counts.n >= tuning.least_audits) & ~find_shadow_arms(shares, tuning)
    proved[0] = True
    return tuple(np.flatnonzero(proved).tolist())


def find_arms_within_a_step(shares: Floats, active: int, tuning: TuningBounds) -> Bools:
    near = shares[active] - shares <= tuning.largest_step * shares[0]
    return np.asarray(near & ~find_shadow_arms(shares, tuning))


def pick_best_arm(
    proof: Proof, values: Floats, shares: Floats, allowed: Sequence[int], active: int, tuning: TuningBounds
) -> int:
    """An arm that saves more than the active one must be proved now at its own part of delta; a safer one need not."""
    may = find_arms_within_a_step(shares, active, tuning) & np.isin(np.arange(len(shares)), allowed)
    may &= proof.passes(tuning.cell_delta) | (np.arange(len(shares)) <= active)
    may[active] = True
    best = int(np.argmax(np.where(may, values, -np.inf)))
    return best if values[best] > values[active] + tuning.least_gain else active


Odds = tuple[float, ...]

DAY_S: Final = 86_400.0
SEEKING: Final = 0.3  # part of the watch share for a class in full beside tuned ones
SCHEMA: Final = 1
NEVER_S: Final = float("-inf")


class TunedClass(msgspec.Struct, kw_only=True):
    live: Odds  # of draws for live requests
    shadowed: Odds  # of the arm that an audit calls
    active: int = 0
    eligible: tuple[int, ...] = (0,)
    pays: bool = False  # some arm is worth its evidence


class Tuner:
    """From the state of `plain()` or from full runs. Raise ValueError for a state of other arms or classes."""

    def __init__(self, tuning: TuningBounds, state: Mapping[str, Any] | None = None) -> None:
        self.tuning, self._n_arms = tuning, len(tuning.arms)
        self._at = {name: at for at, name in enumerate(tuning.classes)}
        self._costs = Costs(tuning.arms, len(tuning.classes), half_life=tuning.half_life)
        self._shadow = ShadowLog(self._n_arms, window=tuning.window, key_cap=tuning.key_cap)
        self._alarms = [ShiryaevRoberts(tuning.max_em_drop) for _ in tuning.classes]
        self._classes = [TunedClass(live=self._only(0), shadowed=self._only(0)) for _ in tuning.classes]
        self._unwatched: list[str] = []  # audits not yet applied to alarms and price
        self._price = tuning.price.start
        self._epoch, self._n_proposals = 1, 0
        self._proposed_at_s: list[float] = []
        if state is not None:
            self._restore(state)
            return
        nothing = self._shadow.evidence(NEVER_S)
        self._tabulate(self._prove(nothing, NEVER_S), self._losses(nothing))

    # ------------------------------------------------------------------ draws

    def draw(self, query_class: str, point: float) -> TuningDraw:
        """The arm of a live request; `point` is the unit's keyed hash in [0, 1), so that a retry draws the same."""
        tuned = self._class(query_class)
        return self._draw(query_class, point, self._only(0) if tuned is None else tuned.live)

    def draw_audit(self, query_class: str, point: float) -> TuningDraw:
        tuned = self._class(query_class)
        return self._draw(query_class, point, self._only(0) if tuned is None else tuned.shadowed)

    def audit_share(self, query_class: str) -> float:
        """High while an arm is worth its evidence, low to notice changes, 0 where tuning would not pay."""
        tuned = self._class(query_class)
        if tuned is None:
            return 0.0
        if tuned.pays:
            return self.tuning.burst_share
        if tuned.active:
            return self.tuning.watch_share
        return self.tuning.watch_share * SEEKING if any(one.active or one.pays for one in self._classes) else 0.0

    def _class(self, query_class: str) -> TunedClass | None:
        at = self._at.get(query_class)
        return None if at is None else self._classes[at]

    def _draw(self, query_class: str, point: float, odds: Odds) -> TuningDraw:
        return TuningDraw(query_class=query_class, arm=pick_arm(odds, point), odds=odds)

    def _only(self, arm: int) -> Odds:
        return tuple(float(other == arm) for other in range(self._n_arms))

    # ------------------------------------------------------------------ evidence

    def add_cost(self, query_class: str, arm: int, *, tokens: float, seconds: float = 0.0, n_runs: int = 1) -> None:
        at = self._at.get(query_class)
        if at is not None:
            self._costs.add(at, arm, tokens=tokens, seconds=seconds, n_runs=n_runs)

    def add_audit(self, audit: ShadowAudit) -> bool:
        """Add an audit of an arm; False: a duplicate, or its class is not tuned."""
        if audit.query_class not in self._at or not self._shadow.add(audit):
            return False
        self._unwatched.append(audit.audit_id)
        return True

    def add_label(self, label: TrustedLabel) -> bool:
        return self._shadow.label(label)

    # ------------------------------------------------------------------ tick

    def tick(self, now_s: float) -> TunerTick:
        evidence = self._shadow.evidence(now_s)
        withdrawn = self._watch(evidence, now_s)
        if withdrawn:
            evidence = self._shadow.evidence(now_s)  # without those of the withdrawn classes
        lost, shares = self._losses(evidence), self._costs.shares()
        proofs = self._prove(evidence, now_s)
        for tuned, proof, of_class in zip(self._classes, proofs, shares, strict=True):
            tuned.eligible = select_eligible_arms(proof, of_class, tuned.eligible, self.tuning)
        values = self._values(lost)
        for at, tuned in enumerate(self._classes):
            if tuned.active not in tuned.eligible:  # fall back to the best safer arm, or to the full run
                safer = [arm for arm in tuned.eligible if arm < tuned.active]
                to = max(safer, key=values[at].tolist().__getitem__)
                reason = "its latest audits no longer prove that it keeps the budget"
                withdrawn.append(self._withdrawal(at, to, now_s, reason))
                self._move(at, to)
        self._tabulate(proofs, lost)
        result = self._propose(proofs, values, evidence, now_s)
        return TunerTick(
            proposal=result if isinstance(result, TuningProposal) else None,
            refusal=None if isinstance(result, TuningProposal) else result,
            withdrawn=tuple(withdrawn),
            eligible={name: tuned.eligible for name, tuned in zip(self.tuning.classes, self._classes, strict=True)},
        )

    def accept(self, proposal: TuningProposal) -> bool:
        """Return False if the proposal is void, because its basis has changed."""
        after = [proposal.after[name] for name in self.tuning.classes]
        if proposal.epoch != self._epoch or dict(proposal.before) != self.active:
            return False
        if any(arm not in tuned.eligible for arm, tuned in zip(after, self._classes, strict=True)):
            return False
        for at, arm in enumerate(after):
            if arm != self._classes[at].active:
                self._move(at, arm)
        return True

    def forget(self, query_class: str | None = None) -> None:
        for at, name in enumerate(self.tuning.classes):
            if query_class in (None, name):
                self._shadow.forget(name)
                self._alarms[at].reset()
                tuned = self._classes[at]
                tuned.active, tuned.eligible, tuned.live = 0, (0,), self._only(0)
        self._epoch += 1

    @property
    def active(self) -> dict[str, int]:
        return {name: tuned.active for name, tuned in zip(self.tuning.classes, self._classes, strict=True)}

    @property
    def price(self) -> float:
        """EM that the tokens of a mean full run are worth now."""
        return self._price

    # ------------------------------------------------------------------ parts of a tick

    def _watch(self, evidence: ShadowAudits, now_s: float) -> list[Withdrawal]:
        lost = {audit.audit_id: loss for audit, loss in zip(evidence.audits, evidence.proved, strict=True)}
        withdrawn, waiting = [], list[str]()
        for audit_id in self._unwatched:
            audit = self._shadow.get(audit_id)
            if audit is None:
                continue
            if audit_id not in lost:
                waiting.append(audit_id)
                continue
            at, z = self._at[audit.query_class], lost[audit_id]
            if audit.arm != self._classes[at].active:
                continue
            self._price = next_price(self._price, z, max_em_drop=self.tuning.max_em_drop, bounds=self.tuning.price)
            if self._alarms[at].add(z):
                withdrawn.append(self._withdrawal(at, 0, now_s, "its audits lose more than the budget"))
                self.forget(audit.query_class)
        self._unwatched = waiting
        return withdrawn

    def _prove(self, evidence: ShadowAudits, now_s: float) -> list[Proof]:
        counts = count_losses(evidence, self.tuning.classes, self._n_arms)
        waiting = [self._shadow.n_waiting(name, now_s) for name in self.tuning.classes]
        return [prove(some, n, self.tuning) for some, n in zip(counts, waiting, strict=True)]

    def _withdrawal(self, at: int, to: int, now_s: float, reason: str) -> Withdrawal:
        name, arm = self.tuning.classes[at], self._classes[at].active
        return Withdrawal(query_class=name, arm=arm, to=to, at_s=now_s, reason=reason)

    def _move(self, at: int, arm: int) -> None:
        """Activate another arm. If it is safer, the arm that was left and all behind it must be proved anew."""
        tuned = self._classes[at]
        left, tuned.active = tuned.active, arm
        self._alarms[at].reset()
        tuned.live = self._only(arm)  # until the next tick
        if arm < left:
            self._shadow.forget(self.tuning.classes[at], from_arm=left)
            tuned.eligible = tuple(other for other in tuned.eligible if other < left)

    def _losses(self, evidence: ShadowAudits) -> Floats:
        n, lost = (np.zeros((len(self._at), self._n_arms)) for _ in range(2))
        for audit, loss in zip(evidence.audits, evidence.guessed, strict=True):
            n[self._at[audit.query_class], audit.arm] += 1
            lost[self._at[audit.query_class], audit.arm] += loss
        return estimate_losses(n, lost, self._costs.shares())

    def _values(self, lost: Floats) -> Floats:
        return -lost - self._price * self._costs.shares() - self.tuning.latency_price * self._costs.seconds()

    def _tabulate(self, proofs: Sequence[Proof], lost: Floats) -> None:
        tuning, values, all_shares = self.tuning, self._values(lost), self._costs.shares()
        for at, (tuned, proof) in enumerate(zip(self._classes, proofs, strict=True)):
            shares, active = all_shares[at], tuned.active
            tuned.live = weigh_by_inverse_gap(
                values[at].tolist(),
                tuned.eligible,
                active,
                n_draws=self._costs.n_draws(at),
                floor=tuning.explore_floor,
                ceiling=tuning.explore_ceiling,
                sharpness=tuning.explore_sharpness,
            )
            within = find_arms_within_a_step(shares, active, tuning)
            saved = np.where(within, min(shares[arm] for arm in tuned.eligible if within[arm]) - shares, 0.0)
            potential = estimate_potential(
                proof.counts,
                lost[at],
                proof.log_e,
                saved,
                proof.n_waiting,
                price=self._price,
                max_em_drop=tuning.max_em_drop,
                delta=tuning.cell_delta,
            )
            tuned.pays = potential.pays(
                n_requests=tuning.lasting_requests * self._costs.class_share(at),
                audit_cost=self._price * np.maximum(0.0, shares[0] - shares[active] + shares),
            )
            tuned.shadowed = weigh_audits(potential, active, pays=tuned.pays)

    def _propose(
        self, proofs: Sequence[Proof], values: Floats, evidence: ShadowAudits, now_s: float
    ) -> TuningProposal | Refusal:
        tuning, shares, before = self.tuning, self._costs.shares(), self.active
        after = {
            name: pick_best_arm(proofs[at], values[at], shares[at], self._classes[at].eligible, before[name], tuning)
            for name, at in self._at.items()
        }
        changed = [name for name, arm in after.items() if arm != before[name]]
        if not changed:
            return "none_better"
        if self._proposed_at_s and now_s - self._proposed_at_s[-1] < tuning.cool_down_s:
            return "cooling_down"
        if sum(now_s - at_s < DAY_S for at_s in self._proposed_at_s) >= tuning.proposals_a_day:
            return "day_is_full"
        change = compare_gain(
            evidence,
            before,
            after,
            n_arms=self._n_arms,
            price=self._price,
            full_tokens=self._costs.full_tokens,
            confidence=tuning.confidence,
        )
        if change.is_worse:
            return "not_shown"
        self._n_proposals += 1
        self._proposed_at_s = [*self._proposed_at_s[-tuning.proposals_a_day :], now_s]
        moves = [f"{name}: {tuning.arms[before[name]].name} to {tuning.arms[after[name]].name}" for name in changed]
        bolder = [name for name in changed if after[name]]
        return TuningProposal(
            number=self._n_proposals,
            before=before,
            after=after,
            log_e={name: float(proofs[self._at[name]].log_e[after[name]]) for name in bolder},
            n_audits={name: int(proofs[self._at[name]].counts.n[after[name]]) for name in bolder},
            change=change,
            price=self._price,
            epoch=self._epoch,
            at_s=now_s,
            reason=f"proved and worth more at a price of {self._price:.3g}: {'; '.join(moves)}",
        )

    # ------------------------------------------------------------------ state

    def plain(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "arms": [arm.name for arm in self.tuning.arms],
            "classes": list(self.tuning.classes),
            "tuned": msgspec.to_builtins(self._classes),
            "costs": self._costs.plain(),
            "shadow": self._shadow.plain(),
            "alarms": [list(alarm.state()) for alarm in self._alarms],
        } | {name: getattr(self, f"_{name}") for name in _KEPT}

    def _restore(self, state: Mapping[str, Any]) -> None:
        names = [arm.name for arm in self.tuning.arms]
        if state["schema"] != SCHEMA or state["arms"] != names or state["classes"] != list(self.tuning.classes):
            raise ValueError(f"tuner: its state is of arms {state['arms']}, classes {state['classes']}; others are set")
        self._classes = msgspec.convert(state["tuned"], list[TunedClass])
        self._costs.restore(state["costs"])
        self._shadow.restore(state["shadow"])
        for alarm, kept in zip(self._alarms, state["alarms"], strict=True):
            alarm.restore(kept)
        for name in _KEPT:
            setattr(self, f"_{name}", type(getattr(self, f"_{name}"))(state[name]))


_KEPT: Final = ("unwatched", "price", "epoch", "n_proposals", "proposed_at_s")
