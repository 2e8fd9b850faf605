"""Scorer `yes-no`: was the question affirmed or denied?

Knows the words for it in some languages and refuses to judge a sentence: what is neither is no answer.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from suffice.scoring.answer import last_announced, last_boxed
from suffice.scoring.normal import ByNormalForm

_YES = "yes true correct oui vrai ja wahr sí si sim verdadero vero да 是 是的 对 对的 はい 예 네 نعم हाँ हां evet tak"
_NO = "no false incorrect non faux nein falsch não falso нет 否 不 不是 不对 いいえ 아니요 아니오 لا नहीं hayır nie nee"
_WORDS = {
    unicodedata.normalize("NFKC", word): said for said, words in (("yes", _YES), ("no", _NO)) for word in words.split()
}
_MARKS = r"\s\"'“”‘’*_`(){}\[\].,:;!?¿¡。，、！？：；「」『』（）【】$\\-"
_FIRST = re.compile(rf"[{_MARKS}]{{0,20}}([^{_MARKS}]{{1,20}})(?=[{_MARKS}]|\Z)")
_CLOSED = re.compile(r"[*_`\"')\]}]{0,4}(?:[.,:;!。，、！：；—–-]|\s{0,4}(?:\Z|\n))")


@dataclass(frozen=True, slots=True)
class YesNoScorer(ByNormalForm):
    r"""Compare yes with no. Normal form: `yes` or `no`.

    Read are yes, true, correct and no, false, incorrect, and the words for yes and no in German, French,
    Spanish, Italian, Portuguese, Dutch, Polish, Russian, Turkish, Chinese, Japanese, Korean, Arabic and Hindi.
    """

    name: ClassVar[str] = "yes-no"

    def extract(self, text: str) -> str | None:
        """The word in the last box, else the announced one, else the leading one, else the last line.

        Leading: followed by punctuation or the end of its line: "No, it is", but not "No problem".
        """
        for part in (last_boxed(text), last_announced(text)):
            if part is not None and (said := self.normalise(part)) is not None:
                return said
        for line in (text[:200].lstrip(), text[-200:].rstrip().rpartition("\n")[2]):
            found = _FIRST.match(line)
            if found is not None and _CLOSED.match(line, found.end()) and (said := _meaning(found)) is not None:
                return said
        return None

    def normalise(self, answer: str) -> str | None:
        """What the first word of a bare answer says; None when it says neither."""
        found = _FIRST.match(answer)
        return None if found is None else _meaning(found)


def _meaning(found: re.Match[str]) -> str | None:
    return _WORDS.get(unicodedata.normalize("NFKC", found.group(1)).casefold())
