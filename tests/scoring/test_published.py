"""What published evaluations read out of a model's text, and from which text."""

from __future__ import annotations

import pytest

from suffice.scoring.base import Spec, build_scorer

STRICT_GSM8K: Spec = {"scorer": "regex", "pattern": r"#### (-?[\d.,]+)", "compare": "number"}


@pytest.mark.parametrize(
    ("spec", "text", "gold"),
    [
        # GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the solution ends in "#### " and the number, commas removed.
        ("number", "He sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72", "72"),
        ("number", "#### 1,234", "1234"),
        (STRICT_GSM8K, "#### 1\nNo:\n#### -1,234", "-1234"),
        # Chain-of-thought prompts (Wei et al. 2022, arXiv:2201.11903): "The answer is 5."
        ("number", "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.", "5"),
        ("number", "Olivia has 23 - 15 dollars left. 23 - 15 is 8. The answer is 8.", "8"),
        # MATH (Hendrycks et al. 2021, arXiv:2103.03874): the content of the last \boxed.
        ("math", r"The sum is \boxed{\frac{1}{2}} at first, then $\boxed{\dfrac{3}{56}}$.", r"\frac{3}{56}"),
        ("math", r"Hence $f(x) = \boxed{x^2 + \frac12}$.", r"x^2+\frac{1}{2}"),
        # Minerva's prompt (Lewkowycz et al. 2022, arXiv:2206.14858).
        ("math", "Final Answer: The final answer is $24$. I hope it is correct.", "24"),
        # MMLU (arXiv:2009.03300) scores the letter; MMLU-Pro (arXiv:2406.01574) reads "answer is (X)", A to J.
        ("choice", "B", "B"),
        ("choice", "A: Let's think step by step. Thus, the answer is (H).", "H"),
        ("choice", "The correct answer is **C**.", "C"),
        # GPQA (Rein et al. 2023, arXiv:2311.12022): "The correct answer is (insert answer here)".
        ("choice", "The correct answer is (D)", "D"),
        # HotpotQA (arXiv:1809.09600) has questions to be answered yes or no.
        ("yes-no", "Yes, both magazines were American.", "yes"),
        ("yes-no", "They differ. The answer is no.", "no"),
        # Last-letter concatenation (arXiv:2201.11903).
        ("text", 'Concatenating them is "nk". The answer is nk.', "nk"),
    ],
)
def test_the_answer_is_read_as_published(spec: Spec, text: str, gold: str) -> None:
    scorer = build_scorer(spec)
    answer = scorer.extract(text)
    assert answer == scorer.normalise(gold)
    assert scorer.match(answer, gold)


def test_the_strict_reading_of_gsm8k_sees_no_unmarked_number() -> None:
    assert build_scorer(STRICT_GSM8K).extract("The answer is 72.") is None
