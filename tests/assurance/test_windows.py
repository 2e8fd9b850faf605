"""Windows count every request alike, forget on time, and are chosen by what was drawn, never by what it showed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.arrays import Floats
from suffice.assurance.certify import (
    LEAST_DELTA_SHARE,
    STARTS,
    STRETCH,
    Window,
    Windows,
    read_windows,
    restart_share,
    window_audits,
)
from tests.drawn import examples

SHARES = st.sampled_from([0.0, 0.01, 0.05, 0.0501, 0.1, 0.3, 0.5, 1.0])
changes_of_share = st.lists(st.tuples(st.integers(1, 500), SHARES), min_size=1, max_size=12)


def noted(changes: list[tuple[int, float]]) -> tuple[Windows, list[tuple[float, float]]]:
    """The windows after these changes, each so many requests behind the one before, and (request, share) of each."""
    windows, at, said = Windows(), 0, list[tuple[float, float]]()
    for wait, share in changes:
        at += wait
        windows.note(float(at), share)
        said.append((float(at), share))
    return windows, said


def in_force(said: list[tuple[float, float]], at: Floats) -> Floats:
    """The share of each request, shape (n,)."""
    begins = np.array([begin for begin, _ in said])
    return np.array([share for _, share in said])[np.searchsorted(begins, at, side="right") - 1]


def drawn(said: list[tuple[float, float]], n: int, seed: int) -> tuple[Floats, Floats]:
    """Numbers of n requests that were audited, and the share of each."""
    rng = np.random.default_rng(seed)
    at = np.arange(said[0][0], said[-1][0] + n)
    share = in_force(said, at)
    audited = rng.random(len(at)) < share
    return at[audited], share[audited]


def test_a_window_is_as_long_as_the_budget_is_small() -> None:
    assert [window_audits(budget) for budget in (0.01, 0.02, 0.05)] == [1_600, 800, 320]


# --------------------------------------------------------------------------- which windows there are


@pytest.mark.no_cover
@given(changes=changes_of_share)
@settings(max_examples=examples(60))
def test_every_request_of_a_window_was_audited_at_its_share_or_more(changes: list[tuple[int, float]]) -> None:
    windows, said = noted(changes)
    at = np.arange(said[0][0], said[-1][0] + 50)
    share = in_force(said, at)
    for one in windows.known:
        inside = share[one.holds(at)]
        assert (inside >= one.share - 1e-9).all()
        weight = one.weights(inside)
        assert (weight <= 1).all()
        assert weight == pytest.approx(np.minimum(1, one.share / inside))
        # The theorem: in expectation over its draw each request bets alike.
        assert inside * weight == pytest.approx(np.full(len(inside), one.share))


@given(changes=changes_of_share)
@settings(max_examples=examples(60))
def test_an_open_window_weighs_audits_of_now_at_more_than_half_and_its_share_is_one_that_was_in_force(
    changes: list[tuple[int, float]],
) -> None:
    windows, said = noted(changes)
    share = said[-1][1]
    open_ones = [one for one in windows.known if one.end == inf]
    if not share:
        assert open_ones == []
        return
    assert max(one.weights(np.array([share]))[0] for one in open_ones) > 0.5
    assert min(one.share for one in open_ones) <= share + 1e-9
    assert {one.share for one in windows.known} <= {said_share for _, said_share in said}
    assert [one.start for one in windows.known] == sorted(one.start for one in windows.known)


def test_a_share_that_falls_closes_the_window_and_opens_one_of_its_own() -> None:
    windows = Windows()
    windows.note(0.0, 1.0)
    windows.note(1_000.0, 0.05)
    assert windows.known == [Window(start=0.0, share=1.0, end=1_000.0), Window(start=1_000.0, share=0.05)]
    windows.note(2_000.0, 0.0)
    assert windows.known[-1] == Window(start=1_000.0, share=0.05, end=2_000.0), "and without audits none is open"
    assert all(one.end < inf for one in windows.known)


@pytest.mark.parametrize(("share", "opens"), [(0.05, False), (0.06, False), (0.0999, False), (0.1, True), (1.0, True)])
def test_a_share_that_doubles_opens_another_window_beside_the_one_that_is_open(share: float, opens: bool) -> None:
    windows = Windows()
    windows.note(0.0, 0.05)
    windows.note(500.0, share)
    first = Window(start=0.0, share=0.05)
    assert windows.known == ([first, Window(start=500.0, share=share)] if opens else [first])


def test_a_share_that_never_held_for_a_request_leaves_no_window() -> None:
    windows = Windows()
    windows.note(7.0, 1.0)
    windows.note(7.0, 0.05)
    assert windows.known == [Window(start=7.0, share=0.05)]


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share: got"):
        Windows().note(0.0, share)


@given(changes=changes_of_share)
@settings(max_examples=examples(60))
def test_what_an_epoch_writes_down_is_read_back(changes: list[tuple[int, float]]) -> None:
    windows, _ = noted(changes)
    assert read_windows(windows.plain()).known == windows.known


# --------------------------------------------------------------------------- which one is consulted


@given(changes=changes_of_share, wanted=st.integers(1, 300), seed=st.integers(0, 1_000))
@settings(max_examples=examples(100))
def test_the_newest_window_with_enough_audits_is_consulted_from_its_newest_start_with_half_more(
    changes: list[tuple[int, float]], wanted: int, seed: int
) -> None:
    windows, said = noted(changes)
    at, share = drawn(said, 400, seed)
    result = windows.chosen(at, share, wanted=wanted)
    if result is None:
        assert windows.known == []
        return

    def weight(one: Window) -> float:
        return float(one.weights(share[one.holds(at)]).sum())

    enough = [one for one in windows.known if weight(one) >= wanted]
    if not enough:
        assert result in windows.known
        assert weight(result) == max(map(weight, windows.known)) < wanted
        return
    base = enough[-1]
    assert (result.share, result.end) == (base.share, base.end)
    if weight(base) <= STRETCH * wanted:
        assert result == base, "nothing to forget"
        return
    assert weight(result) >= STRETCH * wanted - 1e-6
    step = wanted / (STARTS * base.share)
    n_steps = (result.start - base.start) / step
    assert n_steps == pytest.approx(round(n_steps), abs=1e-6), "starts are laid out beforehand"
    assert weight(replace(result, start=result.start + step)) < STRETCH * wanted + 1, "the next one has too few"


@given(changes=changes_of_share, wanted=st.integers(1, 300), seed=st.integers(0, 1_000))
@settings(max_examples=examples(40))
def test_the_order_in_which_audits_return_says_nothing(
    changes: list[tuple[int, float]], wanted: int, seed: int
) -> None:
    windows, said = noted(changes)
    at, share = drawn(said, 400, seed)
    order = np.random.default_rng(seed).permutation(len(at))
    assert windows.chosen(at, share, wanted=wanted) == windows.chosen(at[order], share[order], wanted=wanted)


def test_a_route_that_runs_for_long_forgets() -> None:
    windows = Windows()
    windows.note(0.0, 0.05)
    starts = list[float]()
    for now in range(24_100, 100_000, 1_000):
        at = np.arange(0.0, now, 20)  # every twentieth
        result = windows.chosen(at, np.full(len(at), 0.05), wanted=800)
        assert result is not None
        assert 800 * STRETCH <= result.holds(at).sum() <= 800 * (STRETCH + 1 / STARTS) + 1
        starts.append(result.start)
    assert starts == sorted(starts), "and never goes back"
    assert starts[-1] > 70_000


# --------------------------------------------------------------------------- what a restart may risk


def test_delta_is_earned_by_traffic() -> None:
    earned = partial(restart_share, window=800, share=0.05)
    assert earned(16_000) == earned(10**9) == 1.0
    assert earned(4_000) == 0.25
    assert earned(0) == LEAST_DELTA_SHARE, "an epoch that ended at once leaves next to nothing"


@given(lengths=st.lists(st.integers(1, 60_000), min_size=1, max_size=40), longest=st.integers(200, 40_000))
@settings(max_examples=examples(100))
def test_what_restarts_put_at_risk_is_no_more_than_the_requests_that_paid_for_it(
    lengths: list[int], longest: int
) -> None:
    """A false certificate is in use for L requests at most, so an epoch risks its part of delta times L of them."""
    at_risk = sum(restart_share(length, window=longest, share=1.0) * longest for length in lengths)
    assert at_risk <= sum(lengths) * (1 + 1e-9)


@pytest.mark.parametrize("burst", [100, 1_200])
def test_an_adversary_who_ends_every_epoch_that_does_not_go_wrong_gets_no_more_than_delta(burst: int) -> None:
    """Alarms come right behind the burst unless the certificate is false, and then not before its window is spent."""
    delta, longest = 0.05, 16_000

    def above(*, earned: bool, n_epochs: int = 20_000) -> float:
        """Expected part of the requests that is served above the budget, the first epoch's own L aside."""
        p_wrong, n_bad, n_all = 0.0, 0.0, 0.0  # of the epoch before
        for _ in range(n_epochs):
            after_right, after_wrong = (
                delta * (restart_share(length, window=800, share=0.05) if earned else 1.0)
                for length in (burst, burst + longest)
            )
            p_wrong = (1 - p_wrong) * after_right + p_wrong * after_wrong
            n_bad, n_all = n_bad + p_wrong * longest, n_all + burst + p_wrong * longest
        return n_bad / n_all

    assert above(earned=True) <= delta
    assert above(earned=False) > 5 * delta, "which all of delta for each epoch would not hold"
