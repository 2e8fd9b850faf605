"""What can happen, as rows of the log: one frozen record a kind, and their JSON.

    RequestSeen    a request was accepted; written before its first step
    RequestEnded   the one outcome of that request
    FeedbackGiven  someone said how good an answer was
    UpstreamExamined, RouteExamined  `suffice doctor` looked at a model server, or at a route's answers
    … and what the control loop decides, in `control_events`, what it tells people, in `advice_events`, and the kill
    switch, in `kill_events`; and what the audit log tells of itself, in `audit_events`
    … and what people are asked and say, in `review_events`, and what they hold and decide, in `hold_events`
    … and what they compare, in `experiment_events`, and what becomes of versions, in `rollout_events`
    … and what becomes of requests whose rows are not kept, in `sampling_events`
    … and what API keys have made and used, in `key_events`

This file knows the shape of a row and refuses to know where rows are kept. A new kind of event is
one class here and one line in EVENTS. Unknown fields in a stored row are skipped, so a log that a
newer version wrote to stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import msgspec

from suffice.store.rows.access_events import AccessChanged
from suffice.store.rows.advice_events import AlertRaised, ArmProposed, RouteMonitored, VersionProposed
from suffice.store.rows.alert_events import AlertSent, FailOpenHigh
from suffice.store.rows.audit_events import ConfigChanged, Exported, WordsErased
from suffice.store.rows.control_events import (
    AlarmRaised,
    EnforcementPaused,
    EnforcementResumed,
    EpochBegan,
    JobRan,
    LabelWanted,
    PolicyPublished,
)
from suffice.store.rows.experiment_events import ExperimentChanged, ExperimentStarted, ExperimentStopped
from suffice.store.rows.hold_events import IncidentDecided, IncidentOpened, OverrideEnded, OverrideSet
from suffice.store.rows.key_events import KeyUsed, ObjectMade
from suffice.store.rows.kill_events import KillSwitched
from suffice.store.rows.review_events import (
    QuestionKept,
    ReviewAsked,
    ReviewDrawn,
    ReviewLeased,
    ReviewReturned,
    SourcesKept,
    VerdictGiven,
)
from suffice.store.rows.rollout_events import RolloutBegun, RolloutMoved, RolloutUndone
from suffice.store.rows.route_event import OfNoEpisode
from suffice.store.rows.sampling_events import RatesSet, RequestsCounted
from suffice.store.rows.serving_events import LogMissed, VersionRefused
from suffice.types import Feedback, Findings, Outcome, RecalledRun, Request, RouteFindings

MAX_BODY_BYTES = 16 * 2**20  # a row larger than this is refused, not written


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """A request was accepted. Its lot and its policy version are fixed from here on."""

    kind: ClassVar[Literal["request"]] = "request"
    request: Request

    @property
    def key(self) -> str:
        """What may exist once: the episode."""
        return self.request.episode_id

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.request.episode_id

    @property
    def route(self) -> str | None:
        """The route's name; "" when none matched."""
        return self.request.route


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request ended, one way or another. There is one such row for each request."""

    kind: ClassVar[Literal["outcome"]] = "outcome"
    outcome: Outcome

    @property
    def key(self) -> str:
        """What may exist once: the episode."""
        return self.outcome.episode_id

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.outcome.episode_id

    @property
    def route(self) -> str | None:
        """None: the request's row says it, and views join the two."""
        return None


@dataclass(frozen=True, slots=True)
class FeedbackGiven:
    """A label, rating or correction arrived, perhaps before its request was written."""

    kind: ClassVar[Literal["feedback"]] = "feedback"
    feedback: Feedback
    about: RecalledRun | None = None  # None: it is no run of the lottery of rows, or no gateway knows it any more

    @property
    def key(self) -> str:
        """What may exist once: the sender's idempotency key, which says nothing about another sender's."""
        return f"{self.feedback.sender}/{self.feedback.feedback_id}"

    @property
    def episode_id(self) -> str | None:
        """The episode as the sender named it; None: named by response id."""
        return self.feedback.episode_id

    @property
    def route(self) -> str | None:
        """None: known only through the episode."""
        return None


@dataclass(frozen=True, slots=True)
class UpstreamExamined(OfNoEpisode):
    """A model server was examined. The latest examination of an upstream is the one that counts."""

    kind: ClassVar[Literal["upstream_examined"]] = "upstream_examined"
    findings: Findings

    @property
    def key(self) -> str:
        """What may exist once: the examination."""
        return self.findings.examination_id

    @property
    def route(self) -> str | None:
        """None: several routes may use the upstream."""
        return None


@dataclass(frozen=True, slots=True)
class RouteExamined(OfNoEpisode):
    """Full runs of a route's questions were examined. The latest examination is the one that counts."""

    kind: ClassVar[Literal["route_examined"]] = "route_examined"
    findings: RouteFindings

    @property
    def key(self) -> str:
        """What may exist once: the examination."""
        return self.findings.examination_id

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.findings.route


Event: TypeAlias = (
    RequestSeen
    | RequestEnded
    | FeedbackGiven
    | UpstreamExamined
    | RouteExamined
    | PolicyPublished
    | EpochBegan
    | AlarmRaised
    | EnforcementPaused
    | EnforcementResumed
    | LabelWanted
    | JobRan
    | AlertSent
    | FailOpenHigh
    | VersionRefused
    | LogMissed
    | RouteMonitored
    | AlertRaised
    | VersionProposed
    | ArmProposed
    | KillSwitched
    | ExperimentStarted
    | ExperimentChanged
    | ExperimentStopped
    | ReviewAsked
    | ReviewDrawn
    | ReviewLeased
    | ReviewReturned
    | VerdictGiven
    | QuestionKept
    | SourcesKept
    | OverrideSet
    | OverrideEnded
    | IncidentOpened
    | IncidentDecided
    | ConfigChanged
    | Exported
    | WordsErased
    | AccessChanged
    | RolloutBegun
    | RolloutMoved
    | RolloutUndone
    | RequestsCounted
    | RatesSet
    | ObjectMade
    | KeyUsed
)
E = TypeVar("E", bound=Event)

