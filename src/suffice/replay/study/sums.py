"""What each policy costs and loses, summed by question: all that choosing, splitting and resampling need.

Runs of one question are not independent, so a question is the unit of every fold, split and bootstrap draw.
With more than 5,120 questions they are put into as many random groups, so that memory is bounded however
many runs there are. Every figure of a replay is a function of these sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suffice.policy.columns import HOPELESS
from suffice.replay.study.runs import Bools, Floats, Halts, Runs

N_FOLDS = 5
MAX_GROUPS = 5_120  # a multiple of N_FOLDS, so that a group lies in one fold

BASE = ("n", "full_ok", "full_tokens")
FIELDS = ("lost", "gained", "tokens", "probes", "resent", "stopped", "hopeless")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSums:
    """Sums over the runs of each question (G of them) for each policy (C of them)."""

    fold: NDArray[np.int64]  # G: 0 … N_FOLDS - 1
    base: Floats  # (G, 3): runs, right in full, tokens in full
    values: Floats  # (G, C, 7): see FIELDS; tokens include probes

    def of(self, field: str) -> Floats:
        """One field, shape (G, C)."""
        return self.values[:, :, FIELDS.index(field)]

    @property
    def n(self) -> Floats:
        """Runs of each question, shape (G,)."""
        return self.base[:, 0]

    @property
    def full_tokens(self) -> Floats:
        """Tokens of each question's full runs, shape (G,)."""
        return self.base[:, 2]

    @property
    def drop(self) -> Floats:
        """Answers lost minus answers gained, shape (G, C)."""
        return self.of("lost") - self.of("gained")

    def columns(self, keep: Sequence[int] | slice) -> QuestionSums:
        """The same questions with some of the policies."""
        return QuestionSums(fold=self.fold, base=self.base, values=self.values[:, keep, :])


def question_fold(question: str) -> int:
    """The fold of a question: the same in every run of every program."""
    return _number(question) % N_FOLDS


def folds_of(runs: Runs) -> NDArray[np.int64]:
    """The fold of each run, by its question, shape (E,)."""
    cache = {question: question_fold(question) for question in set(runs.question)}
    return np.array([cache[question] for question in runs.question], dtype=np.int64)


def groups_of(runs: Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of each run, shape (E,), and the fold of each group: questions, or as many random groups of them."""
    number = {question: _number(question) for question in dict.fromkeys(runs.question)}
    if len(number) > MAX_GROUPS:
        keys = [number[question] % MAX_GROUPS for question in runs.question]
        place = {key: at for at, key in enumerate(dict.fromkeys(keys))}
        return np.array([place[key] for key in keys], np.int64), np.array([key % N_FOLDS for key in place], np.int64)
    order = {question: at for at, question in enumerate(number)}
    folds = [number[question] % N_FOLDS for question in order]
    return np.array([order[question] for question in runs.question], np.int64), np.array(folds, np.int64)


class SumsFold:
    """Takes runs in, batch by batch, and gives the sums. Memory: at most 5,120 questions times the policies."""

    def __init__(self, n_policies: int) -> None:
        self._n_policies = n_policies
        self._place: dict[str, int] = {}
        self._bucketed = False
        self._fold: list[int] = []
        self._base = np.zeros((0, len(BASE)))
        self._values = np.zeros((0, n_policies, len(FIELDS)))
        self._seen: set[int] = set()

    @property
    def n_questions(self) -> int:
        """Different questions so far."""
        return len(self._seen)

    def add(self, runs: Runs, halts: Sequence[Halts], asks: Sequence[bool | Bools]) -> None:
        """Add runs: for each policy where it ended them, and whether it asked (each of them) at every checkpoint."""
        group = self._groups(runs)
        n_groups = len(self._fold)
        self._base = _grown(self._base, n_groups)
        self._values = _grown(self._values, n_groups)
        for at, column in enumerate((np.ones(len(runs)), runs.full_ok, runs.full_tokens)):
            self._base[:, at] += np.bincount(group, column, n_groups)
        for at, (halt, asked) in enumerate(zip(halts, asks, strict=True)):
            for field, column in enumerate(columns_of(runs, halt, asks=asked)):
                self._values[:, at, field] += np.bincount(group, column, n_groups)

    def sums(self) -> QuestionSums:
        """What has been added so far."""
        return QuestionSums(fold=np.array(self._fold, dtype=np.int64), base=self._base, values=self._values)

    def _groups(self, runs: Runs) -> NDArray[np.int64]:
        for question in dict.fromkeys(runs.question):
            self._seen.add(_number(question))
            self._take_in(question)
        return np.array([self._of(question) for question in runs.question], dtype=np.int64)

    def _take_in(self, question: str) -> None:
        if self._bucketed or question in self._place:
            return
        if len(self._place) < MAX_GROUPS:
            self._place[question] = len(self._fold)
            self._fold.append(question_fold(question))
            return
        old = list(self._place)
        buckets = np.array([_number(known) % MAX_GROUPS for known in old], dtype=np.int64)
        base, values = np.zeros((MAX_GROUPS, len(BASE))), np.zeros((MAX_GROUPS, self._n_policies, len(FIELDS)))
        filled = len(self._base)  # questions of this very batch have no sums yet
        np.add.at(base, buckets[:filled], self._base)
        np.add.at(values, buckets[:filled], self._values)
        self._base, self._values, self._bucketed, self._place = base, values, True, {}
        self._fold = [bucket % N_FOLDS for bucket in range(MAX_GROUPS)]

    def _of(self, question: str) -> int:
        return _number(question) % MAX_GROUPS if self._bucketed else self._place[question]


def columns_of(runs: Runs, halt: Halts, *, asks: bool | Bools) -> tuple[Floats, ...]:
    """What one policy did to each run, in the order of FIELDS, shape (E,) each.

    A policy that reads no trial answer asks once, where it stops; one that does asks at every
    checkpoint up to its stop, and in a run that it never stops at all but the last.
    """
    row, stopped = halt.row, halt.row < runs.last
    ok = np.where(stopped, runs.ok[row if halt.returned is None else halt.returned], runs.full_ok)
    once = stopped & ~np.asarray(asks)
    before = np.where(row == runs.starts[:-1], -1, row - 1)
    probes, resent = (
        total[row] - np.where(once & (before >= 0), total[before], 0.0) for total in (runs.probes, runs.resent)
    )
    silent = ~stopped & ~np.asarray(asks)
    probes, resent = np.where(silent, 0.0, probes), np.where(silent, 0.0, resent)
    return (
        (runs.full_ok & ~ok).astype(np.float64),
        (~runs.full_ok & ok).astype(np.float64),
        runs.cost[row] + probes + np.where(stopped, runs.finish, 0.0),
        probes,
        resent,
        stopped.astype(np.float64),
        (halt.code == HOPELESS).astype(np.float64),
    )


def _number(question: str) -> int:
    return int.from_bytes(hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _grown(array: Floats, n_groups: int) -> Floats:
    missing = n_groups - len(array)
    return array if missing <= 0 else np.concatenate([array, np.zeros((missing, *array.shape[1:]))])
