"""Evidence about arms, their values, and the odds with which they are drawn.

An audit delivers the full answer and calls one arm beside it. Proofs use trusted labels alone; guesses use others, too,
with a cap on each key (`assurance.labels`).

    value = -(EM drop) - price x (tokens / tokens of a mean full run) - latency price x seconds

Dual ascent on audits finds the price at which the EM budget holds, within the owner's bounds. All odds are tables that
are computed before the draw, so the logged propensity is exact, unlike with Thompson sampling.
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
    odds: tuple[float, ...]  # of every arm in this draw; the full run has 0
    disagrees: bool  # the answers differ, or either call was aborted
    due_s: float  # when it begins to count; without a label, as lost where it disagrees
    full_tokens: float
    arm_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAudits:
    """Audits that count now, oldest first, and their losses: -1, 0 or +1."""

    audits: Sequence[ShadowAudit]
    proved: Sequence[int]  # by trusted labels; a disagreement without one is lost
    guessed: Sequence[int]  # by all labels with trust of at least 0


class ShadowLog:
    """The latest `window` audits of each class and arm; an untrusted key labels at most `key_cap` of differing ones."""

    def __init__(self, n_arms: int, *, window: int, key_cap: float) -> None:
        self._n_arms, self._window, self._key_cap = n_arms, window, key_cap
        self._audits: dict[str, ShadowAudit] = {}
        self._cells: dict[tuple[str, int], deque[str]] = {}
        self._labels: dict[str, list[TrustedLabel]] = {}

    def __len__(self) -> int:
        return len(self._audits)

    def add(self, audit: ShadowAudit) -> bool:
        """Add an audit; False: a duplicate. Raise ValueError for an arm that could not be drawn."""
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
        """Add a label, whose verdict is the audit's loss; False: the audit is unknown or needs no label."""
        audit = self._audits.get(label.audit)
        if audit is None or not audit.disagrees:
            return False
        labels = self._labels.setdefault(label.audit, [])
        if label not in labels:
            labels.append(label)
        return True

    def forget(self, query_class: str, *, from_arm: int = 0) -> None:
        for cell in [cell for cell in self._cells if cell[0] == query_class and cell[1] >= from_arm]:
            for audit_id in self._cells.pop(cell):
                self._drop(audit_id)

    def evidence(self, now_s: float) -> ShadowAudits:
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
    tables = {name: [[0] * n_arms for _ in range(3)] for name in classes}
    for audit, loss in zip(evidence.audits, evidence.proved, strict=True):
        tables[audit.query_class][loss + 1][audit.arm] += 1
    return [Counts(*np.array(tables[name], dtype=np.int64)) for name in classes]


def _loss(audit: ShadowAudit, verdicts: Mapping[str, Any]) -> int:
    return int(verdicts.get(audit.audit_id, 1)) if audit.disagrees else 0


# --------------------------------------------------------------------------- prices and odds

STEP: Final = 0.2  # of the logarithm of the price: a lost answer lowers the price by about a sixth


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBounds:
    """Bounds of the EM that the tokens of a mean full run are worth, fractions: 0.1 is ten points."""

    least: float = 0.01
    start: float = 0.05
    largest: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.start <= self.largest:
            raise ValueError(f"price: got {self.least}, {self.start}, {self.largest}; 0 < least <= start <= largest")


def next_price(price: float, z: int, *, max_em_drop: float, bounds: PriceBounds) -> float:
    """The price after an audit of the active arm with EM drop z: log price += STEP x (epsilon - z), within its bounds.

    Exponentiated gradient on the dual. Over N audits inside the bounds, the mean of z is epsilon + (log first price -
    log last price) / (STEP x N), for any sequence.
    """
    if not 0 < max_em_drop < 1:
        raise ValueError(f"max_em_drop: got {max_em_drop}; a fraction above 0 and below 1")
    return max(bounds.least, min(bounds.largest, price * exp(STEP * (max_em_drop - z))))


