"""What goes into an experiment's analysis and what comes out: frozen, without arithmetic.

UnitAssignment, Value, AuditSeen ──▶ Material ──▶ analysis ──▶ ArmComparison, ArmResult, ExperimentResult ──▶ reading
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from suffice.assurance.bounds import Interval

Verdict: TypeAlias = Literal[
    "better",
    "no worse",  # its loss is within the margin
    "worse",
    "mixed",  # of an arm: not worse on the whole, and worse in a class of questions
    "inconclusive",
    "withheld",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAssignment:
    """One unit when it first took part."""

    arm: str
    odds: Mapping[str, float]  # of every arm, when it was drawn
    query_class: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """The first value of a metric that is known of one unit."""

    arm: str
    odds: Mapping[str, float]
    query_class: str
    value: float
    known: tuple[float, ...] = ()  # of the question, before the first token; as many for all
    warmup: bool = False  # one of the first units


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEvidence:
    """What an audit shows of one arm."""

    answer: str | None
    right: bool | None  # None: nobody says
    seen: bool = True  # False: a checkpoint is missing, or the run was broken off: the answer is not known
    tokens: float = 0.0  # that the arm would have generated for it; 0: not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSeen:
    """One audit, with what it shows of each arm that it can show."""

    query_class: str
    arms: Mapping[str, ArmEvidence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """All that an experiment has brought so far, each in the order in which it became known."""

    n_requests: int
    drawn: Sequence[UnitAssignment]
    values: Mapping[str, Sequence[Value]]  # by metric
    audits: Sequence[AuditSeen] = ()
    paired: frozenset[str] = frozenset()  # arms whose answers audits show


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEffect:
    """The same comparison in one class of questions."""

    query_class: str
    n: int
    effect: float
    between: Interval
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmComparison:
    """One arm against the control, in one metric. None: nothing was measured."""

    arm: str
    metric: str
    paired: bool  # by audits that show both
    n: int  # units, or audits
    effect: float | None  # arm minus control, in the metric's unit
    between: Interval | None
    confidence: float  # of this interval by itself
    margin: float | None  # loss that is put up with; None: none was named
    verdict: Verdict
    why: str = ""  # why it is withheld or not measured
    control_mean: float | None = None
    plain: float | None = None  # difference of the two means as they are, which a mix of classes may spoil
    stratified: float | None = None  # mean of the classes' effects, each by its part of all
    n_pending: int = 0  # audits without a label whose answers differ
    n_cut: int = 0  # values above the cap, counted as the cap
    n_missing: int | None = None  # further requests until it is conclusive, if all goes on so; None: no number
    classes: tuple[ClassEffect, ...] = ()

    @property
    def misleading(self) -> bool:
        """Does the plain difference say the opposite, or what the interval excludes?"""
        if self.plain is None or self.effect is None or self.between is None:
            return False
        return not self.between.low <= self.plain <= self.between.high

    @property
    def harmed(self) -> tuple[str, ...]:
        """Classes in which the arm is proved to be worse, whatever it is on the whole."""
        return tuple(one.query_class for one in self.classes if one.verdict == "worse")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """What is shown of one arm, all metrics together."""

    arm: str
    verdict: Verdict
    comparisons: tuple[ArmComparison, ...]  # the primary metric first
    n_missing: int | None  # further requests; None: nothing is missing, or there is no number
    per_point: float | None = None  # satisfaction points lost for each EM point lost
    per_point_between: Interval | None = None

    def of(self, metric: str) -> ArmComparison:
        """The comparison in that metric. Raises KeyError."""
        return {one.metric: one for one in self.comparisons}[metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResult:
    """An experiment at one look."""

    experiment: str
    run: int
    control: str
    primary: str
    confidence: float
    n_requests: int
    n_units: int
    n_by_arm: Mapping[str, int]
    withheld: str | None  # why nothing is said; None: the split fits the odds
    arms: tuple[ArmResult, ...] = ()
