"""The kinds of events: one table says what each holds, under which key, and how its row is written as JSON.

An event is its payload, a frozen record. Its kind follows from its type. To add a kind, write the record and add one
line to `_KINDS` and one to `Event`. Keys are made of what was decided, not of who wrote it: of two writers that decide
the same, or that decide different things at the same place, the first row stays. Unknown fields of a stored row are
skipped, so a log that a newer version wrote to stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from suffice.assurance.forecast import Alert, Outlook
from suffice.review.holds import Incident, IncidentDecision, Override, OverrideEnd
from suffice.review.items import ControlDraw, ItemReturn, ReviewItem, ReviewLease, Verdict
from suffice.store.rows.records import (
    AccessGrant,
    AlertDelivery,
    ArmWorth,
    ConfigChange,
    Erasure,
    ExperimentEnd,
    ExperimentRevision,
    ExperimentStart,
    Export,
    FailOpenCount,
    FeedbackEvent,
    KeyUsage,
    KillSwitchState,
    LogOutage,
    ProposedVersion,
    QuestionText,
    RequestCount,
    RolloutMove,
    RolloutStart,
    RolloutUndo,
    RowRates,
    Sources,
    StoredObject,
    VersionRefusal,
)
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

Event: TypeAlias = (
    Request
    | Outcome
    | FeedbackEvent
    | Findings
    | RouteFindings
    | Publication
    | Epoch
    | Alarm
    | Pause
    | Resumption
    | LabelRequest
    | JobRun
    | Outlook
    | Alert
    | ProposedVersion
    | ArmWorth
    | AlertDelivery
    | FailOpenCount
    | VersionRefusal
    | LogOutage
    | KillSwitchState
    | ExperimentStart
    | ExperimentRevision
    | ExperimentEnd
    | ReviewItem
    | ControlDraw
    | ReviewLease
    | ItemReturn
    | Verdict
    | QuestionText
    | Sources
    | Override
    | OverrideEnd
    | Incident
    | IncidentDecision
    | ConfigChange
    | Export
    | Erasure
    | AccessGrant
    | RolloutStart
    | RolloutMove
    | RolloutUndo
    | RequestCount
    | RowRates
    | StoredObject
    | KeyUsage
)
E = TypeVar("E", bound=Event)


def _nothing(_: Any) -> None:
    return None


_route: Callable[[Any], str | None] = attrgetter("route")
_episode: Callable[[Any], str] = attrgetter("episode_id")
_item: Callable[[Any], str] = attrgetter("item")


def _numbered(event: Any) -> str:
    return f"{event.route}:{event.number}"


@dataclass(frozen=True, slots=True)
class Kind(Generic[E]):
    """What a kind of event holds, and the columns of its row."""

    name: str
    payload: type[E]
    field: str  # of the row's JSON that holds the payload; "": the payload is the whole JSON
    key: Callable[[E], str]  # at most one row of the kind has it
    route: Callable[[E], str | None] = _nothing  # None: several routes, or known only through the episode
    episode: Callable[[E], str | None] = _nothing  # None: about no episode, or its sender did not name it
    # Is it in the chain of the audit log? Left out is what happens too often, and what is no decision nor its evidence.
    chained: bool = True


_KINDS: Final[tuple[Kind[Any], ...]] = (
    Kind("request", Request, "request", _episode, _route, _episode, chained=False),
    Kind("outcome", Outcome, "outcome", _episode, episode=_episode, chained=False),
    Kind(
        "feedback",
        FeedbackEvent,
        "",
        # A sender's idempotency key says nothing about another sender's.
        lambda e: f"{e.feedback.sender}/{e.feedback.feedback_id}",
        episode=lambda e: e.feedback.episode_id,
    ),
    Kind("upstream_examined", Findings, "findings", lambda e: e.examination_id),
    Kind("route_examined", RouteFindings, "findings", lambda e: e.examination_id, _route),
    Kind("policy_published", Publication, "publication", _numbered, _route),
    Kind("epoch_began", Epoch, "epoch", _numbered, _route),
    Kind("alarm_raised", Alarm, "alarm", lambda e: f"{e.route}:{e.epoch}", _route),
    Kind("enforcement_paused", Pause, "pause", _numbered, _route),
    Kind("enforcement_resumed", Resumption, "resumption", _numbered, _route),
    Kind("label_wanted", LabelRequest, "request", _episode, _route, _episode, chained=False),
    Kind("job_ran", JobRun, "run", lambda e: e.run_id, lambda e: e.route or None, chained=False),
    # Keys with leading zeros sort by place: the newest row of a route is found by the unique index.
    Kind(
        "route_monitored",
        Outlook,
        "outlook",
        lambda e: f"{e.route}:{e.epoch:06}:{e.at:012}",
        _route,
        chained=False,
    ),
    Kind("alert_raised", Alert, "alert", lambda e: f"{e.route}:{e.epoch:06}:{e.at:012}:{e.of}", _route),
    Kind("version_proposed", ProposedVersion, "proposal", lambda e: f"{e.route}:{e.read_to_seq:015}", _route),
    Kind("arm_proposed", ArmWorth, "worth", lambda e: f"{e.route}:{e.read_to_seq:015}", _route),
    Kind(
        "alert_sent",
        AlertDelivery,
        "telling",
        lambda e: f"{e.sink}:{e.read_to_seq:015}" + (f":over:{e.over:015}" if e.over else ""),
        chained=False,
    ),
    Kind("fail_open_high", FailOpenCount, "failed", lambda e: f"{e.route}:{e.hour:09}", _route, chained=False),
    Kind("version_refused", VersionRefusal, "refusal", lambda e: f"{e.route}:{e.number or e.fit}", _route),
    Kind("log_missed", LogOutage, "missing", lambda e: f"{e.gateway}:{e.since_s:.3f}"),
    Kind("kill_switched", KillSwitchState, "switching", lambda e: f"{e.stamp}:{'on' if e.on else 'off'}"),
    Kind("experiment_started", ExperimentStart, "begun", lambda e: f"{e.experiment.name}:{e.experiment.run}"),
    Kind(
        "experiment_changed",
        ExperimentRevision,
        "begun",
        lambda e: f"{e.experiment.name}:{e.experiment.run}:{e.revision}",
    ),
    Kind("experiment_stopped", ExperimentEnd, "ended", lambda e: f"{e.experiment}:{e.run}"),
    Kind("review_asked", ReviewItem, "item", _episode, _route, _episode),
    Kind("review_drawn", ControlDraw, "drawing", _numbered, _route),
    # Keys are places in the queue: two reviewers cannot take the same one, and a form sent twice is one row.
    Kind(
        "review_leased",
        ReviewLease,
        "lease",
        lambda e: f"{e.item}:{e.slot}:{e.turn}",
        _route,
        _item,
        chained=False,
    ),
    Kind("review_returned", ItemReturn, "returned", lambda e: f"{e.item}:{e.slot}:{e.turn}", _route, _item),
    Kind("review_verdict", Verdict, "verdict", lambda e: f"{e.item}:{e.reviewer}:{e.revision}", _route, _item),
    Kind("question_kept", QuestionText, "question", _episode, _route, _episode, chained=False),
    Kind("sources_kept", Sources, "kept", _episode, _route, _episode, chained=False),
    Kind("override_set", Override, "override", _numbered, _route),
    Kind("override_ended", OverrideEnd, "end", _numbered, _route),
    Kind("incident_opened", Incident, "incident", lambda e: e.incident, _route),
    Kind("incident_decided", IncidentDecision, "decision", lambda e: e.incident, _route),
    Kind("config_changed", ConfigChange, "change", lambda e: f"{e.number:08}"),
    Kind("exported", Export, "export", lambda e: e.export_id),
    Kind("erased", Erasure, "erasure", lambda e: f"{e.erasure_id}:{e.number:06}"),
    Kind("access_changed", AccessGrant, "access", lambda e: e.access_id),
    Kind("rollout_begun", RolloutStart, "beginning", lambda e: f"{e.state.route}:{e.number}", lambda e: e.state.route),
    Kind("rollout_moved", RolloutMove, "moved", lambda e: f"{e.transition.rollout}:{e.transition.number}", _route),
    Kind("rollout_undone", RolloutUndo, "undoing", lambda e: e.rollout, _route),
    Kind("requests_counted", RequestCount, "counted", lambda e: e.count_id, _route, chained=False),
    Kind("rates_set", RowRates, "rates", lambda e: f"{e.route}:{e.number:09}", _route),
    # The first row of an id counts: nobody can take over an object that exists.
    Kind("object_made", StoredObject, "made", lambda e: e.object_id, chained=False),
    # The key begins with the day, so that the rows of a day are found by it.
    Kind("key_used", KeyUsage, "usage", lambda e: f"{e.day}:{e.usage_id}", chained=False),
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
    key: str  # with `kind`: at most one row has it
    episode_id: str | None  # None: not named by the sender
    route: str | None  # None: known only through the episode
    body: str  # JSON of the whole event


def kind_of(event: Event) -> Kind[Any]:
    """The kind of an event. Raises ValueError for what is none."""
    kind = _BY_PAYLOAD.get(type(event))
    if kind is None:
        raise ValueError(f"event: got {type(event).__name__}; allowed: a payload of {', '.join(sorted(EVENTS))}")
    return kind


def kind_named(payload: type[Any]) -> str:
    """The name of the kind that holds this payload."""
    return _BY_PAYLOAD[payload].name


def key_of(event: Event) -> str:
    """What may exist once among the rows of its kind."""
    return str(kind_of(event).key(event))


def route_of(event: Event) -> str | None:
    """The route that an event is about; None: several, or known only through the episode."""
    return kind_of(event).route(event)


def encode(event: Event) -> bytes:
    """Return the event's JSON. Numbers that are not finite become null: unknown."""
    field = kind_of(event).field
    return _ENCODER.encode({field: event} if field else event)


