"""Where a route stands with its certificate, as `suffice status` says it: phase, evidence, what is missing, alarm."""

from __future__ import annotations

from suffice.store.routes.phases import Phase
from suffice.types import BudgetAccount


def phase_lines(one: Phase, *, per_s: float | None, acts: bool) -> list[tuple[str, str]]:
    """What a reader sees.

    per_s  audits a second, lately; None: unknown
    acts   is the route in `enforce`?
    """
    lines = [("phase", _phase(one, acts=acts))]
    if one.phase in ("cold start", "burst"):
        left = max(0, one.n_burst - one.n_requests)
        rest = _when(left, per_s).replace(", in", ", the rest in")
        runs = f"{one.n_requests:,} of {one.n_burst:,} full runs{rest}" if one.n_burst else "nothing was looked at yet"
        lines.append(("evidence", runs))
    elif one.n_audits:
        lines.append(("evidence", f"{one.n_audits:,} audits in the window: {one.reason}"))
        lines.append(("next level", _next(one, per_s)) if one.spending is None else ("budget", _spent(one.spending)))
    if one.classes:
        each = ", ".join(f"{name or 'none'} at level {level}" for name, level in one.classes)
        lines.append(("held classes", f"{each}: they lose more than twice the budget"))
    if one.n_labels_wanted:
        lines.append(("labels wanted", f"{one.n_labels_wanted:,}: audits whose stop would have answered otherwise"))
    return lines + ending_lines(one)


def ending_lines(one: Phase) -> list[tuple[str, str]]:
    lines = [("last alarm", one.alarm or "none")]
    if not one.attended:
        lines.append(("control loop", "NOT RUNNING: no worker looks after this route now; see suffice worker"))
    return lines


def wait(wait_s: float) -> str:
    for unit, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if wait_s >= 2 * unit_s:
            return f"{wait_s / unit_s:,.0f} {unit}"
    return f"{wait_s:,.0f} s"


def _phase(one: Phase, *, acts: bool) -> str:
    if one.phase == "certified":
        proved = f"a drop below {100 * (one.max_em_drop or 0):g} points at {one.confidence or 0:.0%}"
        return f"certified, level {one.level} of {one.n_levels}: {proved}" + ("" if acts else "; not acted on")
    if one.phase == "budgeted" and one.spending is not None:
        return (
            f"budgeted, level {one.level} of {one.n_levels}: the drop is kept on average, with no confidence; certified"
            f" is level {one.spending.floor}" + ("" if acts else "; not acted on")
        )
    if one.phase == "searching":
        return "all in full: nothing is certified"
    if one.phase == "unattended":
        return "all in full: no control loop has begun with this route"
    if one.phase == "paused":
        return f"PAUSED until somebody resumes it: {one.reason}"
    why = "" if one.reason == one.phase else f": {one.reason}"
    return f"{one.phase}, all in full{why}"


def _spent(one: BudgetAccount) -> str:
    if one.em_drop is None or one.max_em_drop is None:
        return "nothing is booked yet"
    waiting = f", {one.n_waiting:,} of them with a guess until their label comes" if one.n_waiting else ""
    return (
        f"a mean drop of {100 * one.em_drop:.2f} of {100 * one.max_em_drop:.2f} points over {one.n_audits:,} audits of"
        f" this epoch{waiting}; bounds moved the level by {abs(one.clipped):.1f} in all"
    )


def _next(one: Phase, per_s: float | None) -> str:
    if one.level and one.level == one.n_levels:
        return "none: this is the last"
    if one.ceiling is not None and one.level == one.ceiling:
        return "none: people's ratings allow no higher one in this epoch"
    if one.n_missing is None:
        return "no number of such audits would certify it"
    return f"about {one.n_missing:,} more audits at the rates seen{_when(one.n_missing, per_s)}"


def _when(n: int, per_s: float | None) -> str:
    return f", in {wait(n / per_s)} at the present rate" if n and per_s else ""
