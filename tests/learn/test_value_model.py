"""The value model: on decisions whose best policy is known it finds that policy, at every price."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.learn.models import PRICES, Trajectories, Values, fit_values

N_STEPS = 6
FULL = 600.0
STEP = np.float64(FULL / N_STEPS)


def settling(n_runs: int, seed: int = 0, p_never: float = 0.2) -> tuple[Trajectories, NDArray[np.int64]]:
    """Runs that are wrong until they settle and right from then on, or never; the state says which it is.

    Features: settled; doomed (seen from the first step on); steps left over all. The second return is the step at
    which each run settles, N_STEPS + 1: never.
    """
    rng = np.random.default_rng(seed)
    settles = rng.integers(1, N_STEPS + 1, n_runs)
    settles[rng.random(n_runs) < p_never] = N_STEPS + 1
    step = np.tile(np.arange(1, N_STEPS + 1), n_runs)
    when = np.repeat(settles, N_STEPS)
    ok = step >= when
    x = np.column_stack(
        [
            ok,
            when > N_STEPS,
            (N_STEPS - step) / N_STEPS,
            ok * (N_STEPS - step) / N_STEPS,
            (when > N_STEPS) * (N_STEPS - step) / N_STEPS,
        ]
    ).astype(np.float64)
    starts = np.arange(0, n_runs * N_STEPS + 1, N_STEPS)
    return Trajectories(x=x, starts=starts, ok=ok, tokens=step * STEP), settles


def stopped_at(values: Values, t: Trajectories, price: float) -> NDArray[np.int64]:
    """The step at which each run is stopped at a price of the sweep; N_STEPS: at its end."""
    at = int(np.argmin(np.abs(values.prices - price)))
    stops = (values.advantage(t.x)[:, at] >= 0).reshape(-1, N_STEPS)
    stops[:, -1] = True
    return np.asarray(stops.argmax(axis=1) + 1)


def paid(t: Trajectories, step: NDArray[np.int64], price: float) -> float:
    """EM minus the price of the tokens, a run."""
    row = t.starts[:-1] + step - 1
    return float((t.ok[row] - price * t.tokens[row] / FULL).mean())


def test_it_stops_where_nothing_is_left_to_win() -> None:
    """Doomed runs at their first step, all others not before they settle and hardly later."""
    values = fit_values(settling(3_000)[0])
    t, settles = settling(1_000, seed=1)
    step = stopped_at(values, t, 0.1)
    doomed = settles > N_STEPS
    assert (step[doomed] == 1).mean() > 0.95
    assert (step[~doomed] >= settles[~doomed]).mean() > 0.97
    assert (step[~doomed] - settles[~doomed]).mean() < 0.25  # one step more costs a sixtieth of an answer


@pytest.mark.parametrize("price", [0.03, 0.1, 0.3])
def test_it_is_paid_almost_what_the_best_policy_is(price: float) -> None:
    """The best one is known: stop a doomed run at once, and any other when it settles."""
    values = fit_values(settling(3_000)[0])
    t, settles = settling(2_000, seed=1)
    best = paid(t, np.where(settles > N_STEPS, 1, settles), price)
    assert best - 0.01 <= paid(t, stopped_at(values, t, price), price) <= best + 1e-9


def test_a_price_above_any_answer_stops_everything_at_once() -> None:
    values = fit_values(settling(2_000)[0])
    t, _ = settling(500, seed=1)
    assert (stopped_at(values, t, PRICES[-1]) == 1).mean() > 0.95


def test_a_higher_price_stops_earlier() -> None:
    values = fit_values(settling(3_000)[0])
    t, _ = settling(1_000, seed=1)
    means = [stopped_at(values, t, price).mean() for price in (0.01, 0.1, 1.0, 10.0)]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1] + 1


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_it_is_worth_waiting_where_only_the_end_is_right(lam: float) -> None:
    """Nothing is right before the last step: an impatient model would stop at once and be wrong in every run."""
    n_runs = 500
    step = np.tile(np.arange(1, N_STEPS + 1), n_runs)
    t = Trajectories(
        x=np.column_stack([step / N_STEPS, (step / N_STEPS) ** 2]),
        starts=np.arange(0, n_runs * N_STEPS + 1, N_STEPS),
        ok=step == N_STEPS,
        tokens=step * STEP,
    )
    values = fit_values(t, lam=lam, sweeps=8)
    assert (stopped_at(values, t, 0.3) == N_STEPS).all()  # the rest costs at most 0.25 and pays 1
    assert (stopped_at(values, t, 10.0) == 1).all()  # it costs 8 and pays 1


def test_the_bits_of_a_row_are_the_prices_at_which_it_stops() -> None:
    t, _ = settling(500)
    values = fit_values(t)
    stops = values.advantage(t.x) >= 0
    assert len(values.prices) <= 64
    assert stops.any(axis=1).sum() < stops.size
    bits = values.stopping_prices(t.x)
    for at in range(len(values.prices)):
        assert (((bits >> np.uint64(at)) & np.uint64(1)).astype(bool) == stops[:, at]).all()


def test_what_cannot_be_fitted_is_said() -> None:
    t, _ = settling(10)
    with pytest.raises(ValueError, match="0 <= lam <= 1"):
        fit_values(t, lam=1.5)
    with pytest.raises(ValueError, match="sweeps >= 1"):
        fit_values(t, sweeps=0)
    one = Trajectories(x=t.x[:3], starts=np.arange(4), ok=t.ok[:3], tokens=t.tokens[:3])
    with pytest.raises(ValueError, match="at least one run of two steps"):
        fit_values(one)


def test_runs_of_one_step_among_longer_ones_and_a_feature_that_never_moves() -> None:
    t, _ = settling(200)
    x = np.column_stack([np.vstack([t.x, t.x[:2]]), np.ones(len(t.x) + 2)])
    starts = np.concatenate([t.starts, t.starts[-1] + [1, 2]])
    ok = np.concatenate([t.ok, t.ok[:2]]).astype(np.float64)
    longer = Trajectories(x=x, starts=starts, ok=ok, tokens=np.append(t.tokens, [STEP, STEP]))
    assert np.isfinite(fit_values(longer).advantage(x)).all()


@pytest.mark.slow
def test_weights_of_one_change_nothing() -> None:
    t, _ = settling(800)
    plain, weighted = fit_values(t), fit_values(replace(t, weight=np.ones(len(t.x))))
    assert weighted.mean_tokens == plain.mean_tokens
    assert weighted.advantage(t.x) == pytest.approx(plain.advantage(t.x), abs=1e-9)


def test_a_run_that_weighs_nothing_teaches_nothing() -> None:
    known, _ = settling(800)
    wrong, _ = settling(800, seed=5)
    both = Trajectories(
        x=np.vstack([known.x, wrong.x]),
        starts=np.concatenate([known.starts, wrong.starts[1:] + known.starts[-1]]),
        ok=np.concatenate([known.ok, 1 - wrong.ok.astype(np.float64)]).astype(np.float64),
        tokens=np.concatenate([known.tokens, wrong.tokens * 9]),
        weight=np.repeat([1.0, 0.0], len(known.x)),
    )
    weighted, alone = fit_values(both), fit_values(known)
    assert weighted.mean_tokens == alone.mean_tokens
    assert weighted.advantage(known.x) == pytest.approx(alone.advantage(known.x), abs=1e-9)


def test_a_loss_against_the_full_run_does_for_em_because_only_the_difference_decides() -> None:
    """Both arms lose the full run's EM, so the advantage keeps what the features tell of it: here, all."""
    t, settles = settling(2_000)
    right = t.ok.astype(np.float64)
    full = right[t.starts[1:] - 1].repeat(N_STEPS)
    lost = fit_values(replace(t, ok=right - full))
    fresh, settles = settling(2_000, seed=1)
    best = paid(fresh, np.where(settles > N_STEPS, 1, settles), 0.1)
    assert paid(fresh, stopped_at(lost, fresh, 0.1), 0.1) >= best - 0.01


@pytest.mark.parametrize("weight", [np.ones(3), np.full(48, -1.0), np.full(48, np.inf), np.full(48, np.nan)])
def test_weights_that_weigh_nothing_are_refused(weight: np.ndarray) -> None:
    t, _ = settling(8)
    with pytest.raises(ValueError, match="weight: got shape"):
        fit_values(replace(t, weight=weight))
