"""What a certificate claims of votes when it counts each audit in every order that its samples could have had.

Votes of eight independent samples, and stops after one, two and three of them. The budget is the true drop of a stop,
or a little less, so that every certificate of it is false. A naive mean over all permutations ignores which of them
would have been decided sooner, understates the loss, which has to be seen.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Final

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.assurance.certify import BETS, mixed
from suffice.episode.vote import count_votes, deciding_sample
from suffice.learn.audits import draw_orders

N_VOTES: Final = 3_000
N_SETS: Final = 400
N_AUDITS: Final = 3_000
DELTA: Final = 0.05
STOPS: Final = (1, 2, 3)


def losses(answers: list[str | None]) -> list[int]:
    """EM drop of a stop after each number of samples, against the whole vote."""
    full = count_votes(answers).answer == "right"
    return [int(full) - int(count_votes(answers[:n]).answer == "right") for n in STOPS]


def naive_orders(answers: list[str | None], rng: random.Random) -> list[list[int]]:
    return [rng.sample(range(len(answers)), len(answers)) for _ in range(8)]


@cache
def population() -> tuple[Floats, Floats, Floats]:
    """Drops in own order, as the mean over orders, and as the naive mean, shape (N_VOTES, stops) each."""
    rng, rows = random.Random(11), list[tuple[Floats, Floats, Floats]]()
    for number in range(N_VOTES):
        p = rng.choice([0.97, 0.9, 0.7, 0.55])
        samples: list[str | None] = ["right" if rng.random() < p else rng.choice("xyz") for _ in range(8)]
        drawn = samples[: deciding_sample(samples, 8)]
        mine = list(range(len(drawn)))
        means = [
            np.mean([losses([drawn[i] for i in order]) for order in [mine, *orders]], axis=0)
            for orders in (draw_orders(drawn, 8, key=str(number)), naive_orders(drawn, rng))
        ]
        rows.append((np.array(losses(drawn), float), means[0], means[1]))
    own, ours, naive = (np.array(part) for part in zip(*rows, strict=True))
    return own, ours, naive


def passed(z: Floats, budget: float, seed: int) -> float:
    """Share of sets of audits, drawn at random from these, whose wealth ever reaches 1/delta."""
    rng, n = np.random.default_rng(seed), 0
    for _ in range(N_SETS):
        stakes = (budget - z[rng.integers(0, len(z), N_AUDITS)]) / (1 - budget)
        wealth = mixed(np.array([np.cumsum(np.log1p(bet * stakes)) for bet in BETS]))
        n += bool(wealth.max() >= np.log(1 / DELTA))
    return n / N_SETS


@pytest.mark.parametrize("stop", range(len(STOPS)))
def test_a_level_at_the_budget_is_certified_at_most_at_the_risk(stop: int) -> None:
    _, ours, _ = population()
    assert passed(ours[:, stop], float(ours[:, stop].mean()), seed=stop) <= DELTA


@pytest.mark.parametrize("stop", range(len(STOPS)))
def test_the_mean_over_orders_is_the_drop_of_requests(stop: int) -> None:
    own, ours, _ = population()
    gap = own[:, stop] - ours[:, stop]
    assert abs(gap.mean()) < 3 * gap.std() / N_VOTES**0.5


def test_fewer_audits_certify_the_same_level() -> None:
    own, ours, _ = population()
    budget = 2.5 * float(ours[:, 2].mean())
    few = (budget - ours[:, 2]) / (1 - budget), (budget - own[:, 2]) / (1 - budget)
    growth = [max(float(np.log1p(bet * stakes).mean()) for bet in BETS) for stakes in few]
    assert growth[0] > 1.15 * growth[1]


def test_a_mean_over_all_permutations_understates_the_loss() -> None:
    _, ours, naive = population()
    gap = ours - naive
    assert (gap.mean(axis=0) > 3 * gap.std(axis=0) / N_VOTES**0.5).all()
