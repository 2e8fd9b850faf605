"""The nearest prior work on the page of benchmarks: B-PAC and BARGAIN keep what they promise, as they are run there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.page import bargain, bpac, prior
from bench.page.found import NOT_RUN, Found
from bench.page.sets import Case
from bench.page.store import Cell
from bench.page.streams import LOOSE, risk_at

from suffice.arrays import Bools, Floats
from suffice_testing.traces import Synthetic
from tests.learn.runs_made import believing
from tests.replay.online.made import made_up

# ---- B-PAC


def share_of_streams_passed(loss: float, *, weighted: bool, n_streams: int = 300, n: int = 3_000) -> float:
    """Of streams under one level that is in force from the start, how many ever pass it."""
    rng, passed = np.random.default_rng(1), 0
    for _ in range(n_streams):
        wealth, drawn = bpac.Wealth.of(LOOSE, 1), rng.random(n) < bpac.EXPLORED
        weight = drawn / (bpac.EXPLORED if weighted else 1.0)
        z = (rng.random((n, 1)) < loss).astype(np.int8)
        most = -np.inf
        for begin in range(0, n, 100):
            wealth.add(z[begin : begin + 100], weight[begin : begin + 100])
            most = max(most, wealth.logarithm[0])
        passed += most >= np.log(1 / risk_at(LOOSE))
    return passed / n_streams


def test_b_pac_seldom_passes_a_level_whose_served_loss_is_the_budget() -> None:
    at_budget = LOOSE / (1 - bpac.EXPLORED)  # of the requests that it stops; the explored ones lose nothing
    assert share_of_streams_passed(at_budget, weighted=True) <= risk_at(LOOSE)
    assert share_of_streams_passed(at_budget, weighted=False) > 0.9, "what the propensity is for"


@pytest.mark.parametrize("budget", [LOOSE, 0.02, 0.01])
def test_b_pac_passes_nothing_before_its_least_requests_and_a_perfect_level_soon_after(budget: float) -> None:
    least, wealth = bpac.least_requests(budget), bpac.Wealth.of(budget, 1)
    wealth.add(np.zeros((least - 1, 1)), np.ones(least - 1))
    assert wealth.logarithm[0] < np.log(1 / risk_at(budget))
    wealth.add(np.zeros((10, 1)), np.ones(10))
    assert wealth.logarithm[0] >= np.log(1 / risk_at(budget))


def test_wealth_does_not_depend_on_how_requests_are_looked_at() -> None:
    rng = np.random.default_rng(0)
    z, weight = rng.integers(-1, 2, (500, 4), dtype=np.int8), rng.choice([0.0, 1.0, 20.0], 500)
    once, often = bpac.Wealth.of(LOOSE, 4), bpac.Wealth.of(LOOSE, 4)
    once.add(z, weight)
    for at in range(500):
        often.add(z[at : at + 1], weight[at : at + 1])
    assert often.logarithm == pytest.approx(once.logarithm)


def test_b_pac_serves_within_its_budget_and_of_what_always_loses_no_more_than_that() -> None:
    requests = made_up(3_000, seed=2)
    runs, rng = requests.runs, np.random.default_rng(0)
    row = bpac.served_rows(requests, believing, rng, LOOSE)
    assert 0 < runs.z[row].mean() <= LOOSE
    stopped = row < runs.last
    assert not stopped[: bpac.least_requests(LOOSE) - 1].any()
    assert stopped[1_500:].mean() > 0.1
    loses = np.ones_like(runs.z)
    loses[runs.last] = 0
    harmful = replace(requests, runs=replace(runs, z=loses))
    assert harmful.runs.z[bpac.served_rows(harmful, believing, rng, LOOSE)].mean() <= LOOSE


# ---- BARGAIN


def a_ladder(rng: np.random.Generator, n: int = 1_000) -> tuple[Bools, Bools]:
    """Records lost and stopped by levels that stop a tenth more each, (M, n); only the last half lose, ever more."""
    place = rng.random(n)
    stopped = place < np.arange(11)[:, np.newaxis] / 10
    return stopped & (place > 0.5) & (rng.random(n) < 0.2), stopped


def test_bargain_seldom_accepts_a_level_that_loses_more_of_these_records() -> None:
    rng, over, levels = np.random.default_rng(0), 0, list[int]()
    for _ in range(300):
        lost, stopped = a_ladder(rng)
        level = bargain.walk(lost, stopped, 0.02).level
        over += lost[level].mean() > 0.02
        levels.append(level)
    assert over / 300 <= bargain.RISK
    assert np.mean(levels) > 3, "what loses nothing is accepted"


def test_bargain_labels_few_records_of_a_ladder_that_loses_nothing() -> None:
    rng = np.random.default_rng(3)
    lost, stopped = a_ladder(rng)
    walked = bargain.walk(np.zeros_like(lost), stopped, 0.05)
    assert walked.level == 10
    assert walked.labels < 0.2


def test_the_test_of_bargain_is_that_of_the_package() -> None:
    bounds = pytest.importorskip("BARGAIN.bounds.betting_bounds", reason="needs requirements/bench.txt")
    rng = np.random.default_rng(0)
    for target, share in ((0.9, 0.97), (0.96, 1.0), (0.8, 0.85), (0.95, 0.94)):
        right = rng.random(300) < share
        passed = bargain.passes(right, target)
        for n in range(10, 300, 10):
            # The package answers whether the target is still possible as a mean that was not exceeded.
            open_still = bounds.test_if_true_mean_is_above_m(
                right[:n].astype(float), target, bargain.RISK, False, True, len(right)
            )
            assert passed[n - 1] == (not open_still), (target, n)


@pytest.mark.slow
def test_each_rule_is_judged_on_both_halves(tmp_path: Path) -> None:
    file = tmp_path / "votes.dev.parquet"
    Synthetic(kind="samples", n_runs=200, n_questions=60, seed=1).write(file)
    judged = bargain.judge(Case(file=file), (0.02,))["budgets"]["0.02"]
    assert tuple(judged) == bargain.RULES
    assert judged["plain tuning"]["misses_own"] == 0, "on the half that it was picked on"
    assert judged["plain tuning"]["saved"] >= judged["one standard error"]["saved"]
    assert judged["BARGAIN"]["misses_own"] <= bargain.RISK
    assert 0 < judged["BARGAIN"]["labels"] <= 1


def test_a_share_that_all_records_reach_is_exact_when_all_are_drawn() -> None:
    right: Floats = np.array([1.0] * 24 + [0.0])
    assert bargain.accepts(right.astype(bool), 0.96) == (True, 25)
    assert bargain.accepts(right.astype(bool), 0.97) == (False, 25)


# ---- on the page


def streamed(saved: float, drop: float) -> dict[str, float]:
    return {"saved": saved, "saved_late": saved, "drop_late": drop}


def test_the_page_says_who_saves_more_and_who_is_over() -> None:
    cells = {
        Cell("a", "b-pac", "once", LOOSE, 0): streamed(0.5, 0.09),
        Cell("a", "ours", "once", LOOSE, 0): streamed(0.4, 0.01),
        Cell("b", "b-pac", "once", LOOSE, 0): streamed(0.1, 0.0),
        Cell("b", "ours", "once", LOOSE, 0): streamed(0.3, 0.0),
        Cell("b", "b-pac", "once", 0.02, 0): streamed(0.2, 0.0),  # without one of ours
    }
    once, again = "\n".join(prior.online_tables(Found(cells))).split("**10,000 requests")
    rows = [line.replace("\N{NO-BREAK SPACE}", " ") for line in once.splitlines() if line.startswith(("| a", "| b"))]
    assert rows[0].startswith("| a | **50.0 %** (+9.00 **!**) | 40.0 % (+1.00) | not run |")
    assert rows[1].startswith("| b | 10.0 % (0.00) | **30.0 %** (0.00) | not run |")
    assert NOT_RUN.capitalize() in again
    (sentence,) = prior.sentences(Found(cells))
    assert "before request 607" in sentence
    assert "more than ours on 1 of 2 sets and less on 1" in sentence
    assert "1 of 2 of its streams lose more than the budget there, 0 of 2 of ours" in sentence


def test_the_page_says_what_each_rule_of_choosing_misses() -> None:
    rules = {
        rule: {"saved": 0.3 - 0.1 * at, "misses": 0.5 - 0.2 * at, "misses_own": 0.0, "labels": 0.25}
        for at, rule in enumerate(bargain.RULES)
    }
    page = Found({Cell("a", "bargain"): {"budgets": {"0.01": rules, "0.02": rules}}})
    (table,) = prior.frozen_table(page)
    assert "| 30.0 % / 50 % | 20.0 % / 30 % | 10.0 % / 10 % | 25 % |" in table.replace("\N{NO-BREAK SPACE}", " ")
    assert all("less on 1" in sentence for sentence in prior.sentences(page))
