from __future__ import annotations

import pytest

from suffice.scoring.choice import ChoiceScorer

SCORER = ChoiceScorer()


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B) Paris", "B"),
        ("B: Paris", "B"),
        ("b. Paris", "B"),
        ("c ) Paris", "C"),
        ("D ) Paris", "D"),
        ("B\nbecause Paris", "B"),
        ("Option C", "C"),
        ("（Ｂ）", "B"),
        ('"A"', "A"),
        ("J", "J"),
        ("K", None),
        ("The answer is B because", "B"),
        ("因此，答案是B。", "B"),
        ("La réponse est (c).", "C"),
        ("The answer is A because", "A"),
        ("the answer is (c), not (d)", "C"),
        ("The correct answer is option (D).", "D"),
        ("Answer: A\nWait. Answer: B", "B"),
        ("Answer: B\n\nI hope this answer is helpful", "B"),
        ("answer is a.", "A"),
        ("answer is a dog", None),
        ("the answer is Both", None),
        ("the answer is B-cells", None),
        ("the answer is I think so", None),
        ("the answer is I.", "I"),
        (r"It is \boxed{E}, the answer is F", "E"),
        (r"It is \boxed{\text{(e)}}", "E"),
        (r"It is \boxed{no letter}, the answer is F", "F"),
        ("We weigh A against C.\nSo:\nC\n", "C"),
        ("We weigh A against C.\nSo:\nC it is", None),
        ("A cat sat", None),
        ("a.m. is before noon", None),
        ("e.g. this", None),
        ("I think so", None),
        ("A, B and C", None),
    ],
)
def test_which_letter_was_picked(text: str, letter: str | None) -> None:
    assert SCORER.extract(text) == letter


def test_a_reference_may_carry_its_text() -> None:
    assert SCORER.match("b", "(B) Paris")
    assert not SCORER.match("a", "(B) Paris")
