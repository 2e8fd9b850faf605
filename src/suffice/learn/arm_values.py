"""Evidence about arms, what they are worth, and how they are drawn: losses, the price of tokens, values, odds.

An audit shows the full answer and asks one arm beside it, unseen. Three rules keep that evidence honest:

- late labels: an audit counts once its label is due, whether it disagrees or not; unlabelled it then counts as lost
- poisoned labels: proofs believe trusted sources alone; guesses believe others too, each key for a small part of the
  audits at most (`assurance.labels`)
- old data: the latest `window` audits of a class and arm count; an alarm forgets the class

    value = -(EM drop) - price x (tokens / tokens of a mean full run) - latency price x seconds

"At most epsilon of EM" and "as few tokens as possible" become one number, EM - price x tokens. Dual ascent on audits
finds the price that makes both hold; the owner bounds it. All odds are tables that are computed before anything is
drawn, so the logged propensity is the true one. (Thompson sampling has no such table: its odds are integrals that one
can only estimate.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log, sqrt
from typing import Any, Final

import msgspec
import numpy as np

from suffice.assurance.certify import Counts
from suffice.assurance.labels import TRUSTED, TrustedLabel, resolve_labels
from suffice.assurance.paired import pairs_to_certify
from suffice.learn.audits import Floats
from suffice.learn.effort import TunedArm
from suffice.learn.ope import LoggedDraws, PolicyValue, compute_dr_terms, estimate_value


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAudit:
    audit_id: str
    query_class: str
    arm: int  # 1 … K - 1
    odds: tuple[float, ...]  # of every arm in the lottery that drew this one; the full run has 0
    disagrees: bool  # does the arm answer otherwise than the full run? True where either was broken off
    due_s: float  # from when on it counts; without a label, as lost where it disagrees
    full_tokens: float
    arm_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAudits:
    """Audits that count now, oldest first, with what each lost: -1, 0 or +1."""

    audits: Sequence[ShadowAudit]
    proved: Sequence[int]  # by trusted labels; what nobody trusted has spoken of is lost
    guessed: Sequence[int]  # by all labels that are believed


class ShadowLog:
    """The latest `window` audits of each class and arm, in the order in which they came, with their labels.

    One untrusted key may speak for `key_cap` of the disagreeing audits, [0, 1].
    """

    def __init__(self, n_arms: int, *, window: int, key_cap: float) -> None:
        self._n_arms, self._window, self._key_cap = n_arms, window, key_cap
        self._audits: dict[str, ShadowAudit] = {}
        self._cells: dict[tuple[str, int], deque[str]] = {}
        self._labels: dict[str, list[TrustedLabel]] = {}

    def __len__(self) -> int:
        return len(self._audits)

    def add(self, audit: ShadowAudit) -> bool:
        """Take an audit in; False: it was there already. Raises ValueError for an arm that its lottery cannot draw."""
        if audit.audit_id in self._audits:
            return False
        if not 0 < audit.arm < self._n_arms or len(audit.odds) != self._n_arms or not audit.odds[audit.arm] > 0:
            raise ValueError(f"audit {audit.audit_id!r}: arm {audit.arm} of odds {audit.odds}; drawn, not the full run")
        self._cells.setdefault((audit.query_class, audit.arm), deque()).append(audit.audit_id)
        self._audits[audit.audit_id] = audit
        return True

    def get(self, audit_id: str) -> ShadowAudit | None:
        return self._audits.get(audit_id)

    def label(self, label: TrustedLabel) -> bool:
        """Take in a label, whose verdict is what the audit lost; False: the audit is not here, or needs no label."""
        audit = self._audits.get(label.audit)
        if audit is None or not audit.disagrees:
            return False
        labels = self._labels.setdefault(label.audit, [])
        if label not in labels:
            labels.append(label)
        return True

    def forget(self, query_class: str, *, from_arm: int = 0) -> None:
        """Drop what is known of a class, or of its arms from one on: it belongs to another regime."""
        for cell in [cell for cell in self._cells if cell[0] == query_class and cell[1] >= from_arm]:
            for audit_id in self._cells.pop(cell):
                self._drop(audit_id)

    def evidence(self, now_s: float) -> ShadowAudits:
        """What counts now. Audits that no window holds any more are dropped."""
        for cell in self._cells.values():
            for _ in range(self._n_due(cell, now_s) - self._window):
                self._drop(cell.popleft())
        audits = [audit for audit in self._audits.values() if audit.due_s <= now_s]
        proved, guessed = self._verdicts(TRUSTED), self._verdicts(0)
        return ShadowAudits(
            audits=audits,
            proved=[_loss(audit, proved) for audit in audits],
            guessed=[_loss(audit, guessed) for audit in audits],
        )

    def n_waiting(self, query_class: str, now_s: float) -> list[int]:
        """Audits of each arm of a class that do not count yet, shape (K,)."""
        n = [0] * self._n_arms
        for (name, arm), cell in self._cells.items():
            if name == query_class:
                n[arm] = len(cell) - self._n_due(cell, now_s)
        return n

    def _n_due(self, cell: deque[str], now_s: float) -> int:
        return sum(self._audits[audit_id].due_s <= now_s for audit_id in cell)

    def _drop(self, audit_id: str) -> None:
        del self._audits[audit_id]
        self._labels.pop(audit_id, None)

    def _verdicts(self, least_trust: int) -> Mapping[str, Any]:
        labels = [label for some in self._labels.values() for label in some if label.trust >= least_trust]
        differing = {audit.audit_id for audit in self._audits.values() if audit.disagrees}
        return resolve_labels(labels, differing=differing, max_share=self._key_cap).verdicts

    def plain(self) -> dict[str, Any]:
        labels = [asdict(label) for some in self._labels.values() for label in some]
        return {"audits": msgspec.to_builtins(list(self._audits.values())), "labels": labels}

    def restore(self, plain: Mapping[str, Any]) -> None:
        self._audits, self._cells, self._labels = {}, {}, {}
        for audit in msgspec.convert(plain["audits"], list[ShadowAudit]):
            self.add(audit)
        for label in plain["labels"]:
            self.label(TrustedLabel(**label))


def count_losses(evidence: ShadowAudits, classes: Sequence[str], n_arms: int) -> list[Counts]:
    """Proved losses of each arm, shape (K,), class by class: what certificates are made of."""
    tables = {name: [[0] * n_arms for _ in range(3)] for name in classes}
    for audit, loss in zip(evidence.audits, evidence.proved, strict=True):
        tables[audit.query_class][loss + 1][audit.arm] += 1
    return [Counts(*np.array(tables[name], dtype=np.int64)) for name in classes]


def _loss(audit: ShadowAudit, verdicts: Mapping[str, Any]) -> int:
    return int(verdicts.get(audit.audit_id, 1)) if audit.disagrees else 0


# --------------------------------------------------------------------------- prices and odds

STEP: Final = 0.2  # of the logarithm of the price for a whole answer: a loss takes about a sixth off the price


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBounds:
    """What the tokens of a mean full run may be worth in EM, as fractions: 0.1 is ten points for all of them."""

    least: float = 0.01
    start: float = 0.05
    largest: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.start <= self.largest:
            raise ValueError(f"price: got {self.least}, {self.start}, {self.largest}; 0 < least <= start <= largest")


def next_price(price: float, z: int, *, max_em_drop: float, bounds: PriceBounds) -> float:
    """The price after an audit of the active arm with EM drop z: log price += STEP x (epsilon - z), kept in its bounds.

    Exponentiated gradient on the dual. Over N audits in which the price did not touch its bounds, the mean of z is
    epsilon + (log first price - log last price) / (STEP x N), whatever the audits say: so it is near epsilon, and while
    it stays below, the price ends at the largest that the owner allows.
    """
    if not 0 < max_em_drop < 1:
        raise ValueError(f"max_em_drop: got {max_em_drop}; a fraction above 0 and below 1")
    return max(bounds.least, min(bounds.largest, price * exp(STEP * (max_em_drop - z))))


def weigh_by_inverse_gap(
    values: Sequence[float],
    in_play: Sequence[int],
    incumbent: int,
    *,
    n_draws: float,
    floor: float,
    ceiling: float,
    sharpness: float = 4.0,
) -> tuple[float, ...]:
    """Odds of each arm for a live request, shape (K,): the incumbent, and a bounded share of arms that look good.

    Inverse gap weighting (SquareCB: Foster and Rakhlin 2020, arXiv:2002.04926): of the share that explores, an arm
    gets 1/(K + gamma x gap to the best value), the best the rest; gamma grows with the root of the draws. An arm in
    play keeps the floor, so that a change for the better is noticed; the incumbent never gets less than 1 - ceiling.

    n_draws    discounted number of draws behind the values: bounded, so that exploring never ends
    floor      least share of an arm in play; lowered where all floors together would exceed the ceiling
    ceiling    largest share of all arms but the incumbent, in [0, 1)
    sharpness  how fast gamma grows, at least 0; 0: all arms in play alike
    """
    if incumbent not in in_play or not 0 <= floor <= ceiling < 1 or sharpness < 0:
        raise ValueError(f"need the incumbent in play, 0 <= floor <= ceiling < 1; got {incumbent=} {in_play=} {floor=}")
    odds = np.zeros(len(values))
    others = [arm for arm in in_play if arm != incumbent]
    if not others:
        odds[incumbent] = 1.0
        return tuple(odds.tolist())
    floor = min(floor, ceiling / len(others))
    best = max(values[arm] for arm in in_play)
    gamma = sharpness * sqrt(len(in_play) * n_draws)
    gaps = np.array([best - values[arm] for arm in in_play])
    weights = 1 / (len(in_play) + gamma * gaps)
    weights[int(gaps.argmin())] += 1 - weights.sum()
    free = ceiling - floor * len(others)
    for arm, weight in zip(in_play, weights, strict=True):
        odds[arm] += free * weight + (floor if arm != incumbent else 0.0)
    odds[incumbent] += 1 - ceiling
    return tuple((odds / odds.sum()).tolist())


def weigh_promises(promise: Sequence[float], *, floor: float) -> tuple[float, ...]:
    """Odds of each arm in proportion to its promise, each that has any with the floor at least, shape (K,)."""
    size = np.array(promise, dtype=np.float64)
    if (size < 0).any() or not size.sum() > 0:
        raise ValueError(f"promise: got {list(promise)}; at least 0, one of them above")
    n = int((size > 0).sum())
    floor = min(floor, 1 / n)
    odds = np.where(size > 0, floor + (1 - n * floor) * size / size.sum(), 0.0)
    return tuple((odds / odds.sum()).tolist())


def pick_arm(odds: Sequence[float], point: float) -> int:
    """The arm on which a point in [0, 1) falls; arms without odds are never picked."""
    if not 0 <= point < 1:
        raise ValueError(f"point: got {point}; in [0, 1)")
    edges = np.cumsum(odds)
    last = int(np.flatnonzero(np.asarray(odds))[-1])
    return min(int(np.searchsorted(edges, point, side="right")), last)


PRIOR_LOSS: Final = 0.1  # EM lost by an arm that saves everything, in proportion: the guess before audits
PRIOR_AUDITS: Final = 10.0  # that the guess is worth against the arm's own
CLASS_AUDITS: Final = 30.0  # that the arm's mean is worth against the class's own


class Costs:
    """Means of tokens and seconds, by class and arm, that fade by half in `half_life` observations of a class."""

    def __init__(self, arms: Sequence[TunedArm], n_classes: int, *, half_life: float) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._expected = np.array([arm.expected_share / arms[0].expected_share for arm in arms])
        self._weight = np.zeros((n_classes, len(arms)))
        self._sums = np.zeros((2, n_classes, len(arms)))
        self._seen = np.zeros(n_classes)

    def add(self, query_class: int, arm: int, *, tokens: float, seconds: float, n_runs: int) -> None:
        keep = self._keep**n_runs
        self._weight[query_class] *= keep
        self._sums[:, query_class] *= keep
        self._seen *= keep
        self._seen[query_class] += n_runs
        self._weight[query_class, arm] += n_runs
        self._sums[0, query_class, arm] += tokens
        self._sums[1, query_class, arm] += seconds

    def n_draws(self, query_class: int) -> float:
        """Discounted number of observations of a class; never above half_life / ln 2 or so."""
        return float(self._weight[query_class].sum())

    def class_share(self, query_class: int) -> float:
        """Part of all requests that belong to a class, by what was seen; an even part before anything was."""
        total = self._seen.sum()
        return float(self._seen[query_class] / total) if total else 1 / len(self._seen)

    @property
    def full_tokens(self) -> float:
        """Tokens of a mean full run, all classes together; 1 before anything was seen."""
        weight = self._weight[:, 0].sum()
        return float(self._sums[0, :, 0].sum() / weight) if weight else 1.0

    def shares(self) -> Floats:
        """Expected tokens of each class and arm over those of a mean full run, shape (C, K)."""
        of_class = self._mean(0)[:, :1] / self.full_tokens
        guess = np.where(self._weight[:, :1] > 0, of_class, 1.0) * self._expected
        return np.where(self._weight > 0, self._mean(0) / self.full_tokens, guess)

    def seconds(self) -> Floats:
        """Expected seconds, shape (C, K); where an arm was never seen, the full run's times its expected share."""
        return np.where(self._weight > 0, self._mean(1), self._mean(1)[:, :1] * self._expected)

    def _mean(self, what: int) -> Floats:
        return np.asarray(self._sums[what] / np.maximum(self._weight, 1e-12))

    def plain(self) -> dict[str, Any]:
        return {"weight": self._weight.tolist(), "sums": self._sums.tolist(), "seen": self._seen.tolist()}

    def restore(self, plain: dict[str, Any]) -> None:
        """Go on from `plain`. Raises ValueError for another shape."""
        weight, sums = np.array(plain["weight"]), np.array(plain["sums"])
        if weight.shape != self._weight.shape or sums.shape != self._sums.shape:
            raise ValueError(f"costs: got shape {weight.shape}; {self._weight.shape}")
        self._weight, self._sums, self._seen = weight, sums, np.array(plain["seen"])


