"""Paired calls: the EM drop of an arm that cannot be replayed, from a second call for the same question.

An arm is an effort or a token budget, which changes what the model does. An audit delivers the full run and calls the
arm, for Z = c_full - c_arm in {-1, 0, +1}, or sometimes calls for a second full run (a *repeat*), for the model's
disagreement with itself. Independent draws add noise of mean 0, which costs audits (`pairs_to_certify`) and not
validity. Z <= D, so disagreement bounds the drop without labels. **Its excess over that of repeats does not**: a model
that is right half of the time differs from itself on half of the questions, and as often from an arm that is never
right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log, nan
from typing import Final

import numpy as np

from suffice.assurance.certify import check_budget, count_outcomes, log_bets, smallest_proved_drop, weighted_log_wealth

# Fractions of the largest bet. The best one is about (epsilon - drop) / (lost + gained), which noise makes small: the
# 0.25 of `certify` loses on pairs that differ by chance on every sixth question.
BETS: Final = (0.04, 0.1, 0.25, 0.5, 0.8)
WINDOW: Final = 2_000  # latest pairs that count


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedAudit:
    arm: str = ""  # of the second call; "": the run ended before that, and any arm could have been drawn
    query_class: str = ""
    disagrees: bool  # the answers differ
    z: int | None  # full right - arm right; None: they differ without a label
    due: float  # when a missing label counts as a loss, in any unit of time
    is_repeat: bool = False  # the second call was a full run
    weight: float = 1.0  # c/rho of its audit, see `assurance.certify`
    full_tokens: int = 0
    arm_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCertificate:
    is_certified: bool
    log_e: float  # against "the arm loses the budget or more"
    n: int  # pairs
    n_disagree: int  # with different answers: their rate is an upper bound of the drop
    n_gained: int  # in which the arm alone was right
    n_lost: int  # in which it lost the right answer, or is assumed to
    drop_high: float  # smallest refuted drop, valid at every look
    saved_share: float | None  # 1 - tokens of the arm / tokens of the full runs; None: not counted
    n_repeats: int
    n_repeats_disagree: int

    @property
    def drop(self) -> float:
        """Mean of Z; nan without pairs."""
        return (self.n_lost - self.n_gained) / self.n if self.n else nan

    def n_missing(self, *, max_em_drop: float, delta: float) -> int | None:
        """Further pairs in the proportions so far; 0: it is certified; None: unknown."""
        if self.is_certified or not self.n:
            return 0 if self.is_certified else None
        try:
            needed = pairs_to_certify(self.drop, self.n_gained / self.n, max_em_drop=max_em_drop, delta=delta)
        except ValueError:
            return None
        return max(1, needed - self.n)

    def sentence(self, arm: str) -> str:
        disagreement = self.n_disagree / self.n if self.n else nan
        own = f"{self.n_repeats_disagree / self.n_repeats:.1%}" if self.n_repeats else "unknown"
        return (
            f"{arm}: EM lower by {100 * self.drop:.2f} points on {self.n} pairs, less than {100 * self.drop_high:.2f}"
            f" proved; {disagreement:.1%} of answers differ from the full run's, and {own} between two full runs"
        )


def pairs_of(pairs: Iterable[PairedAudit], arm_of: Callable[[str], str], n_arms: int) -> list[PairedAudit]:
    """Return the repeats and the pairs of the arms that `arm_of` gives to query classes; "" for a class in full.

    Each of `n_arms` arms is drawn as often. An audit that ended before its second call depends on no draw, so its
    factor is the mean over them.
    """
    chosen = []
    for pair in pairs:
        if pair.is_repeat or (pair.arm and pair.arm == arm_of(pair.query_class)):
            chosen.append(pair)
        elif not pair.arm:
            chosen.append(replace(pair, weight=pair.weight / n_arms) if n_arms > 1 else pair)
    return chosen


def certify_arm(
    pairs: Sequence[PairedAudit], *, max_em_drop: float, delta: float, now: float, window: int = WINDOW
) -> PairedCertificate:
    """Certify an arm from pairs, oldest first, by the e-process of `certify`; the latest `window` count.

    A pair counts once its label is due, whether it differs or not; a difference without a label by then is a loss.
    """
    due = [pair for pair in pairs if pair.due <= now]
    repeats = [pair for pair in due if pair.is_repeat][-window:]
    counted = [pair for pair in due if not pair.is_repeat][-window:]
    z = np.array([1 if pair.z is None else pair.z for pair in counted], dtype=np.int8).reshape(-1, 1)
    weights = np.array([pair.weight for pair in counted])
    log_e = float(weighted_log_wealth(z, weights, max_em_drop=max_em_drop, bets=BETS)[0])
    full_tokens = sum(pair.full_tokens for pair in counted)
    proved = smallest_proved_drop(count_outcomes(z), delta=delta, bets=BETS)
    return PairedCertificate(
        is_certified=log_e >= log(1 / delta),
        log_e=log_e,
        n=len(counted),
        n_disagree=sum(pair.disagrees for pair in counted),
        n_gained=int((z < 0).sum()),
        n_lost=int((z > 0).sum()),
        drop_high=1.0 if proved is None else proved,
        saved_share=1 - sum(pair.arm_tokens for pair in counted) / full_tokens if full_tokens else None,
        n_repeats=len(repeats),
        n_repeats_disagree=sum(pair.disagrees for pair in repeats),
    )


def pairs_to_certify(drop: float, flips: float, *, max_em_drop: float, delta: float) -> int:
    """Approximate number of pairs that certify an arm: the mixture earns 1/delta at the growth of its best bet.

    drop   E Z of the arm, a fraction below `max_em_drop`
    flips  P(Z = -1): the arm alone is right; for two full runs, half of the rate at which exactly one is right

    Raise ValueError for impossible rates, and where no number is enough.
    """
    lost = drop + flips
    if flips < 0 or lost < 0 or lost + flips > 1 or not 0 < delta < 1:
        raise ValueError(f"need flips >= 0, drop + flips >= 0, both together at most 1; got {drop=} {flips=} {delta=}")
    rates = (np.array([flips]), np.array([1 - flips - lost]), np.array([lost]))
    check_budget(max_em_drop)
    growth = float(log_bets(*rates, max_em_drop, bets=BETS).max())
    if growth <= 0:
        raise ValueError(f"no number of pairs certifies a drop of {drop:g} at {flips:g} flips within {max_em_drop:g}")
    return ceil((log(1 / delta) + log(len(BETS))) / growth)
