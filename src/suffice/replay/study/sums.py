"""Costs and losses of each policy, summed by question, and operating points picked from these sums.

Runs of one question are not independent, so the question, or above 5,120 a random group of them, is the unit of every
fold, split and draw. A point is the last rung of the unbroken run from the safe end whose EM drop plus a margin is
within the target (fixed-sequence testing); of several ladders, the one that saves most. Plain tuning takes the best of
all rungs within the target and so overfits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.bounds import Interval
from suffice.policy.columns import HOPELESS
from suffice.replay.study.runs import Halts, Runs

N_FOLDS = 5
MAX_GROUPS = 5_120  # a multiple of N_FOLDS, so that each group lies in one fold
FIELDS = ("lost", "gained", "tokens", "probes", "resent", "stopped", "hopeless")


# Distance of a frozen point from its target, in standard errors of the drop, clustered by question:
# the one-standard-error rule (Breiman, Friedman, Olshen, Stone 1984, Classification and Regression Trees, 3.4.3).
MARGIN = 1.0
# Losses added in the standard error alone, so that few runs without a loss do not give an error of 0.
PSEUDO_LOSSES = 1.0
N_SPLITS = 200
NONE = -1  # no rung qualifies: never stop
_ROUNDING = 1e-12


class PolicyPoints(NamedTuple):
    """Measurements of each policy on some sets of questions, shape (R, C) each: R sets, C policies."""

    drop: Floats
    error: Floats  # standard error of the drop, clustered by question, with PSEUDO_LOSSES
    saved: Floats  # token reduction

    def pick(self, ladders: Sequence[slice], target: float, margin: float) -> Ints:
        """The policy picked on each set of questions, as the head of this file defines; NONE if no rung qualifies."""
        within = self.drop + margin * self.error <= target + _ROUNDING
        for rungs in ladders:
            within[:, rungs] = np.logical_and.accumulate(within[:, rungs], axis=1)
        return self._most_saving(within)

    def pick_plainly(self, target: float) -> Ints:
        """Plain tuning: of all policies whose measured drop is within the target, the one that saves most."""
        return self._most_saving(self.drop <= target + _ROUNDING)

    def _most_saving(self, within: Bools) -> Ints:
        if not within.shape[1]:  # short runs may rule out every setting
            return np.full(len(within), NONE)
        saved = np.where(within, self.saved, 0.0)
        return np.where(saved.max(axis=1) > 0, saved.argmax(axis=1), NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSums:
    """Sums over the runs of each question (G of them) for each policy (C of them)."""

    fold: Ints  # G: 0 … N_FOLDS - 1
    base: Floats  # (G, 3): runs, correct in full, tokens in full
    values: Floats  # (G, C, 7): see FIELDS; tokens include probes

    def of(self, field: str) -> Floats:
        return self.values[:, :, FIELDS.index(field)]

    @property
    def n(self) -> Floats:
        return self.base[:, 0]

    @property
    def full_tokens(self) -> Floats:
        return self.base[:, 2]

    @property
    def drop(self) -> Floats:
        """Answers lost minus answers gained, shape (G, C)."""
        return self.of("lost") - self.of("gained")

    def columns(self, keep: Sequence[int] | slice) -> QuestionSums:
        return replace(self, values=self.values[:, keep, :])

    def weights(self, v: int | None) -> Floats:
        """1 for each question outside fold `v`, or for all, shape (1, G)."""
        return np.ones((1, len(self.fold))) if v is None else (self.fold != v).astype(np.float64)[None, :]

    def measure(self, weights: Floats) -> PolicyPoints:
        """Measure sets of questions with weights of shape (R, G); an empty set measures NaN, within no target."""
        n, drop = self.n, self.drop
        total, full_tokens = weights @ n, weights @ self.full_tokens
        total[total == 0] = np.nan
        full_tokens[full_tokens == 0] = np.nan
        mean = (weights @ drop) / total[:, None]
        saved = 1 - (weights @ self.of("tokens")) / full_tokens[:, None]
        squares = weights @ drop**2 - 2 * mean * (weights @ (drop * n[:, None])) + mean**2 * (weights @ n**2)[:, None]
        n_groups = np.maximum(weights.sum(axis=1), 2)[:, None]
        error = np.sqrt((np.maximum(squares, 0) + PSEUDO_LOSSES) * n_groups / (n_groups - 1)) / total[:, None]
        return PolicyPoints(mean, error, saved)

    def bootstrap(self, n_draws: int, rng: np.random.Generator) -> tuple[list[Interval], list[Interval]]:
        """95 % intervals of EM drop and token reduction of each policy, resampling whole questions.

        Percentile intervals (Davison and Hinkley 1997, section 3.8); rough with fewer than about 20 questions.
        """
        drawn = self.measure(draw_questions(len(self.n), n_draws, rng))
        return _percentiles(drawn.drop), _percentiles(drawn.saved)

    def miss_share(
        self, ladders: Sequence[slice], target: float, rng: np.random.Generator, *, margin: float | None
    ) -> float:
        """Share of random halvings in which a point picked on one half (`margin` None: plainly) fails on the other."""
        taken = draw_halves(len(self.n), N_SPLITS, rng)
        here, there = self.measure(taken), self.measure(1 - taken)
        choice = here.pick_plainly(target) if margin is None else here.pick(ladders, target, margin)
        return float(np.mean(at_choice(there.drop, choice) > target + _ROUNDING))


def _number(question: str) -> int:
    return int.from_bytes(hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def question_fold(question: str) -> int:
    return _number(question) % N_FOLDS


def folds_of(runs: Runs) -> Ints:
    cache = {question: question_fold(question) for question in set(runs.question)}
    return np.array([cache[question] for question in runs.question], dtype=np.int64)


def groups_of(runs: Runs) -> tuple[Ints, Ints]:
    """The group of each run, shape (E,), and the fold of each group: a question, or a random group of questions."""
    number = {question: _number(question) for question in dict.fromkeys(runs.question)}
    keys: Sequence[str | int] = runs.question
    if len(number) > MAX_GROUPS:
        keys = [number[question] % MAX_GROUPS for question in runs.question]
    place = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    folds = [(number[key] if isinstance(key, str) else key) % N_FOLDS for key in place]
    return np.array([place[key] for key in keys], np.int64), np.array(folds, np.int64)


def sum_by_group(group: Ints, columns: Sequence[Floats | Bools], n_groups: int) -> Floats:
    return np.stack([np.bincount(group, column, n_groups) for column in columns], axis=1)


def base_columns(runs: Runs) -> tuple[Floats | Bools, ...]:
    return np.ones(len(runs)), runs.full_ok, runs.full_tokens


def measure_rates(sums: Sequence[float]) -> dict[str, float]:
    """Rates over runs, from the sums of `base_columns` and of the answers lost and gained and the tokens spent."""
    n, full_ok, full_tokens, lost, gained, tokens = sums
    return {
        "full_em": full_ok / n,
        "em_drop": (lost - gained) / n,
        "lost": lost / n,
        "gained": gained / n,
        "token_reduction": 1 - tokens / full_tokens if full_tokens else 0.0,
    }


class SumsFold:
    """Accumulates sums batch by batch. Memory: at most 5,120 questions, or groups of them, times the policies."""

    def __init__(self, n_policies: int) -> None:
        self._order: dict[int, int] = {}  # of the questions, by number
        self._base = np.zeros((0, 3))
        self._values = np.zeros((0, n_policies, len(FIELDS)))

    @property
    def n_questions(self) -> int:
        return len(self._order)

    def add(self, runs: Runs, halts: Sequence[Halts]) -> None:
        number = {question: _number(question) for question in dict.fromkeys(runs.question)}
        self._make_rows(number.values())
        group, n_groups = self._rows_of(number[question] for question in runs.question), len(self._base)
        self._base += sum_by_group(group, base_columns(runs), n_groups)
        for at, halt in enumerate(halts):
            self._values[:, at] += sum_by_group(group, columns_of(runs, halt), n_groups)

    def merge(self, other: SumsFold) -> None:
        """Add another fold's sums; sums of whole numbers, so in any order the same."""
        self._make_rows(other._order)
        group = self._rows_of(other._numbers)
        np.add.at(self._base, group, other._base)
        np.add.at(self._values, group, other._values)

    def sums(self) -> QuestionSums:
        fold = np.array([number % N_FOLDS for number in self._numbers], dtype=np.int64)
        return QuestionSums(fold=fold, base=self._base, values=self._values)

    @property
    def _is_grouped(self) -> bool:
        return len(self._order) > MAX_GROUPS

    @property
    def _numbers(self) -> Sequence[int]:
        """The number of each row's question, or of its group."""
        return range(MAX_GROUPS) if self._is_grouped else list(self._order)

    def _rows_of(self, numbers: Iterable[int]) -> Ints:
        grouped, order = self._is_grouped, self._order
        return np.array([number % MAX_GROUPS if grouped else order[number] for number in numbers], dtype=np.int64)

    def _make_rows(self, numbers: Iterable[int]) -> None:
        """Add rows for new questions; from the first that is too many on, a row for each group."""
        before = self._numbers
        for number in numbers:
            self._order.setdefault(number, len(self._order))
        rows, n_rows = self._rows_of(before), min(len(self._order), MAX_GROUPS)
        self._base, self._values = (_spread(sums, rows, n_rows) for sums in (self._base, self._values))