def weigh_by_inverse_gap(
    values: Sequence[float],
    eligible: Sequence[int],
    incumbent: int,
    *,
    n_draws: float,
    floor: float,
    ceiling: float,
    sharpness: float = 4.0,
) -> tuple[float, ...]:
    """Odds of each arm for a live request, shape (K,): the incumbent, and a bounded share for the other eligible arms.

    Inverse gap weighting (SquareCB: Foster and Rakhlin 2020, arXiv:2002.04926): of the exploring share, an arm gets
    1/(K + gamma x gap to the best value), the best arm the rest; gamma grows with the root of the draws. An eligible
    arm keeps the floor, so that improvements are noticed; the incumbent gets at least 1 - ceiling.

    n_draws    discounted number of draws behind the values; bounded, so that exploration never ends
    floor      least share of an eligible arm; lowered where all floors together would exceed the ceiling
    ceiling    largest share of all arms but the incumbent, in [0, 1)
    sharpness  growth of gamma, at least 0; 0: all eligible arms alike
    """
    if incumbent not in eligible or not 0 <= floor <= ceiling < 1 or sharpness < 0:
        raise ValueError(
            f"need an eligible incumbent, 0 <= floor <= ceiling < 1; got {incumbent=} {eligible=} {floor=}"
        )
    odds = np.zeros(len(values))
    others = [arm for arm in eligible if arm != incumbent]
    if not others:
        odds[incumbent] = 1.0
        return tuple(odds.tolist())
    floor = min(floor, ceiling / len(others))
    best = max(values[arm] for arm in eligible)
    gamma = sharpness * sqrt(len(eligible) * n_draws)
    gaps = np.array([best - values[arm] for arm in eligible])
    weights = 1 / (len(eligible) + gamma * gaps)
    weights[int(gaps.argmin())] += 1 - weights.sum()
    free = ceiling - floor * len(others)
    for arm, weight in zip(eligible, weights, strict=True):
        odds[arm] += free * weight + (floor if arm != incumbent else 0.0)
    odds[incumbent] += 1 - ceiling
    return tuple((odds / odds.sum()).tolist())


def weigh_potentials(potential: Sequence[float], *, floor: float) -> tuple[float, ...]:
    """Odds in proportion to the potential, with a floor for each positive one, shape (K,)."""
    size = np.array(potential, dtype=np.float64)
    if (size < 0).any() or not size.sum() > 0:
        raise ValueError(f"potential: got {list(potential)}; at least 0, one of them above")
    n = int((size > 0).sum())
    floor = min(floor, 1 / n)
    odds = np.where(size > 0, floor + (1 - n * floor) * size / size.sum(), 0.0)
    return tuple((odds / odds.sum()).tolist())


def pick_arm(odds: Sequence[float], point: float) -> int:
    """Never an arm with odds of 0; `point` is in [0, 1)."""
    if not 0 <= point < 1:
        raise ValueError(f"point: got {point}; in [0, 1)")
    edges = np.cumsum(odds)
    last = int(np.flatnonzero(np.asarray(odds))[-1])
    return min(int(np.searchsorted(edges, point, side="right")), last)


PRIOR_LOSS: Final = 0.1  # prior EM drop of an arm that saves everything; proportional to the saving
PRIOR_AUDITS: Final = 10.0  # weight of the prior against the arm's audits
CLASS_AUDITS: Final = 30.0  # weight of the arm's mean against the class's audits


class Costs:
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
        """Discounted number of observations of a class; at most about half_life / ln 2."""
        return float(self._weight[query_class].sum())

    def class_share(self, query_class: int) -> float:
        total = self._seen.sum()
        return float(self._seen[query_class] / total) if total else 1 / len(self._seen)

    @property
    def full_tokens(self) -> float:
        """Over all classes; 1 before any."""
        weight = self._weight[:, 0].sum()
        return float(self._sums[0, :, 0].sum() / weight) if weight else 1.0

    def shares(self) -> Floats:
        """Expected tokens over those of a mean full run, shape (C, K)."""
        of_class = self._mean(0)[:, :1] / self.full_tokens
        guess = np.where(self._weight[:, :1] > 0, of_class, 1.0) * self._expected
        return np.where(self._weight > 0, self._mean(0) / self.full_tokens, guess)

    def seconds(self) -> Floats:
        """Expected seconds, shape (C, K); for an unused arm, the full run's times its expected share."""
        return np.where(self._weight > 0, self._mean(1), self._mean(1)[:, :1] * self._expected)

    def _mean(self, what: int) -> Floats:
        return np.asarray(self._sums[what] / np.maximum(self._weight, 1e-12))

    def plain(self) -> dict[str, Any]:
        return {"weight": self._weight.tolist(), "sums": self._sums.tolist(), "seen": self._seen.tolist()}

    def restore(self, plain: dict[str, Any]) -> None:
        weight, sums = np.array(plain["weight"]), np.array(plain["sums"])
        if weight.shape != self._weight.shape or sums.shape != self._sums.shape:
            raise ValueError(f"costs: got shape {weight.shape}; {self._weight.shape}")
        self._weight, self._sums, self._seen = weight, sums, np.array(plain["seen"])


