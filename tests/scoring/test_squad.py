"""The scorer `squad` is SQuAD's own definition, written here a second time from its description."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from suffice.scoring.base import build_scorer
from suffice.scoring.text import SquadScorer
from tests.drawn import examples

SCORER = SquadScorer()


def reference(text: str) -> str:
    """Lower case; no ASCII punctuation; no words a, an, the between word boundaries; single spaces."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    words, word = list[str](), ""
    for character in kept + " ":  # a word is a run of letters, digits and underscores, of any script
        if character.isalnum() or character == "_":
            word += character
            continue
        words += [" " if word in ("a", "an", "the") else word, character]
        word = ""
    return " ".join("".join(words).split())


PIECES = st.sampled_from(["a", "An", "the", "THE", "cat", " ", "-", ".", "5", "é", "\t", "Ω", "_", "$", "’"])


@settings(max_examples=examples(300))
@given(st.lists(PIECES).map("".join))
@example("The Eiffel Tower!")
@example("a.n apple")
def test_the_normal_form_is_the_reference(text: str) -> None:
    normal = SCORER.normalise(text)
    # Where the script is left with a mere "_" or "’", there is no answer to compare.
    assert normal == reference(text) if any(map(str.isalnum, reference(text))) else normal in (None, reference(text))


@pytest.mark.parametrize(
    ("prediction", "gold", "is_exact_match"),
    [
        # SQuAD v1.1, `evaluate-v1.1.py`: case, articles, punctuation and white space do not matter.
        ("the Denver Broncos", "Denver Broncos", True),
        ("Saint Bernadette Soubirous.", "Saint Bernadette Soubirous", True),
        ("  A  golden statue  of the Virgin Mary ", "golden statue of Virgin Mary", True),
        ("Denver", "Denver Broncos", False),
        # What the script does to numbers, for better or worse.
        ("-5", "5", True),
        ("1.5", "15", True),
        ("1,000", "1000", True),
        # HotpotQA's `hotpot_evaluate_v1.py`: Exact Match is the same; yes and no are words like others.
        ("Yes.", "yes", True),
        ("no", "yes", False),
        ("yes, it is", "yes", False),
    ],
)
def test_exact_match_on_what_the_scripts_define(prediction: str, gold: str, is_exact_match: bool) -> None:
    assert SCORER.match(prediction, gold) is is_exact_match
    whole = build_scorer({"scorer": "whole", "compare": "squad"})
    assert whole.match(whole.extract(prediction), gold) is is_exact_match
