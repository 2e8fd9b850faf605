"""Parts of a set under a policy: its query classes, and the runs that ended at one step.

An average hides harm: gains in one class can pay for losses in another, and early halts for late ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.replay.study.result import SetPart
from suffice.replay.study.runs import Bools, Floats, Halts, Runs
from suffice.replay.study.sums import columns_of

MOST_CLASSES = 24  # the largest ones are shown
_STEP_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)
_FIELDS = ("n", "full_ok", "full_tokens", "lost", "gained", "tokens")


class Parts:
    """Takes judged runs in, batch by batch, and gives the parts of each policy."""

    def __init__(self, policies: Sequence[str]) -> None:
        self._policies = tuple(policies)
        self._sums: dict[tuple[str, str, str], Floats] = {}  # (policy, "class" | "step", part) → _FIELDS
        self._questions: dict[tuple[str, str, str], set[str]] = {}

    def add(self, runs: Runs, judged: Mapping[str, tuple[Halts, bool | Bools]]) -> None:
        """Add runs with where each policy ended them, and whether it asked at every checkpoint."""
        classes = class_names(runs)
        for policy in self._policies:
            halt, asks = judged[policy]
            lost, gained, tokens, *_ = columns_of(runs, halt, asks=asks)
            table = np.stack([np.ones(len(runs)), runs.full_ok, runs.full_tokens, lost, gained, tokens], axis=1)
            self._add(policy, "class", classes, table, runs.question)
            self._add(policy, "step", _halt_names(runs, halt), table, runs.question)

    def by_class(self) -> dict[str, tuple[SetPart, ...]]:
        """Classes of each policy, the largest first; nothing where all runs are of one class."""
        made = {policy: self._parts(policy, "class") for policy in self._policies}
        return {policy: _largest(parts) for policy, parts in made.items() if len(parts) > 1}

    def by_step(self) -> dict[str, tuple[SetPart, ...]]:
        """Where runs ended under each policy, early first."""
        made = {policy: self._parts(policy, "step") for policy in self._policies}
        return {policy: tuple(sorted(parts, key=_step_order)) for policy, parts in made.items()}

    def _add(self, policy: str, what: str, names: NDArray[np.str_], table: Floats, questions: Sequence[str]) -> None:
        different, which = np.unique(names, return_inverse=True)
        sums = np.zeros((len(different), len(_FIELDS)))
        np.add.at(sums, which, table)
        for at, name in enumerate(different.tolist()):
            key = (policy, what, name)
            self._sums[key] = self._sums.get(key, np.zeros(len(_FIELDS))) + sums[at]
            known = self._questions.setdefault(key, set())
            if len(known) < 100_000:  # beyond that the number is no longer news, and memory is bounded
                known.update(questions[i] for i in np.flatnonzero(which == at).tolist())

    def _parts(self, policy: str, what: str) -> list[SetPart]:
        return [
            _part(name, sums, len(self._questions[policy, what, name]))
            for (of, kind, name), sums in self._sums.items()
            if (of, kind) == (policy, what)
        ]


def class_names(runs: Runs) -> NDArray[np.str_]:
    """The class of each run: its task, and its model where all have one task; shape (E,)."""
    tasks = [query.query_class for query in runs.queries]
    models = [dict(query.metadata).get("model", "") for query in runs.queries]
    return np.array([f"{task} · {model}" if task else model for task, model in zip(tasks, models, strict=True)])


def _halt_names(runs: Runs, halt: Halts) -> NDArray[np.str_]:
    step = halt.row - runs.starts[:-1] + 1
    edges = np.array(_STEP_EDGES)
    place = np.searchsorted(edges, step)  # the first edge at or above the step
    names = [
        f"step {low}" if low == high else f"steps {low}–{high}"
        for low, high in zip((1, *(edge + 1 for edge in _STEP_EDGES)), _STEP_EDGES, strict=False)
    ]
    names.append(f"steps above {_STEP_EDGES[-1]}")
    return np.where(halt.row < runs.last, np.array(names)[place], "to the end")


def _step_order(part: SetPart) -> tuple[int, str]:
    digits = "".join(c if c.isdigit() else " " for c in part.name).split()
    return (int(digits[0]) if digits else 10**9, part.name)


def _part(name: str, sums: Floats, n_questions: int) -> SetPart:
    n, full_ok, full_tokens, lost, gained, tokens = sums.tolist()
    return SetPart(
        name=name,
        n_episodes=int(n),
        n_questions=n_questions,
        full_em=full_ok / n,
        em_drop=(lost - gained) / n,
        lost=lost / n,
        gained=gained / n,
        token_reduction=1 - tokens / full_tokens if full_tokens else 0.0,
    )


def _largest(parts: Sequence[SetPart]) -> tuple[SetPart, ...]:
    return tuple(sorted(parts, key=lambda part: (-part.n_episodes, part.name))[:MOST_CLASSES])
