from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.signals.query import MOST_CHARS, QUESTION_TYPES, query_signals
from suffice.types import Query
from tests.drawn import examples


def of(question: str) -> Query:
    return query_signals(question, metadata={})


def test_what_was_not_shown_is_unknown_and_what_was_declared_stays() -> None:
    declared = query_signals(None, metadata={"task": "sums", "model": "m"}, query_class="easy", planned_steps=8)
    assert declared == Query(query_class="easy", metadata=(("model", "m"), ("task", "sums")), planned_steps=8)


def test_form_is_counted() -> None:
    query = of("What is 3.5 * (1,000 - 7) / x^2?")
    assert (query.n_chars, query.n_words, query.n_numbers, query.n_operators) == (32, 9, 4, 4)
    assert of("a well-known-fact").n_operators == 0
    assert of(r"\frac{1}{2} \leq \sqrt{x}").n_operators == 3


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Which is a metal?\nA) iron\nB) wood\nC) silk", "choice"),
        ("Pick one. (A) iron\n(B) wood\n(C) silk", "choice"),
        ("John has 3.5 litres. How many cups is that?", "number"),
        ("Find the sum of all primes below 20.", "number"),
        ("Is 7 a prime?", "yes-no"),
        ("Water is wet, true or false?", "yes-no"),
        ("Prove that there are infinitely many primes.", "proof"),
        ("Write a poem about rain.", "task"),
        ("What is the capital of France?", "what"),
        ("The war was long. Who won it?", "who"),
        ("Whose book is it?", "who"),
        ("In which year did it end?", "which"),
        ("When? Where? Why?", "why"),
        ("¿Dónde está la biblioteca?", "other"),
        ("", "other"),
    ],
)
def test_the_question_type_is_that_of_the_sentence_that_asks(question: str, kind: str) -> None:
    assert of(question).question_type == kind
    assert kind in QUESTION_TYPES


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("hello", "latin"),
        ("Größe 5", "latin"),
        ("привет мир", "cyrillic"),
        ("γειά", "greek"),
        ("שלום", "hebrew"),
        ("مرحبا", "arabic"),
        ("你好吗", "han"),
        ("東京はどこですか", "kana"),
        ("안녕하세요", "hangul"),
        ("नमस्ते", "devanagari"),
        ("สวัสดี", "thai"),
        ("1 + 1 = ?", None),
        ("", None),
        ("\ud800", None),
        ("好 is good", "latin"),
        ("ＡＢＣ", "latin"),
        ("ｱｲｳ", "kana"),
        ("漢字とかな", "kana"),
    ],
)
def test_the_script_is_that_of_most_letters(text: str, script: str | None) -> None:
    assert of(text).script == script


@settings(max_examples=examples(100))
@given(question=st.text(max_size=200))
def test_any_text_has_signals_in_their_ranges_and_none_of_its_words(question: str) -> None:
    query = of(question)
    assert query == of(question)
    assert query.n_chars == len(question)
    assert query.question_type in QUESTION_TYPES
    assert {type(value) for value in (query.n_words, query.n_numbers, query.n_operators)} == {int}


@pytest.mark.no_cover
@pytest.mark.parametrize("unit", ["a ", "x", " ", "?", ". ", "1,", "好", "is ", "\\frac", "A) \n", "- ", "\ud800 "])
def test_a_hostile_question_costs_linear_time_and_bounded_memory(unit: str) -> None:
    text, begin = unit * (10_000_000 // len(unit)), time.process_time()
    query = of(text)
    assert time.process_time() - begin < 1.0
    assert query.n_chars == len(text)


def test_of_a_long_text_the_beginning_and_the_end_are_read() -> None:
    long = of("7 " * MOST_CHARS + "Who?")
    assert (long.n_chars, long.question_type) == (2 * MOST_CHARS + 4, "who")
    assert long.n_numbers is not None
    assert MOST_CHARS // 2 - 4 <= long.n_numbers <= MOST_CHARS // 2
