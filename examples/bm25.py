"""A small BM25 index in memory (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework")."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from math import log

K1, B = 1.2, 0.75


class Index:
    """Finds the passages that share the rarest words with a query."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.passages = list(passages)
        self._counts = [Counter(_words(p)) for p in self.passages]
        self._mean = sum(c.total() for c in self._counts) / len(self._counts)
        self._n_with = Counter(word for counts in self._counts for word in counts)

    def search(self, query: str, k: int, without: Collection[str] = ()) -> list[str]:
        """The best `k` passages that are not in `without`."""
        words = set(_words(query))
        scored = [(self._score(words, i), -i) for i, p in enumerate(self.passages) if p not in without]
        return [self.passages[-i] for score, i in sorted(scored, reverse=True)[:k] if score > 0]

    def _score(self, words: set[str], i: int) -> float:
        counts, n = self._counts[i], len(self.passages)
        length = K1 * (1 - B + B * counts.total() / self._mean)
        return sum(
            log(1 + (n - self._n_with[w] + 0.5) / (self._n_with[w] + 0.5)) * counts[w] * (K1 + 1) / (counts[w] + length)
            for w in words
            if w in counts
        )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
