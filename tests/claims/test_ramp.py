"""Exposure by proof, from a cold start: when the first request stops, how many do, and that no stream loses too much.

One level, whose stops lose independently. What is served must lose the budget at most, in nearly all streams.

`python -m pytest -q -s -m slow tests/claims/test_ramp.py` prints the figures of docs/reference/assurance.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.assurance.start import StartTerms
from suffice.certification.certifier import Certifier
from suffice.certification.plan import Plan, full_runs
from suffice.learn.features import FeatureSelection
from suffice.learn.version import FoldedModels
from suffice.replay.online.stream import RecordedTraffic, run_stream
from tests.learn.runs_made import audits, believing

ONE_LEVEL = FoldedModels(models=(lambda x: x[:, 0],) * 5, levels=np.array([[-np.inf, 0.5]] * 5), cost_exponent=0.0)


def one_level(n: int, drop: float, rng: np.random.Generator) -> RecordedTraffic:
    """Runs of two steps that the level stops after the first, which loses the right answer at this rate."""
    runs = audits([[1.0, 0.0]] * n, z=[[int(lost), 0] for lost in rng.random(n) < drop])
    return RecordedTraffic(
        runs=runs,
        probes=np.zeros(2 * n),
        early=np.zeros((n, 1)),
        question=tuple(map(str, range(n))),
        chosen=FeatureSelection(("step",), ()),
        duration=np.zeros(n),
    )


@dataclass(frozen=True)
class Served:
    first: float  # request that stops, the median of the streams
    stopped: Floats  # share of the first 1,000 and of all requests, (2,)
    n_over: int  # streams in which the requests of the whole stream lost more than the budget


def serve(max_em_drop: float, drop: float, *, n: int, n_seeds: int) -> Served:
    burst = full_runs(max_em_drop)
    plan = Plan(max_em_drop=max_em_drop, burst=burst, window=round(16 / max_em_drop), ramps=True, watches_signals=False)
    first, stopped, n_over = list[float](), list[list[float]](), 0
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        certifier = Certifier(plan, believing, fit=lambda *_, **__: None, starting=ONE_LEVEL)
        stream = run_stream(one_level(n, drop, rng), certifier, rng, period=20)
        acts = ~stream.audit & (stream.level > 0)
        first.append(float(np.argmax(acts)) if acts.any() else np.inf)
        stopped.append([acts[:1_000].mean(), acts.mean()])
        n_over += stream.z.mean() > max_em_drop
    return Served(float(np.median(first)), np.mean(stopped, axis=0), n_over)


@pytest.mark.parametrize("n_seeds", [40, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("max_em_drop", "latest", "least"), [(0.01, 300, 0.15), (0.02, 150, 0.35), (0.05, 75, 0.5)])
def test_a_level_that_loses_half_of_the_budget_stops_soon(
    max_em_drop: float, latest: int, least: float, n_seeds: int
) -> None:
    served = serve(max_em_drop, max_em_drop / 2, n=1_000, n_seeds=n_seeds)
    print(f"budget {max_em_drop:.0%}: first stop at {served.first:.0f}, {served.stopped[0]:.0%} of 1,000 stopped")
    assert served.first <= latest
    assert served.stopped[0] >= least
    terms = StartTerms(max_em_drop=max_em_drop, delta=0.05, finishes=False, n_learning=full_runs(max_em_drop))
    assert terms.forecast(0.5).first_stop == pytest.approx(served.first, rel=0.2), "what an owner is told to expect"


@pytest.mark.parametrize("n_seeds", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_level_that_loses_three_quarters_of_the_budget_stops_half_of_the_requests(n_seeds: int) -> None:
    served = serve(0.02, 0.015, n=5_000, n_seeds=n_seeds)
    print(f"three quarters: first stop at {served.first:.0f}, {served.stopped[1]:.0%} of 5,000 stopped")
    assert served.stopped[1] >= 0.45
    assert served.n_over <= 0.05 * n_seeds + 1


@pytest.mark.parametrize("times", [1.5, 3.0, 6.0])
@pytest.mark.parametrize("n_seeds", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_level_that_loses_too_much_costs_no_more_than_the_budget(times: float, n_seeds: int) -> None:
    served = serve(0.02, 0.02 * times, n=3_000, n_seeds=n_seeds)
    print(f"{times:g} budgets: {served.stopped[1]:.0%} of 3,000 stopped, {served.n_over} of {n_seeds} streams over")
    assert served.n_over <= 0.05 * n_seeds
