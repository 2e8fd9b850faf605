from __future__ import annotations

import pytest

from suffice.scoring.text import MAX_ANSWER_CHARS, TextScorer

SCORER = TextScorer()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris.", "paris"),
        ("  The  Eiffel\tTower! ", "eiffel tower"),
        ("The capital is Paris", "capital is paris"),  # nothing announces it: the whole text counts
        ("Paris.\n\nIt lies on the Seine.", "paris it lies on seine"),
        ("The answer is **Paris**. It lies on the Seine.", "paris"),
        ("Answer: London\nNo. Final answer: Paris", "paris"),
        ("Answer:\n**Paris**\n", "paris"),
        ("The answer is St. Louis.", "st louis"),
        ("The answer is Washington D.C. because", "washington dc because"),
        ("Answer: Paris. I hope this answer is helpful", "paris"),
        ("La réponse est : Paris. Elle est belle.", "paris"),
        ("Die Antwort lautet **Köln**.", "köln"),
        ("Überlegen wir.\nAntwort: Köln", "köln"),
        ("La respuesta es París.", "parís"),
        ("Ответ: Москва.", "москва"),
        ("所以答案是巴黎。因为它是首都。", "巴黎"),
        ("答え：東京", "東京"),
        ("정답은 서울", "서울"),
        ("The answer is: ", "answer is"),  # announced, but nothing follows: all of it
        ("Answer: ?", None),
        (r"So it is \boxed{\text{New York}}.", "new york"),
        (r"\boxed{Rome} or rather \boxed{Paris} but \boxed{unfinished", "paris"),
        (r"\boxed{\{1, 2\}}", "1 2"),
        (r"\boxed{} answer: Paris", "paris"),
    ],
)
def test_where_the_answer_is_found(text: str, answer: str | None) -> None:
    assert SCORER.extract(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", "cafe\u0301"),
        ("STRASSE", "straße"),
        ("it’s", "its"),
        ("1,234", "1234"),
        ("−5", "-5"),
        ("(-5)", "-5"),
        ("$x$", "x"),
        ("`x`", "x"),
        ("zero\u200bwidth", "zerowidth"),
        ("ﬁne", "fine"),
    ],
)
def test_dress_does_not_matter(one: str, other: str) -> None:
    assert SCORER.match(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"),
        ("1.5", "15"),
        ("3:2", "32"),
        ("1/2", "12"),
        ("50%", "50"),
        ("C++", "C"),
        ("1,2", "12"),
        ("Paris", "Paris France"),
    ],
)
def test_different_answers_stay_different(one: str, other: str) -> None:
    assert not SCORER.match(one, other)


@pytest.mark.parametrize(("text", "normal"), [("e.\u0301", "é"), ("1,2-34", "1234"), ("a.\u0301.b", "áb")])
def test_what_dropped_punctuation_brings_together_is_joined_at_once(text: str, normal: str) -> None:
    assert SCORER.normalise(text) == normal
    assert SCORER.normalise(normal) == normal


def test_an_article_is_an_answer_when_it_is_all_there_is() -> None:
    assert SCORER.normalise("A.") == "a"
    assert SCORER.normalise("a cat") == "cat"


def test_a_long_text_stands_as_a_short_digest_that_still_compares() -> None:
    essay = "Once upon a time. " * 500
    answer = SCORER.extract(essay)
    assert answer is not None
    assert len(answer) < 50
    assert SCORER.match(answer, essay)
    assert SCORER.match(essay.upper().replace(" ", "\n"), essay)
    assert not SCORER.match(essay + "The end.", essay)


def test_white_space_alone_makes_no_text_long() -> None:
    assert SCORER.normalise("Paris" + " " * MAX_ANSWER_CHARS + "!") == "paris"


def test_a_text_that_grows_past_the_limit_is_still_idempotent() -> None:
    grown = SCORER.normalise("ﷺ" * 500)  # eighteen letters each
    assert grown is not None
    assert len(grown) < 50
    assert SCORER.normalise(grown) == grown
