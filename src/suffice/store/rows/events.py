"""The table of event kinds: the record of each, its key, and its row as JSON.

To add a kind, write the record and add one line to `_KINDS` and one to `Event`. Keys name what was decided, not who
wrote it: of two writers at the same place, the first row stays. Unknown fields of a stored row are skipped, so rows of
a newer version stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from suffice.assurance.forecast import Alert, RouteForecast
from suffice.review.holds import Incident, IncidentDecision, Override, OverrideEnd
from suffice.review.items import ControlDraw, ItemReturn, ReviewItem, ReviewLease, Verdict
from suffice.store.rows import records
from suffice.types import (
    Alarm,
    Epoch,
    Findings,
    JobRun,
    LabelRequest,
    Outcome,
    Pause,
    Publication,
    Request,
    Resumption,
    RouteFindings,
)

MAX_BODY_BYTES = 16 * 2**20  # a row larger than this is refused, not written

_RunEvent: TypeAlias = Request | Outcome | JobRun | LabelRequest | records.FeedbackEvent | records.RequestCount
_RunText: TypeAlias = records.QuestionText | records.Sources
_RouteEvent: TypeAlias = Epoch | Publication | Alarm | Pause | Resumption | Findings | RouteFindings
_Forecast: TypeAlias = RouteForecast | Alert | records.AlertDelivery | records.FailOpenCount
_Proposal: TypeAlias = records.ProposedVersion | records.RowRates | records.VersionRefusal
_Experiment: TypeAlias = records.ExperimentStart | records.ExperimentRevision | records.ExperimentEnd
_Rollout: TypeAlias = records.RolloutStart | records.RolloutMove | records.RolloutUndo
_Review: TypeAlias = ReviewItem | ControlDraw | ReviewLease | ItemReturn | Verdict
_Hold: TypeAlias = Override | OverrideEnd | Incident | IncidentDecision | records.KillSwitchState
_Administration: TypeAlias = records.ConfigChange | records.Export | records.Erasure | records.AccessGrant
_GatewayEvent: TypeAlias = records.LogOutage | records.StoredObject | records.KeyUsage

Event: TypeAlias = (
    _RunEvent
    | _RunText
    | _RouteEvent
    | _Forecast
    | _Proposal
    | _Experiment
    | _Rollout
    | _Review
    | _Hold
    | _Administration
    | _GatewayEvent
)
E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Kind(Generic[E]):
    name: str
    payload: type[E]
    field: str  # of the row's JSON that holds the payload; "": the payload is the whole JSON
    key: str | Callable[[E], str]  # unique within the kind; a text is a format of the event
    # None: several routes, or known only through the episode
    route: Callable[[E], str | None] = lambda e: getattr(e, "route", None)
    # None: about no episode, or its sender did not name it
    episode: Callable[[E], str | None] = lambda e: getattr(e, "episode_id", getattr(e, "item", None))
    # Is it chained? Kinds that come too often, and are neither decisions nor evidence, are not.
    chained: bool = True

    def key_of(self, event: E) -> str:
        return self.key.format(event) if isinstance(self.key, str) else self.key(event)


_EPISODE: Final = "{0.episode_id}"
_NUMBERED: Final = "{0.route}:{0.number}"
# Numbers with leading zeros sort by place: the unique index finds the newest row of a route.
_READ_TO: Final = "{0.route}:{0.read_to_seq:015}"
_LOOK: Final = "{0.route}:{0.epoch:06}:{0.at:012}"
# Places in the queue: two reviewers cannot take the same one, and a form sent twice is one row.
_TURN: Final = "{0.item}:{0.slot}:{0.turn}"


def _delivery_key(event: records.AlertDelivery) -> str:
    return f"{event.sink}:{event.read_to_seq:015}" + (f":over:{event.over:015}" if event.over else "")


def _switch_key(event: records.KillSwitchState) -> str:
    return f"{event.stamp}:{'on' if event.on else 'off'}"


def _refusal_key(event: records.VersionRefusal) -> str:
    return f"{event.route}:{event.number or event.fit}"


_KINDS: Final[tuple[Kind[Any], ...]] = (
    Kind("request", Request, "request", _EPISODE, chained=False),
    Kind("outcome", Outcome, "outcome", _EPISODE, chained=False),
    Kind(
        "feedback",
        records.FeedbackEvent,
        "",
        # Idempotency keys of different senders are independent.
        "{0.feedback.sender}/{0.feedback.feedback_id}",
        episode=lambda e: e.feedback.episode_id,
    ),
    Kind("upstream_examined", Findings, "findings", "{0.examination_id}"),
    Kind("route_examined", RouteFindings, "findings", "{0.examination_id}"),
    Kind("policy_published", Publication, "publication", _NUMBERED),
    Kind("epoch_began", Epoch, "epoch", _NUMBERED),
    Kind("alarm_raised", Alarm, "alarm", "{0.route}:{0.epoch}"),
    Kind("enforcement_paused", Pause, "pause", _NUMBERED),
    Kind("enforcement_resumed", Resumption, "resumption", _NUMBERED),
    Kind("label_wanted", LabelRequest, "request", _EPISODE, chained=False),
    Kind("job_ran", JobRun, "run", "{0.run_id}", lambda e: e.route or None, chained=False),
    Kind("route_monitored", RouteForecast, "outlook", _LOOK, chained=False),
    Kind("alert_raised", Alert, "alert", f"{_LOOK}:{{0.of}}"),
    Kind("version_proposed", records.ProposedVersion, "proposal", _READ_TO),
    Kind("alert_sent", records.AlertDelivery, "telling", _delivery_key, chained=False),
    Kind("fail_open_high", records.FailOpenCount, "failed", "{0.route}:{0.hour:09}", chained=False),
    Kind("version_refused", records.VersionRefusal, "refusal", _refusal_key),
    Kind("log_missed", records.LogOutage, "missing", "{0.gateway}:{0.since_s:.3f}"),
    Kind("kill_switched", records.KillSwitchState, "switching", _switch_key),
    Kind("experiment_started", records.ExperimentStart, "begun", "{0.experiment.name}:{0.experiment.run}"),
    Kind(
        "experiment_changed", records.ExperimentRevision, "begun", "{0.experiment.name}:{0.experiment.run}:{0.revision}"
    ),
    Kind("experiment_stopped", records.ExperimentEnd, "ended", "{0.experiment}:{0.run}"),
    Kind("review_asked", ReviewItem, "item", _EPISODE),
    Kind("review_drawn", ControlDraw, "drawing", _NUMBERED),
    Kind("review_leased", ReviewLease, "lease", _TURN, chained=False),
    Kind("review_returned", ItemReturn, "returned", _TURN),
    Kind("review_verdict", Verdict, "verdict", "{0.item}:{0.reviewer}:{0.revision}"),
    Kind("question_kept", records.QuestionText, "question", _EPISODE, chained=False),
    Kind("sources_kept", records.Sources, "kept", _EPISODE, chained=False),
    Kind("override_set", Override, "override", _NUMBERED),
    Kind("override_ended", OverrideEnd, "end", _NUMBERED),
    Kind("incident_opened", Incident, "incident", "{0.incident}"),
    Kind("incident_decided", IncidentDecision, "decision", "{0.incident}"),
    Kind("config_changed", records.ConfigChange, "change", "{0.number:08}"),
    Kind("exported", records.Export, "export", "{0.export_id}"),
    Kind("erased", records.Erasure, "erasure", "{0.erasure_id}:{0.number:06}"),
    Kind("access_changed", records.AccessGrant, "access", "{0.access_id}"),
    Kind("rollout_begun", records.RolloutStart, "beginning", "{0.state.route}:{0.number}", lambda e: e.state.route),
    Kind("rollout_moved", records.RolloutMove, "moved", "{0.transition.rollout}:{0.transition.number}"),
    Kind("rollout_undone", records.RolloutUndo, "undoing", "{0.rollout}"),
    Kind("requests_counted", records.RequestCount, "counted", "{0.count_id}", chained=False),
    Kind("rates_set", records.RowRates, "rates", "{0.route}:{0.number:09}"),
    # The first row of an id counts: nobody can take over an existing object.
    Kind("object_made", records.StoredObject, "made", "{0.object_id}", chained=False),
    # The key begins with the day, so that a day's rows are found by it.
    Kind("key_used", records.KeyUsage, "usage", "{0.day}:{0.usage_id}", chained=False),
)
EVENTS: Final[Mapping[str, type[Event]]] = {kind.name: kind.payload for kind in _KINDS}
UNCHAINED: Final = frozenset(kind.name for kind in _KINDS if not kind.chained)
_BY_PAYLOAD: Final = {kind.payload: kind for kind in _KINDS}
_BODIES: Final[Mapping[type[Any], type[Any]]] = {
    kind.payload: msgspec.defstruct("Body", [(kind.field, kind.payload)]) if kind.field else kind.payload
    for kind in _KINDS
}
_DECODERS: Final = {payload: msgspec.json.Decoder(body) for payload, body in _BODIES.items()}
_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Row:
    kind: str  # a key of EVENTS
    key: str  # unique together with `kind`
    episode_id: str | None  # None: not named by the sender
    route: str | None  # None: known only through the episode
    body: str  # JSON of the whole event


def kind_of(event: Event) -> Kind[Any]:
    kind = _BY_PAYLOAD.get(type(event))
    if kind is None:
        raise ValueError(f"event: got {type(event).__name__}; allowed: a payload of {', '.join(sorted(EVENTS))}")
    return kind


def kind_named(payload: type[Any]) -> str:
    return _BY_PAYLOAD[payload].name


def key_of(event: Event) -> str:
    return kind_of(event).key_of(event)


def route_of(event: Event) -> str | None:
    return kind_of(event).route(event)


def encode(event: Event) -> bytes:
    """Return the event's JSON. Numbers that are not finite become null: unknown."""
    field = kind_of(event).field
    return _ENCODER.encode({field: event} if field else event)


