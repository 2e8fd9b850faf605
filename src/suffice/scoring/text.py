"""Scorer `text`: two short texts are the same answer when they differ only in dress.

Knows the normal form of a short answer and refuses to know meaning: "USA" and "United States"
are different answers here.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from suffice.scoring.answer import READ_CHARS, told
from suffice.scoring.normal import MAX_ANSWER_CHARS, ByNormalForm, digest_text, settled

_ARTICLES = frozenset({"a", "an", "the"})
_WRAPPERS = frozenset("$`")  # around formulas and code; by category they are symbols
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class TextScorer(ByNormalForm):
    """Compare short answers by their words.

    Normal form, after SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250): compatibility form NFKC,
    case folded, without invisible characters, punctuation and the articles a, an, the; one space
    between words. Three departures, each because SQuAD's form calls different answers equal:

    - what is glued to digits stays: ``-5``, ``1.5``, ``3:2``, ``1/2``, ``50%``; only commas that group
      thousands go
    - symbols stay (``C++`` is not ``C``), except ``$`` and the backtick, which wrap formulas and code
    - articles stay when nothing else is left: "A" is an answer to "which letter?"

    A text longer than 2,000 characters is folded only in case and white space and stands as a
    digest (one of more than 200,000 is not folded at all), so that a log never holds an essay where an answer belongs.
    """

    name: ClassVar[str] = "text"

    def extract(self, text: str) -> str | None:
        r"""The last ``\boxed{…}``, else what follows the last "answer is" or "answer:", else all of it."""
        return told(text, self.normalise)

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer; None when only punctuation or nothing is in it."""
        if len(answer) > READ_CHARS:
            return digest_text(answer)
        if len(answer) > MAX_ANSWER_CHARS:
            # Not NFKC: long runs of combining marks make it quadratic.
            folded = _SPACES.sub(" ", answer.casefold()).strip()
            return digest_text(folded) if len(folded) > MAX_ANSWER_CHARS else self.normalise(folded)
        # Several passes: dropped punctuation can bring a letter and its accent, or two digits, together.
        return settled(answer, _one_pass) or None


def _one_pass(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = [_bare(word) for word in "".join(map(_visible, folded)).split()]
    words = [word for word in words if word]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _visible(character: str) -> str:
    if character == "\u2212":  # the minus sign is a symbol, the hyphen that models write is punctuation
        return "-"
    category = unicodedata.category(character)
    if category == "Cf":  # joiners, direction marks
        return ""
    if category == "Cs":  # half of a pair: no encoder would take it later
        return "\ufffd"
    return " " if category == "Cc" else character


def _bare(word: str) -> str:
    """The word without its punctuation, except what belongs to a number."""
    kept: list[str] = []
    for at, character in enumerate(word):
        if character not in _WRAPPERS and not unicodedata.category(character).startswith("P"):
            kept.append(character)
            continue
        after_digit = bool(kept) and word[at - 1].isdecimal()
        before_digit = word[at + 1 : at + 2].isdecimal()
        is_sign = character == "-" and before_digit and not kept
        is_inside = character in ".,:/" and before_digit and after_digit
        if is_sign or is_inside or (character == "%" and after_digit):
            kept.append(character)
    return _THOUSANDS.sub("", "".join(kept))
