"""The stages of a rollout as a pure state machine.

    shadow ──▶ canary ──▶ ramp … ──▶ full        a step forward needs proof that nothing is lost
       └─────────┴─────────┴──▶ rolled_back       a step back needs good evidence of harm, and no proof
    paused: by a person, or because the measurements are not credible; no step forward, harm still rolls back

In shadow the candidate is replayed on audits and serves nobody. It leaves shadow when audits have proved, overall and
for every query class, that it loses no more than the margins. Then a share of new units gets the candidate, an equal
share is its control, and live metrics are compared. docs/reference/rollout.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final, Literal, TypeAlias

from suffice.rollout.assign import point_of
from suffice.rollout.evidence import (
    NO_NAME,
    ArmName,
    GuardrailValue,
    RolloutEvidence,
    Rules,
    describe_guardrail_points,
    group_classes,
    mix_problem,
    read_em,
    read_live,
    split_problem,
    too_bold,
)
from suffice.rollout.steps import Compare, Condition, Prove, Stage, Wait, plan_steps
from suffice.rollout.versions import overtaken

Readings: TypeAlias = tuple[GuardrailValue, ...]
Move: TypeAlias = Literal["promote", "pause", "resume", "roll_back", "certify"]
EVIDENCE: Final = "evidence"  # `Transition.by` where no person decided


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    rollout: str  # a unique name of this attempt; also the salt of its assignment
    route: str
    candidate: str  # address of the version under test
    active: str  # address of the version that serves the others
    follows: int  # number of the latest publication at the start; 0: none
    stage: Stage
    step: int  # steps taken forward: 0 in shadow, 1 in the canary, then the ramp's
    share: float  # of new units that the candidate serves now, [0, 1]; 0 while something is wrong
    audit_share: float | None  # of requests to audit; None: EM is proved, and the route's own share is enough
    began_at: int  # requests of the route when it began
    began_s: float  # Unix time
    since_at: int  # … when this step began, or was resumed
    since_s: float
    paused: str = ""  # why no step forward is taken; "": not paused
    paused_by: str = ""  # a person, or "evidence"
    n_moves: int = 0  # transitions so far
    fit: str = ""  # address of the candidate's learned models; "": it is a policy
    level: int = 0  # learned: the highest level that its own certificate allows; 0: it stops no run

    @property
    def over(self) -> bool:
        return self.stage in ("full", "rolled_back")

    def counts(self, at: int, now_s: float, rules: Rules) -> bool:
        warm = at >= self.since_at + rules.warmup_requests and now_s >= self.since_s + rules.warmup_s
        return warm and 0 < self.share < 1

    def after(self, move: Transition) -> State:
        """Return the state after a transition. Raises ValueError for a transition of another state."""
        if move.rollout != self.rollout or move.number != self.n_moves + 1 or self.over:
            raise ValueError(
                f"rollout {self.rollout}: transition {move.number} of {move.rollout} does not follow {self.n_moves}"
            )
        if move.move == "certify":  # not a step: only its level changes
            return replace(self, level=move.level, n_moves=move.number)
        held = move.move == "pause"
        return replace(
            self,
            stage=move.stage,
            level=move.level,
            step=move.step,
            share=move.share,
            audit_share=move.audit_share,
            since_at=self.since_at if held else move.at,
            since_s=self.since_s if held else move.now_s,
            paused=move.reason if held else "",
            paused_by=move.by if held else "",
            n_moves=move.number,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    by: str  # "evidence", or a person
    reason: str  # a sentence
    at: int  # governed requests of the route since the rollout began
    now_s: float  # Unix time
    readings: Readings = ()  # the evidence for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition(StepOrder):
    rollout: str
    number: int  # from 1; of two with the same number only one can be written
    move: Move
    stage: Stage  # after the transition
    step: int
    share: float
    audit_share: float | None
    level: int = 0  # of a certified learned candidate; the highest at which it acts

    @property
    def sentence(self) -> str:
        if self.move == "certify":
            return f"level {self.level} of the candidate may act"
        return f"{self.move}, {self.stage} at {self.share:.0%} of new units".replace("_", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmAssignment:
    arm: ArmName | None  # None: served by the active version and not compared
    propensity: float  # P(this arm), in (0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutState:
    readings: Readings
    ends: str  # why it ends now; "": no reason
    broken: str  # why the arms cannot be compared; "": they can
    missing: tuple[str, ...]  # what the next step still needs, as sentences
    grounds: str  # what the evidence shows for it once nothing is missing, as a sentence

    @property
    def word(self) -> Literal["goes back", "broken", "not enough data", "ready"]:
        if self.ends:
            return "goes back"
        if self.broken:
            return "broken"
        return "not enough data" if self.missing else "ready"


# --------------------------------------------------------------------------- moves


def start_rollout(
    rollout: str,
    *,
    route: str,
    candidate: str,
    active: str,
    follows: int,
    at: int,
    now_s: float,
    rules: Rules,
    fit: str = "",
) -> State:
    """Return a rollout in shadow. `cool_down_refusal` says whether it may begin."""
    return State(
        rollout=rollout,
        route=route,
        candidate=candidate,
        active=active,
        follows=follows,
        stage="shadow",
        step=0,
        share=0.0,
        audit_share=rules.audit_share,
        began_at=at,
        began_s=now_s,
        since_at=at,
        since_s=now_s,
        fit=fit,
    )


def advance(state: State, evidence: RolloutEvidence, rules: Rules, *, at: int, now_s: float) -> Transition | None:
    """Return the move that the evidence requires; None: none. Valid after every request."""
    if state.over:
        return None
    assessment = assess_rollout(state, evidence, rules, at=at, now_s=now_s)
    order = StepOrder(
        by=EVIDENCE, reason=assessment.ends or assessment.broken, at=at, now_s=now_s, readings=assessment.readings
    )
    if assessment.ends:
        return roll_back(state, order)
    if state.paused:
        return None
    if assessment.broken:
        return _move(state, "pause", order, share=0.0)
    if assessment.missing:
        return None
    share = plan_steps(rules)[state.step + 1].share
    to = f"from {_percent(state.share)} to {_percent(share)} of new units"
    return promote_rollout(state, rules, replace(order, reason=f"{assessment.grounds}; {to}"))


def certify(state: State, level: int, *, reason: str, at: int, now_s: float) -> Transition:
    """Let another level act, by a learned candidate's own certificate, whatever the step."""
    return _move(state, "certify", StepOrder(by=EVIDENCE, reason=reason, at=at, now_s=now_s), level=level)