def estimate_losses(n: Floats, lost: Floats, shares: Floats) -> Floats:
    """Expected EM drop of each class and arm, shape (C, K): what saves much is guessed to lose much."""
    guess = PRIOR_LOSS * np.clip(1 - shares.mean(axis=0) / shares[:, 0].mean(), 0.0, 1.0)
    of_arm = (lost.sum(axis=0) + PRIOR_AUDITS * guess) / (n.sum(axis=0) + PRIOR_AUDITS)
    means = (lost + CLASS_AUDITS * of_arm) / (n + CLASS_AUDITS)
    means[:, 0] = 0.0
    return np.asarray(means)


PAYBACK: Final = 3.0  # the hopes are optimistic, and not every arm that is tried is certified
NEVER: Final = 1e6  # pairs, for an arm that could not be certified if it went on as it is expected to
FEWEST: Final = 20.0  # still needed, for an arm that is almost there
WATCHED: Final = 0.3  # of a class's audits ask its arm in force while others promise something
WATCHED_ALONE: Final = 0.8  # … and while none does
SHADOW_FLOOR: Final = 0.03  # least share of the other audits that each other arm gets
LEAST_PROMISE: Final = 1e-12  # of an arm that promises nothing: it keeps the floor, in case the world changes
FLIPS_PRIOR: Final = 10.0  # audits without a gain that stand before the first


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmPotential:
    """What each arm of a class may bring, shape (K,) each; 0 gain: nothing to hope for."""

    gain: Floats  # EM value a request over the arm in force, if the arm is as good as it may still be
    needed: Floats  # audits still to be made for its certificate

    @property
    def wanted(self) -> Floats:
        """EM value that each arm would add to those whose audits have all been made; 0 for these, shape (K,)."""
        underway = self.needed == 0
        hoped = float(self.gain[underway].max(initial=0.0))
        return np.where(underway, 0.0, np.maximum(0.0, self.gain - hoped))

    @property
    def lots(self) -> Floats:
        """Weights of the audits' lottery: value over audits, squared."""
        return np.asarray((self.wanted / (FEWEST + self.needed)) ** 2)

    def pays(self, *, n_requests: float, audit_cost: Floats) -> bool:
        """Would the evidence for some arm come back PAYBACK times over the class's requests to come?

        `audit_cost` is the EM value that one audit of each arm costs beside what the request would have cost.
        """
        left = np.maximum(0.0, n_requests - self.needed)
        return bool((self.wanted * left > PAYBACK * self.needed * audit_cost).any())


