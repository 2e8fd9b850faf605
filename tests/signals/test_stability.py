from __future__ import annotations

import pytest

from suffice.signals.folds.answers import Stability
from suffice.types import Step


def fold(answers: list[str | None]) -> Stability:
    stability = Stability()
    for index, answer in enumerate(answers, 1):
        stability.update(Step(index=index, tokens=1, answer=answer, answer_source=None))
    return stability


@pytest.mark.parametrize(
    ("answers", "streak", "n_flips", "n_distinct"),
    [
        ([], 0, 0, 0),
        ([None, None], 0, 0, 0),
        (["a"], 1, 0, 1),
        (["a", "a", "a"], 3, 0, 1),
        (["a", "b", "b"], 2, 1, 2),
        (["a", "b", "a"], 1, 2, 2),
        (["a", "a", None], 0, 0, 1),
        (["a", None, "b"], 1, 1, 2),
    ],
)
def test_streak_flips_and_distinct_answers(
    answers: list[str | None], streak: int, n_flips: int, n_distinct: int
) -> None:
    expected = {"answer_streak": streak, "n_flips": n_flips, "n_distinct": n_distinct}
    assert fold(answers).values() == expected


def test_a_step_without_an_answer_starts_the_streak_anew_even_if_the_answer_comes_back() -> None:
    assert fold(["a", "a", None, "a"]).values() == {"answer_streak": 1, "n_flips": 0, "n_distinct": 1}
