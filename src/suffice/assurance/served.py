"""A monitor of what was served: it speaks when the requests since its start lost more than the budget on average.

A certificate is about what a level would lose on all requests of a window; this is about those that were in fact not
audited. Request t, audited with probability rho_t, is expected to lose (1 - rho_t) Z_t, where Z_t is the EM drop of the
stop that acted at its time, and its audit, if there is one, shows Z_t. With bets nu in (0, 1/(1 + eps)) and weights
w_t <= rho_t that are fixed before the draw, let

    M_t = product over audits s <= t of  1 + nu (w_s/rho_s) ((1 - rho_s) Z_s - eps),
    C_t = product over all s <= t of     1 + nu w_s ((1 - rho_s) Z_s - eps).

Each factor is positive, since w_s/rho_s <= 1 and (1 - rho_s) Z_s >= -1. Given the past, a factor of M has the mean of
that of C, whatever Z is, so M/C is a non-negative martingale that starts at 1; and ln C_t is at most nu times the sum
of w_s ((1 - rho_s) Z_s - eps), so C_t <= 1 whenever the w-weighted mean of what was served lost is eps or less. By
Ville's inequality, M ever reaches 1/delta while that holds with probability delta at most; the mean of such bets, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.certify import check_budget, e_value_of, mixed
from suffice.assurance.runs import RunNumbers

# Fractions of the largest bet. The best one is near (loss - eps) / eps, so the first notices 1.2 times the budget.
BETS: Final = (0.2, 0.5, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedLoss:
    """Evidence against "the requests served since then lost the budget or less"."""

    n_audits: int
    loss: float  # of a request, full runs included, estimated by its audits
    e_value: float
    max_em_drop: float
    confidence: float

    @property
    def is_over(self) -> bool:
        return self.e_value >= 1 / (1 - self.confidence)

    @property
    def sentence(self) -> str:
        estimate = f"about {self.loss:.2%} lost by stops over all requests, by {self.n_audits:,} audits"
        if self.is_over:
            budget = f"the budget of {self.max_em_drop:.2%} is exceeded with {100 * self.confidence:g} % confidence"
            return f"{estimate}: {budget}"
        return f"{estimate}; nothing proves that it is over {self.max_em_drop:.2%}"


def grow_served_loss(z: Floats, share: Floats, *, usual_share: float, max_em_drop: float) -> Floats:
    """What each audit adds to the log of each bet's e-process, shape (bets, n).

    share        P(audit) at each draw; the weights are these, and at most `usual_share`
    """
    check_budget(max_em_drop)
    stakes = _weights(share, usual_share) * ((1 - share) * z - max_em_drop)
    return np.asarray(np.log1p(np.array(BETS)[:, np.newaxis] / (1 + max_em_drop) * stakes))


def _weights(share: Floats, usual_share: float) -> Floats:
    """w/rho of audits that were drawn at these shares."""
    return np.minimum(1.0, usual_share / share)


def measure_served_loss(
    runs: Iterable[RunNumbers], *, usual_share: float, max_em_drop: float, confidence: float
) -> ServedLoss | None:
    """Weigh the audits among a route's runs. What nobody has labelled is no loss here.

    None: there are no audits, or the route's settings leave nothing to test: no budget below 1, no certainty below 1,
    or no audits drawn.
    """
    if not 0 < max_em_drop < 1 or confidence == 1 or not usual_share:
        return None
    audits = [run for run in runs if run.enforce and run.audit and run.full]
    if not audits:
        return None
    z = np.array([run.drop or 0 for run in audits], dtype=np.float64)
    share = np.array([1 / run.weight for run in audits])
    each = grow_served_loss(z, share, usual_share=usual_share, max_em_drop=max_em_drop)
    weight = _weights(share, usual_share)
    return ServedLoss(
        n_audits=len(audits),
        loss=float((weight * (1 - share) * z).sum() / weight.sum()),
        e_value=e_value_of(float(mixed(each.sum(axis=1, keepdims=True))[0])),
        max_em_drop=max_em_drop,
        confidence=confidence,
    )