def estimate_potential(
    counts: Counts,
    expected_loss: Floats,
    log_e: Floats,
    saved: Floats,
    n_waiting: Sequence[int],
    *,
    price: float,
    max_em_drop: float,
    delta: float,
) -> ArmPotential:
    """What may be hoped of each arm of a class, where a full run's tokens are worth `price` of EM.

    expected_loss  EM drop of each arm; lowered by one standard error, the benefit of the doubt
    saved          share of a full run's tokens that each arm saves over the active one; 0 or less promises nothing
    n_waiting      audits that were made and do not count yet, because their labels are not due
    """
    n, gains, needed = counts.n, np.zeros(len(log_e)), np.full(len(log_e), NEVER)
    for arm in np.flatnonzero(saved > 0):
        loss = expected_loss[arm] - sqrt(max(expected_loss[arm], 0.5 * max_em_drop) / (n[arm] + 5))
        flips = float(counts.gained[arm] / (n[arm] + FLIPS_PRIOR))
        gains[arm] = max(0.0, price * saved[arm] - max(0.0, loss))
        try:
            whole = float(pairs_to_certify(max(0.0, float(loss)), flips, max_em_drop=max_em_drop, delta=delta))
        except ValueError:
            continue
        needed[arm] = max(0.0, whole * (1 + log_e[arm] / log(delta)) - n_waiting[int(arm)])
    return ArmPotential(gain=gains, needed=needed)


