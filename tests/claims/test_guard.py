"""What a pooled certificate hides, and how soon the guard-rails find it: measured, seeded.

Audits at a pooled level whose mean drop is within 2 %, as in ASSURANCE.md §6.6: easy and medium questions lose little,
hard ones far more, and a class that thinks too long gains by being stopped.
"""

from __future__ import annotations

import numpy as np
import pytest

from suffice.assurance.certify import certified_level, count_outcomes, log_wealth
from suffice.assurance.strata import ClassGuards

CLASSES = ("easy", "medium", "hard", "overthinking")
SHARES = (0.45, 0.25, 0.20, 0.10)
LOST = {"easy": 0.004, "medium": 0.006, "hard": 0.08, "overthinking": 0.0}
GAINED = {"easy": 0.0, "medium": 0.0, "hard": 0.0, "overthinking": 0.12}
CALM = {**LOST, "hard": 0.02}


def audits(
    n: int, lost: dict[str, float], rng: np.random.Generator
) -> tuple[list[str], np.ndarray[tuple[int, int], np.dtype[np.int8]]]:
    """Classes and Z at four levels; losses begin at level 2 and are twice as many at level 3."""
    names = rng.choice(CLASSES, n, p=SHARES).tolist()
    u = rng.random(n)
    p = np.array([lost[name] for name in names])
    g = np.array([GAINED[name] for name in names])
    z = np.zeros((n, 4), dtype=np.int8)
    z[:, 2] = np.where(u < p, 1, np.where(u > 1 - g, -1, 0))
    z[:, 3] = np.where(u < 2 * p, 1, np.where(u > 1 - g, -1, 0))
    return names, z


@pytest.mark.slow
def test_harm_that_the_pool_hides_is_found_in_the_class_that_suffers_it() -> None:
    rng = np.random.default_rng(61)
    n_certified, alarms, others = 0, [], 0
    for _ in range(40):
        names, z = audits(2_500, LOST, rng)
        n_certified += certified_level(log_wealth(count_outcomes(z), max_em_drop=0.02), delta=0.05) >= 2
        guards, n_hard, first = ClassGuards(4, 0.02), 0, None
        for name, outcome in zip(names, z, strict=True):
            n_hard += name == "hard"
            alarm = guards.add(name, outcome, 2)
            others += alarm and name != "hard"
            if alarm and name == "hard" and first is None:
                first = n_hard
        alarms.append(first)
    result = [n for n in alarms if n is not None]
    print(
        f"pooled level certified in {n_certified} of 40; hard class stepped down in {len(result)} of 40,"
        f" after {np.median(result):.0f} of its audits at the median; other classes {others} times"
    )
    assert n_certified >= 25, "the pool is well within its budget: this is what it hides"
    assert len(result) >= 34
    assert others <= 2


@pytest.mark.slow
def test_classes_at_their_bound_are_rarely_held() -> None:
    rng = np.random.default_rng(62)
    n_alarms = 0
    for _ in range(40):
        names, z = audits(2_500, CALM, rng)
        guards = ClassGuards(4, 0.02)
        n_alarms += sum(guards.add(name, outcome, 2) for name, outcome in zip(names, z, strict=True))
    print(f"{n_alarms} false alarms in 100,000 audits of four classes")
    assert n_alarms <= 6


def test_a_held_class_whose_trouble_passes_comes_back() -> None:
    rng = np.random.default_rng(63)
    waited = []
    for _ in range(20):
        guards = ClassGuards(4, 0.02)
        names, z = audits(4_000, {**LOST, "hard": 0.15}, rng)
        for name, outcome in zip(names, z, strict=True):
            if guards.add(name, outcome, 2):
                break
        assert guards.level("hard", 2) < 2
        names, z = audits(6_000, {**CALM, "hard": 0.005}, rng)
        n_hard = 0
        for name, outcome in zip(names, z, strict=True):
            n_hard += name == "hard"
            guards.add(name, outcome, 2)
            if guards.level("hard", 2) == 2:
                break
        waited.append(n_hard)
    print(f"back after {np.median(waited):.0f} audits of the class at the median, at most {max(waited)}")
    assert np.median(waited) <= 200
    assert max(waited) <= 800
