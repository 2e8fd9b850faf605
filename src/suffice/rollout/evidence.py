"""Guardrails: judges each metric that must not get worse, from the evidence of a rollout.

A guardrail is *fine* when the candidate provably loses no more than the margin, *harm* when it provably loses something
and is not shown to keep the margin, and *open* otherwise. Readings are valid after every request. EM is read on paired
audits (`paired`), live metrics with `sequence`, and the split with `sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, log
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np

from suffice.assurance.bounds import V_OPT, SequenceState, gamma_exponential_log_wealth
from suffice.assurance.certify import Counts, log_bets, log_wealth, mixed
from suffice.assurance.paired import BETS, pairs_to_certify
from suffice.assurance.sampling import LOG_ALARM, Draws, log_sample_ratio
from suffice.assurance.strata import Cell, hidden_drop
from suffice.rollout.effects import PairCounts
from suffice.settings import Route
from suffice.settings.checks import check_rollout
from suffice.settings.limits import LIVE_GUARDRAILS, LiveRail
from suffice.settings.tables import Rollout

# ---- The evidence of a rollout: a fold over audits and over the first live request of each new unit of both arms

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


Finding: TypeAlias = Literal["fine", "harm", "open"]

NO_NAME: Final = "questions without a class"
_LEAST_SEEN: Final = 20  # of each arm: fewer never look worse


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailValue:
    rail: RailName
    about: str | None  # a query class, or "3 rare classes"; None: all
    n: int  # audits; for live guardrails requests of the candidate
    n_control: int  # requests of the control; 0 for EM, where each audit shows both
    worse: float | None  # the loss: EM or rate as a fraction, latency relative to the control; None: unknown
    margin: float  # in the same unit
    finding: Finding
    sentence: str
    n_missing: int | None = None  # for EM: audits until it is proved, at the rates seen; None: unknown

    @property
    def looks_worse(self) -> bool:
        return self.worse is not None and self.worse > self.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassGroup:
    name: str  # of a class, or "3 rare classes": each too small to be judged alone
    audits: PairCounts
    share: float  # of the traffic

    def is_waited_for(self, rules: Rules) -> bool:
        return self.share >= rules.rare_share


# --------------------------------------------------------------------------- EM, on audits


def group_classes(evidence: RolloutEvidence, rules: Rules) -> tuple[ClassGroup, ...]:
    """Return each class as a group, and those below `rare_share` of the traffic as one.

    Rare classes below it even together are judged for harm, and their proof is not required.
    """
    audits = evidence.audits
    traffic = evidence.traffic or {name: one.n for name, one in audits.items()}
    total = sum(traffic.values()) or 1
    shares = {name: traffic.get(name, 0) / total for name in sorted({*audits, *traffic})}
    rare = [name for name, share in shares.items() if share < rules.rare_share]
    groups = {name: [name] for name in shares if name not in rare}
    if rare:
        groups[rare[0] if len(rare) == 1 else f"{len(rare)} rare classes"] = rare
    return tuple(
        ClassGroup(
            name=name,
            audits=sum((audits.get(one, PairCounts()) for one in members), PairCounts()),
            share=sum(shares[one] for one in members),
        )
        for name, members in groups.items()
    )


def read_em(evidence: RolloutEvidence, rules: Rules) -> tuple[GuardrailValue, ...]:
    groups = group_classes(evidence, rules)
    # All must be proved, so each may use all of delta; any one can roll it back, so they share the delta of harm.
    delta, harm_delta = 1 - rules.confidence, (1 - rules.harm_confidence) / (1 + len(groups))
    readings = [_read_one(None, evidence.all_audits, rules.em_margin, delta, harm_delta)]
    readings += [_read_one(one.name, one.audits, rules.class_em_margin, delta, harm_delta) for one in groups]
    return tuple(readings)


def post_stratified_drop(evidence: RolloutEvidence, rules: Rules) -> float | None:
    """Return the mean drop of the groups, weighted by traffic and not by audits; None: a group has no audit."""
    groups = [group for group in group_classes(evidence, rules) if group.share > 0]
    if not groups or any(not group.audits.n for group in groups):
        return None
    total = sum(group.share for group in groups)
    return sum(group.share * group.audits.worst_drop for group in groups) / total


def _read_one(about: str | None, audits: PairCounts, margin: float, delta: float, harm_delta: float) -> GuardrailValue:
    counts = _counts(audits.gained, audits.same, audits.lost + audits.pending)
    proof = float(log_wealth(counts, max_em_drop=margin, bets=BETS)[0])
    # The same bets, reversed: that the mean of Z is above 0.
    counts = _counts(audits.lost, audits.same + audits.pending, audits.gained)
    harm = float(mixed(log_bets(counts.gained, counts.same, counts.lost, 0.0, bets=BETS))[0])
    finding: Finding = "open"
    if proof >= log(1 / delta):
        finding = "fine"
    elif harm >= log(1 / harm_delta):
        finding = "harm"
    drop = audits.worst_drop if audits.n else None
    name = "EM" if about is None else f"EM of {about or NO_NAME}"
    seen = "no audits yet" if drop is None else f"{_by(drop)} on {audits.n:,} audits"
    ending = _describe_finding(finding, describe_guardrail_points(margin), "lower")
    return GuardrailValue(
        rail="em",
        about=about,
        n=audits.n,
        n_control=0,
        worse=drop,
        margin=margin,
        finding=finding,
        sentence=f"{name}: {seen}, {ending}",
        n_missing=None if finding != "open" else _missing(audits, margin, delta),
    )


def _counts(gained: int, same: int, lost: int) -> Counts:
    return Counts(np.array([gained]), np.array([same]), np.array([lost]))


def _by(drop: float) -> str:
    if round(100 * drop, 2) == 0:
        return "the same"
    return f"{'lower' if drop > 0 else 'higher'} by {100 * abs(drop):.2f} points"


def describe_guardrail_points(fraction: float) -> str:
    points = f"{100 * fraction:g}"
    return f"{points} point" if points == "1" else f"{points} points"


def _missing(audits: PairCounts, margin: float, delta: float) -> int | None:
    if not audits.n:
        return None
    try:
        needed = pairs_to_certify(audits.worst_drop, audits.gained / audits.n, max_em_drop=margin, delta=delta)
    except ValueError:
        return None
    return max(1, needed - audits.n)


# --------------------------------------------------------------------------- live runs


def read_live(evidence: RolloutEvidence, rules: Rules) -> tuple[GuardrailValue, ...]:
    return tuple(_read_live(rail, getattr(evidence, rail), rules) for rail in LIVE_GUARDRAILS)


def _read_live(rail: LiveRail, seen: Contrast, rules: Rules) -> GuardrailValue:
    margin = rules.margin(rail)
    alpha = 1 - rules.confidence
    harm_alpha = 1 - rules.harm_confidence
    if rail == "latency":
        # A run above the cap counts as the cap. The number of such runs is judged separately, without a margin; the two
        # tests share the error of harm.
        fine = _surely_apart(-1, seen.beyond, (1 + margin) / (2 + margin), alpha)
        harm_alpha /= 2
        over = _surely_more_over(seen, harm_alpha)
    else:
        fine, over = _surely_apart(-1, seen.apart, (1 + margin / 2) / 2, alpha), False
    finding: Finding = "fine" if fine and not over else "open"
    if finding == "open" and (over or _surely_apart(+1, seen.apart, 0.5, harm_alpha)):
        finding = "harm"
    worse = None
    if min(seen.candidate.n, seen.control.n) >= _LEAST_SEEN:
        worse = seen.candidate.mean - seen.control.mean
        if rail == "latency":
            worse = worse / seen.control.mean if seen.control.mean > 0 else None
    return GuardrailValue(
        rail=rail,
        about=None,
        n=seen.candidate.n,
        n_control=seen.control.n,
        worse=worse,
        margin=margin,
        finding=finding,
        sentence=_live_sentence(rail, seen, worse, margin, finding, rules),
    )


def _surely_apart(side: Literal[-1, 1], seen: SequenceState, mean: float, alpha: float) -> bool:
    away = side * (seen.total - seen.n * mean)
    return away > 0 and gamma_exponential_log_wealth(away, seen.deviation, alpha, v_opt=V_OPT) >= log(1 / alpha)


def _surely_more_over(seen: Contrast, alpha: float) -> bool:
    """Return whether the candidate exceeds the cap more often; by chance each such run is its own with odds 1/2.

    The beta-binomial mixture of `sampling`, which holds at every look, one-sided. Its weight of 1 is that of Krichevsky
    and Trofimov (1981): seven such runs, all of the candidate's, are enough at 5 %.
    """
    mine, both = seen.candidate.n_over, seen.candidate.n_over + seen.control.n_over
    return 2 * mine > both and log_sample_ratio(Draws(((0.5, both, mine),)), weight=1.0) >= log(1 / alpha)


def _live_sentence(
    rail: LiveRail, seen: Contrast, worse: float | None, margin: float, finding: Finding, rules: Rules
) -> str:
    name = "runs without an answer" if rail == "no_answer" else rail
    n = f"{seen.candidate.n:,} and {seen.control.n:,} runs"
    if worse is None:
        return f"{name}: too few to say anything, {n}"
    mine, other = seen.candidate.mean, seen.control.mean
    if rail == "latency":
        values = f"{rules.latency_cap_s * mine:.3g} s against {rules.latency_cap_s * other:.3g} s"
        if seen.candidate.n_over or seen.control.n_over:
            cap_s = rules.latency_cap_s * seen.adapted_cap
            n += f" ({seen.candidate.n_over:,} and {seen.control.n_over:,} above {cap_s:.3g} s, counted as that)"
    elif rail == "satisfaction":
        values = f"{1 - mine:.2f} against {1 - other:.2f}"
    else:
        values = f"{100 * mine:.2g} % against {100 * other:.2g} %"
    worse_word = {"latency": "slower", "satisfaction": "lower"}.get(rail, "more")
    allowed = f"{100 * margin:g} %" if rail == "latency" else describe_guardrail_points(margin)
    return f"{name}: {values} on {n}, {_describe_finding(finding, allowed, worse_word)}"


def _describe_finding(finding: Finding, allowed: str, worse: str) -> str:
    if finding == "fine":
        return f"surely less than {allowed} {worse}"
    return f"surely {worse}" if finding == "harm" else f"{allowed} {worse} is not ruled out"


def split_problem(evidence: RolloutEvidence) -> str:
    """Return why the arms cannot be compared: their sizes differ, overall or in a class. "": they can."""
    if not evidence.units:
        return ""
    pairs = [("", evidence.n_candidate, evidence.n_control)]
    pairs += [(f" in {name or NO_NAME}", *counts) for name, counts in sorted(evidence.units.items())]
    goal = LOG_ALARM + log(len(pairs))
    for where, candidate, control in pairs:
        if log_sample_ratio(Draws(((0.5, candidate + control, candidate),))) >= goal:
            return f"{candidate:,} units of the candidate and {control:,} of the control{where}, assigned evenly"
    return ""


def mix_problem(evidence: RolloutEvidence, rules: Rules) -> str:
    """Return why the overall mean contradicts the classes (Simpson's paradox); "": it does not."""
    drop = post_stratified_drop(evidence, rules) if evidence.n_audits >= rules.least_audits else None
    if drop is not None and drop > rules.em_margin:
        allowed = describe_guardrail_points(rules.em_margin)
        return f"weighted as the traffic is, classes lose {100 * drop:.2f} points, of {allowed} allowed"
    true = hidden_drop(evidence.labelled)
    if true is not None and true > rules.em_margin:
        return f"live labels look better over all and are {100 * true:.2f} points worse class by class"
    return ""


def too_bold(evidence: RolloutEvidence, rules: Rules) -> str:
    """Return why the step is too large: the candidate keeps too few tokens. "": it is not, or audits are too few."""
    kept = evidence.kept
    if kept.n < rules.least_class_audits or not kept.full:
        return ""
    if kept.candidate < rules.least_kept * kept.full:
        share = kept.candidate / kept.full
        return f"the candidate keeps {share:.1%} of the full runs' tokens, at least {rules.least_kept:.0%} must stay"
    if kept.candidate < (1 - rules.most_cut) * kept.active:
        cut, most = 1 - kept.candidate / kept.active, rules.most_cut
        return f"the candidate cuts {cut:.0%} of the tokens that the active version keeps, at most {most:.0%} at once"
    return ""