def weigh_audits(hopes: ArmPotential, in_force: int, *, pays: bool) -> tuple[float, ...]:
    """Which arm an audit asks, shape (K,), never the full run: a fixed part the active one, the rest by promise."""
    lots = np.maximum(hopes.lots, LEAST_PROMISE)
    lots[0] = 0.0
    odds = np.array(weigh_promises(lots.tolist(), floor=SHADOW_FLOOR))
    if in_force:
        watched = WATCHED if pays else WATCHED_ALONE
        odds *= 1 - watched
        odds[in_force] += watched
    return tuple((odds / odds.sum()).tolist())


MOST_SAVED, MOST_WASTED = 2.0, 1.0  # in mean full runs: what one audit may show at most, cut beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class GainComparison:
    """Two maps compared on the same audits, in EM: gain over running everything in full."""

    before: PolicyValue
    after: PolicyValue
    error: float  # standard error of the difference, for one look; the intervals hold at every look

    @property
    def value(self) -> float:
        return self.after.value - self.before.value

    @property
    def is_worse(self) -> bool:
        """Does the evaluation speak against the change: by a standard error at this look, or by the intervals?"""
        return self.value < -self.error or self.after.high < self.before.low


def compare_gain(
    evidence: ShadowAudits,
    before: Mapping[str, int],
    after: Mapping[str, int],
    *,
    n_arms: int,
    price: float,
    full_tokens: float,
    confidence: float,
) -> GainComparison:
    """Estimate both maps on at least one audit, where a full run's tokens are worth `price` of EM."""
    logs = [_logged(evidence, arms, n_arms=n_arms, price=price, full_tokens=full_tokens) for arms in (before, after)]
    terms = [compute_dr_terms(logged, target) for logged, target in logs]
    old, new = (estimate_value(logged, target, confidence=confidence) for logged, target in logs)
    apart = terms[1] - terms[0]
    return GainComparison(before=old, after=new, error=float(apart.std()) / sqrt(len(apart)))


