"""What is said of a route: what it does now, what that saved at what cost in EM, what is missing, what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.exposure import describe_part
from suffice.assurance.start import StartTerms, describe_starts, likely_parts
from suffice.formatting import format_bounds, format_percent, format_points
from suffice.sanitize import plural, printable
from suffice.settings import Route
from suffice.store.routes.deployments import Phase

if TYPE_CHECKING:
    from suffice.report.snapshot import RouteSnapshot

# States that hold a route back against its owner's wish, or let it act without proof: first in the list, in red.
ALARMING: Final = ("killed", "paused", "unread", "uncertified", "unreadable", "held", "void", "unattended")

NOTHING_TO_DO: Final = "nothing to do"

Step: TypeAlias = tuple[str, str]  # what to do next, and the command for it; "": nothing to type


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSummary:
    route: str
    state: str  # of its promise
    now: str  # what it does
    since_s: float | None  # Unix time; None: not known
    effect: str  # what it saved, or would save, and what that cost in EM
    brief: str  # the same without intervals
    next_step: str
    command: str  # to copy; "": there is none
    urgency: tuple[int, float]  # the highest is the worst


def summarize(one: RouteSnapshot, *, options: str = "", is_served: bool = True) -> RouteSummary:
    """`options` are those of the status command, which the next one needs as well; `is_served`: by a gateway, now."""
    step, command = _next_step(one, is_served=is_served)
    return RouteSummary(
        route=one.report.route,
        state=one.promise_state,
        now=_now(one),
        since_s=one.since_s,
        effect=_effect(one),
        brief=_brief(one),
        next_step=step,
        command=f"{command}{options}" if command else "",
        urgency=_urgency(one),
    )


# --------------------------------------------------------------------------- what it does now

_STATES: Final[Mapping[str, str]] = {
    "off": "off: requests pass through untouched",
    "observe": "observes: every request runs in full",
    "killed": "KILLED: nothing is stopped",
    "unread": "runs all in full: the log cannot be read",
    "held": "HELD BY A PERSON: every request runs in full",
    "unreadable": "runs all in full: the scorer cannot read enough answers",
    "idle": "runs all in full: no policy may act",
    "unattended": "runs all in full: no control loop has begun with it",
    "unwatched": "RUNS ALL IN FULL: nobody watches it now",
    "burst": "runs all in full until a level is proved",
    "searching": "runs all in full: nothing is certified yet",
    "void": "runs all in full: what was certified does not fit the settings",
    "gone": "history: no route of the settings has this name any more",
    "unknown": "its settings are not known here: name them with --config",
}


def _now(one: RouteSnapshot) -> str:
    phase, state = one.control, one.promise_state
    if state == "paused":
        return printable(f"PAUSED, every request runs in full: {phase.reason if phase is not None else 'by a person'}")
    if state == "uncertified":
        return f"UNCERTIFIED: stops by {one.policy}, whatever it costs"
    if phase is not None and state == "burst" and phase.n_burst:
        return f"runs all in full: {phase.n_requests:,} of {phase.n_burst:,} runs of evidence"
    if phase is not None and state == "certified":
        part = "" if phase.exposure == 1 else f", on {describe_part(phase.exposure)}"
        how = f"asks with {phase.arm}" if phase.arm else f"stops by {one.policy}{_level(one)}{part}"
        return f"{how}, certified"
    if phase is not None and state == "budgeted":
        floor = phase.spending.floor if phase.spending is not None else 0
        return f"stops by {one.policy}{_level(one)}, within budget on average, certified to level {floor}"
    return _STATES.get(state, one.mode)


def _level(one: RouteSnapshot) -> str:
    capped = f" (capped by {printable(one.cap_reason)})" if one.cap_reason else ""
    return f", level {one.served_level} of {one.phase.n_levels}{capped}" if one.phase.n_levels > 1 else ""


# --------------------------------------------------------------------------- what it saved, and what that cost


def _effect(one: RouteSnapshot) -> str:
    measured, uncertified = one.report.measured, _uncertified(one)
    saving = measured.saving or measured.would_save
    if saving is None:
        if one.lag:
            return f"not measured: {one.lag}"
        if not one.report.n_governed:
            return "nothing was governed yet, so nothing is measured"
        return "saving not measured: no run that shows it has ended yet"
    verb = "tokens saved" if measured.saving is not None else "tokens it would save"
    drop = "not measured"
    if measured.em_drop is not None:
        value = format_points(measured.em_drop.value).partition(" ")[0]
        drop = f"{value}{_ends(measured.em_drop, 'points', 2)} of {100 * one.max_em_drop:g} points".replace("+", "")
    saved = f"{format_percent(saving.value)}{_ends(saving, 'percent', 1)}"
    return f"{verb} {saved}{uncertified}, EM drop {drop}" + (f"; {one.lag}" if one.lag else "")


def _brief(one: RouteSnapshot) -> str:
    measured = one.report.measured
    saving = measured.saving or measured.would_save
    saved = "?" if saving is None else format_percent(saving.value)
    drop = "?" if measured.em_drop is None else format_points(measured.em_drop.value).partition(" ")[0].lstrip("+")
    verb = "saved" if measured.saving is not None else "would save"
    return f"{f'{verb} {saved}':<18} EM drop {drop:>5} of {100 * one.max_em_drop:g} points"


def _ends(one: IntervalEstimate, unit: str, digits: int) -> str:
    ends = format_bounds(one.low, one.high, unit, digits)
    return f" ({ends})" if ends else f" ({one.note})" if one.note else ""


def _uncertified(one: RouteSnapshot) -> str:
    """Say how much of a saving no certificate stands for."""
    saved, certified = one.report.measured.saved_tokens, one.report.measured.saved_certified_tokens
    if saved is None or certified is None or saved.value <= 0 or one.promise_state == "uncertified":
        return ""
    share = 1 - certified / saved.value
    return "" if share < 0.005 else ", uncertified" if share > 0.995 else f", {share:.0%} of that uncertified"


# --------------------------------------------------------------------------- what to do next


def _next_step(one: RouteSnapshot, *, is_served: bool) -> Step:
    route = quote(one.report.route)
    held = one.held
    if one.promise_state == "killed":
        return "release the switch when its reason is gone", "suffice unkill"
    if one.certifies is None:  # every other command needs its settings
        return _without_settings(one), ""
    if held is not None and held.incidents:
        incident, _, summary = held.incidents[0].partition(": ")
        return f"decide about an incident: {printable(summary)}", f"suffice incident show {quote(incident)}"
    if one.promise_state == "paused":
        return "decide whether it may stop runs again", f'suffice resume {route} --reason "…"'
    if one.promise_state == "held":
        return "end the override when its reason is gone", f"suffice override list {route}"
    if (forecast := one.forecast) is not None and forecast.alerts:
        return "look at the forecast: it crosses its limit", f"suffice status --all --route {route}"
    if one.certifies and one.control is not None and not one.control.attended and one.mode != "off":
        return "start the control loop: none looks after this route now", "suffice worker"
    if one.refused is not None or one.promise_state == "unreadable":
        return "see which answers the scorer cannot read", f"suffice doctor --route {route}"
    if held is not None and held.n_to_review:
        return f"review {plural(held.n_to_review, 'run')}", f"suffice review next --route {route}"
    return _next_of_evidence(one, route, is_served=is_served)


def _without_settings(one: RouteSnapshot) -> str:
    if one.promise_state == "gone":
        return "give a route this name again if its requests are to be governed"
    return "name its settings with --config; suffice init writes some"


def _next_of_evidence(one: RouteSnapshot, route: str, *, is_served: bool) -> Step:
    if one.control is not None and one.control.failing:
        return f"find out why this fails: {printable(one.control.failing[0])}", "suffice worker --history"
    state = one.promise_state
    phase = one.control
    table = f"[routes.{route}]"
    texts = {
        "off": f'measure it: set mode = "observe" in {table}',
        "uncertified": f"have its policy certified: remove uncertified = true in {table}",
    }
    if state in texts:
        return texts[state], ""
    if state == "certified" and one.proposal is not None and one.proposal.verdict in ("better", "first"):
        command = f'suffice policy propose {route} {one.proposal.address} --reason "…"'
        return f"try the version that a refit proposes: {one.proposal.why}", command
    if phase is not None and phase.n_labels_wanted:
        command = f"suffice review next --route {route}"
        return f"label {plural(phase.n_labels_wanted, 'audit')} whose two answers differ", command
    if state != "observe" and phase is not None and phase.level:
        return NOTHING_TO_DO, ""
    if not is_served:
        return "start the gateway, and send it your own requests", "suffice serve"
    return _wait_for_audits(one, phase, table), ""


def _wait_for_audits(one: RouteSnapshot, phase: Phase | None, table: str) -> str:
    if one.promise_state == "observe" and one.needs_probe:
        return f"to have it certified, write a table {table[:-1]}.probe]: without probes, nothing proves a stop"
    if phase is not None and phase.n_audits and phase.n_missing is None and not phase.level:
        return "no number of audits like these certifies a level: raise max_em_drop, or wait for a refit"
    if one.certifies and phase is not None and phase.n_learning and not phase.level and one.settings is not None:
        return f"wait for {describe_start(phase, one.settings)}"
    n = phase.n_missing if phase is not None and phase.n_audits else one.evidence.n_missing
    if one.certifies and n and not (phase is not None and phase.level):
        per_s = one.evidence.audits_per_s
        when = f", {duration(n / per_s)} at the present rate" if per_s else ""
        return f"wait for about {plural(n, 'audit')}{when}"
    if one.promise_state == "observe":
        return f'act on what is certified: set mode = "enforce" in {table}'
    return NOTHING_TO_DO


def duration(wait_s: float) -> str:
    for unit, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if wait_s >= 2 * unit_s:
            return f"{wait_s / unit_s:,.0f} {unit}"
    return f"{wait_s:,.0f} s"


def _urgency(one: RouteSnapshot) -> tuple[int, float]:
    drop = one.report.measured.em_drop
    used = (drop.value / one.max_em_drop) if drop is not None and one.max_em_drop else 0.0
    waits = one.held is not None and bool(one.held.incidents)
    alerts = one.forecast is not None and bool(one.forecast.alerts)
    state = len(ALARMING) - ALARMING.index(one.promise_state) if one.promise_state in ALARMING else 0
    return (20 if waits else state + 5 if state else 4 if alerts else 0), used


# --------------------------------------------------------------------------- what is missing


class NoNextLevel(NamedTuple):
    """Why more audits lead to no higher level."""

    in_status: str
    on_page: str


LAST: Final = NoNextLevel("none: this is the last", "Nothing: the last level is certified.")
RATED: Final = NoNextLevel(
    "none: people's ratings allow no higher one yet", "People's ratings allow no higher level yet."
)
FORECAST: Final = NoNextLevel(
    "none: the forecast allows no higher one until it is well inside the budget",
    "A forecast allows no higher level until it is well inside the budget.",
)
UNPROVABLE: Final = NoNextLevel(
    "no number of such audits would certify it", "No number of audits like those so far would certify the next level."
)


def no_next_level(phase: Phase) -> NoNextLevel | None:
    if phase.level and phase.level == phase.n_levels:
        return LAST
    if phase.ceiling is not None and phase.level == phase.ceiling:
        return RATED
    if phase.cap is not None and phase.level == phase.cap:
        return FORECAST
    return UNPROVABLE if phase.n_missing is None else None


def describe_missing(phase: Phase, route: Route | None, audits_a_day: float | None) -> str:
    if route is None:
        return "This route is in the log and not in the settings: nothing is asked of it any more."
    if route.mode == "off":
        return 'Its mode is off: requests pass through, and nothing is measured. Set mode = "observe" to begin.'
    if not route.certifies_itself:
        return (
            "Its owner wrote the policy down, and nobody certifies it while it observes or acts uncertified. Set mode ="
            ' "enforce" without uncertified to have it proved, or remove policy to let one learn.'
        )
    if not phase.attended:
        return "No control loop looks after this route now. suffice serve starts one; it needs the extra train."
    if phase.phase == "paused":
        return "Paused: every request runs in full until somebody resumes it."
    if route.is_owned:
        return _describe_fixed_policy(phase, audits_a_day)
    if route.is_paired or phase.spending is not None:
        return _describe_no_next_level(phase, route)
    return _describe_next_level(phase, route, audits_a_day)


def describe_start(phase: Phase, route: Route) -> str:
    """When a start by share is expected to act, in further requests."""
    terms = StartTerms(
        max_em_drop=route.max_em_drop,
        delta=1 - route.confidence,
        finishes=route.kind == "reasoning",
        n_learning=phase.n_learning,
    )
    if not phase.level:
        return describe_starts(terms.likely_starts(phase.n_audits, phase.n_missing))
    parts = likely_parts(phase.n_lost, phase.n_audits, route.max_em_drop)
    return describe_starts([terms.forecast(part, n_audits=phase.n_audits, share=phase.exposure) for part in parts])


def _describe_fixed_policy(phase: Phase, audits_a_day: float | None) -> str:
    if phase.level:
        return "Nothing: its owner's policy is proved."
    if phase.n_missing is None:
        return "Its owner's policy is not proved, and no number of audits like those so far would do it."
    days = _in_days(phase.n_missing, audits_a_day)
    return f"About {phase.n_missing:,} more audits{days} until its owner's policy is proved."


def _describe_next_level(phase: Phase, route: Route, audits_a_day: float | None) -> str:
    begins = phase.phase in ("unattended", "cold start", "burst")
    if phase.n_learning and (begins or (phase.level and phase.exposure < 1)):
        return f"Expected is {describe_start(phase, route)}."
    if begins:
        left = max(0, phase.n_burst - phase.n_requests)
        return f"{left:,} more full runs{_in_days(left, audits_a_day)} before a first level can be proved."
    why = no_next_level(phase)
    if why is not None:
        return why.on_page
    return f"About {phase.n_missing:,} more audits{_in_days(phase.n_missing or 0, audits_a_day)} to the next level."


def _describe_no_next_level(phase: Phase, route: Route) -> str:
    if phase.spending is not None:
        return f"Certified is level {phase.spending.floor}; above it the drop is kept on average, with no confidence."
    unproved = route.arms[phase.level :]
    if phase.level and not unproved:
        return f"Nothing: {phase.arm} is proved."
    return f"{' or '.join(unproved)} is not proved: suffice status counts its pairs."


def _in_days(n: int, a_day: float | None) -> str:
    if not n or not a_day:
        return ""
    days = n / a_day
    return f" ({days:,.0f} days at the present rate)" if days >= 2 else f" ({24 * days:,.0f} hours at the present rate)"
