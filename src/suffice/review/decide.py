"""Turns a person's decision into an override or the end of an incident, or explains a refusal.

A decision can only make a route safer, unless what it pins is certified here and now. Pure: the caller reads the state
and writes the result, all of it or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from suffice.review.holds import (
    DAY_S,
    MOST_DAYS,
    Case,
    DecisionKind,
    IncidentDecision,
    Override,
    OverrideKind,
    RouteHolds,
    describe_override,
    in_effect,
    override_problem,
    pin_problem,
)
from suffice.review.route_guarantee import GuaranteeInputs, guarantee_of
from suffice.types import Publication, Resumption


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionInputs(GuaranteeInputs):
    holds: RouteHolds

    @property
    def level(self) -> int:
        publication = self.publication
        return publication.level if publication is not None and publication.certified else 0

    def promise(self, *, now_s: float) -> str:
        return guarantee_of(replace(self, holding=self.holds.in_effect(now_s))).sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideForm:
    kind: OverrideKind
    reason: str
    author: str
    days: float  # until it ends, above 0 and at most 30
    query_class: str | None = None  # None: the whole route
    level: int | None = None  # pin, cap
    max_em_drop: float | None = None  # budget
    pinned: Publication | None = None  # pin: an earlier publication; None: the active one, at `level`
    incident: str = ""


def override_of(wanted: OverrideForm, now: DecisionInputs, *, now_s: float) -> Override | str:
    level = wanted.pinned.level if wanted.level is None and wanted.pinned is not None else wanted.level
    made = Override(
        route=now.name,
        number=now.holds.n_overrides + 1,
        kind=wanted.kind,
        reason=wanted.reason.strip(),
        author=wanted.author.strip(),
        set_at_s=now_s,
        expires_at_s=now_s + wanted.days * DAY_S,
        query_class=wanted.query_class,
        level=level if wanted.kind in ("pin", "cap") else None,
        max_em_drop=wanted.max_em_drop if wanted.kind == "budget" else None,
        pinned=wanted.pinned,
        incident=wanted.incident,
        before=describe_state(now, now_s=now_s),
    )
    wrong = override_problem(made) or _override_conflict(made, now, now_s=now_s)
    if wrong is not None:
        return wrong
    return replace(made, after=describe_override(made))


def _override_conflict(made: Override, now: DecisionInputs, *, now_s: float) -> str | None:
    if made.kind != "observe" and not now.settings.is_learned:
        levels = f"route {now.name} has no levels that the control loop certifies"
        return f"{levels}: {made.kind} means nothing there; use observe"
    if made.kind == "budget" and (made.max_em_drop or 0) >= now.settings.max_em_drop:
        return (
            f"budget: got {made.max_em_drop:g}; below the {now.settings.max_em_drop:g} of the settings, "
            "because an override can only make things safer"
        )
    if made.kind != "pin":
        return None
    level = made.level or 0
    if made.pinned is None:
        if level > now.level:
            return f"pin: got level {level}; {now.level} is certified now, and a pin goes no further"
        return None
    budget = in_effect(now.holds.overrides, now_s).budget(now.settings.max_em_drop)
    wrong = pin_problem(
        made.pinned, epoch=now.epoch, max_em_drop=budget, confidence=now.settings.confidence, setup=now.setup
    )
    if wrong is None and level > made.pinned.level:
        wrong = f"publication {made.pinned.number} certifies level {made.pinned.level}, and a pin goes no further"
    if wrong is None and not now.level:
        wrong = "nothing is certified on the route now, and an earlier publication does not bring that back"
    return wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentForm:
    incident: str
    decision: DecisionKind
    reason: str
    author: str
    days: float = float(MOST_DAYS)  # tighten, roll back, accept: until it ends
    level: int | None = None  # tighten: no level above this one
    max_em_drop: float | None = None  # tighten: a smaller EM budget
    pinned: Publication | None = None  # roll back: to this publication


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRows:
    decision: IncidentDecision
    override: Override | None = None
    resumption: Resumption | None = None


def resolve_incident(form: IncidentForm, now: DecisionInputs, *, now_s: float) -> DecisionRows | str:
    case = now.holds.case(form.incident)
    wrong = _decision_problem(form, case)
    if wrong is not None or case is None:
        return wrong or ""
    wanted = _required_override(form)
    override = override_of(wanted, now, now_s=now_s) if isinstance(wanted, OverrideForm) else wanted
    if isinstance(override, str):
        return override
    resumption = None
    if now.pause is not None and case.incident.pause == now.pause.number:
        reason = f"{form.incident}: {form.reason}"
        resumption = Resumption(route=now.name, number=now.pause.number, reason=reason, author=form.author)
    decision = IncidentDecision(
        incident=form.incident,
        route=now.name,
        decision=form.decision,
        reason=form.reason.strip(),
        author=form.author.strip(),
        decided_at_s=now_s,
        override=None if override is None else override.number,
        until_s=now_s + form.days * DAY_S if form.decision == "accept" else None,
        before=describe_state(now, now_s=now_s),
        after=_describe_outcome(form, now, override, resumption, now_s),
    )
    return DecisionRows(decision=decision, override=override, resumption=resumption)


def _decision_problem(form: IncidentForm, case: Case | None) -> str | None:
    if case is None:
        return f"unknown incident {form.incident!r}; see suffice incident list"
    if case.decision is not None:
        done = case.decision
        return f"is decided already: {done.decision} by {done.author} ({done.reason})"
    if case.resumed is not None:
        return f"is over: {case.resumed.author} resumed the route ({case.resumed.reason})"
    if not form.reason.strip() or not form.author.strip():
        return "a decision needs an author and a reason"
    if form.decision == "accept" and not 0 < form.days <= MOST_DAYS:
        return f"accept: got {form.days:g} days; more than 0 and at most {MOST_DAYS}"
    return None


def _required_override(form: IncidentForm) -> OverrideForm | str | None:
    """The override that a decision needs; a sentence if its numbers are missing; None: it needs none."""
    if form.decision == "roll_back":
        if form.pinned is None:
            return "roll back: name the publication of the route; see suffice incident show"
        kind: OverrideKind = "pin"
    elif form.decision == "tighten":
        if (form.level is None) == (form.max_em_drop is None):
            return "tighten: name either the highest level or the smaller EM budget"
        kind = "budget" if form.level is None else "cap"
    else:
        return None
    return OverrideForm(
        kind=kind,
        reason=form.reason,
        author=form.author,
        days=form.days,
        incident=form.incident,
        level=form.level if kind == "cap" else None,
        max_em_drop=form.max_em_drop,
        pinned=form.pinned if kind == "pin" else None,
    )


def _describe_outcome(
    form: IncidentForm, now: DecisionInputs, override: Override | None, resumption: Resumption | None, now_s: float
) -> str:
    then = now if resumption is None else replace(now, pause=None)
    sentences = [] if override is None else [f"{describe_override(override)} for {form.days:g} days"]
    if override is not None:
        then = replace(then, holds=replace(now.holds, overrides=(*now.holds.overrides, override)))
    if form.decision == "accept":
        sentences.append(f"accepted for {form.days:g} days")
    return "; ".join([*sentences, f"promise: {then.promise(now_s=now_s)}"])


def describe_state(now: DecisionInputs, *, now_s: float) -> str:
    held = [describe_override(one) for one in now.holds.overrides if now_s < one.expires_at_s]
    if now.pause is not None:
        return "; ".join([f"paused: {now.pause.reason}", *held])
    made = now.publication
    if made is not None and now.level:
        return "; ".join([f"level {now.level} of publication {made.number}", *held])
    return "; ".join([*held, f"promise: {now.promise(now_s=now_s)}"])
