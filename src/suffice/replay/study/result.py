"""The result of a replay as records: lines of the frontier table, points of the plot, parts of a set.

Rates are fractions; tokens are sums over all episodes, probes included unless a name says otherwise. An average hides
harm: gains in one class can pay for losses in another, and early halts for late ones. So parts are kept, too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval
from suffice.learn.audits import Bools, Floats
from suffice.replay.study.runs import Halts, Runs
from suffice.replay.study.sums import base_columns, columns_of, sum_by_group
from suffice.types import Kind

Family: TypeAlias = Literal[
    "full",  # every run to its end
    "published",  # a rule from the literature, at a setting of the grid
    "ours",  # a learned score, or a composition with one
    "given",  # a policy that the user named, at the parameters given
    "oracle",  # reads what no policy may read
]
Choice: TypeAlias = Literal[
    "fixed",  # nothing was chosen: full runs, oracles, a given policy
    "frozen",  # the point was picked on other questions than those reported
    "hindsight",  # the point was picked on the very questions reported: optimistic
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """One policy on one set. JSON lines have the fields in this order, `frozen` behind the first interval."""

    set: str
    policy: str  # its display name, with the parameters that matter
    n_episodes: int
    n_questions: int
    full_em: float
    em: float
    em_drop: float  # full_em - em
    lost: float  # share right in full and wrong when stopped
    gained: float  # share wrong in full and right when stopped
    full_tokens: int
    tokens: int  # everything spent
    token_reduction: float  # 1 - tokens / full_tokens
    token_reduction_without_probes: float
    em_drop_interval: Interval | None = None  # question-clustered bootstrap, 95 %
    family: Family
    choice: Choice
    spec: Mapping[str, Any] | None  # what `build_policy` takes; None: no single policy (folds differ), or an oracle
    token_reduction_without_cache: float | None = None  # with every probe's prefix billed again in full
    token_reduction_interval: Interval | None = None
    stopped: float = 0.0  # share of runs that were stopped before their end
    hopeless: float = 0.0  # share of runs stopped because they would fail anyway
    miss_share: float | None = None  # of random question splits: the tuned point missed its target on the other half
    note: str = ""  # what the reader must know about this line

    @property
    def frozen(self) -> bool:
        return self.choice != "hindsight"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    """One setting of one family of policies, in sample: a dot of the plot."""

    policy: str
    em_drop: float
    token_reduction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPart:
    """A part of a set under one policy: a query class, or the runs that halted at one step."""

    name: str
    n_episodes: int
    n_questions: int
    full_em: float
    em_drop: float
    lost: float
    gained: float
    token_reduction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    set: str
    kind: Kind
    max_em_drop: float  # fraction: the target at which points were picked
    probe_tokens: int  # charged for each probe that a policy asked for
    lines: tuple[PolicyResult, ...]
    frontier: Mapping[str, tuple[PlotPoint, ...]] = field(default_factory=dict)  # by family's label
    by_class: Mapping[str, tuple[SetPart, ...]] = field(default_factory=dict)  # by the policy of a line
    by_step: Mapping[str, tuple[SetPart, ...]] = field(default_factory=dict)  # by the policy of a line
    notes: tuple[str, ...] = ()  # sentences for the head of the report, such as "too small to certify"
    fitted_on: tuple[str, ...] = ()  # files that the models and points come from; (): folds of this set


TOO_SMALL_RUNS, TOO_SMALL_QUESTIONS = 1_000, 50  # below either no certificate is possible
MOST_CLASSES = 24  # the largest ones are shown
_STEP_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Parts:
    """Sums by class and by the step at which runs halted, for some policies."""

    def __init__(self, policies: Sequence[str]) -> None:
        self._policies = tuple(policies)
        self._sums: dict[tuple[str, str, str], Floats] = {}  # (policy, "class" | "step", part)
        self._questions: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)

    def add(self, runs: Runs, judged: Mapping[str, tuple[Halts, bool | Bools]]) -> None:
        """Add runs with where each policy ended them, and whether it asked at every checkpoint."""
        classes = class_names(runs)
        for policy in self._policies:
            halt, asks = judged[policy]
            lost, gained, tokens, *_ = columns_of(runs, halt, asks=asks)
            columns = (*base_columns(runs), lost, gained, tokens)
            for what, names in (("class", classes), ("step", _halt_names(runs, halt))):
                different, which = np.unique(names, return_inverse=True)
                sums = sum_by_group(which, columns, len(different))
                for at, name in enumerate(different.tolist()):
                    key = (policy, what, name)
                    self._sums[key] = self._sums.get(key, 0.0) + sums[at]
                    if len(known := self._questions[key]) < 100_000:  # beyond that memory is bounded
                        known.update(runs.question[i] for i in np.flatnonzero(which == at).tolist())

    def by_class(self) -> dict[str, tuple[SetPart, ...]]:
        """Classes of each policy, the largest first; nothing where all runs are of one class."""
        return {
            policy: tuple(sorted(parts, key=lambda part: (-part.n_episodes, part.name))[:MOST_CLASSES])
            for policy in self._policies
            if len(parts := self._parts(policy, "class")) > 1
        }

    def by_step(self) -> dict[str, tuple[SetPart, ...]]:
        return {policy: tuple(sorted(self._parts(policy, "step"), key=_step_order)) for policy in self._policies}

    def _parts(self, policy: str, what: str) -> list[SetPart]:
        parts = []
        for key, sums in self._sums.items():
            if key[:2] == (policy, what):
                n, full_ok, full_tokens, lost, gained, tokens = sums.tolist()
                part = SetPart(
                    name=key[2],
                    n_episodes=int(n),
                    n_questions=len(self._questions[key]),
                    full_em=full_ok / n,
                    em_drop=(lost - gained) / n,
                    lost=lost / n,
                    gained=gained / n,
                    token_reduction=1 - tokens / full_tokens if full_tokens else 0.0,
                )
                parts.append(part)
        return parts


def class_names(runs: Runs) -> NDArray[np.str_]:
    """The class of each run: its task, and its model where all have one task; shape (E,)."""
    tasks = [query.query_class for query in runs.queries]
    models = [dict(query.metadata).get("model", "") for query in runs.queries]
    return np.array([f"{task} · {model}" if task else model for task, model in zip(tasks, models, strict=True)])


def _halt_names(runs: Runs, halt: Halts) -> NDArray[np.str_]:
    place = np.searchsorted(_STEP_EDGES, halt.row - runs.starts[:-1] + 1)  # the first edge at or above the step
    lows = (1, *(edge + 1 for edge in _STEP_EDGES))
    pairs = zip(lows, _STEP_EDGES, strict=False)
    names = [f"step {low}" if low == high else f"steps {low}–{high}" for low, high in pairs]
    names.append(f"steps above {_STEP_EDGES[-1]}")
    return np.where(halt.row < runs.last, np.array(names)[place], "to the end")


def _step_order(part: SetPart) -> tuple[int, str]:
    digits = re.search(r"\d+", part.name)
    return (int(digits[0]) if digits else 10**9, part.name)
