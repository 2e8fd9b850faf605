"""A step's text, folded and cut into words once for all the folds that read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


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
