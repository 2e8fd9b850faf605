"""Ladders: families of stopping rules in order, from the safest setting to the most aggressive.

A point is picked on a ladder from its safe end (`replay.study.points`). Published rules stand in one grid,
`grid.toml`, the same for every replay; learned scores make ladders of their own from their risk levels.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from math import isnan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.learn.ragged import first_passages
from suffice.learn.value_model import PRICES
from suffice.policy.base import build_policy, stops_of
from suffice.policy.protocol import Policy
from suffice.policy.returning import return_step, returns_of
from suffice.replay.study.runs import Floats, Halts, Runs, Says, first_bits, first_stops
from suffice.signals.classes import Classes
from suffice.types import Kind

# Folds that read the run's own text and tokens: a policy that needs no others asks for no probe before its stop.
_WITHOUT_PROBES = frozenset({"plan", "query", "wording", "hedges", "loops", "said"})

Origin = Literal["published", "ours", "given"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRung:
    """A policy of the table at fixed parameters."""

    policy: Policy
    spec: Mapping[str, Any]
    label: str

    @property
    def asks(self) -> bool:
        """Does it need a fold that reads trial answers?"""
        return any(need.partition("(")[0] not in _WITHOUT_PROBES for need in self.policy.needs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskRung:
    """A learned score at one level: a risk at or below which it stops, or for the value model a price of tokens."""

    score: str  # which of the scores that a study has computed
    level: float
    label: str
    spec: Mapping[str, Any] | None = None

    @property
    def asks(self) -> bool:
        """A learned score reads everything."""
        return True

    def halts(self, risk: Says, code: NDArray[np.int8], runs: Runs) -> Halts:
        """Where it ends each run: see `halts_at`."""
        return halts_at(risk, np.array([self.level]), runs, code)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassedRung:
    """A learned score with a level of its own for some classes of queries."""

    score: str
    level: float  # of queries of every other class
    classes: Classes  # what says a query's class
    levels: Mapping[str, float]  # by class
    label: str
    spec: Mapping[str, Any] | None = None

    @property
    def asks(self) -> bool:
        """A learned score reads everything."""
        return True

    def halts(self, risk: Floats, code: NDArray[np.int8], runs: Runs) -> Halts:
        """Where it ends each run: see `halts_at`."""
        level = np.array([self.levels.get(self.classes.of(query), self.level) for query in runs.queries])
        different, which = np.unique(level, return_inverse=True)
        row = first_passages(risk, runs.starts, different)[which, np.arange(len(runs))]
        return Halts(row, np.where(row == runs.last, 0, code[row]).astype(np.int8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """Rungs of one rule, safe first."""

    name: str
    origin: Origin
    rungs: tuple[PolicyRung, ...] | tuple[RiskRung, ...]


def published(kind: Kind, *, longest: int) -> tuple[Ladder, ...]:
    """The published rules of the grid that make sense for runs of this kind with up to `longest` steps."""
    text = resources.files("suffice.replay.study").joinpath("grid.toml").read_text(encoding="utf-8")
    return read_grid(text, kind, longest=longest)


def read_grid(text: str, kind: Kind, *, longest: int) -> tuple[Ladder, ...]:
    """Ladders from a grid file's text. Raises ConfigError with the ladder at fault."""
    ladders = []
    for table in tomllib.loads(text).get("ladder", []):
        if kind not in table.get("kinds", (kind,)):
            continue
        name, parameter = str(table["name"]), str(table["parameter"])
        values = [value for value in _values(table["values"]) if not isinstance(value, int) or value <= longest]
        specs = [{"policy": table["policy"], **table.get("fixed", {}), parameter: value} for value in values]
        try:
            rungs = tuple(
                PolicyRung(policy=build_policy(spec), spec=spec, label=f"{name} {value:g}")
                for spec, value in zip(specs, values, strict=True)
            )
        except ConfigError as error:
            raise ConfigError(f"grid: ladder {name!r}: {error}") from None
        ladders.append(Ladder(name=name, origin="published", rungs=rungs))
    return tuple(ladders)


def given(spec: Mapping[str, Any], label: str) -> Ladder:
    """A ladder of one rung: a policy that the user wrote down. Raises ConfigError."""
    return Ladder(name=label, origin="given", rungs=(PolicyRung(policy=build_policy(spec), spec=spec, label=label),))


def ladder_folds(ladders: Sequence[Ladder]) -> tuple[str, ...]:
    """All folds that the ladders' policies read."""
    rungs = (rung for ladder in ladders for rung in ladder.rungs if isinstance(rung, PolicyRung))
    return tuple(dict.fromkeys(need for rung in rungs for need in rung.policy.needs))


def halts_of(rung: PolicyRung, runs: Runs) -> Halts:
    """Where a policy's rung ends each run, and in a loop which round's answer it returns."""
    halts = first_stops(stops_of(rung.policy, runs.readable()), runs)
    returns = returns_of(rung.policy)
    if runs.kind != "rounds" or returns == "last":
        return halts
    confidence = runs.columns.values.get("confidence", np.full(len(runs.cost), np.nan))
    returned = halts.row.copy()
    for run in np.flatnonzero(halts.row < runs.last).tolist():
        rows = slice(int(runs.starts[run]), int(halts.row[run]) + 1)
        answers = [None if isnan(code) else str(code) for code in runs.columns.answer[rows].tolist()]
        sure = [None if isnan(p) else p for p in confidence[rows].tolist()]
        returned[run] = rows.start + return_step(returns, answers, sure) - 1
    return halts._replace(returned=returned)


def halts_at(risk: Says, levels: Floats, runs: Runs, code: NDArray[np.int8]) -> list[Halts]:
    """Where a learned score ends each run, one result for each level.

    risk  of each row, shape (T,); or bits: at which of `PRICES` it stops, and the levels are some of these
    code  what a stop at each row would be called, shape (T,)
    """
    if risk.dtype == np.uint64:
        passages = first_bits(risk, runs, np.searchsorted(PRICES, levels))
    else:
        passages = first_passages(risk, runs.starts, levels)
    return [Halts(row, np.where(row == runs.last, 0, code[row]).astype(np.int8)) for row in passages]


def levels_of(risk: Says, n_levels: int) -> Floats:
    """Levels of a ladder, safe first: quantiles of the risks seen, close together where risk is low.

    The shares of steps at or below a level are geometric from 0.0003 to 0.999: the first rungs decide how
    well a small budget is used. Where the rows hold bits, the levels are the prices.
    """
    if risk.dtype == np.uint64:
        return PRICES
    known = risk[np.isfinite(risk)]
    if not len(known):
        return np.empty(0)
    return np.unique(np.quantile(known, np.geomspace(3e-4, 0.999, n_levels)))


def _values(given_values: Any) -> list[int | float]:
    """A list as it stands, or whole numbers from … down or up to … ."""
    if isinstance(given_values, Mapping):
        first, last = int(given_values["from"]), int(given_values["to"])
        step = -1 if last < first else 1
        return list(range(first, last + step, step))
    return list(given_values)