def _spread(sums: Floats, rows: Ints, n_rows: int) -> Floats:
    spread = np.zeros((n_rows, *sums.shape[1:]))
    np.add.at(spread, rows, sums)
    return spread


def columns_of(runs: Runs, halts: Halts) -> tuple[Floats, ...]:
    """The result of one policy on each run, in the order of FIELDS, shape (E,) each.

    A policy that reads trial answers probes every checkpoint up to its stop, or all but the last of a full run; any
    other policy probes only where it stops.
    """
    row, stopped = halts.row, halts.row < runs.last
    ok = np.where(stopped, runs.ok[halts.returned], runs.full_ok)
    before = row - 1
    once = stopped & ~halts.asks & (before >= runs.starts[:-1])
    silent = ~stopped & ~halts.asks
    probes, resent = (
        np.where(silent, 0.0, total[row] - np.where(once, total[before], 0.0)) for total in (runs.probes, runs.resent)
    )
    return (
        (runs.full_ok & ~ok).astype(np.float64),
        (~runs.full_ok & ok).astype(np.float64),
        runs.cost[row] + probes + np.where(stopped, runs.finish, 0.0),
        probes,
        resent,
        stopped.astype(np.float64),
        (halts.code == HOPELESS).astype(np.float64),
    )


def at_choice(values: Floats, choice: Ints) -> Floats:
    """The value of each set's picked policy, shape (R,); 0 for NONE."""
    if not values.shape[1]:
        return np.zeros(len(values))
    chosen: Floats = np.where(choice >= 0, values[np.arange(len(choice)), np.maximum(choice, 0)], 0.0)
    return chosen


