from __future__ import annotations

import time

import pytest

from suffice.signals.folds.wording import _MAX_GRAMS, Drafts, Hedges, Loops
from suffice.types import Step


def step(text: str, index: int = 1) -> Step:
    return Step(index=index, tokens=1, answer=None, answer_source=None, text=text)


@pytest.mark.parametrize(
    ("text", "n_hedges"),
    [
        ("", 0),
        ("Wait, hold on. But HMM, hmmm; actually let me check.", 7),
        ("However, let me double-check; let me recheck, let me verify.", 4),
        ("butter waiter holdon factually Wait5", 0),
        ("hold\non", 1),
        ("hold" + " " * 50 + "on", 0),
        ("On second thought I made a mistake", 2),
        ("warte, aber", 0),
    ],
)
def test_marks_of_doubt_are_whole_words(text: str, n_hedges: int) -> None:
    hedges = Hedges()
    hedges.update(step(text))
    assert hedges.values()["hedges"] == n_hedges


def test_hedges_are_those_of_the_last_step_and_their_rate_that_of_the_run() -> None:
    hedges = Hedges()
    assert hedges.values() == {"hedges": 0, "hedge_rate": None}
    hedges.update(step("wait wait"))
    assert hedges.values() == {"hedges": 2, "hedge_rate": 100.0}
    hedges.update(step("so 4 and no more", 2))
    assert hedges.values() == {"hedges": 0, "hedge_rate": 200.0 / 7}


def shares(*texts: str) -> list[float | None]:
    loops, seen = Loops(), []
    for index, text in enumerate(texts, 1):
        loops.update(step(text, index))
        seen.append(loops.values()["loop_share"])
    return seen


def test_a_repeated_step_is_a_loop_and_a_new_one_is_not() -> None:
    circle = "one two three four five six seven eight nine ten"
    # Of the ten runs that end in the second step, the seven that cross the border are new.
    assert shares(circle, circle, circle) == [0.0, 0.3, 1.0]
    assert shares(circle, circle.upper().replace("TEN", "ELEVEN"))[1] == pytest.approx(0.2)


def test_a_loop_inside_one_step_is_seen() -> None:
    assert shares("again " * 27) == [19 / 20]


def test_too_few_words_are_unknown_until_the_run_has_eight() -> None:
    assert shares("a b c d", "e f g", "h", "") == [None, None, 0.0, None]


def test_memory_is_bounded_and_the_oldest_is_forgotten_first() -> None:
    loops = Loops()
    loops.update(step("one two three four five six seven eight"))
    for index in range(2, 9):
        loops.update(step(" ".join(f"{index}.{word}" for word in range(_MAX_GRAMS // 4)), index))
        assert len(loops._young) + len(loops._old) <= _MAX_GRAMS
    loops.update(step("8.1 8.2 8.3 8.4 8.5 8.6 8.7 8.8 one two three four five six seven eight", 9))
    # Of the sixteen runs that end here, the one of the last step is known and all others are new or forgotten.
    assert loops.values()["loop_share"] == 1 / 16
    assert len(loops._vocabulary) < 2 * _MAX_GRAMS


@pytest.mark.no_cover
@pytest.mark.parametrize("unit", ["a ", "x", " ", "hold ", "let me ", "hmm", "\ud800 ", "i made a "])
def test_a_hostile_text_costs_linear_time(unit: str) -> None:
    text, begin = unit * (150_000 // len(unit)), time.process_time()
    for fold in (Hedges(), Loops(), Drafts()):
        fold.update(step(text))
        fold.values()
    assert time.process_time() - begin < 5.0
