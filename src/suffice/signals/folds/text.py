"""Folds `hedges` and `loops`: what the wording of a step gives away, in O(new text).

Knows words and refuses to know meaning. English marks only. A phrase that a step boundary cuts in
two is not seen; steps are cut at lines or between words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from suffice.signals.fold import Fields, SignalField
from suffice.types import Step

# On folded text. Bounded white space: a phrase may run over a line break, never over a page. Every mark begins
# with its letters and looks behind them for a word's start afterwards: so the search can skip to such letters.
_HEDGE = re.compile(
    r"(?:w(?<!\w\w)ait|b(?<!\w\w)ut|a(?<!\w\w)(?:ctually|lternatively)|h(?<!\w\w)(?:old\s{1,4}on|mm{1,8}|owever)"
    r"|let(?<!\w\w{3})\s{1,4}me\s{1,4}(?:(?:re-?|double[\s-])?check|verify|rethink|reconsider|think\s{1,4}again)"
    r"|on(?<!\w\w\w)\s{1,4}second\s{1,4}thought|i(?<!\w\w)\s{1,4}made\s{1,4}a\s{1,4}mistake)\b"
)
_GRAM_WORDS = 8
_MAX_GRAMS = 65_536
_CHUNK = _MAX_GRAMS // 4  # words at once, so that one huge step cannot outgrow the memory


@dataclass(frozen=True, slots=True)
class WordList:
    """One text without regard to case."""

    folded: str
    words: list[str]  # between white space, in order; not to be changed


@lru_cache(maxsize=1)  # the folds of one step ask one after the other; no other step's text is kept
def words_of(text: str) -> WordList:
    """The text folded, and its words. O(text); any text will do."""
    folded = text.casefold()
    return WordList(folded, folded.split())


class Hedges:
    """Count the marks of doubt and self-correction: "wait", "hmm", "let me check" …

    `hedges` are those of the last step; `hedge_rate` is their number per 100 words of the run so far.
    """

    name = "hedges"
    looks_at = 'the step\'s text: "wait", "hmm", "let me check" … in English'
    source = "Dynasor-CoT, [arXiv:2412.20993](https://arxiv.org/abs/2412.20993)"
    fields: ClassVar[Fields] = {
        "hedges": SignalField("marks of doubt and self-correction in this step", whole=True),
        "hedge_rate": SignalField("such marks per 100 words of the run so far", unknown="before the first word"),
    }

    def __init__(self) -> None:
        self._hedges = 0
        self._n_hedges = 0
        self._n_words = 0

    def update(self, step: Step) -> None:
        text = words_of(step.text)
        self._hedges = len(_HEDGE.findall(text.folded))
        self._n_hedges += self._hedges
        self._n_words += len(text.words)

    def values(self) -> dict[str, int | float | None]:
        rate = 100.0 * self._n_hedges / self._n_words if self._n_words else None
        return {"hedges": self._hedges, "hedge_rate": rate}


class Loops:
    """The share of the last step that repeats the run: is the model going round in circles?

    Of the runs of eight words that end in the step, those that occurred before, in an earlier step
    or earlier in this one. Case is ignored. The last 32,768 different runs are remembered for sure and
    none longer than the last 65,536, as one number each, so memory is bounded however long the thought.
    """

    name = "loops"
    looks_at = "the step's text: runs of eight words that occurred before"
    source = "ours"
    fields: ClassVar[Fields] = {
        "loop_share": SignalField(
            "share of the eight-word runs ending in this step that repeat the run",
            unknown="fewer than eight words",
            high=1.0,
        ),
    }

    def __init__(self) -> None:
        self._tail: list[str] = []  # the last words, one fewer than a gram has
        self._young: set[int] = set()  # when half of what may be remembered is here, it becomes the old …
        self._old: set[int] = set()  # … and the old is forgotten
        self._share: float | None = None

    def update(self, step: Step) -> None:
        words = words_of(step.text).words
        n_grams = n_new = 0
        for begin in range(0, len(words), _CHUNK):
            text = self._tail + words[begin : begin + _CHUNK]
            self._tail = text[1 - _GRAM_WORDS :]
            n_grams += max(0, len(text) - _GRAM_WORDS + 1)
            n_new += self._remember(text)
        self._share = (n_grams - n_new) / n_grams if n_grams else None

    def values(self) -> dict[str, float | None]:
        return {"loop_share": self._share}

    def _remember(self, text: list[str]) -> int:
        """Keep the grams of these words; return how many different ones were new."""
        # Another process salts hash() anew. That shows only where two of the 65,536 numbers of 64 bits meet
        # by chance: in one run of ten thousand million.
        grams: Iterable[int] = map(hash, zip(*(text[i:] for i in range(_GRAM_WORDS)), strict=False))
        n_old = 0
        if self._old:
            grams = set(grams)
            n_old = len((grams - self._young) & self._old)
        before = len(self._young)
        self._young.update(grams)
        n_new = len(self._young) - before - n_old
        if len(self._young) >= _MAX_GRAMS // 2:
            self._old, self._young = self._young, set()
        return n_new