def estimate_losses(n: Floats, lost: Floats, shares: Floats) -> Floats:
    """Expected EM drop of each class and arm, shape (C, K), shrunk to a guess in proportion to the saving."""
    guess = PRIOR_LOSS * np.clip(1 - shares.mean(axis=0) / shares[:, 0].mean(), 0.0, 1.0)
    of_arm = (lost.sum(axis=0) + PRIOR_AUDITS * guess) / (n.sum(axis=0) + PRIOR_AUDITS)
    means = (lost + CLASS_AUDITS * of_arm) / (n + CLASS_AUDITS)
    means[:, 0] = 0.0
    return np.asarray(means)


PAYBACK: Final = 3.0  # above 1: the estimates are optimistic, and not every tried arm is certified
NEVER: Final = 1e6  # pairs, for an arm that is not expected to be certified
FEWEST: Final = 20.0  # audits added to those needed, so that weights stay finite
WATCHED: Final = 0.3  # of a class's audits call its active arm while evidence pays
WATCHED_ALONE: Final = 0.8  # likewise, while none pays
SHADOW_FLOOR: Final = 0.03  # least share of the other audits that each other arm gets
LEAST_POTENTIAL: Final = 1e-12  # of an arm without potential: it keeps the floor, in case the regime changes
FLIPS_PRIOR: Final = 10.0  # prior audits without a gain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmPotential:
    gain: Floats  # optimistic EM value per request over the active arm; 0: none
    needed: Floats  # further audits for its certificate

    @property
    def wanted(self) -> Floats:
        """EM value of each arm above that of the arms with complete audits; 0 for the latter, shape (K,)."""
        underway = self.needed == 0
        hoped = float(self.gain[underway].max(initial=0.0))
        return np.where(underway, 0.0, np.maximum(0.0, self.gain - hoped))

    @property
    def draw_weights(self) -> Floats:
        return np.asarray((self.wanted / (FEWEST + self.needed)) ** 2)

    def pays(self, *, n_requests: float, audit_cost: Floats) -> bool:
        """Does the evidence for some arm pay back PAYBACK times? `audit_cost` is EM per audit, above the request."""
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
    """Estimate the potential of each arm of a class, with a full run's tokens worth `price` of EM.

    expected_loss  EM drop of each arm; lowered by one standard error here
    saved          share of a full run's tokens that each arm saves over the active one
    n_waiting      audits that do not count yet, because their labels are not due
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


def weigh_audits(potential: ArmPotential, active: int, *, pays: bool) -> tuple[float, ...]:
    """Odds of the arm that an audit calls, shape (K,): a fixed part for the active arm, the rest by potential."""
    draw_weights = np.maximum(potential.draw_weights, LEAST_POTENTIAL)
    draw_weights[0] = 0.0
    odds = np.array(weigh_potentials(draw_weights.tolist(), floor=SHADOW_FLOOR))
    if active:
        watched = WATCHED if pays else WATCHED_ALONE
        odds *= 1 - watched
        odds[active] += watched
    return tuple((odds / odds.sum()).tolist())


MOST_SAVED, MOST_WASTED = 2.0, 1.0  # in mean full runs: bounds to which the saving of one audit is clipped


@dataclass(frozen=True, slots=True, kw_only=True)
class GainComparison:
    before: PolicyValue
    after: PolicyValue
    error: float  # standard error of the difference, for a single look; the intervals hold at every look

    @property
    def value(self) -> float:
        return self.after.value - self.before.value

    @property
    def is_worse(self) -> bool:
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
    """Needs at least one audit; a full run's tokens are worth `price` of EM."""
    logs = [_logged(evidence, arms, n_arms=n_arms, price=price, full_tokens=full_tokens) for arms in (before, after)]
    terms = [compute_dr_terms(logged, target) for logged, target in logs]
    old, new = (estimate_value(logged, target, confidence=confidence) for logged, target in logs)
    apart = terms[1] - terms[0]
    return GainComparison(before=old, after=new, error=float(apart.std()) / sqrt(len(apart)))


def _logged(
    evidence: ShadowAudits, arms: Mapping[str, int], *, n_arms: int, price: float, full_tokens: float
) -> tuple[LoggedDraws, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Where the map runs a class in full, its audits count as full runs."""
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
        sampled=np.ones(len(audits), dtype=bool),
        p_sampled=np.ones(len(audits)),
        low=-1 - price * MOST_WASTED,
        high=1 + price * MOST_SAVED,
    )
    return logged, np.eye(n_arms)[wanted]
