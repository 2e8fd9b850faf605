"""What a rollout keeps, on simulated traffic whose truth is known; `python -m bench.claims.canary` has the table.

Few seeds. A claim is rejected when as many failures as were seen would have less than a 1 % chance if it held, and each
kind of harm is done alone.
"""

from __future__ import annotations

from functools import cache
from statistics import median

import msgspec
import pytest
from bench.claims.canary import Ended, roll_out

from suffice.assurance.bounds import binomial_at_most
from suffice.rollout.evidence import Rules

N_SEEDS = 16
# In which stage each harm is found: what a replay sees in shadow, the rest when somebody is served.
ALONE = {
    "latency": "latency",
    "errors": "errors",
    "no answers": "runs without an answer",
    "satisfaction": "satisfaction",
}


@cache
def rollouts(name: str, n: int = N_SEEDS) -> list[Ended]:
    """The ends of rollouts 0 … n - 1 of a version."""
    return [roll_out(name, seed) for seed in range(n)]


def kept(n_kept: int, n: int, rate: float) -> bool:
    """Is it possible that something holds at that rate, when it held so often? One chance in a hundred to be wrong."""
    return binomial_at_most(n_kept, n, rate) >= 0.01


def test_the_acceptance_rule_itself() -> None:
    fewest = [next(k for k in range(N_SEEDS + 1) if kept(k, N_SEEDS, rate)) for rate in (0.9, 0.5)]
    assert fewest == [11, 3]


@pytest.mark.slow
def test_five_points_in_one_class_of_five_go_back_before_two_thousand_requests() -> None:
    result = rollouts("one class of five")
    in_time = [one.stage == "rolled_back" and one.n < 2_000 for one in result]
    print(f"{sum(in_time)} of {len(result)} before 2,000 requests, median {median(one.n for one in result):,.0f}")
    assert kept(sum(in_time), len(result), 0.5)
    assert all(one.stage == "rolled_back" and one.n_served == 0 for one in result), "and nobody was served by it"
    assert kept(sum("EM of law" in one.reason for one in result), len(result), 0.9), "and it is said who was harmed"


def test_they_go_back_where_labels_are_late_too() -> None:
    result = rollouts("one class, late labels", 4)
    assert all(one.stage == "rolled_back" and one.n_served == 0 for one in result)


def test_they_go_back_from_a_canary_that_a_person_has_begun_at_once() -> None:
    result = rollouts("one class, shadow skipped", 6)
    in_time = [one.stage == "rolled_back" and one.before == "canary" and one.n < 2_000 for one in result]
    print(
        f"{sum(in_time)} of {len(result)} before 2,000 requests, {median(one.n_served for one in result):,.0f} served"
    )
    assert kept(sum(in_time), len(result), 0.5)
    assert all(one.stage == "rolled_back" for one in result)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", ["harmless", "harmless, cold"])
def test_a_harmless_version_is_promoted(name: str) -> None:
    result = rollouts(name, 10 if name == "harmless" else 3)
    print(
        f"{name}: {sum(one.stage == 'full' for one in result)} of {len(result)} promoted,"
        f" after {median(one.n for one in result):,.0f} requests at the median"
    )
    assert kept(sum(one.stage == "full" for one in result), len(result), 0.9)
    least = Rules().least_class_audits
    assert all(one.fewest >= least for one in result if one.fewest >= 0), "nobody was served before that"


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", list(ALONE))
def test_each_live_guard_rail_alone_catches_its_own_harm(name: str) -> None:
    result = rollouts(name, 6)
    print(
        f"{name}: {sum(one.stage == 'rolled_back' for one in result)} of 6 went back,"
        f" {median(one.n_served for one in result):,.0f} units were served at the median"
    )
    caught = [one for one in result if one.stage == "rolled_back" and ALONE[name] in one.reason]
    assert kept(len(caught), len(result), 0.9)
    assert not any(one.stage == "full" for one in result)


def test_stop_everything_never_leaves_shadow() -> None:
    for name in ("stops everything", "stops a lot, harmless"):
        result = rollouts(name, 6)
        assert all((one.stage, one.before, one.n_served) == ("rolled_back", "shadow", 0) for one in result)


@pytest.mark.slow
def test_a_broken_split_calls_a_person() -> None:
    result = rollouts("broken split", 6)
    paused = [one for one in result if one.stage == "paused" and "assigned evenly" in one.reason]
    print(f"broken split: {len(paused)} of {len(result)} paused")
    assert kept(len(paused), len(result), 0.9)


@pytest.mark.slow
def test_a_harm_that_only_the_proof_can_stop_is_not_let_through() -> None:
    """Nothing sends it back, whatever is lost: what is not proved in time goes back as inconclusive."""
    blind = msgspec.structs.replace(Rules(), harm_confidence=1 - 1e-8, most_requests=3_000)
    result = [roll_out("one class of five", seed, blind) for seed in range(6)]
    assert all(one.reason.startswith("inconclusive") and one.n_served == 0 for one in result)
