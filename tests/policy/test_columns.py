"""Columns of signals: the rows they stand for, and functions of counts asked once a different row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from suffice.policy.base import build_policy
from suffice.policy.columns import by_counts, decide_rows, stops_of, to_signals
from suffice.policy.protocol import go_on, hopeless
from suffice.types import Decision, Signals


def columns(**known: list[float]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return {name: np.array(values, dtype=float) for name, values in known.items()}


def test_a_row_holds_what_is_known_in_the_fields_own_type() -> None:
    nan = float("nan")
    many = columns(step=[1, 2], tokens_used=[10, 30], answer=[nan, 4], answer_streak=[0, 3], confidence=[nan, 0.5])
    assert list(to_signals(many)) == [
        Signals(step=1, tokens_used=10, answer_streak=0),
        Signals(step=2, tokens_used=30, answer="4", answer_streak=3, confidence=0.5),
    ]


def test_the_column_of_another_packages_fold_is_a_field_too() -> None:
    many = columns(step=[1, 2], tokens_used=[10, 30], wobble=[0.25, float("nan")])
    assert [seen.values.get("wobble") for seen in to_signals(many)] == [0.25, None]


class GivesUp:
    """A policy of another package, without `stops`."""

    name: ClassVar[str] = "gives-up"

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def decide(self, s: Signals) -> Decision:
        return hopeless("late", 1.0) if s.step > 2 else go_on("early")


def test_a_policy_without_stops_is_asked_row_by_row() -> None:
    many = columns(step=[1, 2, 3, 4], tokens_used=[1, 2, 3, 4])
    assert stops_of(GivesUp(), many).tolist() == [0, 0, 2, 2]
    mixed = build_policy({"policy": "fixed-rounds", "max_steps": 4})
    assert stops_of(mixed, many).tolist() == decide_rows(mixed, many).tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize("largest", [40, 2**40])
def test_a_function_of_counts_is_asked_once_for_each_different_row(largest: int) -> None:
    request = []

    def difference(a: int, b: int) -> float:
        request.append((a, b))
        return float(a - b)

    first, second = np.array([3.0, largest, 3.0, 7.0, 3.0]), np.array([1.0, 2.0, 1.0, largest, 1.0])
    mask = np.array([True, True, True, True, False])
    values = by_counts(mask, (first, second), difference)
    assert values[:4].tolist() == [2.0, largest - 2.0, 2.0, 7.0 - largest]
    assert np.isnan(values[4])
    assert sorted(request) == sorted({(3, 1), (largest, 2), (7, largest)})
    assert np.isnan(by_counts(np.zeros(5, np.bool_), (first, second), difference)).all()
