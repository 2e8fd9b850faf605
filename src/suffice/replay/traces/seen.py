"""Which runs were seen already, in 8 bytes each: duplicates are found in files of any length.

A run is told by dataset, model, run and question. Its hash has 64 bits and is keyed by the process:
among 5 million runs the chance that two different ones are taken for the same is under 1e-6.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.replay.traces.columns import TextColumn, TraceColumns

ID: Final = ("dataset", "model", "run", "question_id")
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads sums over all bits


class HashSet:
    """Hashes in sorted stretches; stretches of like size are merged, so each is sorted rarely."""

    def __init__(self) -> None:
        self._stretches: list[NDArray[np.uint64]] = []

    def add(self, columns: TraceColumns) -> None:
        """Take runs in. Raises TraceError at the first that was seen already."""
        if not len(columns):
            return
        hashes = _hashes(columns)
        order = np.argsort(hashes, kind="stable")
        fresh = hashes[order]
        again = np.zeros(len(fresh), dtype=bool)
        again[order[1:]] = fresh[1:] == fresh[:-1]
        for stretch in self._stretches:
            place = np.searchsorted(stretch, hashes)
            again |= stretch[np.minimum(place, len(stretch) - 1)] == hashes
        if again.any():
            raise _duplicate(columns, int(np.argmax(again)))
        self._keep(fresh)

    def _keep(self, fresh: NDArray[np.uint64]) -> None:
        while self._stretches and len(self._stretches[-1]) <= 2 * len(fresh):
            fresh = np.sort(np.concatenate([self._stretches.pop(), fresh]), kind="stable")
        self._stretches.append(fresh)


def _hashes(columns: TraceColumns) -> NDArray[np.uint64]:
    total = np.zeros(len(columns), dtype=np.uint64)
    for name in ID:
        total = (total ^ _hash_words(columns.texts[name])) * _ODD
        total ^= total >> np.uint64(29)
    return total


def _hash_words(column: TextColumn) -> NDArray[np.uint64]:
    by_code = np.fromiter((hash(word) for word in column.words), dtype=np.int64, count=len(column.words))
    found: NDArray[np.uint64] = by_code.view(np.uint64)[column.codes]
    return found


def _duplicate(columns: TraceColumns, i: int) -> TraceError:
    told = ", ".join(f"{name} {columns.texts[name].words[columns.texts[name].codes[i]]!r:.60}" for name in ID)
    return TraceError(
        f"the same run stands in an earlier row ({told}); these four together must be unique",
        file=columns.file,
        row=int(columns.row[i]),
    )