def hold_rollout(state: State, order: StepOrder) -> Transition:
    """Hold a rollout for a person: no step forward, the share stays, and harm still rolls it back."""
    if not state.over and state.paused and state.paused_by != EVIDENCE:
        raise ValueError(f"rollout {state.rollout}: {state.paused_by} holds it already: {state.paused}")
    return _move(state, "pause", order)


def resume_rollout(state: State, rules: Rules, order: StepOrder) -> Transition:
    """Resume a rollout for a person: same step and share, new warm-up."""
    if not state.over and not state.paused:
        raise ValueError(f"rollout {state.rollout}: it is not paused")
    return _move(state, "resume", order, share=plan_steps(rules)[state.step].share)


def promote_rollout(state: State, rules: Rules, order: StepOrder) -> Transition:
    """Take the next step; later steps on evidence still need the proof that one by a person skips."""
    step = plan_steps(rules)[state.step + 1]
    is_proved = order.by == EVIDENCE or step.stage == "full"
    return _move(
        state,
        "promote",
        order,
        share=step.share,
        stage=step.stage,
        step=state.step + 1,
        audit_share=None if is_proved else state.audit_share,
    )


def roll_back(state: State, order: StepOrder) -> Transition:
    return _move(state, "roll_back", order, share=0.0, stage="rolled_back", audit_share=None, level=0)


