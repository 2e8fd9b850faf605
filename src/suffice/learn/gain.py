"""What another map from classes to arms would be worth: doubly robust, from audits that asked an arm by lot.

Reward of an arm in one audit: -(what it lost) + price x (tokens that it saved of a mean full run). The full run's
reward is 0 in every audit, with certainty, so classes that stay with it add no noise. Knows audits; proposes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np

from suffice.learn.ope import LoggedDraws, PolicyValue, dr, dr_terms
from suffice.learn.shadow import ShadowAudits

MOST_SAVED, MOST_WASTED = 2.0, 1.0  # in mean full runs: what one audit may show at most, cut beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class GainComparison:
    """Two maps compared on the same audits, in EM: gain over running everything in full."""

    before: PolicyValue
    after: PolicyValue
    error: float  # standard error of the difference, for one look; the intervals hold at every look

    @property
    def value(self) -> float:
        """How much more `after` gains."""
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
    """Estimate both maps; the classes are as mixed as in the audits.

    evidence     at least one audit; losses as proofs count them
    price        EM that the tokens of a mean full run are worth
    full_tokens  of a mean full run, above 0
    """
    logs = [_logged(evidence, arms, n_arms=n_arms, price=price, full_tokens=full_tokens) for arms in (before, after)]
    terms = [dr_terms(logged, target) for logged, target in logs]
    old, new = (dr(logged, target, confidence=confidence) for logged, target in logs)
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