def decode(kind: str, body: bytes | str) -> Event:
    """Turn a stored body back into its event; unknown fields are skipped.

    Raises ValueError when the kind is unknown or the body is not such an event.
    """
    if kind not in EVENTS:
        raise ValueError(f"event: unknown kind {kind!r}; known: {', '.join(sorted(EVENTS))}")
    return decode_as(EVENTS[kind], body)


def decode_as(payload: type[E], body: bytes | str) -> E:
    """As `decode`, for a reader that knows the payload. Raises ValueError."""
    return _unwrapped(payload, _DECODERS[payload].decode(body))


def _unwrapped(payload: type[E], body: Any) -> E:
    field = _BY_PAYLOAD[payload].field
    event: E = getattr(body, field) if field else body
    return event


def to_row(event: Event) -> Row:
    """Return the row of an event, having made sure that the row can be read back.

    A model may produce what JSON cannot carry: a list with an infinite log-probability becomes
    empty (unknown), half of a surrogate pair becomes its escape. What still cannot be read back,
    or is larger than MAX_BODY_BYTES, raises ValueError: a row that breaks its reader is worse
    than a row that is missing and counted.
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
    return Row(kind.name, kind.key(event), kind.episode(event), kind.route(event), body.decode())


def _mended(kind: Kind[Any], event: Event) -> Event:
    """The same event without what JSON cannot carry. Raises ValueError if that is not enough."""
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
