"""Folds `hedges` and `loops`: what the wording of a step gives away, in O(new text).

Knows words and refuses to know meaning. English marks only. A phrase that a step boundary cuts in
two is not seen; steps are cut at lines or between words.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict, deque

from suffice.types import Step

# Bounded white space: a phrase may run over a line break, never over a page.
_HEDGE = re.compile(
    r"\b(?:wait|hold\s{1,4}on|but|hmm{1,8}|actually|however|alternatively"
    r"|let\s{1,4}me\s{1,4}(?:(?:re-?|double[\s-])?check|verify|rethink|reconsider|think\s{1,4}again)"
    r"|on\s{1,4}second\s{1,4}thought|i\s{1,4}made\s{1,4}a\s{1,4}mistake)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\S+")
_GRAM_WORDS = 8
_MAX_WORD_CHARS = 64
_MAX_GRAMS = 65_536


class Hedges:
    """Count the marks of doubt and self-correction in the last step: "wait", "hmm", "let me check" …"""

    fields: tuple[str, ...] = ("hedges",)

    def __init__(self) -> None:
        self._hedges = 0

    def update(self, step: Step) -> None:
        """Take the next step in. O(its text)."""
        self._hedges = sum(1 for _ in _HEDGE.finditer(step.text))

    def values(self) -> dict[str, int]:
        """The field of Signals that this fold fills."""
        return {"hedges": self._hedges}


class Loops:
    """The share of the last step that repeats the run: is the model going round in circles?

    Of the runs of eight words that end in the step, those that occurred before, in an earlier step
    or earlier in this one. Case is ignored; words count to their 64th character. The last 65,536
    different runs are remembered, as 8 bytes each, so memory is bounded however long the thought.
    """

    fields: tuple[str, ...] = ("loop_share",)

    def __init__(self) -> None:
        self._tail: deque[str] = deque(maxlen=_GRAM_WORDS)
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._share: float | None = None

    def update(self, step: Step) -> None:
        """Take the next step in. O(its text)."""
        n_grams = n_repeated = 0
        for word in _WORD.finditer(step.text):
            begin, end = word.span()
            self._tail.append(step.text[begin : min(end, begin + _MAX_WORD_CHARS)].casefold())
            if len(self._tail) < _GRAM_WORDS:
                continue
            n_grams += 1
            n_repeated += self._remember(" ".join(self._tail))
        self._share = n_repeated / n_grams if n_grams else None

    def values(self) -> dict[str, float | None]:
        """The field of Signals that this fold fills. None: the step is too short to tell."""
        return {"loop_share": self._share}

    def _remember(self, gram: str) -> bool:
        """Was it there already? Either way it is the youngest now, and the oldest may have to go."""
        # A digest, not hash(): that one is salted anew in each process, and replay must agree with live.
        key = hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        repeated = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _MAX_GRAMS:
            self._seen.popitem(last=False)
        return repeated
