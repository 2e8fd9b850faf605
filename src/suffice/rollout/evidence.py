"""The evidence of a rollout: a fold over audits and over the first live request of each new unit of both arms.

Candidate and control start at the same request with equal shares of new units. On audits both versions are replayed, so
EM is paired. Live runs measure what a replay cannot, compared by the unit's assignment: a run counts for the candidate
with one sign and for the control with the other, each relative to a prediction made before it. The mean is half the
difference for any prediction and under any drift. A unit counts once, because its later requests depend on the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Final, Literal, TypeAlias

import msgspec

from suffice.assurance.bounds import SequenceState
from suffice.assurance.strata import Cell
from suffice.rollout.effects import PairCounts
from suffice.settings import Route
from suffice.settings.checks import check_rollout
from suffice.settings.tables import LiveRail, Rollout

RailName: TypeAlias = Literal["em", "latency", "errors", "no_answer", "satisfaction"]
ArmName: TypeAlias = Literal["candidate", "control"]
Z: TypeAlias = Literal[-1, 0, 1]

NO_CLASS: Final = ""
SCALE_RUNS: Final = 20  # of the control, after which its mean sets the cap
CAP_MEANS: Final = 16.0  # the cap, in means of the control
_NOBODY: Final = SequenceState()
_OUTCOMES: Final[Mapping[Z | None, PairCounts]] = {
    -1: PairCounts(gained=1),
    0: PairCounts(same=1),
    1: PairCounts(lost=1),
    None: PairCounts(pending=1),
}


class Rules(Rollout, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The rules of a rollout, fixed at its start: a margin moved after looking at the evidence proves nothing.

    Rules of a later version may have more fields. Raises ConfigError for values out of range.
    """

    def __post_init__(self) -> None:
        check_rollout("rollout", self)

    @property
    def n_steps(self) -> int:
        return len(self.shares) + 1

    def margin(self, rail: LiveRail) -> float:
        margin: float = getattr(self, "error_margin" if rail == "errors" else f"{rail}_margin")
        return margin


