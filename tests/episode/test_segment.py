"""Steps: where a thought may be cut, on which schedule, and that nothing of it is lost or doubled."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.chain_reader import Segmenter, safe_cut
from suffice.episode.checkpoints import Checkpoint
from suffice.settings import Steps
from tests.drawn import examples

WORDS = ["so", " it", "\n", ".\n\n", " a\nb", "北京", " 🙂", "\u0301", "\u200d", "  "]
TOKENS = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 4)), max_size=60)
SETTINGS = st.builds(
    Steps,
    boundary=st.sampled_from(["line", "paragraph", "tokens"]),
    min_tokens=st.integers(1, 8),
    growth=st.sampled_from([1.0, 1.15, 2.0]),
    max_tokens=st.integers(1, 20),
)


def cut(steps: Steps, tokens: list[tuple[str, int]]) -> tuple[list[Checkpoint], Segmenter]:
    segmenter = Segmenter(steps)
    points = [segmenter.feed(text, n) for text, n in tokens]
    return [p for p in points if p is not None], segmenter


@given(SETTINGS, TOKENS)
@settings(max_examples=examples(150))
def test_nothing_of_a_thought_is_lost_or_doubled(steps: Steps, tokens: list[tuple[str, int]]) -> None:
    points, segmenter = cut(steps, tokens)
    whole = "".join(text for text, _ in tokens)
    assert segmenter.thought == whole
    assert [p.index for p in points] == list(range(1, len(points) + 1))
    before = ""
    for used, point in zip(_running([p.tokens for p in points]), points, strict=True):
        assert point.tokens_used == used
        assert point.prefix == before + point.text
        assert whole.startswith(point.prefix)
        before = point.prefix
    last = segmenter.close()
    if last is not None:
        assert last.prefix == whole
        assert last.tokens_used == sum(n for _, n in tokens)
    assert segmenter.close() is None or not tokens


def _running(numbers: list[int]) -> list[int]:
    return [sum(numbers[: n + 1]) for n in range(len(numbers))]


@given(SETTINGS, TOKENS)
@settings(max_examples=examples(150))
def test_a_step_ends_at_a_line_between_words_or_between_characters(steps: Steps, tokens: list[tuple[str, int]]) -> None:
    points, segmenter = cut(steps, tokens)
    for point in points:
        following = segmenter.thought[len(point.prefix) :]
        ends_line = point.text.endswith("\n\n" if steps.boundary == "paragraph" else "\n")
        between_words = point.text[-1:].isspace() or following[:1].isspace()
        whole_character = safe_cut(point.text, following) == point.text
        assert ends_line or between_words or whole_character


@given(SETTINGS, TOKENS)
@settings(max_examples=examples(150))
def test_no_step_is_shorter_than_its_schedule(steps: Steps, tokens: list[tuple[str, int]]) -> None:
    points, _ = cut(steps, tokens)
    need = float(steps.min_tokens)
    for point in points:
        assert point.tokens >= need
        need *= steps.growth


@pytest.mark.parametrize(
    ("boundary", "tokens", "texts"),
    [
        ("line", ["so", " it", "\n", " is", " so", "\n"], ["so it\n", " is so\n"]),
        ("line", ["so", " it\nNow", " then", "\n"], ["so it\n", "Now then\n"]),
        ("paragraph", ["so", " it\n", "\n", "and", " on\n\n"], ["so it\n\n", "and on\n\n"]),
        ("paragraph", ["so", " it\n", "and", " on\n"], []),
        ("tokens", ["so", " it", " is", "n't", " so", " bad"], ["so it", " isn't"]),
        ("tokens", ["so ", "it ", "is ", "n't ", "so "], ["so it ", "is n't "]),
    ],
)
def test_where_steps_end(boundary: Any, tokens: list[str], texts: list[str]) -> None:
    points, _ = cut(Steps(boundary=boundary, min_tokens=2, growth=1.0), [(t, 1) for t in tokens])
    assert [p.text for p in points] == texts


def test_a_line_that_never_ends_is_cut_before_a_word() -> None:
    points, _ = cut(Steps(min_tokens=2, growth=1.0, max_tokens=4), [(f" w{n}", 1) for n in range(13)])
    assert [p.text for p in points] == [" w0 w1 w2 w3", " w4 w5 w6 w7", " w8 w9 w10 w11"]


def test_a_script_without_spaces_is_cut_between_characters() -> None:
    tokens = ["北", "京", "か", "\u3099", "e", "\u0301", "👩", "\u200d", "👩", "\u200d", "👧", "東", "京", "都"]
    points, segmenter = cut(Steps(min_tokens=1, growth=1.0, max_tokens=2), [(t, 1) for t in tokens])
    assert points
    for point in points:
        assert safe_cut(point.prefix, segmenter.thought[len(point.prefix) :]) == point.prefix


def test_the_schedule_is_geometric() -> None:
    points, _ = cut(Steps(min_tokens=10, growth=2.0, max_tokens=10**6), [("w\n", 1)] * 400)
    assert [p.tokens for p in points] == [10, 20, 40, 80, 160]


def test_the_work_is_linear_in_a_thought_without_any_boundary() -> None:
    def seconds(n_tokens: int) -> float:
        segmenter = Segmenter(Steps())
        start_s = time.perf_counter()
        for _ in range(n_tokens):
            segmenter.feed("词", 1)
        return time.perf_counter() - start_s

    seconds(2_000)
    assert seconds(80_000) < 30 * max(seconds(8_000), 0.01)
