"""What an audit counts as while its label is late or missing, and that this never flatters a level."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.certify import certified_level, count_outcomes, log_wealth
from suffice.assurance.labels import Audits, counted_as, mature, select_label_requests

# Of one audit at levels 0, 1, 2, 3: it agrees at level 1 and disagrees above, where it lost, and lost nothing.
Z = [0, 0, 1, 0]
D = [False, False, True, True]


def audits(n: int = 1, **changed: Any) -> Audits:
    """n audits as above, labelled, of age 10, unless changed."""
    arrays: dict[str, Any] = {
        "z": np.array([Z] * n, dtype=np.int8),
        "disagrees": np.array([D] * n),
        "labelled": np.ones(n, dtype=np.bool_),
        "age": np.full(n, 10.0),
        "abandoned": np.zeros(n, dtype=np.bool_),
    }
    return Audits(**(arrays | {name: np.asarray(value) for name, value in changed.items()}))


@st.composite
def any_audits(draw: st.DrawFn) -> Audits:
    """Audits with all that can be wrong with them; where answers agree nothing is lost (F1)."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n, n_levels = draw(st.integers(0, 40)), draw(st.integers(1, 6))
    disagrees = rng.random((n, n_levels)) < draw(st.sampled_from([0.05, 0.5]))
    disagrees[:, 0] = False
    return Audits(
        z=(rng.integers(-1, 2, (n, n_levels)) * disagrees).astype(np.int8),
        disagrees=disagrees,
        labelled=rng.random(n) < 0.5,
        age=rng.integers(0, 20, n).astype(np.float64),
        abandoned=rng.random(n) < 0.1,
        missing=rng.random((n, n_levels)) < 0.1,
    )


# --------------------------------------------------------------------------- as what it counts


@pytest.mark.parametrize(
    ("changed", "counts_as"),
    [
        ({}, [0, 0, 1, 0]),
        ({"z": np.array([[0, 0, -1, -1]], dtype=np.int8)}, [0, 0, -1, -1]),
        ({"labelled": [False]}, [0, 0, 1, 1]),
        ({"labelled": [False], "z": np.array([[0, 9, -1, -1]], dtype=np.int8)}, [0, 0, 1, 1]),
        ({"abandoned": [True]}, [0, 1, 1, 1]),
        ({"missing": [[False, True, False, True]]}, [0, 1, 1, 1]),
        ({"missing": [[True, False, False, False]], "labelled": [False]}, [0, 0, 1, 1]),
    ],
)
def test_a_label_decides_and_without_one_a_difference_is_a_loss(changed: dict[str, Any], counts_as: list[int]) -> None:
    assert counted_as(audits(**changed)).tolist() == [counts_as]


def test_label_free_a_difference_is_a_loss_whatever_a_label_says() -> None:
    assert counted_as(audits(), label_free=True).tolist() == [[0, 0, 1, 1]]
    assert counted_as(audits(abandoned=[True]), label_free=True).tolist() == [[0, 1, 1, 1]]


@given(known=any_audits())
@settings(max_examples=80, derandomize=True, deadline=None)
def test_an_audit_never_counts_as_less_than_it_lost(known: Audits) -> None:
    truth = counted_as(replace(known, labelled=np.ones(len(known), dtype=np.bool_)))
    now, label_free = counted_as(known), counted_as(known, label_free=True)
    assert (truth <= now).all()
    assert (now <= label_free).all(), "disagreement is never smaller than the drop"
    assert (now[:, 0] == 0).all()
    assert (label_free >= 0).all()
    nobody = replace(known, labelled=np.zeros(len(known), dtype=np.bool_))
    assert np.array_equal(counted_as(nobody), label_free), "no labels at all is the label-free mode"


@given(known=any_audits(), seed=st.integers(0, 1_000), max_em_drop=st.sampled_from([0.02, 0.2]))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_a_label_that_comes_late_only_helps_and_the_order_of_audits_says_nothing(
    known: Audits, seed: int, max_em_drop: float
) -> None:
    order = np.random.default_rng(seed).permutation(len(known))
    shuffled = Audits(
        z=known.z[order],
        disagrees=known.disagrees[order],
        labelled=known.labelled[order],
        age=known.age[order],
        abandoned=known.abandoned[order],
        missing=None if known.missing is None else known.missing[order],
    )
    wealth = log_wealth(count_outcomes(mature(known, timeout=10).counted), max_em_drop=max_em_drop)
    again = log_wealth(count_outcomes(mature(shuffled, timeout=10).counted), max_em_drop=max_em_drop)
    assert np.array_equal(wealth, again)
    later = replace(known, labelled=np.ones(len(known), dtype=np.bool_))
    assert (log_wealth(count_outcomes(mature(later, timeout=10).counted), max_em_drop=max_em_drop) >= wealth).all()


# --------------------------------------------------------------------------- whether it counts


