"""The stop score of the simulations: the linear part of the stop model, fitted by Newton's method.

It equals `learn.models` with `parts="linear"` to three digits (`tests/claims/test_loop.py`), in a tenth of the time.
"""

from __future__ import annotations

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.learn.models import LINEAR_C
from suffice.learn.version import PGood

N_STEPS = 15  # of Newton; six are usual from nothing, three from the last fit
CLOSE_ENOUGH = 1e-2  # last change of a coefficient, per sd of its feature; Newton then is right to its square


class Logistic:
    """The trainer of one stream: P(good) on standardised features with an L2 penalty.

    Each fit begins at the coefficients of the last one, which changes the time and not the result.
    """

    def __init__(self) -> None:
        self._last: Floats | None = None

    def __call__(self, x: Floats, good: Bools, weight: Floats) -> PGood:
        """Fit; a constant where one outcome is rare."""
        y = good.astype(np.float64)
        if min(y.sum(), len(y) - y.sum()) < 20:
            share = (float(weight @ y) + 1) / (float(weight.sum()) + 2)
            return lambda rows: np.full(len(rows), share)
        total = weight.sum()
        mean = weight @ x / total
        sd = np.sqrt(np.maximum(weight @ (x - mean) ** 2 / total, 1e-12))
        rows = np.column_stack([np.ones(len(x)), (x - mean) / sd])
        self._last = _newton(rows, y, weight, self._last)
        coefficients = self._last[1:] / sd
        intercept = float(self._last[0] - coefficients @ mean)
        return lambda new: _sigmoid(new @ coefficients + intercept)


def _newton(rows: Floats, y: Floats, weight: Floats, start: Floats | None) -> Floats:
    penalty = np.full(rows.shape[1], 1 / LINEAR_C)
    penalty[0] = 0.0

    def loss(at: Floats) -> float:
        logit = rows @ at
        return float(weight @ (np.logaddexp(0, logit) - y * logit) + penalty @ at**2 / 2)

    beta = np.zeros(rows.shape[1]) if start is None else start
    best = loss(beta)
    for _ in range(N_STEPS):
        p = _sigmoid(rows @ beta)
        hessian = rows.T @ (rows * (weight * p * (1 - p))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(hessian, rows.T @ (weight * (y - p)) - penalty * beta)
        # From the last fit's place, in another world, a whole step can go too far.
        while (reached := loss(beta + step)) > best and np.abs(step).max() >= CLOSE_ENOUGH:
            step = step / 2
        beta, best = beta + step, reached
        if np.abs(step).max() < CLOSE_ENOUGH:
            break
    return beta


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -40, 40))))