def place(state: State, unit: str, *, salt: str) -> ArmAssignment:
    """Return the arm of a conversation or user; a growing share only adds units to both arms."""
    if state.share >= 1:
        return ArmAssignment(arm="candidate", propensity=1.0)
    if state.share <= 0:
        return ArmAssignment(arm=None, propensity=1.0)
    point = point_of(unit, salt=f"{salt}/rollout/{state.rollout}", purpose=b"rollout-arm")
    if point < state.share:
        return ArmAssignment(arm="candidate", propensity=state.share)
    if point >= 1 - state.share:
        return ArmAssignment(arm="control", propensity=state.share)
    return ArmAssignment(arm=None, propensity=1 - 2 * state.share)


# --------------------------------------------------------------------------- judgement


def assess_rollout(state: State, evidence: RolloutEvidence, rules: Rules, *, at: int, now_s: float) -> RolloutState:
    live = state.step > 0
    em, broken = read_em(evidence, rules), split_problem(evidence) if live else ""
    readings = (*em, *(read_live(evidence, rules) if live else ()))
    # Arms of a broken split cannot be compared, and so cannot cause a rollback.
    harm = _why_back(state, evidence, rules, em if broken else readings)
    missing, grounds = list[str](), ""
    for condition in plan_steps(rules)[state.step].until:
        still, shows = _check(condition, state, evidence, rules, readings, at, now_s)
        missing, grounds = [*missing, *still], shows or grounds
    missing += [why for why in (mix_problem(evidence, rules), evidence.withheld, evidence.idle) if why]
    return RolloutState(
        readings=readings,
        broken=broken,
        missing=tuple(missing),
        grounds=grounds,
        ends=harm or _why_over(state, rules, evidence.idle, missing, at=at),
    )


def _check(
    need: Condition, state: State, evidence: RolloutEvidence, rules: Rules, readings: Readings, at: int, now_s: float
) -> tuple[list[str], str]:
    """Return what a condition of the next step still needs, and what it shows once it is met."""
    units = f"on {evidence.n_candidate:,} units of the candidate and {evidence.n_control:,} of the control"
    match need:
        case Prove(guardrails=("em",)):
            if state.audit_share is None:
                return [], ""
            whole, each = describe_guardrail_points(rules.em_margin), describe_guardrail_points(rules.class_em_margin)
            grounds = f"{evidence.n_audits:,} audits prove: less than {whole} of EM lost over all, {each} in each class"
            return _missing_proof(evidence, rules, readings), grounds
        case Prove(guardrails=names):
            missing = [one.sentence for one in readings if one.rail in names and one.finding != "fine"]
            return missing, f"{', '.join(names) or 'nothing'} proved to be within the margin {units}"
        case Compare(least=least):
            arms = (("candidate", evidence.n_candidate), ("control", evidence.n_control))
            missing = [f"{name}: {n:,} of {least:,} new units" for name, n in arms if n < least]
            missing += [
                f"{reading.sentence}; it looks worse than that"
                for reading in readings
                if reading.about is None and reading.looks_worse and reading.finding == "open"
            ]
            return missing, f"nothing looks worse than its margin {units}"
        case Wait(seconds=seconds, requests=requests):
            lasts_s, n = now_s - state.since_s, at - state.since_at
            missing = [f"{seconds - lasts_s:,.0f} s more in this step"] if lasts_s < seconds else []
            missing += [f"warming up: {n:,} of {requests:,} requests"] if n < requests else []
            return missing, ""


def _why_back(state: State, evidence: RolloutEvidence, rules: Rules, readings: Readings) -> str:
    if evidence.latest is not None and evidence.latest != state.follows:
        return overtaken(state.follows, evidence.latest) or ""
    if evidence.void:
        return evidence.void
    harmed = [reading.sentence for reading in readings if reading.finding == "harm"]
    if harmed:
        return "; ".join(harmed)
    return too_bold(evidence, rules)


