"""What an audit counts as while its label is late or missing, and that this never flatters a level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from suffice.assurance.certify import certified_level, count_outcomes, log_wealth
from suffice.assurance.labels import AHEAD, count_losses, find_first_disagreements
from tests.drawn import examples

# Of one audit at levels 0, 1, 2, 3: it agrees at level 1 and disagrees above, where it lost, and lost nothing.
Z = [0, 0, 1, 0]
D = [False, False, True, True]


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known of some audits."""

    z: NDArray[np.int8]
    disagrees: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    abandoned: NDArray[np.bool_]

    def losses(self, *, label_free: bool = False) -> NDArray[np.int8]:
        return count_losses(
            self.z, self.disagrees, labelled=self.labelled, abandoned=self.abandoned, label_free=label_free
        )

    @property
    def with_labels(self) -> Known:
        return replace(self, labelled=np.ones(len(self.z), dtype=np.bool_))

    @property
    def without_labels(self) -> Known:
        return replace(self, labelled=np.zeros(len(self.z), dtype=np.bool_))


def audits(n: int = 1, **changed: Any) -> Known:
    """n audits as above, labelled, unless changed."""
    arrays: dict[str, Any] = {
        "z": np.array([Z] * n, dtype=np.int8),
        "disagrees": np.array([D] * n),
        "labelled": np.ones(n, dtype=np.bool_),
        "abandoned": np.zeros(n, dtype=np.bool_),
    }
    return Known(**(arrays | {name: np.asarray(value) for name, value in changed.items()}))


@st.composite
def any_audits(draw: st.DrawFn) -> Known:
    """Audits with all that can be wrong with them; where answers agree nothing is lost (F1)."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n, n_levels = draw(st.integers(0, 40)), draw(st.integers(1, 6))
    disagrees = rng.random((n, n_levels)) < draw(st.sampled_from([0.05, 0.5]))
    disagrees[:, 0] = False
    return Known(
        z=(rng.integers(-1, 2, (n, n_levels)) * disagrees).astype(np.int8),
        disagrees=disagrees,
        labelled=rng.random(n) < 0.5,
        abandoned=rng.random(n) < 0.1,
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
    ],
)
def test_a_label_decides_and_without_one_a_difference_is_a_loss(changed: dict[str, Any], counts_as: list[int]) -> None:
    assert audits(**changed).losses().tolist() == [counts_as]


def test_label_free_a_difference_is_a_loss_whatever_a_label_says() -> None:
    assert audits().losses(label_free=True).tolist() == [[0, 0, 1, 1]]
    assert audits(abandoned=[True]).losses(label_free=True).tolist() == [[0, 1, 1, 1]]


@given(known=any_audits())
@settings(max_examples=examples(80))
def test_an_audit_never_counts_as_less_than_it_lost(known: Known) -> None:
    now, label_free = known.losses(), known.losses(label_free=True)
    assert (known.with_labels.losses() <= now).all()
    assert (now <= label_free).all(), "disagreement is never smaller than the drop"
    assert (now[:, 0] == 0).all()
    assert (label_free >= 0).all()
    assert np.array_equal(known.without_labels.losses(), label_free), "no labels at all is the label-free mode"


@given(known=any_audits(), seed=st.integers(0, 1_000), max_em_drop=st.sampled_from([0.02, 0.2]))
@settings(max_examples=examples(60))
def test_a_label_that_comes_late_only_helps_and_the_order_of_audits_says_nothing(
    known: Known, seed: int, max_em_drop: float
) -> None:
    order = np.random.default_rng(seed).permutation(len(known.z))
    wealth = log_wealth(count_outcomes(known.losses()), max_em_drop=max_em_drop)
    assert np.array_equal(log_wealth(count_outcomes(known.losses()[order]), max_em_drop=max_em_drop), wealth)
    assert (log_wealth(count_outcomes(known.with_labels.losses()), max_em_drop=max_em_drop) >= wealth).all()


# --------------------------------------------------------------------------- labels


def test_only_levels_in_play_are_worth_a_label_and_the_safest_is_named() -> None:
    high = np.array([[False, False, False, True], [False, False, True, True]])
    assert find_first_disagreements(high, deployed=0).tolist() == [0, 2], "two levels above 0 the first still agrees"
    assert find_first_disagreements(high, deployed=1).tolist() == [3, 2]
    assert AHEAD == 2


@given(known=any_audits(), deployed=st.integers(0, 5))
@settings(max_examples=examples(60))
def test_no_label_but_those_asked_for_would_change_a_level_in_play(known: Known, deployed: int) -> None:
    in_play = slice(0, deployed + AHEAD + 1)
    request = find_first_disagreements(known.disagrees, deployed=deployed) > 0
    enough = replace(known, labelled=known.labelled | request)
    assert np.array_equal(enough.losses()[:, in_play], known.with_labels.losses()[:, in_play])


def test_with_labels_only_where_asked_the_certificate_is_the_one_of_all_labels() -> None:
    rng = np.random.default_rng(5)
    n, n_levels = 800, 12
    disagrees = rng.random(n)[:, np.newaxis] < np.linspace(0, 0.12, n_levels)
    truth = audits(n, z=((rng.random((n, 1)) < 0.3) * disagrees).astype(np.int8), disagrees=disagrees)

    def level(known: Known) -> int:
        return certified_level(log_wealth(count_outcomes(known.losses()), max_em_drop=0.02), delta=0.05)

    known = truth.without_labels
    without = level(known)
    for _ in range(n_levels):  # each answered request lets the certificate climb, which makes more worth asking
        request = find_first_disagreements(disagrees, deployed=level(known)) > 0
        known = replace(known, labelled=known.labelled | request)
    assert without < level(known) == level(truth)
    assert known.labelled.mean() < 0.1, "at a tenth of the labels"
