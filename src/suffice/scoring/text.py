"""Scorers of texts: `text`, `squad`, `whole`, and `regex`. None of them knows meaning: "USA" is not "United States"."""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass, field
from typing import ClassVar

from suffice.errors import ConfigError
from suffice.scoring.answer import (
    MAX_ANSWER_CHARS,
    READ_CHARS,
    ByNormalForm,
    Comparer,
    cap_answer,
    check_flag,
    check_text,
    digest_text,
    final_answer,
    is_digest,
    replace_halves,
    says_something,
    settle,
    strip_control_characters,
)
from suffice.scoring.pattern import BadPattern, Pattern, compile_pattern

_ARTICLES = frozenset({"a", "an", "the"})
_WRAPPERS = frozenset("$`")  # around formulas and code; by category they are symbols
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class TextScorer(ByNormalForm):
    """Compare short answers by their words.

    Normal form, after SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250): NFKC, case folded, without invisible
    characters, punctuation and the articles a, an, the; one space between words. Different from it, because SQuAD's
    form calls different answers equal, what is glued to digits stays (``-5``, ``1.5``, ``3:2``, ``1/2``, ``50%``; only
    commas that group thousands go), symbols stay (``C++`` is not ``C``) except ``$`` and the backtick, which wrap
    formulas and code, and so do articles when nothing else is left. A text longer than 2,000 characters is folded only
    in case and white space and replaced by a digest; one of more than 200,000 is not folded at all.
    """

    name: ClassVar[str] = "text"

    def extract(self, text: str) -> str | None:
        return final_answer(text, self.normalise)

    def normalise(self, answer: str) -> str | None:
        if len(answer) > READ_CHARS:
            return digest_text(answer)
        if len(answer) > MAX_ANSWER_CHARS:
            # Not NFKC: long runs of combining marks make it quadratic.
            folded = _SPACES.sub(" ", answer.casefold()).strip()
            return digest_text(folded) if len(folded) > MAX_ANSWER_CHARS else self.normalise(folded)
        # Several passes: dropped punctuation can bring a letter and its accent, or two digits, together.
        return settle(answer, _one_pass) or None


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


_PUNCTUATION = {ord(mark): None for mark in string.punctuation}
_SQUAD_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, slots=True)
class SquadScorer(ByNormalForm):
    """Compare short answers as SQuAD does.

    Normal form (Rajpurkar et al. 2016, arXiv:1606.05250, `evaluate-v1.1.py`; the same in HotpotQA's
    `hotpot_evaluate_v1.py`, Yang et al. 2018, arXiv:1809.09600): lower case, without ASCII punctuation, without the
    words a, an, the, one space between words. So `-5` is `5` and `1.5` is `15`. What could not be logged is replaced:
    half surrogates, control characters, long texts (by a digest). A form without a letter, digit or symbol is no
    answer.
    """

    name: ClassVar[str] = "squad"

    def extract(self, text: str) -> str | None:
        return final_answer(text, self.normalise)

    def normalise(self, answer: str) -> str | None:
        if len(answer) > READ_CHARS:
            return digest_text(answer)
        # ASCII punctuation goes before the articles do, so one pass is all: `a.n` is gone at once.
        normal = " ".join(
            _SQUAD_ARTICLES.sub(" ", strip_control_characters(answer).lower().translate(_PUNCTUATION)).split()
        )
        return cap_answer(normal) if says_something(normal) else None


_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


@dataclass(frozen=True, slots=True)
class WholeScorer:
    """Compare whole texts.

    Every character counts, except white space at the ends of lines and of the text, the way a line ends, and the way an
    accent is composed (NFC). A text of more than 2,000 characters is compared by a digest. `compare` is a scorer that
    compares the whole text instead.
    """

    name: ClassVar[str] = "whole"

    compare: Comparer | None = None

    def extract(self, text: str) -> str | None:
        return self.normalise(text)

    def normalise(self, answer: str) -> str | None:
        if self.compare is not None:
            return self.compare.normalise(answer)
        if is_digest(answer):
            return answer
        lines = "\n".join(line.rstrip() for line in answer.splitlines()).strip()
        lines = replace_halves(lines.translate(_CONTROLS))
        if not says_something(lines):
            return None
        return cap_answer(lines if len(lines) > MAX_ANSWER_CHARS else unicodedata.normalize("NFC", lines))

    def match(self, answer: str | None, gold: str) -> bool:
        if answer is None:
            return False
        if self.compare is not None:
            return self.compare.match(answer, gold)
        normal = self.normalise(answer)
        return normal is not None and (answer == gold or normal == self.normalise(gold))


@dataclass(frozen=True, slots=True)
class RegexScorer:
    """Find the answer by a pattern, see `Pattern.last`, and compare it by another scorer."""

    name: ClassVar[str] = "regex"

    pattern: str
    ignore_case: bool = False
    compare: Comparer = field(default_factory=TextScorer)
    _pattern: Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_text("scorer.pattern", self.pattern)
        check_flag("scorer.ignore_case", self.ignore_case)
        try:
            compiled = compile_pattern(self.pattern, ignore_case=self.ignore_case)
        except BadPattern as error:
            raise ConfigError(f"scorer.pattern: {error}") from None
        object.__setattr__(self, "_pattern", compiled)

    def extract(self, text: str) -> str | None:
        last = self._pattern.last(text)
        return None if last is None else self.compare.normalise(last)

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer, such as a reference, which need not match the pattern."""
        return self.compare.normalise(answer)

    def match(self, answer: str | None, gold: str) -> bool:
        return self.compare.match(answer, gold)
