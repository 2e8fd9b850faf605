"""Scorer `squad`: Exact Match as the evaluation scripts of SQuAD v1.1 and HotpotQA compute it.

Knows that one definition and refuses to improve on it; `text` is the scorer that does.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import ClassVar

from suffice.scoring.answer import READ_CHARS, told
from suffice.scoring.normal import MAX_ANSWER_CHARS, ByNormalForm, digest_text, says_something, strip_control_characters

_PUNCTUATION = {ord(mark): None for mark in string.punctuation}
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, slots=True)
class SquadScorer(ByNormalForm):
    """Compare short answers as SQuAD does.

    Normal form (Rajpurkar et al. 2016, arXiv:1606.05250, `evaluate-v1.1.py`; the same in HotpotQA's
    `hotpot_evaluate_v1.py`, Yang et al. 2018, arXiv:1809.09600): lower case, without ASCII punctuation,
    without the words a, an, the, one space between words. So `-5` is `5` and `1.5` is `15`.

    What differs, and only where the script's result could not be logged or compared: half surrogates and
    control characters are replaced first; a form of more than 2,000 characters stands as a digest, and a text
    of more than 200,000 is not looked into; a form without a letter, digit or symbol is no answer, where the
    script calls two empty forms equal.
    """

    name: ClassVar[str] = "squad"

    def extract(self, text: str) -> str | None:
        r"""The last ``\boxed{…}``, else what follows the last "answer is" or "answer:", else all of it."""
        return told(text, self.normalise)

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer; None when no letter, digit or symbol is left of it."""
        if len(answer) > READ_CHARS:
            return digest_text(answer)
        # ASCII punctuation goes before the articles do, so one pass is all: `a.n` is gone at once.
        normal = " ".join(_ARTICLES.sub(" ", strip_control_characters(answer).lower().translate(_PUNCTUATION)).split())
        if not says_something(normal):
            return None
        return normal if len(normal) <= MAX_ANSWER_CHARS else digest_text(normal)