@given(known=any_audits(), timeout=st.integers(0, 25), label_free=st.booleans())
@settings(max_examples=80, derandomize=True, deadline=None)
def test_what_an_audit_showed_does_not_decide_whether_it_counts(known: Audits, timeout: int, label_free: bool) -> None:
    entered = mature(known, timeout=timeout, label_free=label_free).enters
    assert np.array_equal(entered, np.full(len(known), label_free) | (known.age >= timeout))
    nothing = np.zeros(known.z.shape, dtype=np.bool_)
    for other in (
        replace(known, labelled=~known.labelled),
        replace(known, abandoned=~known.abandoned),
        replace(known, disagrees=nothing, z=nothing.astype(np.int8), missing=None),
    ):
        assert np.array_equal(mature(other, timeout=timeout, label_free=label_free).enters, entered)


def test_an_audit_waits_for_its_time_out() -> None:
    four = audits(4, age=[0.0, 9.9, 10.0, 99.0], labelled=[True, False, True, False])
    matured = mature(four, timeout=10)
    assert matured.enters.tolist() == [False, False, True, True]
    assert matured.counted.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]


def test_however_few_have_matured_the_young_ones_are_no_news() -> None:
    young = audits(4, age=[0.0, 1.0, 2.0, 99.0], labelled=[True, False, True, False])
    assert mature(young, timeout=10).enters.tolist() == [False, False, False, True]
    assert not mature(young, timeout=100).enters.any()
    assert mature(young, timeout=0).enters.all()
    assert mature(young, timeout=10).z.tolist() == counted_as(young).tolist(), "and all of them count as what is known"


def test_a_clock_that_stepped_back_lets_nothing_in_and_label_free_nothing_waits() -> None:
    odd = audits(3, age=[-5.0, np.nan, 10.0])
    assert mature(odd, timeout=10).enters.tolist() == [False, False, True]
    assert mature(odd, timeout=10, label_free=True).enters.all()


# --------------------------------------------------------------------------- labels


def test_gold_is_asked_for_where_it_pays_and_the_most_urgent_first() -> None:
    n = 6
    asked = audits(
        n,
        labelled=[False, True, False, False, False, False],
        age=[3.0, 3.0, 9.0, 12.0, 30.0, 9.0],
        abandoned=[False, False, False, False, False, True],
    )
    wanted = select_label_requests(asked, deployed=0, timeout=10)
    assert wanted.rows.tolist() == [2, 0, 3, 4], "soonest due, then due later, then those that are late"
    assert wanted.left.tolist() == [1.0, 7.0, -2.0, -20.0]


def test_only_levels_in_play_are_worth_a_label() -> None:
    high = audits(disagrees=[[False, False, False, True]], labelled=[False])
    assert select_label_requests(high, deployed=0, timeout=10).rows.tolist() == [], "two levels above 0 it still agrees"
    assert select_label_requests(high, deployed=1, timeout=10).rows.tolist() == [0]
    assert select_label_requests(high, deployed=0, timeout=10, ahead=3).rows.tolist() == [0]
    unseen = replace(high, missing=np.array([[False, False, False, True]]))
    assert select_label_requests(unseen, deployed=3, timeout=10).rows.tolist() == [], "there is no answer to judge"


@given(known=any_audits(), deployed=st.integers(0, 5))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_no_label_but_those_asked_for_would_change_a_level_in_play(known: Audits, deployed: int) -> None:
    in_play = slice(0, deployed + 3)
    asked = select_label_requests(known, deployed=deployed, timeout=10).rows
    labelled = known.labelled.copy()
    labelled[asked] = True
    enough = counted_as(replace(known, labelled=labelled))[:, in_play]
    everything = counted_as(replace(known, labelled=np.ones(len(known), dtype=np.bool_)))[:, in_play]
    assert np.array_equal(enough, everything)


def test_with_labels_only_where_asked_the_certificate_is_the_one_of_all_labels() -> None:
    rng = np.random.default_rng(5)
    n, n_levels = 800, 12
    disagrees = rng.random(n)[:, np.newaxis] < np.linspace(0, 0.12, n_levels)
    truth = audits(n, z=((rng.random((n, 1)) < 0.3) * disagrees).astype(np.int8), disagrees=disagrees)

    def level(known: Audits) -> int:
        return certified_level(
            log_wealth(count_outcomes(mature(known, timeout=10).counted), max_em_drop=0.02), delta=0.05
        )

    known = replace(truth, labelled=np.zeros(n, dtype=np.bool_))
    without = level(known)
    for _ in range(n_levels):  # each answered request lets the certificate climb, which makes more worth asking
        labelled = known.labelled.copy()
        labelled[select_label_requests(known, deployed=level(known), timeout=10).rows] = True
        known = replace(known, labelled=labelled)
    assert without < level(known) == level(truth)
    assert known.labelled.mean() < 0.1, "at a tenth of the labels"


@pytest.mark.parametrize(
    "bad",
    [
        lambda: audits(z=np.zeros(4, dtype=np.int8)),
        lambda: audits(2, labelled=[True]),
        lambda: audits(2, missing=[[True] * 4]),
        lambda: mature(audits(), timeout=-1),
        lambda: mature(audits(), timeout=float("nan")),
    ],
)
def test_what_does_not_fit_together_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match=r"audits: need|timeout: got"):
        bad()
