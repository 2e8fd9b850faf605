"""Words of strangers reach no terminal as commands, and stay readable."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from suffice.sanitize import printable, printable_lines

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mfine\r\x08\u202egnp.exe\u2028\ud800"


@given(st.text())
@example(HOSTILE)
def test_nothing_is_left_that_moves_a_cursor_or_turns_the_text_round(text: str) -> None:
    displayed = printable(text)
    assert len(displayed) == len(text)
    assert not [c for c in displayed if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c == "\u202e"]


def test_words_of_every_script_stay_as_they_are() -> None:
    for text in ("Größe ½ m²", "这是答案", "می‌خواهم", "क्‍ष", "naïve 🙂"):
        assert printable(text) == text


@given(st.text())
@example(f"one\n\ttwo\r\n{HOSTILE}")
def test_a_text_keeps_its_lines_and_each_of_them_is_harmless(text: str) -> None:
    assert list(printable_lines(text)) == [printable(line.replace("\t", "    ")) for line in text.splitlines()]
    assert "\x1b" not in "".join(printable_lines(text))