def draw_halves(n_groups: int, n_splits: int, rng: np.random.Generator) -> Floats:
    """Random halves of the questions as weights 0 and 1, shape (n_splits, n_groups)."""
    weights = np.zeros((n_splits, n_groups))
    for row in weights:
        row[rng.permutation(n_groups)[: n_groups // 2]] = 1
    return weights


def draw_questions(n_groups: int, n_draws: int, rng: np.random.Generator) -> Floats:
    """Bootstrap weights: how often each draw takes each question, shape (n_draws, n_groups)."""
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws).astype(np.float64)


def _percentiles(drawn: Floats) -> list[Interval]:
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def sum_halts(runs: Runs, halts: Sequence[Halts]) -> QuestionSums:
    summing = SumsFold(len(halts))
    summing.add(runs, halts)
    return summing.sums()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Savings and losses of another way compared with a first one, on the same questions, as fractions."""

    saved: float  # token reduction, other minus first
    drop: float  # EM drop, other minus first
    saved_interval: Interval  # 95 %, resampling whole questions in pairs
    drop_interval: Interval


def compare_nested(first: QuestionSums, other: QuestionSums, *, n_draws: int, rng: np.random.Generator) -> Difference:
    """Compare two ways over the same questions. Raise ValueError if the questions differ."""
    if not np.array_equal(first.base, other.base):
        raise ValueError("difference: the two ways were not judged on the same questions")
    n_groups = len(first.n)
    weights = np.concatenate([np.ones((1, n_groups)), draw_questions(n_groups, n_draws, rng)])
    a, b = first.measure(weights), other.measure(weights)
    saved, drop = b.saved - a.saved, b.drop - a.drop
    (saved_interval,), (drop_interval,) = _percentiles(saved[1:]), _percentiles(drop[1:])
    return Difference(
        saved=float(saved[0, 0]), drop=float(drop[0, 0]), saved_interval=saved_interval, drop_interval=drop_interval
    )
