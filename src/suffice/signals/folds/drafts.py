"""Fold `drafts`: has the text, or the answer, stopped changing from one step to the next?

Knows words and, where a step brings one, its embedding; refuses to fetch an embedding: vectors come in
with the step. Whether a draft that stands still is a good one is for a policy and its measurements.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import mul
from typing import ClassVar, Protocol

from suffice.signals.fold import Fields, SignalField, parse_parameter
from suffice.signals.folds.text import words_of
from suffice.types import Step

_LONG_WORDS = 20  # characters on average: more than words of a text with spaces have


class Embedder(Protocol):
    """Turns texts into vectors of one length. Does I/O, so it is called before the step is observed.

    `edge/embedder` asks any `/v1/embeddings`.
    """

    @property
    def rests(self) -> bool:
        """Has it failed lately, so that asking now would give nothing?"""
        ...

    def recall(self, text: str) -> tuple[float, ...] | None:
        """The vector that it gave for this text before, at no cost; None: it would have to ask."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...] | None]:
        """One vector for each text; None where there is none, which is never an error."""
        ...


class Drafts:
    """How far the last step is from the one before, and for how long it has hardly moved.

    The distance is 1 - the cosine of the two steps' vectors where both have one of the same length (a
    negative cosine counts as 0); otherwise 1 - the weighted overlap of their words, sum of the smaller counts
    over sum of the larger (Ruzicka's form of Jaccard's index), case ignored. Compared are the texts, or the
    answers where one of the steps has no text. The rule that waits for small distances in a row is that of
    "semantic early stopping", arXiv:2606.27009, there on embeddings.

    threshold  at or below it a draft hardly moved, from 0 to 1; the default is ours
    """

    name = "drafts"
    looks_at = (
        "the step's text, or its answer, against the step before: by words, by vectors where both steps bring one"
    )
    source = "[arXiv:2606.27009](https://arxiv.org/abs/2606.27009)"
    parameters: ClassVar[Mapping[str, str]] = {"threshold": "at or below it a draft hardly moved"}
    fields: ClassVar[Fields] = {
        "draft_distance": SignalField(
            "1 − the weighted overlap of the words (smaller counts over larger ones), or 1 − cosine of the vectors",
            unknown="first step, nothing to compare",
            high=1.0,
        ),
        "draft_patience": SignalField("steps in a row whose distance was at most the threshold", whole=True),
    }

    def __init__(self, *, threshold: float = 0.1) -> None:
        self._threshold = parse_parameter("drafts.threshold", threshold, most=1.0, low_included=True)
        self._before: _Draft | None = None
        self._distance: float | None = None
        self._patience: int | None = None

    def update(self, step: Step) -> None:
        draft = _Draft(step)
        self._distance = None if self._before is None else _distance(self._before, draft)
        self._before = draft
        still = self._distance is not None and self._distance <= self._threshold
        self._patience = (self._patience or 0) + 1 if still else 0

    def values(self) -> dict[str, int | float | None]:
        return {"draft_distance": self._distance, "draft_patience": self._patience}


class _Draft:
    """One step as it is compared: the words of its text are counted once, though it is compared twice."""

    __slots__ = ("answer", "text", "vector")

    def __init__(self, step: Step) -> None:
        self.vector = step.vector
        self.text = _words(step.text) if step.text else None
        self.answer = step.answer


def _distance(before: _Draft, now: _Draft) -> float | None:
    if now.vector and len(now.vector) == len(before.vector):
        cosine = _cosine(before.vector, now.vector)
        if cosine is not None:
            return min(1.0, max(0.0, 1.0 - cosine))
    if before.text is not None and now.text is not None:
        return 1.0 - _overlap(before.text, now.text)
    if before.answer is None or now.answer is None:
        return None
    return 0.0 if before.answer == now.answer else 1.0 - _overlap(_words(before.answer), _words(now.answer))


def _words(text: str) -> Counter[str]:
    cut = words_of(text)
    # A formula, an address or a script without spaces counts by its characters.
    return Counter(cut.words if len(cut.folded) <= _LONG_WORDS * len(cut.words) else "".join(cut.words))


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    """Sum of the smaller counts over sum of the larger, [0, 1]; nothing against nothing is the same."""
    if len(a) > len(b):
        a, b = b, a
    get = b.get
    shared = sum([min(count, get(word, 0)) for word, count in a.items()])
    everything = a.total() + b.total() - shared
    return shared / everything if everything else 1.0


def _cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float | None:
    """Cosine of the angle, [-1, 1]; None for a vector that is zero or holds what is no number."""
    length = math.hypot(*a) * math.hypot(*b)
    if not 0.0 < length < math.inf:
        return None
    cosine = sum(map(mul, a, b)) / length
    return cosine if math.isfinite(cosine) else None
