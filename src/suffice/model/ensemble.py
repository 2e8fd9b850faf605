"""One probability from several models: the mean of their logits."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import getitem, mul
from typing import Final, TypeAlias

import numpy as np
from msgspec import Struct
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.reading import check_list, exact_float, locate_errors, numbers, parse_whole

# ---- Sums of binary trees over features that are never missing

MOST_TREES: Final = 2_000
MOST_LEAVES: Final = 8  # of one tree: a byte of QuickScorer
MOST_NODES: Final = 2 * MOST_LEAVES - 1
_MOST_FEATURES: Final = 1_000_000
_CHUNK: Final = 8_192  # rows at once, to fit the processor's cache
COLUMNS: Final = ("feature", "threshold", "left", "right", "value")
LEAF: Final = -1  # marks a leaf in `feature`

Split: TypeAlias = tuple[int, float, int]  # feature, threshold, bits of the leaves that a larger value cannot reach


class Tree(Struct, frozen=True, forbid_unknown_fields=True):
    """Columns with an entry per node, the root first. row[feature] <= threshold goes left; unused entries are 0."""

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in COLUMNS:
            force_setattr(self, name, check_list(name, getattr(self, name)))
        n_nodes = len(self.feature)
        if not 0 < n_nodes <= MOST_NODES:
            raise ConfigError(f"feature: got {n_nodes:,} nodes; 1 to {MOST_NODES:,}")
        for name in COLUMNS:
            if len(getattr(self, name)) != n_nodes:
                raise ConfigError(f"{name}: got {len(getattr(self, name)):,} for {n_nodes:,} nodes; one for each")
        force_setattr(self, "threshold", numbers("threshold", self.threshold))
        force_setattr(self, "value", numbers("value", self.value))
        parents: dict[int, int] = {0: -1}
        for at, feature in enumerate(self.feature):
            parse_whole(f"feature[{at}]", feature, least=LEAF, most=_MOST_FEATURES)
            for name in ("left", "right"):
                self._check_child(name, at, parents, is_leaf=feature == LEAF)
        if len(parents) != n_nodes:
            raise ConfigError(f"left: {n_nodes - len(parents)} of {n_nodes} nodes have no parent")

    def _check_child(self, name: str, at: int, parents: dict[int, int], *, is_leaf: bool) -> None:
        child: int = getattr(self, name)[at]
        if is_leaf:
            parse_whole(f"{name}[{at}]", child, least=0, most=0)
        elif parse_whole(f"{name}[{at}]", child, least=at + 1, most=len(self.feature) - 1) in parents:
            raise ConfigError(f"{name}[{at}]: got {child}, which has a parent; each node has one")
        else:
            parents[child] = at

    def leafed(self) -> tuple[list[Split], list[float]]:
        """The splits with the leaves they exclude, and the leaves' values from left to right."""
        splits: list[Split] = []
        values: list[float] = []

        def visit(at: int) -> None:
            if self.feature[at] == LEAF:
                values.append(self.value[at])
                return
            first = len(values)
            visit(self.left[at])
            splits.append((self.feature[at], self.threshold[at], (1 << len(values)) - (1 << first)))
            visit(self.right[at])

        visit(0)
        return splits, values


