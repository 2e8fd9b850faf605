"""What stands from an alert on, and which rows of the log say that it is over. Pure.

    event ── trouble_of ──▶ Trouble | None: over as it is told
    event ── endings_of ──▶ AlertResolution, of what was told before

An alert is over when what it told of is: a route that runs in full since an alarm does so until something may stop
early on it again. A version that a gateway can load again is in no row: its alert stands until another is in force.
Knows events; refuses to know alerts, sinks and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

from suffice.assurance.forecast import Of
from suffice.assurance.route_forecast import Alert, Outlook
from suffice.review.incident import Incident, IncidentDecision
from suffice.rollout.stages import EVIDENCE
from suffice.store.people.notices import MOST_TEXT, alerts_of, plain
from suffice.store.routes.rollups import HOUR_S
from suffice.store.rows.events import Event
from suffice.store.rows.records import FailOpenCount, KillSwitchState, RolloutMove, RolloutUndo, VersionRefusal
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption

What: TypeAlias = Literal[
    "forecast", "budget", "certificate", "pause", "incident", "kill_switch", "lot", "version", "fail_open"
]
# Kinds that end something and tell nothing; some of those that tell something end something, too.
ENDS: Final = ("enforcement_resumed", "incident_decided", "policy_published", "epoch_began")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What stands from an alert on."""

    of: What
    route: str = ""  # "": of all of them
    name: str = ""  # of the one, where several of them may stand
    number: int = 0  # of the epoch that it ended
    until_s: float | None = None  # Unix time at which it is over by itself; None: a row has to say so


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertResolution:
    """What is over from here on, and why."""

    of: What
    route: str
    because: str  # one line of plain text
    name: str | None = None  # of the one that is over; None: all of them
    before: int | None = None  # those of a smaller number; None: all of them
    replaced: bool = False  # something else stands in its place, which is told by itself

    def ends(self, trouble: Trouble) -> bool:
        """Is this what is over?"""
        return (
            (self.of, self.route) == (trouble.of, trouble.route)
            and self.name in (None, trouble.name)
            and (self.before is None or trouble.number < self.before)
        )


def trouble_of(event: Event) -> Trouble | None:
    """What stands from an event on that is told; None: nothing does, it is over as it is told."""
    match event:
        case Alert() as alert:
            return Trouble(of="forecast", route=alert.route, name=alert.of)
        case Outlook() as outlook:
            return Trouble(of="budget", route=outlook.route)
        case Alarm() as alarm:
            return Trouble(of="certificate", route=alarm.route, number=alarm.epoch)
        case Pause() as pause:
            return Trouble(of="pause", route=pause.route, name=str(pause.number))
        case Incident() as incident:
            return Trouble(of="incident", route=incident.route, name=incident.incident)
        case KillSwitchState() as switching if switching.on:
            return Trouble(of="kill_switch")
        case RolloutMove() as moved if moved.transition.move == "pause" and moved.transition.by == EVIDENCE:
            return Trouble(of="lot", route=moved.route, name=moved.transition.rollout)
        case FailOpenCount() as failed:
            return Trouble(of="fail_open", route=failed.route, until_s=float((failed.hour + 1) * HOUR_S))
        case VersionRefusal() as told:
            return Trouble(of="version", route=told.route)
        case _:
            return None


def endings_of(event: Event) -> tuple[AlertResolution, ...]:
    """What is over with an event, of all that was told before it."""
    match event:
        case Outlook() as outlook:
            return _after_look(outlook)
        case Alarm() | Epoch() | Publication():
            return _of_certificate(event)
        case Resumption() as end:
            return (_over("pause", end.route, f"{end.author} resumed it: {end.reason}", name=str(end.number)),)
        case IncidentDecision() as decided:
            said = f"{decided.author} decided to {decided.decision.replace('_', ' ')}: {decided.reason}"
            return (_over("incident", decided.route, said, name=decided.incident),)
        case KillSwitchState() as switching if not switching.on:
            return (_over("kill_switch", "", f"released: {switching.reason}"),)
        case RolloutUndo() as undone:
            return (_over("version", undone.route, f"{undone.author} took the version back"),)
        case RolloutMove():
            return _after_move(event)
        case _:
            return ()


def _of_certificate(event: Alarm | Epoch | Publication) -> tuple[AlertResolution, ...]:
    if isinstance(event, Alarm):
        alarm = event
        later = _over("certificate", alarm.route, "a later alarm says more", before=alarm.epoch)
        return (replace(later, replaced=True),)
    if isinstance(event, Epoch):
        epoch = event
        version = _over("version", epoch.route, f"epoch {epoch.number} began: the version is in force no more")
        # An alarm ends one epoch and begins the next; what began another one behind that was a person's word.
        again = _over("certificate", epoch.route, f"epoch {epoch.number}: {epoch.reason}", before=epoch.number - 1)
        return version, again
    made = event
    version = _over("version", made.route, f"publication {made.number} took its place")
    if not (made.may_act and made.level):
        return (version,)
    said = f"publication {made.number} lets it stop early again"
    return version, _over("certificate", made.route, said, before=made.epoch)


def _after_look(outlook: Outlook) -> tuple[AlertResolution, ...]:
    """A look that forecasts a breach no more, or that does not find the budget nearly spent."""
    found = [
        _over("forecast", outlook.route, "the forecast crosses the limit no more", name=of)
        for of in get_args(Of)
        if of not in outlook.alerts
    ]
    if alerts_of(outlook) is None:
        drop = outlook.drop
        if drop is None:
            said = "too little is known of its EM drop since then"
        elif "em_drop" in outlook.alerts:
            said = "since then a breach is forecast"
        else:
            said = f"since then the EM drop is about {drop.now:.2%}, of {drop.limit:.2%}"
        found.append(replace(_over("budget", outlook.route, said), replaced="em_drop" in outlook.alerts))
    return tuple(found)


def _after_move(event: RolloutMove) -> tuple[AlertResolution, ...]:
    """A rollout whose lot was broken is looked at anew; one that has reached everybody serves another version."""
    route, move = event.route, event.transition
    did = {"resume": "went on", "promote": "took its next step", "roll_back": "was rolled back"}.get(move.move)
    if did is None:
        return ()
    lot = _over("lot", route, f"the rollout {did}: {move.reason}", name=move.rollout)
    if move.stage != "full":
        return (lot,)
    return lot, _over("version", route, f"rollout {move.rollout} has brought another version")


def _over(of: What, route: str, because: str, *, name: str | None = None, before: int | None = None) -> AlertResolution:
    return AlertResolution(of=of, route=route, because=plain(because, MOST_TEXT), name=name, before=before)
