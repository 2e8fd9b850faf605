"""How far reviewers agree beyond chance: Cohen's kappa for two of them, Fleiss' kappa for all.

    verdicts on the same items ──▶ tables ──▶ Kappa with its interval

A kappa of 1 is full agreement, 0 is what chance alone would give. Pure: tables in, numbers out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.review.queue import ItemState

Floats = NDArray[np.float64]

LEAST_ITEMS: Final = 20  # below so many an interval by large samples says more than is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Kappa:
    value: float | None  # None: everybody always said the same thing, and chance alone would explain it
    low: float | None  # ends of the interval; None: too few items
    high: float | None
    error: float | None  # standard error; None: as `value`
    observed: float  # share of pairs of verdicts that are equal
    n_items: int
    n_raters: int
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    overall: Kappa | None  # Fleiss; None: no item has two verdicts
    pairs: tuple[tuple[str, str, Kappa], ...]  # Cohen, for each two who judged the same items, the most items first
    n_contradicted: int  # items that a third person had or has to decide


def cohen(table: Sequence[Sequence[float]], *, confidence: float = 0.95) -> Kappa:
    """Cohen's kappa of two raters, with its large-sample interval.

    Cohen (1960), Educ. Psychol. Meas. 20(1); standard error after Fleiss, Cohen and Everitt (1969), Psychol. Bull.
    72(5), eq. 13, which does not suppose that the raters agree by chance alone.

    table       items by category of the first rater (rows) and of the second one (columns), square
    confidence  two-sided, in (0, 1)

    Raises ValueError for a table that is not square, is empty or has a number below 0.
    """
    counts = np.array(table, dtype=np.float64)
    n = float(counts.sum())
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or n <= 0 or (counts < 0).any():
        raise ValueError(f"table: need a square of counts, at least one above 0; got shape {counts.shape}, sum {n:g}")
    p = counts / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if 1 - chance < 1e-12:
        return _unknown(observed, round(n), 2, "Cohen")
    value = (observed - chance) / (1 - chance)
    diagonal = float((np.diag(p) * (1 - (rows + columns) * (1 - value)) ** 2).sum())
    weights = (rows[np.newaxis, :] + columns[:, np.newaxis]) ** 2  # of cell (i, j): row total j and column total i
    apart = float((p * weights).sum() - (np.diag(p) * np.diag(weights)).sum())
    variance = diagonal + (1 - value) ** 2 * apart - (value - chance * (1 - value)) ** 2
    error = sqrt(max(0.0, variance) / n) / (1 - chance)
    return _kappa(value, error, observed, round(n), 2, "Cohen", confidence)


def fleiss(counts: Sequence[Sequence[int]], *, confidence: float = 0.95) -> Kappa:
    """Fleiss' kappa of any number of raters, who may be others for each item, with its large-sample interval.

    Fleiss (1971), Psychol. Bull. 76(5); standard error after Gwet (2021), Educ. Psychol. Meas. 81(4), which does not
    suppose that the raters agree by chance alone.

    counts      verdicts by item (rows) and category (columns); at least two for each item
    confidence  two-sided, in (0, 1)

    Raises ValueError without items, or for an item with fewer than two verdicts.
    """
    table = np.array(counts, dtype=np.float64)
    if table.ndim != 2 or not len(table) or (table < 0).any() or (table.sum(axis=1) < 2).any():
        raise ValueError("counts: need at least one item, and two verdicts or more for each")
    raters = table.sum(axis=1)
    same: Floats = (table * (table - 1)).sum(axis=1) / (raters * (raters - 1))
    shares: Floats = (table / raters[:, np.newaxis]).mean(axis=0)
    observed, chance = float(same.mean()), float(shares @ shares)
    n = len(table)
    if 1 - chance < 1e-12:
        return _unknown(observed, n, round(raters.max()), "Fleiss")
    value = (observed - chance) / (1 - chance)
    each = (same - chance) / (1 - chance)
    by_chance = (table / raters[:, np.newaxis]) @ shares
    moved = each - 2 * (1 - value) * (by_chance - chance) / (1 - chance)
    error = sqrt(float(((moved - value) ** 2).sum()) / (n * (n - 1))) if n > 1 else None
    return _kappa(value, error, observed, n, round(raters.max()), "Fleiss", confidence)


def agreement(places: Iterable[ItemState], *, confidence: float = 0.95) -> Agreement:
    found = [(one, one.independent) for one in places if len(one.verdicts) >= 2]
    judged = [place for place, independent in found if len(independent) >= 2]
    said = [{one.reviewer: one.category for one in independent} for _, independent in found if len(independent) >= 2]
    names = sorted({category for one in said for category in one.values()})
    pairs = []
    for first, second in combinations(sorted({name for one in said for name in one}), 2):
        both = [(one[first], one[second]) for one in said if first in one and second in one]
        if both:
            met = Counter(both)
            table = [[met[row, column] for column in names] for row in names]
            pairs.append((first, second, cohen(table, confidence=confidence)))
    counts = [[list(one.values()).count(name) for name in names] for one in said]
    return Agreement(
        overall=fleiss(counts, confidence=confidence) if counts else None,
        pairs=tuple(sorted(pairs, key=lambda pair: -pair[2].n_items)),
        n_contradicted=sum(one.needs_third for one in judged),
    )


def _kappa(
    value: float, error: float | None, observed: float, n: int, n_raters: int, method: str, confidence: float
) -> Kappa:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    known = error is not None and n >= LEAST_ITEMS
    return Kappa(
        value=value,
        error=error,
        observed=observed,
        n_items=n,
        n_raters=n_raters,
        method=method,
        low=max(-1.0, value - z * error) if known and error is not None else None,
        high=min(1.0, value + z * error) if known and error is not None else None,
    )


def _unknown(observed: float, n: int, n_raters: int, method: str) -> Kappa:
    return Kappa(
        value=None, low=None, high=None, error=None, observed=observed, n_items=n, n_raters=n_raters, method=method
    )
