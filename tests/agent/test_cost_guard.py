"""An action that stops paying goes out of use, comes back when it pays again, and is seldom accused wrongly."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.agent.agent import CostGuard


def feed(guard: CostGuard, rng: np.random.Generator, mean: float, n: int) -> tuple[int | None, str]:
    """Runs until the first event, and its kind."""
    for i, cost in enumerate(mean * rng.lognormal(-0.08, 0.4, n), start=1):
        for event in guard.add_run(0, 1, float(cost)):
            if event.change != "costs_more":
                return i, event.change
    return None, ""


def watched(saving: float = 0.5) -> CostGuard:
    guard = CostGuard(1, 2)
    guard.activate(0, 1, saving)
    return guard


@pytest.mark.parametrize("seed", range(10))
def test_an_action_that_costs_more_than_the_full_run_is_out_within_a_hundred_runs(seed: int) -> None:
    guard, rng = watched(), np.random.default_rng(seed)
    assert feed(guard, rng, 0.5, 2_000) == (None, "")
    n, kind = feed(guard, rng, 1.4, 500)
    assert (kind, guard.inactive[0, 1]) == ("stops_paying", True)
    assert n is not None
    assert n <= 100
    assert feed(guard, rng, 1.4, 500) == (None, "")
    n, kind = feed(guard, rng, 0.5, 200)
    assert (kind, guard.inactive[0, 1]) == ("pays_again", False)


def test_it_is_accused_wrongly_at_most_once_in_twenty_thousand_runs() -> None:
    n_events, n_runs = 0, 0
    for seed in range(12):
        guard, rng = watched(), np.random.default_rng(seed)
        for cost in 0.75 * rng.lognormal(-0.08, 0.4, 10_000):  # exactly half of what was promised
            n_events += any(event.change == "stops_paying" for event in guard.add_run(0, 1, float(cost)))
            guard.inactive[:] = False
            n_runs += 1
    assert n_events <= 12, f"{n_events} in {n_runs} runs; 6 are expected at most"


def test_an_action_that_was_never_activated_is_not_judged() -> None:
    guard = CostGuard(1, 2)
    assert [guard.add_run(0, 1, 3.0) for _ in range(200)] == [[]] * 200


def test_more_tokens_than_the_full_run_raise_an_alert_of_their_own() -> None:
    guard = watched(saving=0.05)
    kinds = {event.change for _ in range(300) for event in guard.add_run(0, 1, 1.5)}
    assert "costs_more" in kinds


def test_audits_from_before_it_stopped_paying_prove_no_return() -> None:
    guard = watched()
    gone = next(at for at in range(500, 700) if guard.add_run(0, 1, 1.8, at=at))
    assert guard.inactive[0, 1]
    assert [guard.add_run(0, 1, 0.4, at=at) for at in range(gone - 100, gone)] == [[]] * 100, "added late"
    assert any(guard.add_run(0, 1, 0.4, at=at) for at in range(gone, gone + 100))


def test_what_audits_find_cheap_and_served_runs_dear_alternates_ever_less() -> None:
    guard, rng = watched(), np.random.default_rng(7)
    returns = []
    for i in range(20_000):
        cost = (
            0.5 if guard.inactive[0, 1] and i % 10 == 0 else 1.3
        )  # audits replay a stop that comes too late when served
        if guard.inactive[0, 1] and i % 10:
            continue
        guard.activate(0, 1, 0.5)
        returns += [
            i for event in guard.add_run(0, 1, cost * rng.lognormal(-0.02, 0.2)) if event.change == "pays_again"
        ]
    assert len(returns) <= 6
    assert returns[1] - returns[0] < returns[-1] - returns[-2]
