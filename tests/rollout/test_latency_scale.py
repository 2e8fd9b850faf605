"""The guard-rail of latency on routes of every speed: it ends, and it is wrong no more often than it says.

Seeded simulations of the very fold that runs live. Counts are compared with binomial bounds that a true claim
breaks once in a thousand.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.assurance.bounds import binomial_at_most
from suffice.rollout.evidence import CAP_MEANS, SCALE_RUNS, GuardrailValue, RolloutEvidence, Rules, UnitRun, read_live

RULES = msgspec.structs.replace(Rules(), latency_cap_s=60.0)
N_SEEDS = 24
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

LAWS: dict[str, Draw] = {
    "lognormal": lambda rng, n: rng.lognormal(np.log(0.2) - 0.18, 0.6, n),
    "exponential": lambda rng, n: rng.exponential(0.2, n),
    "heavy": lambda rng, n: 0.11 * (rng.pareto(2.2, n) + 1),  # no third moment
    "time-outs": lambda rng, n: np.where(rng.random(n) < 0.002, 60.0, rng.exponential(0.2, n)),
}
DRIFTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "steady": np.ones_like,
    "five times slower later": lambda at: np.where(at > 0.3, 5.0, 1.0),
    "five times faster later": lambda at: np.where(at > 0.3, 0.2, 1.0),
    "by the hour": lambda at: 1 + 0.8 * np.sin(40 * at),
}

WORLDS = [*((law, "steady") for law in LAWS), *(("heavy", drift) for drift in DRIFTS if drift != "steady")]


def latency_of(evidence: RolloutEvidence) -> GuardrailValue:
    return next(one for one in read_live(evidence, RULES) if one.rail == "latency")


def looks(
    law: Draw, seed: int, *, slower: float, drift: str = "steady", n: int = 3_000, tail: float = 0.0
) -> tuple[str, int]:
    """What the guard-rail says first, and after how many runs of both arms; "open": nothing.

    slower  the candidate's seconds over the control's
    tail    part of the candidate's runs that take a minute
    """
    rng = np.random.default_rng([seed, 15])
    seconds = law(rng, n) * DRIFTS[drift](np.arange(n) / n)
    mine, hangs = rng.random(n) < 0.5, rng.random(n) < tail
    evidence = RolloutEvidence()
    for at in range(n):
        took = float(seconds[at]) * (slower if mine[at] else 1.0)
        run = UnitRun(seconds=60.0 if mine[at] and hangs[at] else took)
        evidence = evidence.with_run("candidate" if mine[at] else "control", run, RULES)
        if at % 100 == 99 and (output := latency_of(evidence).finding) != "open":
            return output, at + 1
    return "open", n


def seldom(n_wrong: int, rate: float, n: int = N_SEEDS) -> bool:
    """Can an error of that rate have happened so often?"""
    return n_wrong == 0 or 1 - binomial_at_most(n_wrong - 1, n, rate) >= 0.001


@pytest.mark.no_cover
@pytest.mark.slow(keep=3)
@pytest.mark.parametrize("law", LAWS)
def test_a_route_of_a_fifth_of_a_second_gets_its_proof_under_a_cap_of_a_minute(law: str) -> None:
    result = [looks(LAWS[law], seed, slower=0.95, n=8_000) for seed in range(6)]
    print(f"{law}: {[n for _, n in result]} runs of both arms")
    assert [output for output, _ in result].count("fine") >= 5


@pytest.mark.no_cover
@pytest.mark.slow(keep=2)
@pytest.mark.parametrize(("law", "drift"), WORLDS)
def test_what_is_a_margin_slower_is_proved_to_be_fine_no_more_often_than_promised(law: str, drift: str) -> None:
    output = [looks(LAWS[law], seed, slower=1.2001, drift=drift, n=1_000)[0] for seed in range(N_SEEDS)]
    assert seldom(output.count("fine"), 0.05)


@pytest.mark.no_cover
@pytest.mark.slow(keep=2)
@pytest.mark.parametrize(("law", "drift"), WORLDS)
def test_what_is_no_slower_is_sent_back_no_more_often_than_promised(law: str, drift: str) -> None:
    output = [looks(LAWS[law], seed, slower=1.0, drift=drift, n=1_000)[0] for seed in range(N_SEEDS)]
    assert seldom(output.count("harm"), 0.10)


@pytest.mark.no_cover
@pytest.mark.parametrize("law", LAWS)
def test_what_is_half_as_slow_again_goes_back(law: str) -> None:
    result = [looks(LAWS[law], seed, slower=1.5) for seed in range(8)]
    print(f"{law}: {[n for _, n in result]}")
    assert [output for output, _ in result].count("harm") >= 7


def test_a_candidate_that_hangs_seldom_goes_back_though_a_hang_counts_as_the_cap() -> None:
    """One in a hundred takes a minute: four times the mean, of which the capped mean shows a sixth."""
    result = [looks(LAWS["lognormal"], seed, slower=0.9, n=6_000, tail=0.01) for seed in range(8)]
    print(result)
    assert [output for output, _ in result].count("harm") >= 7


def test_the_scale_is_made_of_earlier_runs_of_the_control_alone() -> None:
    evidence = RolloutEvidence()
    for _ in range(SCALE_RUNS):
        assert evidence.latency.adapted_cap == 1.0, "nothing is known yet"
        evidence = evidence.with_run("control", UnitRun(seconds=0.2), RULES)
    cap = evidence.latency.adapted_cap
    assert cap * RULES.latency_cap_s == pytest.approx(CAP_MEANS * 0.2)
    for seconds in (0.0, 60.0, 1e9):
        after = evidence.with_run("candidate", UnitRun(seconds=seconds), RULES)
        assert after.latency.adapted_cap == cap, "the candidate has no say in what it is measured by"


def test_a_slow_route_keeps_the_cap_that_was_set() -> None:
    evidence = RolloutEvidence()
    for _ in range(50):
        evidence = evidence.with_run("control", UnitRun(seconds=30.0), RULES)
    assert evidence.latency.adapted_cap == 1.0


def test_a_route_whose_clock_shows_nothing_divides_by_nothing() -> None:
    evidence = RolloutEvidence()
    for _ in range(50):
        evidence = evidence.with_run("control", UnitRun(seconds=0.0), RULES).with_run(
            "candidate", UnitRun(seconds=0.0), RULES
        )
    assert latency_of(evidence).finding in ("fine", "open")


def test_runs_above_the_cap_are_told() -> None:
    evidence = RolloutEvidence()
    for _ in range(50):
        evidence = evidence.with_run("control", UnitRun(seconds=0.2), RULES).with_run(
            "candidate", UnitRun(seconds=0.2), RULES
        )
    evidence = evidence.with_run("candidate", UnitRun(seconds=45.0), RULES)
    assert "(1 and 0 above 3.2 s, counted as that)" in latency_of(evidence).sentence