def _why_over(state: State, rules: Rules, idle: str, missing: list[str], *, at: int) -> str:
    n = at - state.since_at
    if state.paused:
        return ""
    if n >= rules.most_requests:
        return f"inconclusive: {n:,} requests in this step did not prove that nothing is lost"
    if idle and missing == [idle] and n >= rules.most_idle_requests:
        return f"inconclusive: after {n:,} requests in this step all that is missing is a saving: {idle}"
    return ""


def _missing_proof(evidence: RolloutEvidence, rules: Rules, readings: Readings) -> list[str]:
    missing = []
    waited = {group.name for group in group_classes(evidence, rules) if group.is_waited_for(rules)}
    for reading in readings:
        if reading.rail != "em":
            continue
        least = rules.least_audits if reading.about is None else rules.least_class_audits
        if reading.about is not None and reading.about not in waited:
            continue
        if reading.n < least:
            what = "the whole" if reading.about is None else f"class {reading.about or NO_NAME}"
            missing.append(f"{what}: {reading.n:,} of {least:,} audits")
        elif reading.finding != "fine":
            more = "" if reading.n_missing is None else f"; about {reading.n_missing:,} more audits like these"
            missing.append(f"{reading.sentence}{more}")
    if not waited:
        missing.append("no class of questions has been seen")
    return missing


# --------------------------------------------------------------------------- transitions

_VERBS: Final[Mapping[Move, str]] = {"pause": "hold", "roll_back": "roll back"}


def _move(state: State, move: Move, order: StepOrder, **changes: Any) -> Transition:
    if state.over:
        raise ValueError(f"rollout {state.rollout}: cannot {_VERBS.get(move, move)} what has ended ({state.stage})")
    same = Transition(
        rollout=state.rollout,
        number=state.n_moves + 1,
        move=move,
        stage=state.stage,
        step=state.step,
        share=state.share,
        audit_share=state.audit_share,
        level=state.level,
        at=order.at,
        now_s=order.now_s,
        by=order.by,
        reason=order.reason,
        readings=order.readings,
    )
    return replace(same, **changes)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


DAY_S: Final = 86_400.0


def cool_down_refusal(
    past: Sequence[State], candidate: str, *, now_s: float, rules: Rules, held: str = "", by_person: bool = False
) -> str | None:
    """Return why a rollout may not begin now, as a sentence; None: it may.

    past       states of the route's rollouts, oldest first; one that was undone counts as rolled back
    held       why a person holds the route; "": not held
    by_person  only a hold and a running rollout refuse it, not the cool-down or the count
    """
    if held:
        return f"a person holds this route: {held}"
    running = next((one for one in past if not one.over), None)
    if running is not None:
        return f"the rollout of {running.candidate} is running; one at a time"
    if by_person:
        return None
    if any(one.stage == "rolled_back" and one.candidate == candidate for one in past):
        return f"{candidate} was rolled back before; a person may try it again"
    wait_s = cool_down_left(past, now_s=now_s, rules=rules)
    if wait_s > 0:
        return f"cooling down after a rollback: another {wait_s:,.0f} s"
    today = sorted(one.began_s for one in past if one.began_s > now_s - DAY_S)
    if len(today) >= rules.most_a_day:
        free_s = today[-rules.most_a_day] + DAY_S - now_s
        return f"{len(today)} rollouts began in the last 24 hours, at most {rules.most_a_day}: another {free_s:,.0f} s"
    return None


def cool_down_left(past: Sequence[State], *, now_s: float, rules: Rules) -> float:
    """Return seconds left of the cool-down, doubled by consecutive rollbacks up to `most_cool_down_s`; 0: none."""
    ended = [one for one in past if one.over]
    in_a_row = len(list(takewhile(lambda one: one.stage == "rolled_back", reversed(ended))))
    if not in_a_row:
        return 0.0
    lasts_s = min(rules.most_cool_down_s, rules.cool_down_s * 2.0 ** min(in_a_row - 1, 60))
    # A clock that was set back must not make it longer.
    return min(lasts_s, max(0.0, ended[-1].since_s + lasts_s - now_s))
