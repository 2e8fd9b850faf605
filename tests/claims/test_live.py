"""The live loop under traffic that production has: what it certifies is true of every request, not only of audits.

A sample of `make claims-full`: streams of `bench.claims.live`, few seeds; `make test` runs one of the scenarios. In at
most 5 % of the streams a window may be over the budget, and on average over streams at most 5 % of the requests may be
served at a level that is. A promise is rejected when what was seen would have less than a 1 % chance under it. The code
before draws were made per request breaks the first promise in six of the nine steady scenarios.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from math import comb, prod
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
from bench.claims import live, live_run
from bench.claims.live import Figures, Met
from bench.claims.live_scenarios import EPOCH, SCENARIOS
from bench.claims.results import cell_of, lines

from suffice.types import Outcome

BUDGET = 0.02
SEEDS = {"20 turns": (1, 2), "20 epochs": (0, 1), "silent": tuple(range(8))}  # of the others 0, 1 and 2
DRIFTS = ("silent", "ramp", "oscillation", "classes")
STEADY = tuple(name for name in SCENARIOS if name not in DRIFTS)
QUICK = ("silent",)  # its loss comes late: before that it is a steady one; eight streams
# What streams of the code before draws were made per request lost above the budget on average, in points x requests:
# seeds 0 to 19 of `bench.claims.live_run` on that code.
LOST_BEFORE = {"silent": 7_914, "ramp": 6_365, "oscillation": 6_314, "classes": 3_307}


def scenarios(names: Iterable[str]) -> pytest.MarkDecorator:
    """Each scenario is a case; all but one are slow."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]
    )


@cache
def stream(name: str, seed: int) -> tuple[Figures, dict[str, float | int | None]]:
    """A stream and its figures, run once for all tests."""
    scenario = SCENARIOS[name]
    if scenario.n_models > 1:
        scenario = replace(scenario, n=8 * EPOCH)  # for time
    found = live.run_stream(name, BUDGET, seed, scenario=scenario)
    return found, found.all()


def figures(name: str, figure: str) -> list[float]:
    """One figure of the streams of a scenario; None is left out."""
    found = (stream(name, seed)[1][figure] for seed in SEEDS.get(name, (0, 1, 2)))
    return [value for value in found if value is not None]


def too_many(found: list[float]) -> bool:
    """Would so many ones or more have less than a 1 % chance if their rate was at most 5 %?"""
    n, k = len(found), int(sum(found))
    return sum(comb(n, i) * 0.05**i * 0.95 ** (n - i) for i in range(k, n + 1)) < 0.01


def too_large(shares: list[float]) -> bool:
    """Would such shares have less than a 1 % chance if their mean was at most 5 %? By a bet that is fair under it."""
    return prod(1 + 10 * (share - 0.05) for share in shares) >= 100


def test_the_rules_of_acceptance() -> None:
    assert [k for k in range(4) if too_many([1.0] * k + [0.0] * (3 - k))] == [2, 3]
    assert too_large([0.8, 0.7, 0.5])
    assert not too_large([1.0, 0.2, 0.0])


@scenarios(SCENARIOS)
def test_a_window_that_passes_would_have_lost_less_than_the_budget_over_all_of_its_requests(name: str) -> None:
    assert not too_many(figures(name, "over")), figures(name, "worst_mean")


@scenarios(STEADY)
def test_few_requests_are_served_at_a_level_that_loses_the_budget(name: str) -> None:
    assert not too_large(figures(name, "over_share")), figures(name, "over_share")


@pytest.mark.slow
def test_a_loop_that_keeps_its_promise_saves_tokens_all_the_same() -> None:
    assert median(figures("single turns", "saved_late")) > 0.3


@scenarios(DRIFTS)
def test_a_drift_that_only_audits_show_costs_far_less_than_it_did(name: str) -> None:
    # Over 200 seeds it should be a fifth (`make claims-full`). The mean of three streams has a standard error of a
    # third of itself, that of eight silent ones of a fifth, so that they tell half of it from all of it.
    assert mean(figures(name, "excess")) <= LOST_BEFORE[name] / 2


def test_a_silent_loss_of_six_points_is_noticed_within_1500_requests() -> None:
    assert median(figures("silent", "noticed")) <= 1_500


@scenarios(["single turns", "5 turns", "chosen ids", *DRIFTS])
def test_no_alarm_is_raised_where_nothing_has_changed(name: str) -> None:
    n_false, n_requests = sum(figures(name, "false")), sum(figures(name, "quiet"))
    # One in 20,000 requests is allowed; three or more in so few have less than a 4 % chance.
    assert n_false <= 2, f"{n_false} in {n_requests:,} requests"


# --------------------------------------------------------------------------- the simulation itself


def test_what_a_client_got_is_what_the_truth_says_of_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, feed = list[Outcome](), live.Log.feed

    def watched(log: live.Log, event: object, t: float) -> None:
        if isinstance(event, Outcome) and event.stopped:
            ended.append(event)
        feed(log, event, t)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(live.Log, "feed", watched)
    found = live.run_stream("single turns", BUDGET, 7)
    assert len(ended) > 1_000
    for outcome in (event for event in ended):
        at = int(outcome.episode_id.removeprefix("ep_")) - 1
        item = found.stream.pool[found.stream.item[at]]
        lost = int(item.answer == "R") - int(outcome.answer == "R")
        assert lost == found.z(found.stream.met[at])[at]


@scenarios(["single turns", "5 turns", "heavy client", "chosen ids", "classes"])
def test_the_law_is_that_of_the_stream(name: str) -> None:
    found = stream(name, 1)[0]
    scenario = found.stream.scenario
    last = (scenario.change_at or scenario.n + 1) - 1
    acts = max(found.stream.met[:last], key=lambda met: met.level)
    assert acts.level, "a level was certified before the change"
    seen = found.z(acts)[:last][found.stream.repeat[:last] == 0]
    sd = float(np.std(seen)) / len(seen) ** 0.5
    assert abs(float(seen.mean()) - found.drop(acts, 0.0)) < 4 * sd
    assert found.drop(Met(), 0.0) == 0.0


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    path, rows = tmp_path / "claims.jsonl", live_run.order(["heavy client", live_run.DESIGNS[1]])
    assert len(rows) == 1
    live_run.run(rows, seeds=1, results=path, jobs=1)
    before = path.read_text()
    live_run.run(rows, seeds=1, results=path, jobs=1)
    assert path.read_text() == before
    assert [cell_of(line) for line in lines(path)] == [(*rows[0], 0)]
    (row,) = [text for text in live_run.tables(path, rows, seeds=1) if text.startswith(f"| {rows[0][1]}")]
    assert row.count("|") == live_run.HEAD.count("|")
