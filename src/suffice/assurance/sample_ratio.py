"""Is the audit lottery what it says it is? A test that may be watched after every request.

    audit flags and their logged odds ──▶ Draws (share, drawn, won) ──▶ log e ──▶ alarm

Everything that is certified rests on audits being a random sample. A sampler that forgets some of them, under load, at
one replica, for one tenant, voids it without a sound. Under the null hypothesis every request is audited with the
probability that was logged for it; the alternative at a share is a Beta law around it, so the e-value is
a beta-binomial one. It is a function of counts alone: replicas add up, in any order. ASSURANCE.md §3.7.

Where the share changed there is one e-value for each share, and they are multiplied: every request bets on its own
share only, so the product is an e-process too. A fault that touches all shares is seen sooner than in any single one.
The price: a share that went well for long lowers the product by about a half of log(1 + n/100), so count anew in each
epoch. With a share of its own for every request there is no evidence at all.

Knows flags and odds; refuses to know how lots are drawn (`rollout.assign`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, lgamma, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

WEIGHT: Final = 100.0  # requests that the alternative is worth: at 5 % it looks for shares of 2 to 10 %
LOG_ALARM: Final = log(1_000)  # a healthy lottery ever reaches it with probability at most 1/1000
_DIGITS: Final = 9  # 1 - (1 - 0.05) is not 0.05; shares that are equal to nine digits are one share


@dataclass(frozen=True, slots=True)
class Draws:
    """How often the lottery was drawn at each share, and how often an audit came out."""

    by_share: tuple[tuple[float, int, int], ...] = ()  # (share, requests, audits among them), shares rising

    def __add__(self, other: Draws) -> Draws:
        """The draws of both: of two replicas, or of an old and a new batch."""
        sums: dict[float, tuple[int, int]] = {}
        for share, n, n_audits in (*self.by_share, *other.by_share):
            so_far = sums.get(share, (0, 0))
            sums[share] = so_far[0] + n, so_far[1] + n_audits
        return Draws(tuple((share, *sums[share]) for share in sorted(sums)))


def count_draws(audit: NDArray[np.bool_], propensity: NDArray[np.float64]) -> Draws:
    """Count lots as they were logged.

    audit       (n,): was the request drawn to be audited?
    propensity  (n,): P(this value of `audit`), in (0, 1], of `rollout.assign.AuditAssignment`: mostly 1 - share
    Raises ValueError for odds out of range, which cannot have been logged by a lottery.
    """
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("propensity: need odds above 0 and at most 1 for every lot")
    shares, at = np.unique(np.round(np.where(audit, propensity, 1 - propensity), _DIGITS), return_inverse=True)
    n = np.bincount(at, minlength=len(shares))
    won = np.bincount(at, weights=audit, minlength=len(shares)).astype(np.int64)
    return Draws(tuple(zip(shares.tolist(), n.tolist(), won.tolist(), strict=True)))


def log_sample_ratio(draws: Draws, *, weight: float = WEIGHT) -> float:
    """Natural logarithm of the e-value against "every lot was drawn at its logged share".

    For one share rho with k audits in n: B(a + k, b + n - k) / (B(a, b) rho^k (1 - rho)^(n - k)), a = weight rho,
    b = weight (1 - rho); summed over shares. At a share of 0 or 1 a single exception is proof, and the result infinite.

    weight  requests that the alternative is worth, above 0: the fewer, the further from the share it looks
    """
    return sum((_log_e(share, n, n_audits, weight) for share, n, n_audits in draws.by_share), 0.0)


def broken(draws: Draws) -> str | None:
    """Why audits cannot be believed, as a sentence; None: nothing speaks against them."""
    log_e = log_sample_ratio(draws)
    if log_e < LOG_ALARM:
        return None
    n = sum(n for _, n, _ in draws.by_share)
    expected = sum(share * n for share, n, _ in draws.by_share)
    seen = sum(n_audits for _, _, n_audits in draws.by_share)
    return f"{seen} audits in {n} requests where {expected:.0f} were expected: not the lottery that was logged"


def _log_e(share: float, n: int, n_audits: int, weight: float) -> float:
    if share in (0.0, 1.0):
        return 0.0 if n_audits == share * n else inf
    a, b = weight * share, weight * (1 - share)
    mixture = _log_beta(a + n_audits, b + n - n_audits) - _log_beta(a, b)
    return mixture - n_audits * log(share) - (n - n_audits) * log(1 - share)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
