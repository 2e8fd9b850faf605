r"""Scorer `choice`: which of the options A to J was picked.

Knows the ways in which an option's letter is written and refuses to know the options' texts:
"Paris" is no answer here, even where it is what option B says.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from suffice.scoring.answer import AnnouncementPattern, last_boxed, last_part
from suffice.scoring.normal import ByNormalForm

_OPEN = r"[\s(\[{（【*_$\"'`]{0,6}"
_NAMED = r"(?i:(?:option|choice|letter)\s{1,4})?"
_UPPER, _LOWER = "[A-JＡ-Ｊ]", "[a-jａ-ｊ]"
_CLOSE = r"(?=\s?[)\]}）】]|[*_:：$\"`]|\.(?!\w)|\s{0,8}\Z|\s{0,4}\n)"
_NO_WORD = r"(?![\w'’-])"

# Upper case stands alone or closed. Lower case needs something that closes it: "a dog" is no option.
_LETTER = rf"(?:(?P<upper>{_UPPER}){_NO_WORD}|(?P<closed>{_LOWER}){_CLOSE}{_NO_WORD})"
_ANNOUNCED = AnnouncementPattern(lambda announcement: rf"{announcement}{_OPEN}{_NAMED}{_OPEN}{_LETTER}")
_LEADING = re.compile(rf"{_OPEN}{_NAMED}{_OPEN}(?:(?P<upper>{_UPPER})|(?P<closed>{_LOWER})){_CLOSE}{_NO_WORD}")
_LONE = re.compile(
    rf"{_OPEN}{_NAMED}{_OPEN}(?:(?P<upper>{_UPPER})|(?P<closed>{_LOWER}))[\s)\]}}）】*_.:;,：、$\"'`!]{{0,6}}"
)
_PRONOUN = re.compile(r"\s{1,4}[a-z]")


@dataclass(frozen=True, slots=True)
class ChoiceScorer(ByNormalForm):
    r"""Compare options by their letter. Normal form: one capital letter, A to J.

    Case: a capital counts wherever it stands where an answer stands ("the answer is B because"),
    but ``I`` followed by a small word is the pronoun. A small letter counts only when it is closed
    by a bracket, punctuation or the end of the line: ``(b)``, ``b.``, never "a dog".
    """

    name: ClassVar[str] = "choice"

    def extract(self, text: str) -> str | None:
        r"""The letter in the last box, else the announced one, else the leading one, else the last line.

        Of several announcements the last one with a letter counts.
        Leading: the text begins with ``B)``, ``(B)``, ``B.``, ``B:`` or is nothing but the letter. The last
        line counts only when it is nothing but the letter.
        """
        boxed = last_boxed(text)
        if boxed is not None and (letter := self.normalise(boxed)) is not None:
            return letter
        announced = None
        end_part = last_part(text)
        for found in _ANNOUNCED.finditer(end_part):
            if not _is_pronoun(found, end_part):
                announced = found
        if announced is not None:
            return _letter(announced)
        if (letter := self.normalise(text)) is not None:
            return letter
        end = len(text.rstrip())
        lone = _LONE.fullmatch(text, max(text.rfind("\n", 0, end), text.rfind("\r", 0, end)) + 1, end)
        return None if lone is None else _letter(lone)

    def normalise(self, answer: str) -> str | None:
        """The letter that a bare answer is or begins with; None when there is none."""
        bare = answer.strip()
        found = _LONE.fullmatch(bare) or _LEADING.match(bare)
        return None if found is None else _letter(found)


def _is_pronoun(found: re.Match[str], text: str) -> bool:
    return found.group("upper") == "I" and _PRONOUN.match(text, found.end()) is not None


def _letter(found: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", found.group("upper") or found.group("closed")).upper()
