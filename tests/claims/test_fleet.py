"""The fleet's promise on simulated routes, beside separate certificates that break it (in full: `bench.fleet`)."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from bench import fleet
from bench.fleet import Result, SimulatedRoute, Truth


def routes(n: int, *, drop: float = 0.0, misled: float = 0.15) -> list[SimulatedRoute]:
    """Routes whose levels lose more and save more, up to 5 % and 50 %; some are misled by others."""
    rng, part = np.random.default_rng(0), np.linspace(0, 1, 21)
    made = []
    for number in range(n):
        own = Truth(lost=drop + 0.05 * part ** rng.uniform(2, 4), gained=0 * part, saved=rng.uniform(0.3, 0.6) * part)
        is_misled = rng.random() < misled
        warm = Truth(lost=np.minimum(0.4, 8 * own.lost), gained=own.gained, saved=own.saved) if is_misled else own
        made.append(SimulatedRoute(family=number // fleet.SIZE, own=own, warm=warm, is_misled=is_misled))
    return made


def results(n_seeds: int, *, eps: float, spoilt: float) -> dict[str, list[Result]]:
    built, made = routes(300), dict[str, list[Result]]()
    for seed in range(n_seeds):
        for name, one in fleet.serve_all(built, seed, eps, spoilt).items():
            made.setdefault(name, []).append(one)
    return made


def is_rejected(k: int, n: int, rate: float = 0.05) -> bool:
    """Whether so many wrong ones or more would have less than a 1 % chance at this rate."""
    return sum(comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k)) > 0.99


@pytest.mark.slow
def test_few_of_the_certified_routes_are_wrong_where_nearly_none_can_be() -> None:
    made = results(20, eps=0.05, spoilt=0.95)
    for name, rejected in (("fleet", False), ("separate routes", True)):
        n_wrong = sum(int(one.is_wrong.sum()) for one in made[name])
        n = sum(int(one.is_certified.sum()) for one in made[name])
        assert n > 200
        assert is_rejected(n_wrong, n) is rejected, (name, n_wrong, n)


@pytest.mark.slow
def test_new_routes_save_more_in_their_first_requests_than_separate_cold_starts_although_some_are_misled() -> None:
    for eps in (0.02, 0.05):
        made = results(3, eps=eps, spoilt=0.1)
        saved = {name: np.mean([one.saved.mean() for one in each]) for name, each in made.items()}
        assert saved["fleet"] > saved["separate routes"], (eps, saved)
