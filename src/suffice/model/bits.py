"""Small trees, all at once: which leaf of each tree is reached, by one AND a feature.

QuickScorer (Lucchese et al. 2015, SIGIR, doi:10.1145/2766462.2767733): every tree has a byte, each of its leaves a
bit, the first leaf the lowest. A split that sends the row to the right rules out the leaves on its left. The
splits on one feature are sorted by threshold, so those that rule something out are a prefix, and what a
prefix rules out is worked out beforehand. Of the leaves that remain the first is the one reached.
It knows bytes and tables and refuses to know how trees are written.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

MOST_LEAVES: Final = 8
_CHUNK: Final = 8_192  # rows at once, so that their bytes stay near the processor


@dataclass(frozen=True, slots=True)
class TreeSplit:
    """One inner node: rows with row[feature] > threshold cannot reach the leaves in `ruled_out`."""

    feature: int
    threshold: float
    ruled_out: int  # bits of leaves of this tree


Leafed: TypeAlias = tuple[Sequence[TreeSplit], Sequence[float]]  # splits, and the leaves' values from left to right


class Bits:
    """The sum of some trees of at most eight leaves each."""

    __slots__ = ("_all", "_features", "_n_bytes", "_plan", "_tables")

    def __init__(self, trees: Sequence[Leafed]) -> None:
        self._n_bytes = len(trees)
        self._all = int.from_bytes(bytes((1 << len(values)) - 1 for _, values in trees), "little")
        self._tables = [_table(values) for _, values in trees]
        by_feature: dict[int, list[tuple[float, int]]] = {}
        for at, (splits, _) in enumerate(trees):
            for split in splits:
                by_feature.setdefault(split.feature, []).append((split.threshold, split.ruled_out << 8 * at))
        self._plan = [(feature, *_prefixes(found, self._all)) for feature, found in sorted(by_feature.items())]

    def one(self, row: Sequence[float]) -> float:
        """The sum for one row."""
        left = self._all
        # Measured against map and reduce, which are slower here: calls from a loop are specialised.
        for feature, thresholds, masks in self._plan:
            left &= masks[bisect_left(thresholds, row[feature])]
        return sum(map(getitem, self._tables, left.to_bytes(self._n_bytes, "little")))

    def many(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum for each row of a matrix, shape (n rows, n features)."""
        words = max(1, -(-self._n_bytes // 8))
        start = _words([self._all], words)[0]
        plan = [(feature, np.array(cuts), _words(masks, words)) for feature, cuts, masks in self._plan]
        tables = np.array(self._tables)
        sums = np.empty(len(matrix))
        for begin in range(0, len(matrix), _CHUNK):
            rows = matrix[begin : begin + _CHUNK]
            left = np.tile(start, (len(rows), 1))
            for feature, cuts, masks in plan:
                left &= masks[np.searchsorted(cuts, rows[:, feature], side="left")]
            leaves = left.view(np.uint8)
            total = np.zeros(len(rows))
            for at, table in enumerate(tables):
                total += table[leaves[:, at]]
            sums[begin : begin + _CHUNK] = total
        return sums


def _table(values: Sequence[float]) -> list[float]:
    """For each byte the value of its lowest bit's leaf. No byte is ever 0."""
    return [
        0.0,
        *(
            values[(byte & -byte).bit_length() - 1] if (byte & -byte).bit_length() <= len(values) else 0.0
            for byte in range(1, 256)
        ),
    ]


def _prefixes(found: Iterable[tuple[float, int]], everything: int) -> tuple[list[float], list[int]]:
    """Thresholds, rising, and what remains when the first 0, 1, 2 … of them are passed."""
    ordered = sorted(found)
    masks = [everything]
    for _, ruled_out in ordered:
        masks.append(masks[-1] & ~ruled_out)
    return [threshold for threshold, _ in ordered], masks


def _words(numbers: Iterable[int], n_words: int) -> NDArray[np.uint64]:
    """Long numbers as rows of 64-bit words, the lowest first."""
    packed = b"".join(number.to_bytes(8 * n_words, "little") for number in numbers)
    return np.frombuffer(packed, dtype="<u8").reshape(-1, n_words)
