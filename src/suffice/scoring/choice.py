"""Scorers `choice` (one of the options A to J) and `yes-no`."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from suffice.scoring.text import AnnouncementPattern, ByNormalForm, last_boxed, last_part, marked_answer

_OPEN = r"[\s(\[{（【*_$\"'`]{0,6}"
_NAMED = r"(?i:(?:option|choice|letter)\s{1,4})?"
_UPPER, _LOWER = "[A-JＡ-Ｊ]", "[a-jａ-ｊ]"
_CLOSE = r"(?=\s?[)\]}）】]|[*_:：$\"`]|\.(?!\w)|\s{0,8}\Z|\s{0,4}\n)"
_NO_WORD = r"(?![\w'’-])"

# Upper case may stand alone. Lower case must be closed: "a dog" is not an option.
_LETTER = rf"(?:(?P<upper>{_UPPER}){_NO_WORD}|(?P<closed>{_LOWER}){_CLOSE}{_NO_WORD})"
_ANNOUNCED = AnnouncementPattern(lambda announcement: rf"{announcement}{_OPEN}{_NAMED}{_OPEN}{_LETTER}")
_LEADING = re.compile(rf"{_OPEN}{_NAMED}{_OPEN}(?:(?P<upper>{_UPPER})|(?P<closed>{_LOWER})){_CLOSE}{_NO_WORD}")
_LONE = re.compile(
    rf"{_OPEN}{_NAMED}{_OPEN}(?:(?P<upper>{_UPPER})|(?P<closed>{_LOWER}))[\s)\]}}）】*_.:;,：、$\"'`!]{{0,6}}"
)
_PRONOUN = re.compile(r"\s{1,4}[a-z]")


@dataclass(frozen=True, slots=True)
class ChoiceScorer(ByNormalForm):
    """Compares options by their letter. Normal form: one capital letter, A to J.

    A capital counts wherever an answer is expected ("the answer is B because"), but ``I`` before a lower-case word is
    the pronoun. A lower-case letter counts only if it is closed: ``(b)``, ``b.``, never "a dog".
    """

    name: ClassVar[str] = "choice"

    def extract(self, text: str) -> str | None:
        """Return the last boxed letter, else the last announced one, else one that begins the text, else the last line.

        At the beginning it is closed as in ``B)``, ``(B)``, ``B.`` or ``B:``; the last line contains only the letter.
        """
        boxed = last_boxed(text)
        if boxed is not None and (letter := self.normalise(boxed)) is not None:
            return letter
        part = last_part(text)
        letters = [m for m in _ANNOUNCED.finditer(part) if m["upper"] != "I" or not _PRONOUN.match(part, m.end())]
        if letters:
            return _letter(letters[-1])
        if (letter := self.normalise(text)) is not None:
            return letter
        end = len(text.rstrip())
        lone = _LONE.fullmatch(text, max(text.rfind("\n", 0, end), text.rfind("\r", 0, end)) + 1, end)
        return None if lone is None else _letter(lone)

    def normalise(self, answer: str) -> str | None:
        """Return the letter that a bare answer is or begins with; None if there is none."""
        bare = answer.strip()
        match = _LONE.fullmatch(bare) or _LEADING.match(bare)
        return None if match is None else _letter(match)


def _letter(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match["upper"] or match["closed"]).upper()


_YES = "yes true correct oui vrai ja wahr sí si sim verdadero vero да 是 是的 对 对的 はい 예 네 نعم हाँ हां evet tak"
_NO = "no false incorrect non faux nein falsch não falso нет 否 不 不是 不对 いいえ 아니요 아니오 لا नहीं hayır nie nee"
_WORDS = {
    unicodedata.normalize("NFKC", word): verdict
    for verdict, words in (("yes", _YES), ("no", _NO))
    for word in words.split()
}
_MARKS = r"\s\"'“”‘’*_`(){}\[\].,:;!?¿¡。，、！？：；「」『』（）【】$\\-"
_FIRST_WORD = re.compile(rf"[{_MARKS}]{{0,20}}([^{_MARKS}]{{1,20}})(?=[{_MARKS}]|\Z)")
_ENDED = re.compile(r"[*_`\"')\]}]{0,4}(?:[.,:;!。，、！：；—–-]|\s{0,4}(?:\Z|\n))")


@dataclass(frozen=True, slots=True)
class YesNoScorer(ByNormalForm):
    """Compares yes and no, in fifteen languages. Normal form: `yes` or `no`."""

    name: ClassVar[str] = "yes-no"

    def extract(self, text: str) -> str | None:
        """Return the word in the last box, else the announced one, else the leading one, else the last line.

        A leading word is followed by punctuation or the end of its line: "No, it is", but not "No problem".
        """
        marked = marked_answer(text, self.normalise)
        if marked is not None:
            return marked
        for line in (text[:200].lstrip(), text[-200:].rstrip().rpartition("\n")[2]):
            word = _FIRST_WORD.match(line)
            if word is not None and _ENDED.match(line, word.end()) and (verdict := _meaning(word)) is not None:
                return verdict
        return None

    def normalise(self, answer: str) -> str | None:
        word = _FIRST_WORD.match(answer)
        return None if word is None else _meaning(word)


def _meaning(word: re.Match[str]) -> str | None:
    return _WORDS.get(unicodedata.normalize("NFKC", word[1]).casefold())
