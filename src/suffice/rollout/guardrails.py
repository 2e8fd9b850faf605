"""Guardrails: judges each metric that must not get worse, from the evidence of a rollout.

A guardrail is *fine* when the candidate provably loses no more than the margin, *harm* when it provably loses something
and is not shown to keep the margin, and *open* otherwise. Readings are valid after every request. EM is read on paired
audits (`paired`), live metrics with `sequence`, and the split with `sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.assurance.bounds import V_OPT, SequenceState, gamma_exponential_log_wealth
from suffice.assurance.certify import Counts, log_bets, log_wealth, mixed
from suffice.assurance.paired import BETS, pairs_to_certify
from suffice.assurance.sampling import LOG_ALARM, Draws, log_sample_ratio
from suffice.assurance.strata import standardise
from suffice.rollout.evidence import ClassAudits, Contrast, RailName, RolloutEvidence, Rules
from suffice.settings.tables import LIVE_GUARDRAILS, LiveRail

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
    said: Finding
    sentence: str
    n_missing: int | None = None  # for EM: audits until it is proved, at the rates seen; None: unknown

    @property
    def looks_worse(self) -> bool:
        return self.worse is not None and self.worse > self.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassGroup:
    name: str
    audits: ClassAudits
    share: float  # of the traffic
    rare: bool  # several classes, each too small to be judged alone

    def is_waited_for(self, rules: Rules) -> bool:
        return self.share >= rules.rare_share


# --------------------------------------------------------------------------- EM, on audits


def group_classes(evidence: RolloutEvidence, rules: Rules) -> tuple[ClassGroup, ...]:
    """Return each class as a group, and those below `rare_share` of the traffic as one.

    Rare classes below it even together are judged for harm, and their proof is not required.
    """
    audits = {one.query_class: one for one in evidence.audits}
    traffic = dict(evidence.traffic) or {name: one.n for name, one in audits.items()}
    total = sum(traffic.values()) or 1
    shares = {name: traffic.get(name, 0) / total for name in {*audits, *traffic}}
    alone = sorted(name for name, share in shares.items() if share >= rules.rare_share)
    rest = sorted(set(shares) - set(alone))
    groups = [ClassGroup(name=name, audits=_audits(audits, [name]), share=shares[name], rare=False) for name in alone]
    if rest:
        share = sum(shares[name] for name in rest)
        name = rest[0] if len(rest) == 1 else f"{len(rest)} rare classes"
        groups.append(ClassGroup(name=name, audits=_audits(audits, rest), share=share, rare=True))
    return tuple(groups)


def read_em(evidence: RolloutEvidence, rules: Rules) -> tuple[GuardrailValue, ...]:
    audits = {one.query_class: one for one in evidence.audits}
    whole = _audits(audits, [*audits])
    groups = group_classes(evidence, rules)
    # All must be proved, so each may use all of delta; any one can roll it back, so they share the delta of harm.
    delta, harm_delta = 1 - rules.confidence, (1 - rules.harm_confidence) / (1 + len(groups))
    readings = [_read_one(None, whole, rules.em_margin, delta, harm_delta)]
    readings += [_read_one(one.name, one.audits, rules.class_em_margin, delta, harm_delta) for one in groups]
    return tuple(readings)


def post_stratified_drop(evidence: RolloutEvidence, rules: Rules) -> float | None:
    """Return the mean drop of the groups, weighted by traffic and not by audits; None: a group has no audit."""
    groups = [group for group in group_classes(evidence, rules) if group.share > 0]
    if not groups or any(not group.audits.n for group in groups):
        return None
    total = sum(group.share for group in groups)
    return sum(group.share * _drop(group.audits) for group in groups) / total


def _audits(audits: dict[str, ClassAudits], names: Sequence[str]) -> ClassAudits:
    mine = [audits[name] for name in names if name in audits]
    counts = {of: sum(getattr(one, of) for one in mine) for of in ("gained", "same", "lost", "pending")}
    return ClassAudits(query_class=names[0] if len(names) == 1 else "", **counts)


def _drop(audits: ClassAudits) -> float:
    return (audits.lost + audits.pending - audits.gained) / audits.n


def _read_one(about: str | None, audits: ClassAudits, margin: float, delta: float, harm_delta: float) -> GuardrailValue:
    proof = float(
        log_wealth(_one(audits.gained, audits.same, audits.lost + audits.pending), max_em_drop=margin, bets=BETS)[0]
    )
    # The same bets, reversed: that the mean of Z is above 0.
    counts = _one(audits.lost, audits.same + audits.pending, audits.gained)
    harm = float(mixed(log_bets(counts.gained, counts.same, counts.lost, 0.0, bets=BETS))[0])
    finding: Finding = "open"
    if proof >= log(1 / delta):
        finding = "fine"
    elif harm >= log(1 / harm_delta):
        finding = "harm"
    drop = _drop(audits) if audits.n else None
    name = "EM" if about is None else f"EM of {about or NO_NAME}"
    seen = "no audits yet" if drop is None else f"{_by(drop)} on {audits.n:,} audits"
    ends = {
        "fine": f"surely less than {describe_guardrail_points(margin)} lower",
        "harm": "surely lower",
        "open": f"{describe_guardrail_points(margin)} lower is not ruled out",
    }
    return GuardrailValue(
        rail="em",
        about=about,
        n=audits.n,
        n_control=0,
        worse=drop,
        margin=margin,
        said=finding,
        sentence=f"{name}: {seen}, {ends[finding]}",
        n_missing=None if finding != "open" else _missing(audits, margin, delta),
    )


def _one(gained: int, same: int, lost: int) -> Counts:
    return Counts(np.array([gained]), np.array([same]), np.array([lost]))


def _by(drop: float) -> str:
    if round(100 * drop, 2) == 0:
        return "the same"
    return f"{'lower' if drop > 0 else 'higher'} by {100 * abs(drop):.2f} points"


def describe_guardrail_points(fraction: float) -> str:
    points = f"{100 * fraction:g}"
    return f"{points} point" if points == "1" else f"{points} points"


def _missing(audits: ClassAudits, margin: float, delta: float) -> int | None:
    if not audits.n:
        return None
    try:
        needed = pairs_to_certify(_drop(audits), audits.gained / audits.n, max_em_drop=margin, delta=delta)
    except ValueError:
        return None
    return max(1, needed - audits.n)


# --------------------------------------------------------------------------- live runs


def read_live(evidence: RolloutEvidence, rules: Rules) -> tuple[GuardrailValue, ...]:
    return tuple(_read_live(rail, getattr(evidence, rail), rules) for rail in LIVE_GUARDRAILS)


def _read_live(rail: LiveRail, seen: Contrast, rules: Rules) -> GuardrailValue:
    margin, alpha, harm_alpha = rules.margin(rail), 1 - rules.confidence, 1 - rules.harm_confidence
    if rail == "latency":
        # A run above the cap counts as the cap. The number of such runs is judged separately, without a margin; the two
        # tests
        # share the error of harm.
        fine = _surely_apart(-1, seen.beyond, (1 + margin) / (2 + margin), alpha)
        harm_alpha /= 2
        over = _surely_more_over(seen, harm_alpha)
    else:
        fine, over = _surely_apart(-1, seen.apart, (1 + margin / 2) / 2, alpha), False
    finding: Finding = "fine" if fine and not over else "open"
    if finding == "open" and (over or _surely_apart(+1, seen.apart, 0.5, harm_alpha)):
        finding = "harm"
    enough = min(seen.n_candidate, seen.n_control) >= _LEAST_SEEN
    worse = _worse(rail, seen) if enough else None
    return GuardrailValue(
        rail=rail,
        about=None,
        n=seen.n_candidate,
        n_control=seen.n_control,
        worse=worse,
        margin=margin,
        said=finding,
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
    mine, both = seen.n_candidate_over, seen.n_candidate_over + seen.n_control_over
    return 2 * mine > both and log_sample_ratio(Draws(((0.5, both, mine),)), weight=1.0) >= log(1 / alpha)


def _worse(rail: LiveRail, seen: Contrast) -> float | None:
    control = seen.control / seen.n_control
    apart = seen.candidate / seen.n_candidate - control
    if rail != "latency":
        return apart
    return apart / control if control > 0 else None


def _live_sentence(
    rail: LiveRail, seen: Contrast, worse: float | None, margin: float, finding: Finding, rules: Rules
) -> str:
    name = "runs without an answer" if rail == "no_answer" else rail
    n = f"{seen.n_candidate:,} and {seen.n_control:,} runs"
    if worse is None:
        return f"{name}: too few to say anything, {n}"
    mine, other = seen.candidate / seen.n_candidate, seen.control / seen.n_control
    if rail == "latency":
        values = f"{rules.latency_cap_s * mine:.3g} s against {rules.latency_cap_s * other:.3g} s"
        if seen.n_candidate_over or seen.n_control_over:
            cap_s = rules.latency_cap_s * seen.adapted_cap
            n += f" ({seen.n_candidate_over:,} and {seen.n_control_over:,} above {cap_s:.3g} s, counted as that)"
    elif rail == "satisfaction":
        values = f"{1 - mine:.2f} against {1 - other:.2f}"
    else:
        values = f"{100 * mine:.2g} % against {100 * other:.2g} %"
    worse_word = {"latency": "slower", "satisfaction": "lower"}.get(rail, "more")
    allowed = f"{100 * margin:g} %" if rail == "latency" else describe_guardrail_points(margin)
    ends = {
        "fine": f"surely less than {allowed} {worse_word}",
        "harm": f"surely {worse_word}",
        "open": f"{allowed} {worse_word} is not ruled out",
    }
    return f"{name}: {values} on {n}, {ends[finding]}"


def split_problem(evidence: RolloutEvidence) -> str | None:
    """Return why the arms cannot be compared: their sizes differ, overall or in a class. None: they can."""
    if not evidence.units:
        return None
    pairs = [("", evidence.n_candidate, evidence.n_control)]
    pairs += [(f" in {one.query_class or NO_NAME}", one.candidate, one.control) for one in evidence.units]
    goal = LOG_ALARM + log(len(pairs))
    for where, candidate, control in pairs:
        if log_sample_ratio(Draws(((0.5, candidate + control, candidate),))) >= goal:
            return f"{candidate:,} units of the candidate and {control:,} of the control{where}, assigned evenly"
    return None


def mix_problem(evidence: RolloutEvidence, rules: Rules) -> str | None:
    """Return why the overall mean contradicts the classes (Simpson's paradox); None: it does not."""
    drop = post_stratified_drop(evidence, rules) if evidence.n_audits >= rules.least_audits else None
    if drop is not None and drop > rules.em_margin:
        allowed = describe_guardrail_points(rules.em_margin)
        return f"weighted as the traffic is, classes lose {100 * drop:.2f} points, of {allowed} allowed"
    mixed_up = standardise(evidence.labelled, margin=rules.em_margin)
    true = mixed_up.standardised_drop
    if mixed_up.misleading and true is not None and true > rules.em_margin:
        return f"live labels look better over all and are {100 * true:.2f} points worse class by class"
    return None


def too_bold(evidence: RolloutEvidence, rules: Rules) -> str | None:
    """Return why the step is too large: the candidate keeps too few tokens. None: it is not, or audits are too few."""
    kept = evidence.kept
    if kept.n < rules.least_class_audits or not kept.full:
        return None
    if kept.candidate < rules.least_kept * kept.full:
        share = kept.candidate / kept.full
        return f"keeps {share:.1%} of the full runs' tokens, at least {rules.least_kept:.0%} must stay"
    if kept.candidate < (1 - rules.most_cut) * kept.in_force:
        cut = 1 - kept.candidate / kept.in_force
        return f"cuts {cut:.0%} of the tokens that the active version keeps, at most {rules.most_cut:.0%} at once"
    return None
