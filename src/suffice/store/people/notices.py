"""Which rows of the log are worth waking somebody for, and in which words. Pure.

    event ── alerts_of ──▶ Notice | None

Names of routes and reasons are what strangers wrote: a notice holds them as one line of plain text. Knows events;
refuses to know sinks and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

from suffice.assurance.route_forecast import Alert, Outlook
from suffice.review.incident import Incident
from suffice.rollout.stages import EVIDENCE
from suffice.sanitize import printable
from suffice.settings import AlertKind
from suffice.store.rows.events import Event, key_of
from suffice.store.rows.records import (
    FailOpenCount,
    KillSwitchState,
    LogOutage,
    RolloutMove,
    RolloutUndo,
    VersionRefusal,
)
from suffice.types import Alarm, Pause

NEARLY: Final = 0.8  # of the budget: from there on it is nearly spent
MOST_TEXT: Final = 600  # characters of a sentence
MOST_NAME: Final = 120  # … of a route's name
READS: Final = (
    "route_monitored",
    "alert_raised",
    "alarm_raised",
    "enforcement_paused",
    "incident_opened",
    "kill_switched",
    "rollout_moved",
    "rollout_undone",
    "fail_open_high",
    "version_refused",
    "log_missed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What somebody is told."""

    kind: AlertKind | Literal["test"]  # a test is told by hand only
    route: str  # "": about all of them
    sentence: str  # one line of plain text
    same: str  # two notices with the same one are the same alert again
    path: str  # of the console's page about it
    over: bool = False  # it says that such an alert is over, and why


def alerts_of(event: Event) -> Notice | None:
    """What an event tells; None: nothing that anybody should be woken for."""
    match event:
        case Alert() as alert:
            return _notice("breach_forecast", alert.route, alert.reason, alert.of, _page(alert.route))
        case Alarm() as alarm:
            kind: AlertKind = "sample_ratio" if alarm.cause == "sample_ratio" else "drift"
            said = f"{alarm.reason}; its certificate has ended and it runs in full"
            return _notice(kind, alarm.route, said, alarm.cause, _page(alarm.route))
        case Pause() as pause:
            name = f"{pause.route}:p{pause.number}"
            return _notice("incident", pause.route, f"enforcement is paused: {pause.reason}", name, "/incidents")
        case Incident() as incident:
            return _notice("incident", incident.route, incident.summary, incident.incident, "/incidents")
        case KillSwitchState() as switching:
            said = f"the kill switch is {'pulled' if switching.on else 'released'}: {switching.reason}"
            return _notice("kill_switch", "", said, f"{switching.on}:{switching.stamp}", "")
        case FailOpenCount() as failed:
            share = failed.n_degraded / failed.n_runs
            said = f"failed open in {failed.n_degraded:,} of {failed.n_runs:,} runs within an hour ({share:.1%})"
            return _notice("fail_open", failed.route, said, "", _page(failed.route))
        case VersionRefusal() | LogOutage():
            return _of_serving(event)
        case Outlook() | RolloutMove() | RolloutUndo():
            return _of_budget(event) if isinstance(event, Outlook) else _of_rollout(event)
        case _:
            return None


def _of_serving(event: VersionRefusal | LogOutage) -> Notice:
    if isinstance(event, VersionRefusal):
        told = event
        what = f"publication {told.number}" if told.number else f"version {told.fit}"
        said = f"{what} cannot be served: {told.reason}; {told.serves}"
        return _notice("version_refused", told.route, said, str(told.number or told.fit), _page(told.route))
    missed = event
    said = (
        f"a gateway was without its log for {missed.until_s - missed.since_s:,.0f} s and served {missed.after}:"
        f" {missed.reason}; {missed.n_dropped:,} rows are lost"
    )
    return _notice("log_missed", "", said, key_of(event), "")


def _of_budget(event: Outlook) -> Notice | None:
    outlook = event
    drop = outlook.drop
    # A breach that is forecast has been told already, by its own row.
    if drop is None or drop.limit <= 0 or drop.now < NEARLY * drop.limit or "em_drop" in outlook.alerts:
        return None
    said = f"the EM drop is about {drop.now:.2%}, and the budget {drop.limit:.2%}: {drop.now / drop.limit:.0%} of it"
    return _notice("budget_nearly_spent", outlook.route, said, "", _page(outlook.route))


def _of_rollout(event: RolloutMove | RolloutUndo) -> Notice | None:
    if isinstance(event, RolloutUndo):
        undone = event
        said = f"the version of rollout {undone.rollout} was taken back by {undone.author}: {undone.reason}"
        return _notice("rollback", undone.route, said, undone.rollout, "/policies")
    route, move = event.route, event.transition
    if move.move == "roll_back":
        said = f"rollout {move.rollout} was rolled back by {move.by}: {move.reason}"
        return _notice("rollback", route, said, move.rollout, "/policies")
    if move.move == "pause" and move.by == EVIDENCE:
        said = f"the arms of rollout {move.rollout} cannot be compared: {move.reason}"
        return _notice("sample_ratio", route, said, move.rollout, "/policies")
    return None


def _notice(kind: AlertKind, route: str, said: str, of: str, path: str) -> Notice:
    sentence = plain(said, MOST_TEXT)
    return Notice(kind=kind, route=plain(route, MOST_NAME), sentence=sentence, same=f"{kind}:{route}:{of}", path=path)


def _page(route: str) -> str:
    return f"/route?name={quote(route.encode('utf-8', 'backslashreplace'), safe='')}"


def plain(text: str, most: int) -> str:
    """One line as it may be shown, cut where it is too long."""
    line = printable(text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"
