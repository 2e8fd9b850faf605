"""The monitor of what was served: how often it speaks falsely, and how soon where stops lose too much.

On streams whose stops lose the budget on average, it may speak only while they have lost more than that.
`python -m pytest -q -s -m slow tests/claims/test_served.py` prints the figures of docs/reference/assurance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import numpy as np
import pytest

from suffice.arrays import Bools, Floats
from suffice.assurance.bounds import exact_binomial
from suffice.assurance.certify import mixed
from suffice.assurance.served import BETS, grow_served_loss

EPS, DELTA, SHARE = 0.02, 0.05, 0.05
LIMIT = log(1 / DELTA)
N = 20_000  # requests of an account
Losses = Callable[[np.random.Generator, Floats], Floats]  # with these chances, shape (streams, N)


def alarms(lost: Floats, share: Floats, rng: np.random.Generator) -> Bools:
    """Whether the monitor speaks at each request; all of shape (streams, N)."""
    audited = rng.random(lost.shape) < share
    each = grow_served_loss(lost.ravel(), share.ravel(), usual_share=SHARE, max_em_drop=EPS)
    growth = np.where(audited.ravel(), each, 0.0).reshape(len(BETS), *lost.shape)
    return np.array([mixed(one) >= LIMIT for one in np.cumsum(growth, axis=2).transpose(1, 0, 2)])


def shares(kind: str, n: int) -> Floats:
    usual = np.full((n, N), SHARE)
    if kind == "ramp":
        usual[:, :2_000] = np.linspace(0.75, SHARE, 2_000)
    elif kind == "doubt":
        usual[:, 5_000:7_000] = 0.5
    return usual


def at_random(rng: np.random.Generator, p: Floats) -> Floats:
    return (rng.random(p.shape) < p).astype(np.float64)


def in_clusters(rng: np.random.Generator, p: Floats) -> Floats:
    return np.repeat(rng.random((len(p), N // 50)) < p[:, ::50], 50, axis=1).astype(np.float64)


def evenly(_: np.random.Generator, p: Floats) -> Floats:
    return np.diff(np.floor(np.cumsum(p, axis=1)), axis=1, prepend=0.0)


@pytest.mark.parametrize("n_streams", [100, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("losses", [at_random, in_clusters, evenly])
@pytest.mark.parametrize("kind", ["steady", "ramp", "doubt"])
def test_it_rarely_speaks_while_what_was_served_lost_the_budget_or_less(
    kind: str, losses: Losses, n_streams: int
) -> None:
    rng = np.random.default_rng(11)
    n_accused = 0
    for _ in range(n_streams // 100):
        share = shares(kind, 100)
        lost = losses(rng, EPS / (1 - share))
        weight = np.minimum(SHARE, share)
        within = np.cumsum(weight * (1 - share) * lost, axis=1) <= EPS * np.cumsum(weight, axis=1)
        n_accused += int((alarms(lost, share, rng) & within).any(axis=1).sum())
    print(f"{kind}, {losses.__name__}: falsely at some time in {n_accused} of {n_streams:,}")
    assert exact_binomial(n_accused, n_streams, 0.99).low <= DELTA


def test_what_ran_in_full_was_not_served() -> None:
    rng, share = np.random.default_rng(13), np.full((100, N), 1.0)
    lost = at_random(rng, np.full((100, N), 3 * EPS))
    assert not alarms(lost, share, rng).any()
    assert alarms(lost, np.full((100, N), SHARE), rng).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("n_streams", [40, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("times", "within", "losses"),
    [
        (0.75, 0, at_random),
        (1.5, N, at_random),
        (2.0, N // 2, at_random),
        (3.0, 5_000, at_random),
        (3.0, N, in_clusters),
    ],
)
def test_stops_that_lose_too_much_are_noticed(times: float, within: int, losses: Losses, n_streams: int) -> None:
    rng = np.random.default_rng(12)
    share = shares("steady", n_streams)
    over = alarms(losses(rng, times * EPS / (1 - share)), share, rng)
    first = np.where(over.any(axis=1), over.argmax(axis=1) + 1, N + 1)
    noticed = first <= N
    middle, late = np.quantile(first, [0.5, 0.9])
    print(f"{times:g} budgets, {losses.__name__}: {noticed.mean():.0%}, half by {middle:,.0f}, 90 % by {late:,.0f}")
    assert (noticed.mean() <= DELTA) if times < 1 else (first <= within).mean() >= 0.25