EVENTS: Mapping[str, type[Event]] = {
    RequestSeen.kind: RequestSeen,
    RequestEnded.kind: RequestEnded,
    FeedbackGiven.kind: FeedbackGiven,
    UpstreamExamined.kind: UpstreamExamined,
    RouteExamined.kind: RouteExamined,
    PolicyPublished.kind: PolicyPublished,
    EpochBegan.kind: EpochBegan,
    AlarmRaised.kind: AlarmRaised,
    EnforcementPaused.kind: EnforcementPaused,
    EnforcementResumed.kind: EnforcementResumed,
    LabelWanted.kind: LabelWanted,
    JobRan.kind: JobRan,
    RouteMonitored.kind: RouteMonitored,
    AlertRaised.kind: AlertRaised,
    AlertSent.kind: AlertSent,
    FailOpenHigh.kind: FailOpenHigh,
    VersionRefused.kind: VersionRefused,
    LogMissed.kind: LogMissed,
    VersionProposed.kind: VersionProposed,
    ArmProposed.kind: ArmProposed,
    ReviewAsked.kind: ReviewAsked,
    ReviewDrawn.kind: ReviewDrawn,
    ReviewLeased.kind: ReviewLeased,
    ReviewReturned.kind: ReviewReturned,
    VerdictGiven.kind: VerdictGiven,
    QuestionKept.kind: QuestionKept,
    SourcesKept.kind: SourcesKept,
    OverrideSet.kind: OverrideSet,
    OverrideEnded.kind: OverrideEnded,
    IncidentOpened.kind: IncidentOpened,
    IncidentDecided.kind: IncidentDecided,
    ConfigChanged.kind: ConfigChanged,
    Exported.kind: Exported,
    WordsErased.kind: WordsErased,
    AccessChanged.kind: AccessChanged,
    KillSwitched.kind: KillSwitched,
    ExperimentStarted.kind: ExperimentStarted,
    ExperimentChanged.kind: ExperimentChanged,
    ExperimentStopped.kind: ExperimentStopped,
    RolloutBegun.kind: RolloutBegun,
    RolloutMoved.kind: RolloutMoved,
    RolloutUndone.kind: RolloutUndone,
    RequestsCounted.kind: RequestsCounted,
    RatesSet.kind: RatesSet,
    ObjectMade.kind: ObjectMade,
    KeyUsed.kind: KeyUsed,
}

# Every kind stands in the chain of the audit log (`store/audit/chain.py`), except these: what happens too often, and
# what is no decision and no evidence of one. A kind that is added is chained unless it is named here.
UNCHAINED: frozenset[str] = frozenset(
    {
        RequestSeen.kind,
        RequestEnded.kind,
        RequestsCounted.kind,
        LabelWanted.kind,
        JobRan.kind,
        RouteMonitored.kind,
        ReviewLeased.kind,
        QuestionKept.kind,
        SourcesKept.kind,
        AlertSent.kind,
        FailOpenHigh.kind,
        ObjectMade.kind,
        KeyUsed.kind,
    }
)

_ENCODER = msgspec.json.Encoder()
_DECODERS = {kind: msgspec.json.Decoder(record) for kind, record in EVENTS.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One event as a store keeps it."""

    kind: str  # a key of EVENTS
    key: str  # with `kind`: at most one row has it
    episode_id: str | None  # None: not named by the sender
    route: str | None  # None: known only through the episode
    body: str  # JSON of the whole event record


def encode(event: Event) -> bytes:
    """Return the event's JSON. Numbers that are not finite become null: unknown."""
    return _ENCODER.encode(event)


def decode(kind: str, body: bytes | str) -> Event:
    """Turn a stored body back into its event; unknown fields are skipped.

    Raises ValueError when the kind is unknown or the body is not such an event.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise ValueError(f"event: unknown kind {kind!r}; known: {', '.join(sorted(EVENTS))}")
    event: Event = decoder.decode(body)  # msgspec's errors are ValueErrors
    return event


def decode_as(record: type[E], body: bytes | str) -> E:
    """As `decode`, for a reader that knows the kind. Raises ValueError."""
    return msgspec.json.decode(body, type=record)


def to_row(event: Event) -> Row:
    """Return the row of an event, having made sure that the row can be read back.

    A model may produce what JSON cannot carry: a list with an infinite log-probability becomes
    empty (unknown), half of a surrogate pair becomes its escape. What still cannot be read back,
    or is larger than MAX_BODY_BYTES, raises ValueError: a row that breaks its reader is worse
    than a row that is missing and counted.
    """
    try:
        body = encode(event)
        decode(event.kind, body)
    except (ValueError, TypeError):
        event = _mended(event)
        body = encode(event)
        decode(event.kind, body)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"event {event.kind}: got {len(body)} bytes; at most {MAX_BODY_BYTES}")
    return Row(event.kind, event.key, event.episode_id, event.route, body.decode())


def _mended(event: Event) -> Event:
    """The same event without what JSON cannot carry. Raises ValueError if that is not enough."""
    try:
        plain = _plain(msgspec.to_builtins(event))
        return msgspec.convert(plain, EVENTS[event.kind])
    except TypeError as error:
        raise ValueError(f"event {event.kind}: a field is no plain value: {error}") from None


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
