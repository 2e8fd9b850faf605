"""What a replay found, as records: lines of the frontier table, points of the plot, parts of a set.

Knows the words of the report and refuses to know how anything was computed or is drawn. Rates are
fractions, tokens are sums over all episodes, probes included unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from suffice.assurance.bounds import Interval
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
    """One policy on one set."""

    set: str
    policy: str  # its name for people, with the parameters that matter
    family: Family
    choice: Choice
    spec: Mapping[str, Any] | None  # what `build_policy` takes; None: no single policy (folds differ), or an oracle
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
    token_reduction_without_cache: float | None = None  # with every probe's prefix billed again in full
    em_drop_interval: Interval | None = None  # question-clustered bootstrap, 95 %
    token_reduction_interval: Interval | None = None
    stopped: float = 0.0  # share of runs that were stopped before their end
    hopeless: float = 0.0  # share of runs stopped because they would fail anyway
    miss_share: float | None = None  # of random question splits: the tuned point missed its target on the other half
    note: str = ""  # what the reader must know about this line

    @property
    def frozen(self) -> bool:
        """Was nothing picked on the questions that are reported?"""
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
    """Everything that is shown of one set."""

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
