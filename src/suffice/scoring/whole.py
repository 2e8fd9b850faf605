"""Scorer `whole`: the whole text is the answer.

For programs, translations and tasks that ask for nothing but the answer. Knows white space and
Unicode's composed form, and refuses to look for an announcement.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from suffice.scoring.normal import MAX_ANSWER_CHARS, digest_text, is_digest, says_something
from suffice.scoring.spec import Comparer

_HALVES = re.compile("[\ud800-\udfff]")
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


@dataclass(frozen=True, slots=True)
class WholeScorer:
    """Compare whole texts.

    Normal form: every character counts, capitals and punctuation too, except white space at the ends of
    lines and of the text, the way a line ends, and the way an accent is composed (NFC). A text of more than
    2,000 characters stands as a digest.

    compare  a scorer's name or table that compares the whole text instead, such as `squad`; None: as above
    """

    name: ClassVar[str] = "whole"

    compare: Comparer | None = None

    def extract(self, text: str) -> str | None:
        """The normal form of the text; None when there is no letter, digit or symbol in it."""
        return self.normalise(text)

    def normalise(self, answer: str) -> str | None:
        """The same as `extract`."""
        if self.compare is not None:
            return self.compare.normalise(answer)
        if is_digest(answer):
            return answer
        lines = "\n".join(line.rstrip() for line in answer.splitlines()).strip()
        lines = _HALVES.sub("\ufffd", lines.translate(_CONTROLS))
        if not says_something(lines):
            return None
        if len(lines) > MAX_ANSWER_CHARS:
            return digest_text(lines)
        composed = unicodedata.normalize("NFC", lines)
        return composed if len(composed) <= MAX_ANSWER_CHARS else digest_text(composed)

    def match(self, answer: str | None, gold: str) -> bool:
        """Is `answer` the reference? None never is."""
        if answer is None:
            return False
        if self.compare is not None:
            return self.compare.match(answer, gold)
        normal = self.normalise(answer)
        return normal is not None and (answer == gold or normal == self.normalise(gold))
