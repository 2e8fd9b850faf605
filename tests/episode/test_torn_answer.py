"""What counts as a torn answer, and what an answer may say."""

from __future__ import annotations

import pytest

from suffice.episode.chain_reader import SAME_CHARS, goes_on, split_at_close

REST = "34 - 9 = 25.\nSo the answer is 25.\nLet me check: 30 + 4 = 34, 34 - 9 = 25."


def test_a_closing_tag_in_an_answer_separates_the_rest_of_the_thought() -> None:
    assert split_at_close(f"{REST}\n</think>25", "</think>") == (f"{REST}\n", "25")
    assert split_at_close(f"{REST}\n</think>", "</think>") == (f"{REST}\n", ""), "a call follows, and no text"
    assert split_at_close("25", "</think>") is None


@pytest.mark.parametrize("quote", ["`", "'", '"'])
def test_an_answer_may_speak_of_the_tag(quote: str) -> None:
    assert split_at_close(f"It ends with {quote}</think>{quote}.", "</think>") is None


def test_only_a_long_piece_of_the_thought_counts_as_going_on() -> None:
    assert goes_on(f"\n{REST}", REST + " That is right.")
    assert not goes_on("25", REST)
    assert not goes_on("So the answer is 25.", "So the answer is 25.")  # shorter than what chance could give
    assert not goes_on(REST, REST[: SAME_CHARS - 1])
