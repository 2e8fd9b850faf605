"""Is a probability to be taken at its word: what the models said of rows that they had not seen, against what was seen.

Validity never hangs on this, since thresholds are certified afterwards; people read probabilities all the same, and a
model that has lost its calibration is a model whose world has moved. Knows rows and models; refuses to know levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.assurance.estimate import IntervalEstimate
from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.learn.audits import Floats, Ints
from suffice.learn.dataset import Dataset
from suffice.learn.export import export_isotonic
from suffice.learn.resample import Resamples
from suffice.learn.rows import full_weights, good_rows_of_run, label_weights
from suffice.learn.version import FoldedVersion
from suffice.model.calibration import Isotonic

Learned: TypeAlias = Literal["as-good", "hopeless"]

N_BINS: Final = 10
_MOST_KNOTS: Final = 20  # of the curve that is shown to people


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Rows of about equal probability."""

    low: float  # the first and the last probability in the bin
    high: float
    n: int  # rows
    said: float  # mean probability
    seen: IntervalEstimate  # share of rows where it came true


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far a model's probability can be taken at its word."""

    bins: tuple[Bin, ...]
    ece: IntervalEstimate  # expected calibration error: mean |said - seen| over the bins, weighted by their rows
    bias: IntervalEstimate  # mean said - mean seen: above 0 the model is too sure
    shown: Isotonic | None  # from what the model says to what was seen: for people; thresholds do not need it


def calibrate(data: Dataset, version: FoldedVersion, target: Learned, rng: np.random.Generator) -> Calibration:
    """Judge one probability on the checkpoints of full runs, each by the model that has not seen its prompt.

    Needs labels where the target does, and models that have it (ValueError). Bins hold about as many rows each.
    """
    rows, weight = _rows(data, target)
    p = _said(data, version, target, rows)
    good = good_rows_of_run(data, target)[rows].astype(np.float64)
    draws = Resamples([data.key[i] for i in data.run_of_row[rows]], rng)
    edges = np.quantile(p, np.arange(1, N_BINS) / N_BINS) if len(p) else np.zeros(N_BINS - 1)
    number = np.searchsorted(edges, p, side="right")
    inside = (number[:, None] == np.arange(N_BINS)) * weight[:, None]
    sums = draws.drawn(np.concatenate([inside * p[:, None], inside * good[:, None], inside], axis=1))
    bins = []
    for b in np.unique(number):
        here = number == b
        n = int(here.sum())
        bins.append(
            Bin(
                low=float(p[here].min()),
                high=float(p[here].max()),
                n=n,
                said=float(np.average(p[here], weights=weight[here])),
                seen=draws.rate(sums, N_BINS + int(b), 2 * N_BINS + int(b), n=n),
            )
        )
    ece = draws.estimate(sums, _ece, n=len(rows), pivot=True)
    bias = draws.estimate(sums, _bias, n=len(rows))
    return Calibration(bins=tuple(bins), ece=ece, bias=bias, shown=_isotonic(p, good, weight))


def _rows(data: Dataset, target: Learned) -> tuple[Ints, Floats]:
    """Rows where something could be decided, and what their runs stand for."""
    weight = full_weights(data) * data.full
    if target == "hopeless":
        labels = label_weights(data)
        weight = weight * (0.0 if labels is None else labels)
    inner = np.ones(len(data.x), dtype=bool)
    inner[data.last] = False
    rows = np.flatnonzero(inner & data.may_stop & (weight > 0)[data.run_of_row])
    return rows, weight[data.run_of_row[rows]]


def _said(data: Dataset, version: FoldedVersion, target: Learned, rows: Ints) -> Floats:
    fold = data.fold[data.run_of_row[rows]]
    x, p = data.columns(version.models[0].features), np.empty(len(rows))
    for f, model in enumerate(version.models):
        ensemble = model.suffices if target == "as-good" else model.hopeless
        if ensemble is None:
            raise ValueError(f"version {version.address}: has no model of {target}")
        p[fold == f] = ensemble.scores(x[rows[fold == f]])
    return p


def _ece(sums: Floats) -> Floats:
    said, seen, weight = np.split(sums, 3, axis=1)
    return np.asarray(np.abs(said - seen).sum(axis=1) / weight.sum(axis=1))


def _bias(sums: Floats) -> Floats:
    said, seen, weight = np.split(sums, 3, axis=1)
    return np.asarray((said - seen).sum(axis=1) / weight.sum(axis=1))


def _isotonic(p: Floats, good: Floats, weight: Floats) -> Isotonic | None:
    """A rising curve of a few points, for people; None where all rows say the same."""
    if len(np.unique(p)) < 2:
        return None
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise ConfigError(f"learn: needs scikit-learn: {how_to_install('train')}") from None
    whole = export_isotonic(IsotonicRegression(out_of_bounds="clip", y_min=0.0, y_max=1.0).fit(p, good, weight))
    if len(whole.scores) <= _MOST_KNOTS:
        return whole
    at = np.unique(np.quantile(p, np.linspace(0, 1, _MOST_KNOTS)))
    return Isotonic(tuple(at.tolist()), tuple(whole.many(at).tolist()))