def _logged(
    evidence: ShadowAudits, arms: Mapping[str, int], *, n_arms: int, price: float, full_tokens: float
) -> tuple[LoggedDraws, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """The audits as draws, and the map's own odds: an audit of a class that it runs in full drew the full run."""
    audits = evidence.audits
    names = sorted({audit.query_class for audit in audits})
    wanted = np.array([arms[audit.query_class] for audit in audits])
    in_full = wanted == 0
    odds = np.array([audit.odds for audit in audits])
    odds[in_full] = np.eye(n_arms)[0]
    saved = np.array([(audit.full_tokens - audit.arm_tokens) / full_tokens for audit in audits])
    reward = price * np.clip(saved, -MOST_WASTED, MOST_SAVED) - np.array(evidence.proved)
    logged = LoggedDraws(
        x=np.array([[float(audit.query_class == name) for name in names] for audit in audits]),
        arm=np.where(in_full, 0, [audit.arm for audit in audits]).astype(np.int64),
        odds=odds,
        reward=np.where(in_full, 0.0, reward),
        by_lot=np.ones(len(audits), dtype=bool),
        p_by_lot=np.ones(len(audits)),
        low=-1 - price * MOST_WASTED,
        high=1 + price * MOST_SAVED,
    )
    return logged, np.eye(n_arms)[wanted]