class Trees(Struct, frozen=True, forbid_unknown_fields=True, dict=True, tag_field="kind", tag="trees"):
    baseline: float
    trees: tuple[Tree, ...]

    def __post_init__(self) -> None:
        force_setattr(self, "baseline", exact_float("baseline", self.baseline))
        if len(self.trees) > MOST_TREES:
            raise ConfigError(f"trees: got {len(self.trees):,}; at most {MOST_TREES:,}")
        _ = self._scorer  # made now, not in the first request

    @cached_property
    def _scorer(self) -> _QuickScorer:
        return _QuickScorer(self.trees)

    def check(self, n_features: int) -> None:
        for at, tree in enumerate(self.trees):
            if max(tree.feature) >= n_features:
                raise ConfigError(f"trees[{at}].feature: got {max(tree.feature)}; there are {n_features:,} features")

    def raw(self, row: Sequence[float]) -> float:
        return self.baseline + self._scorer.one(row)

    def raws(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.baseline + self._scorer.many(matrix)


class _QuickScorer:
    __slots__ = ("_all", "_n_bytes", "_plan", "_tables")

    def __init__(self, columns: Sequence[Tree]) -> None:
        trees = [tree.leafed() for tree in columns]
        self._n_bytes = len(trees)
        self._all = int.from_bytes(bytes((1 << len(values)) - 1 for _, values in trees), "little")
        self._tables = [_table(values) for _, values in trees]
        by_feature: dict[int, list[tuple[float, int]]] = {}
        for at, (splits, _) in enumerate(trees):
            for feature, threshold, excluded in splits:
                by_feature.setdefault(feature, []).append((threshold, excluded << 8 * at))
        self._plan = [(feature, *_prefixes(cuts, self._all)) for feature, cuts in sorted(by_feature.items())]

    def one(self, row: Sequence[float]) -> float:
        left = self._all
        # Measured: map and reduce are slower, because calls from a loop are specialised.
        for feature, thresholds, masks in self._plan:
            left &= masks[bisect_left(thresholds, row[feature])]
        return sum(map(getitem, self._tables, left.to_bytes(self._n_bytes, "little")))

    def many(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
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
    """Value of the lowest bit's leaf for each byte; no byte is ever 0."""
    padded = [0.0, *values, *(0.0,) * (MOST_LEAVES - len(values))]
    return [padded[(byte & -byte).bit_length()] for byte in range(256)]


def _prefixes(cuts: Iterable[tuple[float, int]], everything: int) -> tuple[list[float], list[int]]:
    """Thresholds, rising, and the leaves that remain after the first 0, 1, 2 … of them."""
    ordered = sorted(cuts)
    masks = [everything]
    for _, excluded in ordered:
        masks.append(masks[-1] & ~excluded)
    return [threshold for threshold, _ in ordered], masks


def _words(numbers: Iterable[int], n_words: int) -> NDArray[np.uint64]:
    packed = b"".join(number.to_bytes(8 * n_words, "little") for number in numbers)
    return np.frombuffer(packed, dtype="<u8").reshape(-1, n_words)


MOST_PARTS: Final = 16
MOST_LOGIT: Final = math.log(0.9999 / 0.0001)


class Linear(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="linear"):
    """weights · row + intercept; the weights include any scaling of the trainer."""

    weights: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        force_setattr(self, "weights", numbers("weights", self.weights))
        force_setattr(self, "intercept", exact_float("intercept", self.intercept))

    def check(self, n_features: int) -> None:
        if len(self.weights) != n_features:
            raise ConfigError(f"weights: got {len(self.weights):,}; one for each of {n_features:,} features")

    def raw(self, row: Sequence[float]) -> float:
        return sum(map(mul, self.weights, row), self.intercept)

    def raws(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(matrix @ np.array(self.weights) + self.intercept)


ModelPart: TypeAlias = Linear | Trees  # each gives a logit for a row, and for the rows of a matrix


class Ensemble(Struct, frozen=True, forbid_unknown_fields=True):
    """The sigmoid of the mean of the parts' clipped logits. A nan is the lowest logit."""

    parts: tuple[ModelPart, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.parts) <= MOST_PARTS:
            raise ConfigError(f"parts: got {len(self.parts)}; 1 to {MOST_PARTS}")

    def check(self, n_features: int) -> None:
        for i, part in enumerate(self.parts):
            with locate_errors(f"parts[{i}]"):
                part.check(n_features)

    def raw(self, row: Sequence[float]) -> float:
        total = 0.0
        for part in self.parts:
            logit = part.raw(row)
            total += MOST_LOGIT if logit > MOST_LOGIT else max(-MOST_LOGIT, logit)
        return total / len(self.parts)

    def raws(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = [np.fmin(np.fmax(part.raws(matrix), -MOST_LOGIT), MOST_LOGIT) for part in self.parts]
        return np.asarray(np.mean(logits, axis=0))

    def score(self, row: Sequence[float]) -> float:
        return 1.0 / (1.0 + math.exp(-self.raw(row)))  # logits are clipped, so this cannot overflow

    def scores(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(1.0 / (1.0 + np.exp(-self.raws(matrix))))