def rules_of(route: Route) -> Rules:
    return Rules(**msgspec.structs.asdict(route.rollout))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSums:
    n: int = 0
    full: float = 0.0
    active: float = 0.0
    candidate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTotal:
    n: int = 0
    total: float = 0.0  # each run capped
    n_over: int = 0  # runs above the cap

    @property
    def mean(self) -> float:
        return self.total / self.n

    def plus(self, value: float, cap: float) -> ArmTotal:
        return ArmTotal(n=self.n + 1, total=self.total + min(cap, value), n_over=self.n_over + (value > cap))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One metric of live runs in [0, 1], higher is worse, compared between the arms."""

    candidate: ArmTotal = ArmTotal()
    control: ArmTotal = ArmTotal()
    apart: SequenceState = _NOBODY  # half of candidate minus control, scaled from [-1, 1]
    beyond: SequenceState = _NOBODY  # … minus (1 + margin) times control, scaled from [-1 - margin, 1]; for latency

    @property
    def adapted_cap(self) -> float:
        """The cap of the next run's value, in (0, 1], for metrics without a natural range.

        The width of a bound never falls below its range over n, so the range must follow the values: a cap of 120 s
        proves nothing about requests of 0.2 s. It depends on the control's earlier runs alone, so it is known before
        the run that it bounds. Scaled by such a predictable bound, each run is a bounded martingale difference, and the
        empirical-Bernstein supermartingale of `sequence` holds as for a fixed range (Howard, Ramdas, McAuliffe, Sekhon
        2021, theorem 4; Waudby-Smith and Ramdas 2023, JRSS-B 86(1), section 3, on predictable plug-ins).
        """
        if self.control.n < SCALE_RUNS or self.control.total <= 0:
            return 1.0
        return min(1.0, CAP_MEANS * self.control.total / self.control.n)

    def plus(self, arm: ArmName, value: float, *, margin: float = 0.0, cap: float = 1.0) -> Contrast:
        """Add a run's value in [0, 1], capped at `cap` in (0, 1], which must be chosen before the run is seen.

        margin  of `beyond`, relative, at least 0; the same for every run of a rollout
        """
        n, total = self.candidate.n + self.control.n, self.candidate.total + self.control.total
        part, guess = min(cap, value) / cap, min(1.0, total / n / cap) if n else 0.0
        if arm == "candidate":
            apart, beyond = part - guess, part - guess
        else:
            apart, beyond = guess - part, guess - (1 + margin) * part
        return Contrast(
            candidate=self.candidate.plus(value, cap) if arm == "candidate" else self.candidate,
            control=self.control.plus(value, cap) if arm == "control" else self.control,
            apart=self.apart.plus((apart + 1) / 2),
            beyond=self.beyond.plus((beyond + 1 + margin) / (2 + margin)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRun:
    """The first live request of a unit in its arm; never an audit or a run of a warm-up (`State.counts`)."""

    query_class: str = NO_CLASS
    seconds: float | None = None  # to the last byte; None: not measured
    error: bool = False  # the client got an error
    no_answer: bool = False  # it ended without an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEvidence:
    audits: Mapping[str, PairCounts] = field(default_factory=dict)  # of active version and candidate, by class
    traffic: Mapping[str, int] = field(default_factory=dict)  # requests of the route since the rollout began, by class
    kept: TokenSums = TokenSums()
    units: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by class: of the candidate, of the control
    latency: Contrast = Contrast()  # seconds over `Rules.latency_cap_s`
    errors: Contrast = Contrast()
    no_answer: Contrast = Contrast()
    satisfaction: Contrast = Contrast()  # 1 - satisfaction, of those that were rated
    labelled: tuple[Cell, ...] = ()  # live runs with labels, by class; `full` is the control
    latest: int | None = None  # number of the route's latest publication; None: not read yet
    withheld: str = ""  # why nothing may be promoted now, such as a new epoch; "": no reason
    idle: str = ""  # why a learned candidate would save nothing at its current level; "": it would
    void: str = ""  # why a learned candidate can no longer stop any run; "": it can

    @property
    def all_audits(self) -> PairCounts:
        return sum(self.audits.values(), PairCounts())

    @property
    def n_audits(self) -> int:
        return self.all_audits.n

    @property
    def n_candidate(self) -> int:
        return sum(candidate for candidate, _ in self.units.values())

    @property
    def n_control(self) -> int:
        return sum(control for _, control in self.units.values())

    def with_request(self, query_class: str = NO_CLASS, n: int = 1) -> RolloutEvidence:
        return replace(self, traffic={**self.traffic, query_class: self.traffic.get(query_class, 0) + n})

    def with_audit(
        self, query_class: str, z: Z | None, *, full: float = 0.0, active: float = 0.0, candidate: float = 0.0
    ) -> RolloutEvidence:
        """Add one audit, with the tokens of its run and those that each version would have kept.

        z  EM of the active version minus the candidate's; None: they differ without a label
        """
        kept = TokenSums(
            n=self.kept.n + 1,
            full=self.kept.full + _tokens(full),
            active=self.kept.active + _tokens(active),
            candidate=self.kept.candidate + _tokens(candidate),
        )
        counts = self.audits.get(query_class, PairCounts()) + _OUTCOMES[z]
        return replace(self, audits={**self.audits, query_class: counts}, kept=kept)

    def with_label(self, query_class: str, z: Z) -> RolloutEvidence:
        counts = self.audits.get(query_class, PairCounts())
        if not counts.pending:
            raise ValueError(f"with_label: no audit of class {query_class!r} is pending")
        labelled = replace(counts, pending=counts.pending - 1) + _OUTCOMES[z]
        return replace(self, audits={**self.audits, query_class: labelled})

    def with_run(self, arm: ArmName, run: UnitRun, rules: Rules) -> RolloutEvidence:
        candidate, control = self.units.get(run.query_class, (0, 0))
        counts = (candidate + 1, control) if arm == "candidate" else (candidate, control + 1)
        latency = self.latency
        if run.seconds is not None:
            part = _part(run.seconds, rules.latency_cap_s)
            latency = latency.plus(arm, part, margin=rules.latency_margin, cap=latency.adapted_cap)
        return replace(
            self,
            units={**self.units, run.query_class: counts},
            latency=latency,
            errors=self.errors.plus(arm, float(run.error)),
            no_answer=self.no_answer.plus(arm, float(run.no_answer)),
        )

    def with_rating(self, arm: ArmName, satisfaction: float) -> RolloutEvidence:
        if not (isfinite(satisfaction) and 0 <= satisfaction <= 1):
            raise ValueError(f"satisfaction: got {satisfaction}; a fraction from 0 to 1")
        return replace(self, satisfaction=self.satisfaction.plus(arm, 1 - satisfaction))


def _tokens(n: float) -> float:
    if not (isfinite(n) and n >= 0):
        raise ValueError(f"tokens: got {n}; at least 0")
    return n


def _part(seconds: float, cap_s: float) -> float:
    if not isfinite(seconds):
        raise ValueError(f"seconds: got {seconds}; a finite number")
    return min(1.0, max(0.0, seconds) / cap_s)
