"""Sampling of rows: nothing that a promise stands on is left out, and what is kept stands for all of it."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance import sampling
from suffice.assurance.sampling import (
    LEAST_CLASS,
    Rates,
    Stratum,
    allocate,
    assignment_of,
    ended_badly,
    is_certain,
    live_rate,
    moved,
    weight_of,
    worth,
)
from suffice.control.loop.safety_checks import SampleRatioTest
from suffice.types import ArmDraw, EndReason, Outcome, Request
from tests.control.made import run

ARM = ArmDraw(experiment="e", run=1, arm="a", propensity=0.5, others=(("b", 0.5),), unit="u")
RATES = st.floats(0.001, 1.0)
COUNTS = st.just(0.0) | st.floats(0.01, 1e6)  # they fade
STRATA = st.lists(
    st.builds(
        lambda name, n, n_runs, tokens, squares, n_labelled, right: Stratum(
            query_class=name,
            n_requests=n,
            n_runs=n_runs,
            tokens=tokens,
            squares=squares,
            n_labelled=n_labelled,
            n_right=right * n_labelled,
        ),
        st.text(max_size=3),
        COUNTS,
        COUNTS,
        st.floats(0, 1e7),
        st.floats(0, 1e12),
        COUNTS,
        st.floats(0, 1),
    ),
    max_size=8,
    unique_by=lambda one: one.query_class,
)
BASE: tuple[Request, Outcome] = run(0, random.Random(0))
OF_REQUEST = {field.name for field in fields(Request)}


def live(**changes: Any) -> tuple[Request, Outcome]:
    """A live run that was drawn to have rows, at one in ten."""
    requested: dict[str, Any] = {"audit": False, "propensity": 0.9, "keep_rate": 0.1, "kept_by": "lot"}
    requested |= {name: value for name, value in changes.items() if name in OF_REQUEST}
    ends = {name: value for name, value in changes.items() if name not in OF_REQUEST}
    return replace(BASE[0], **requested), replace(BASE[1], **ends)


def test_audits_full_runs_and_both_sides_of_a_comparison_are_never_left_out() -> None:
    for kept in ({"audit": True}, {"mode": "observe"}, {"arms": (ARM,)}, {"audit": True, "arms": (ARM,)}):
        request, outcome = live(**kept)
        assert is_certain(request)
        assert weight_of(request, outcome) == 1
    assert not is_certain(live()[0])
    assert not is_certain(live(ungoverned="images")[0])


@pytest.mark.parametrize("end", ["upstream_error", "timeout", "internal_error"])
def test_what_went_wrong_stands_for_itself_whether_it_was_drawn_or_not(end: EndReason) -> None:
    request, outcome = live(end_reason=end)
    assert ended_badly(outcome)
    assert {weight_of(replace(request, kept_by=why), outcome) for why in ("lot", "end")} == {1}
    assert ended_badly(live(degraded=("probe",))[1])


@given(
    rate=RATES,
    audit=st.booleans(),
    end=st.sampled_from(["done", "stopped", "timeout", "client_left", "lost"]),
    ungoverned=st.none() | st.just("images"),
    arms=st.sampled_from([(), (ARM,)]),
)
def test_every_run_counts_once_in_expectation(
    rate: float, audit: bool, end: EndReason, ungoverned: str | None, arms: tuple[ArmDraw, ...]
) -> None:
    request, outcome = live(
        audit=audit, keep_rate=rate, end_reason=end, ungoverned=ungoverned, arms=arms, propensity=0.1 if audit else 0.9
    )
    p = 1.0 if is_certain(request) or ended_badly(outcome) else rate
    assert p * weight_of(request, outcome) == pytest.approx(1)


@pytest.mark.slow
def test_sums_have_the_right_expectation_while_rates_follow_what_was_seen() -> None:
    values, errors = {"a": (100.0, 5.0), "b": (900.0, 400.0)}, list[float]()
    for seed in range(150):
        rng, seen, rates, report, truth = random.Random(seed), dict[str, Stratum](), Rates(other=0.1), 0.0, 0.0
        for number in range(1_000):
            name = "a" if rng.random() < 0.8 else "b"
            value = max(0.0, rng.gauss(*values[name]))
            truth += value
            before = seen.get(name, Stratum(query_class=name, n_requests=0))
            seen[name] = replace(before, n_requests=before.n_requests + 1)
            request, outcome = live(keep_rate=rates.of(name))
            if rng.random() < rates.of(name):
                report += weight_of(request, outcome) * value
                seen[name] = replace(
                    seen[name],
                    n_runs=before.n_runs + 1,
                    tokens=before.tokens + value,
                    squares=before.squares + value * value,
                )
            if number % 100 == 99:
                rates = allocate(tuple(seen.values()), rate=0.1)
        errors.append(report / truth - 1)
        assert rates.of("b") > rates.of("a"), "more is kept where more is uncertain"
    assert abs(mean(errors)) < 3.3 * stdev(errors) / 150**0.5, "no bias that 150 logs could show"
    assert stdev(errors) < 0.25


@pytest.mark.no_cover
@given(strata=STRATA, rate=RATES)
def test_rates_keep_to_the_owners_rate_and_to_their_limits(strata: list[Stratum], rate: float) -> None:
    rates = allocate(strata, rate=rate)
    for one in (*(rate for _, rate in rates.by_class), rates.other):
        assert LEAST_CLASS * rate * 0.94 <= one <= 1
    known = [one for one in strata if one.n_requests > 0]
    if rates.by_class:
        n = sum(one.n_requests for one in known)
        assert sum(one.n_requests * rates.of(one.query_class) for one in known) <= 1.07 * rate * n


def test_where_nothing_is_known_all_classes_are_kept_alike() -> None:
    unknown = [Stratum(query_class=name, n_requests=100) for name in "abc"]
    assert {rate for _, rate in allocate(unknown, rate=0.07).by_class} == {0.07}
    assert allocate([], rate=0.07) == Rates(other=0.07)


def test_a_class_of_which_labels_are_few_and_mixed_gets_more() -> None:
    sure = Stratum(
        query_class="sure", n_requests=1_000, n_runs=100, tokens=1e4, squares=1e6 + 1e3, n_labelled=100, n_right=99
    )
    mixed = replace(sure, query_class="mixed", n_right=50)
    few = replace(mixed, query_class="few", n_labelled=25, n_right=12.5)
    rates = allocate([sure, mixed, few], rate=0.1)
    assert rates.of("sure") < rates.of("mixed") < rates.of("few")
    assert rates.of("nobody declared this") == 0.1


@given(rate=RATES, share=st.floats(0, 1))
def test_audits_and_live_rows_together_are_the_owners_rate_or_audits_take_it_all(rate: float, share: float) -> None:
    live_share = live_rate(rate, share)
    assert 0 < live_share <= 1
    whole = share + (1 - share) * live_share
    assert whole == pytest.approx(rate) or (live_share == pytest.approx(rate / 10) and whole > rate)


def test_small_moves_are_none() -> None:
    before = Rates(other=0.1, by_class=(("a", 0.1),))
    assert not moved(before, Rates(other=0.1, by_class=(("a", 0.11),)), by=0.15)
    assert moved(before, Rates(other=0.1, by_class=(("a", 0.2),)), by=0.15)
    assert moved(before, Rates(other=0.1, by_class=(("a", 0.1), ("b", 0.3))), by=0.15), "a new class has a rate now"


def drawn(n: int, *, audits_lost: float, seed: int = 0) -> SampleRatioTest:
    """The lottery of a route that audits 5 %, as the rows that were kept show it."""
    rng, seen = random.Random(seed), SampleRatioTest()
    for number in range(n):
        audit, rate = rng.random() < 0.05, (0.05, 0.1, 0.2)[number % 3]
        bad = rng.random() < (0.10 if audit else 0.02)  # longer runs time out more often
        by_lot = rng.random() < rate
        if (audit and rng.random() < audits_lost) or not (audit or bad or by_lot):
            continue
        why = "" if audit else "lot" if by_lot else "end"
        odds = 0.05 if audit else 0.95
        request, _ = live(audit=audit, propensity=odds, keep_rate=rate, kept_by=why, unit=f"{number}")
        seen.note(request)
    return seen


def test_a_healthy_lottery_is_believed_though_most_live_rows_are_gone() -> None:
    for seed in range(3):
        assert drawn(20_000, audits_lost=0.0, seed=seed).broken() is None


def test_every_request_is_a_draw_and_a_repeated_delivery_is_none() -> None:
    """Turns of one conversation count each; deliveries of one request count once."""
    healthy, repeated = SampleRatioTest(), SampleRatioTest()
    for number in range(400):
        audit = number % 20 == 0
        odds = 0.05 if audit else 0.95
        request, _ = live(audit=audit, propensity=odds, keep_rate=1.0, unit=f"{number}", conversation="talk")
        healthy.note(request)
        repeated.note(request)
        for delivery in range(2, 50 if audit else 3):
            repeated.note(replace(request, delivery=delivery))
    assert healthy.broken() is None
    assert healthy.draws.by_share == ((0.05, 400, 20),)
    assert repeated.broken() is None
    assert repeated.draws == healthy.draws


def test_a_sampler_that_loses_a_third_of_the_audits_is_found_out() -> None:
    assert drawn(20_000, audits_lost=0.35).broken() is not None


def test_without_sampling_lots_are_what_they_were() -> None:
    for audit, propensity in ((True, 0.1), (False, 0.9), (True, 1.0), (False, 1.0)):
        assert assignment_of(live(audit=audit, propensity=propensity, keep_rate=1.0, kept_by="")[0]) == (
            audit,
            propensity,
        )
    assert sampling.find_sample_ratio_mismatch(drawn(3_000, audits_lost=0.0).draws) is None


@given(st.lists(st.floats(1, 100), min_size=1, max_size=50))
def test_weighted_runs_tell_as_much_as_so_many_equal_ones_and_never_more_than_there_are(weights: list[float]) -> None:
    assert 0 < worth(weights) <= len(weights) * (1 + 1e-9)
    assert worth([weights[0]] * 7) == pytest.approx(7)