def decode(kind: str, body: bytes | str) -> Event:
    """Decode a stored body. Raises ValueError when the kind is unknown or the body is not such an event."""
    if kind not in EVENTS:
        raise ValueError(f"event: unknown kind {kind!r}; known: {', '.join(sorted(EVENTS))}")
    return decode_as(EVENTS[kind], body)


def decode_as(payload: type[E], body: bytes | str) -> E:
    field, plain = _BY_PAYLOAD[payload].field, _DECODERS[payload].decode(body)
    event: E = getattr(plain, field) if field else plain
    return event


def to_row(event: Event) -> Row:
    """Return the row of an event, verified to be readable.

    Values that JSON cannot carry are replaced: a list with an infinite log-probability becomes empty (unknown), half of
    a surrogate pair its escape. Raises ValueError if the row still cannot be read back or exceeds MAX_BODY_BYTES.
    """
    kind = kind_of(event)
    try:
        body = encode(event)
        decode_as(kind.payload, body)
    except (ValueError, TypeError):
        event = _mended(kind, event)
        body = encode(event)
        decode_as(kind.payload, body)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"event {kind.name}: got {len(body)} bytes; at most {MAX_BODY_BYTES}")
    return Row(kind.name, kind.key_of(event), kind.episode(event), kind.route(event), body.decode())


def _mended(kind: Kind[Any], event: Event) -> Event:
    try:
        return msgspec.convert(_plain(msgspec.to_builtins(event)), EVENTS[kind.name])
    except TypeError as error:
        raise ValueError(f"event {kind.name}: a field is no plain value: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if any(isinstance(item, float) and not math.isfinite(item) for item in value):
            return []
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
