from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from suffice.scoring.base import build_scorer
from suffice.scoring.math import MathScorer

SCORER = MathScorer()


@dataclass
class Judge:
    """A judge that knows one thing, and remembers what it was asked."""

    verdict: bool | None
    questions: list[tuple[str, str]] = field(default_factory=list)

    def equivalent(self, one: str, other: str) -> bool | None:
        self.questions.append((one, other))
        return self.verdict


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Pairs that the grader of MATH calls equal (Hendrycks et al. 2021, arXiv:2103.03874, `math_equivalence.py`):
        # spacing, \left and \right, tfrac and dfrac, missing braces, dollars, percent signs, degrees, units, "k =".
        (r"\frac12", r"\frac{1}{2}"),
        (r"\tfrac{1}{2}", r"\dfrac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left(\frac{1}{2}, 3\right)", r"(\frac12,3)"),
        (r"\$32", "32"),
        (r"90^\circ", "90"),
        (r"10\text{ inches}", "10"),
        (r"k = 7", "7"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", "0.5"),
        (r"\{ 1,\! 2 \}", r"\{1,2\}"),
        # Beyond it: the same characters by other means.
        ("−5", "-5"),
        ("x²", "x^{2}"),
        ("½", "0.5"),
        ("3π", r"3\pi"),
        (r"2\frac{1}{2}", "2.5"),
        ("12{,}345", "12345"),
        (r"\text{Evelyn}", "evelyn"),
        (r"x \leq 3", r"x\le3"),
        (r"$x+1$.", "x+1"),
    ],
)
def test_the_same_formula_in_other_dress_needs_no_judge(one: str, other: str) -> None:
    assert SCORER.match(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2^{10}", "2^10"),
        ("12", "21"),
        ("1/3", "0.333"),
        (r"\frac{-1}{2}", r"\frac{1}{2}"),
        (r"\pi r", r"\pir"),
        ("1 2", "12"),
        ("Evelyn", "Levyne"),
        ("50%", "50"),
        ("(1,2)", "(2,1)"),
        (r"\sqrt{12}", r"\sqrt12"),
    ],
)
def test_different_formulas_stay_different(one: str, other: str) -> None:
    assert not SCORER.match(one, other)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{\frac{1}{2}} is it.", "0.5"),
        (r"\boxed{\text{(A)} \frac{a}{b}}", r"(A)\frac{a}{b}"),
        (r"First \boxed{1}, no: \boxed{x^{2}} and \boxed{unfinished", "x^2"),
        (r"The answer is $x + 1$, since $x$ is odd.", "x"),
        (r"Final answer: \(\sqrt{2}\).", r"\sqrt{2}"),
        ("The answer is 42 apples out of 50.", "42"),
        ("We try 7.\nThe result is $3\\pi$", r"3\pi"),
        ("It is 3 + 4 = 7 in the end", "7"),
        ("42", "42"),
        ("The answer is Evelyn", "evelyn"),
        ("", None),
        ("?", None),
    ],
)
def test_where_the_formula_stands(text: str, answer: str | None) -> None:
    assert SCORER.extract(text) == answer


def test_a_judge_is_asked_only_what_strings_and_numbers_cannot_tell() -> None:
    judge = Judge(True)
    scorer = MathScorer(judge)
    assert scorer.match("x+1", "x + 1")
    assert not scorer.match("1/2", "0.51")
    assert not scorer.match("Evelyn", "Levyne")
    assert not scorer.match(None, "x")
    assert judge.questions == []
    assert scorer.match("x+1", "1+x")
    assert scorer.match("1+x", "x+1")
    assert judge.questions == [("1+x", "x+1")] * 2, "the order must not matter"


@pytest.mark.parametrize("verdict", [False, None])
def test_an_answer_that_the_judge_does_not_join_is_wrong(verdict: bool | None) -> None:
    assert not MathScorer(Judge(verdict)).match("x+1", "1+x")


def test_the_judge_reaches_a_scorer_inside_another_one() -> None:
    judge = Judge(True)
    scorer = build_scorer({"scorer": "json", "path": "$.answer", "compare": "math"}, math_judge=judge)
    answer = scorer.extract('{"answer": "$x+1$"}')
    assert answer == "x+1"
    assert scorer.match(answer, "1+x")
    assert judge.questions
