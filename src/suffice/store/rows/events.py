"""The kinds of events: records that no other package defines, the table of all kinds, and their rows as JSON.

To add a kind, write the record and add one line to `_KINDS` and one to `Event`. Keys name what was decided, not who
wrote it: of two writers at the same place, the first row stays. Unknown fields of a stored row are skipped, so rows of
a newer version stay readable. No record holds a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import msgspec

from suffice.agent.plan import AgentPlan
from suffice.assurance.certify import FleetRequirement, WarmStart
from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.forecast import Alert, ForecastAction, RouteForecast
from suffice.assurance.sampling import UnloggedRequests
from suffice.assurance.spending import SpendForecast
from suffice.review.holds import Incident, IncidentDecision, Override, OverrideEnd
from suffice.review.items import ControlDraw, ItemReturn, ReviewItem, ReviewLease, Source, Verdict
from suffice.rollout.evidence import Rules
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.stages import State, Transition
from suffice.store.rows.compact import struct_like, to_plain
from suffice.store.rows.preferences import AlertMute, AlertRule, RuleAlert, SavedView
from suffice.store.rows.watching import WatchLapse
from suffice.types import (
    Alarm,
    Epoch,
    Feedback,
    Findings,
    JobRun,
    LabelRequest,
    Outcome,
    Pause,
    Publication,
    RecalledRun,
    Request,
    Resumption,
    RouteFindings,
)


@dataclass(frozen=True, slots=True)
class FeedbackEvent:
    feedback: Feedback
    about: RecalledRun | None = None  # None: its run has rows of its own, or no gateway remembers it


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessGrant:
    """Access given, given with another secret, or removed."""

    access_id: str  # of this change
    name: str
    what: Literal["added", "reset", "removed"]
    role: str  # "": removed
    author: str  # user of the computer on which it was done
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedVersion:
    """A version that a refit proposes, and its report. It takes effect nowhere by itself."""

    route: str
    read_to_seq: int  # place in the log up to which it was learned
    address: str  # of the version, stored as an artefact
    parent: str | None  # address of the active version
    reason: str  # schedule, drift, by hand
    verdict: str  # against the parent: better, worse, inconclusive, first
    why: str
    n_runs: int  # that it was learned from
    saving: IntervalEstimate | None  # at the route's own EM budget, on prompts unseen by its models
    drop: IntervalEstimate | None  # likewise
    lineage: dict[str, Any]  # as `learn.retrain` has it; Any, because each key has its own type
    card: dict[str, Any] | None  # as `learn.retrain` has it
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedBudget:
    """Another EM budget that the price of EM in satisfaction suggests. Only its owner can set it."""

    route: str
    read_to_seq: int  # place in the log up to which was read
    max_em_drop: float  # proposed
    before: float  # the configured one
    min_satisfaction: float  # the floor that it keeps, in [0, 1]
    why: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDelivery:
    sink: str  # log, webhook or email
    read_to_seq: int  # place in the log of the event sent; earlier rows are known to the sink
    of: str  # kind of the notice; "": the sink was enabled here
    same: str  # equal for repetitions of one alert; "": the sink was enabled here
    about_s: float  # Unix time at which the log accepted the event
    over: int = 0  # place in the log of a resolved alert that was reported; 0: an event was reported


@dataclass(frozen=True, slots=True, kw_only=True)
class FailOpenCount:
    route: str
    hour: int  # since 1970
    n_runs: int
    n_degraded: int  # of them, failed open: they ran in full


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    path: str  # such as routes.math.max_em_drop
    before: str | None  # None: it was absent
    after: str | None  # None: it is absent now


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    number: int  # of the log's changes, from 1, which only records the initial state
    author: str  # process and user; "file" where no user is known
    reason: str  # a short sentence
    changes: tuple[SettingChange, ...]  # by path; (): nothing was recorded before
    settings: dict[str, str]  # all of them, path to JSON; never secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    export_id: str
    author: str
    reason: str  # a short sentence
    what: str  # "audit log", "training pairs" …
    where: str  # name of the file, "standard output"
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySalt:
    """The salt of the audit draws of a day that is over; its SHA-256 is the salt of the day before."""

    day: int  # UTC, since 1970
    salt: str  # hexadecimal
    since_s: float  # Unix time; all draws from then on are by salts of days
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DayArchive:
    """The requests of one day stand in an archive, from where retention may remove them."""

    day: str  # UTC, as 2026-01-31
    archive: str  # its address
    since_seq: int  # the day's requests come after this place in the log …
    until_seq: int  # … up to this one
    n_requests: int
    digest: str  # SHA-256 of the day's manifest
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    erasure_id: str  # of the whole erasure, which may be written in several rows
    number: int  # of this row within it, from 1
    author: str
    reason: str
    what: str  # which rows: "episode ep_…", "older than 90 days" …
    parts: tuple[str, ...]  # "answers", "comments", "metadata", "steps"
    n_rows: int  # rows that were changed
    chained: tuple[int, ...] = ()  # places in the log of the chained ones
    until_seq: int = 0  # everything in scope up to this place in the log is erased; 0: not stated


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentStart:
    experiment: RunningExperiment
    revision: int  # of this run: 0 is the start
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRevision(ExperimentStart):
    """A running experiment with other weights or another share; earlier assignments keep their odds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentEnd:
    experiment: str  # its name
    run: int
    author: str
    reason: str
    summary: tuple[str, ...] = ()  # its result then, in sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class WorseArm:
    """An arm of a running experiment is proved worse than the control, for all requests or for a query class."""

    experiment: str  # its name
    run: int
    arm: str
    verdict: str  # worse, or mixed: worse in a query class
    summary: tuple[str, ...]  # its result then, in sentences
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    object_id: str  # as the upstream named it
    sender: str  # keyed hash of the key that made it
    upstream: str  # name of the upstream that keeps it
    tenant: str = ""  # of that key; "": none


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsage:
    usage_id: str
    sender: str  # keyed hash of the key
    day: str  # UTC, as 2026-01-31
    n_tokens: int  # prompt and answer
    usd: float = 0.0  # of the calls whose prices are known


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyIssue:
    """A client's key, as a hash: the key itself is shown to its maker once and kept nowhere."""

    key_id: str  # public part of the key
    name: str  # of its holder; several keys of one name are one caller
    digest: str  # SHA-256 of the key, which has 256 random bits, hexadecimal
    permits: dict[str, Any]  # as the table [keys.NAME] has it; a gateway that does not know a field refuses the key
    until_s: float | None  # Unix time at which it ends by itself; None: never
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEnd:
    key_id: str
    name: str
    ends_at_s: float  # Unix time; later than the row where a rotation lets both keys live for a while
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What one gateway process serves, from this row on; it lives as long as the row's owner."""

    gateway: str  # of the process, random
    number: int  # of its rows, from 1
    name: str  # `server.replica`
    software: str  # version of Suffice
    secret: str  # fingerprint of the deployment's secret
    versions: dict[str, str] = field(default_factory=dict)  # policy version, by route


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSwitchState:
    on: bool
    reason: str  # of its file, with who set it
    stamp: int  # of the order or, for a file made by hand, when that was changed, ns; 0: a gateway's environment
    ordered: bool = False  # a person's order for every replica of this log; False: what a gateway did
    gateway: str = ""  # the gateway that did it; "": an order, or written by an earlier version


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionText:
    episode_id: str
    route: str
    text: str  # as a person reads it
    expires_at_s: float  # Unix time after which nobody may see it; erasing is separate


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    episode_id: str
    route: str
    sources: tuple[Source, ...]  # in the order of the steps
    is_cut: bool  # it was longer than is kept
    expires_at_s: float  # Unix time after which nobody may see them; erasing is separate


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStart:
    state: State
    number: int  # of the route's rollouts: 1 is the first
    author: str
    reason: str
    rules: Rules = field(default_factory=Rules)  # fixed at its start, whatever the settings say later


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutUndo:
    rollout: str
    route: str
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutMove:
    route: str
    author: str  # a person, or the worker that moved it on evidence
    reason: str
    transition: Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCount:
    """Requests that one gateway counted on a route since its last count."""

    count_id: str
    route: str  # "" when no route matched
    n_requests: int
    n_governed: int
    cells: tuple[UnloggedRequests, ...]
    senders: tuple[str, ...] = ()  # keyed hashes of API keys not reported before
    audit_share: float | None = None  # lowest share at which a governed one was assigned; None: none was governed


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingMove:
    """A change of the level at which one gateway operates a route, caused by its load."""

    move_id: str  # unique
    route: str
    before: str  # level and stance after the move of the row before
    after: str
    level: int  # that clients get, without those of their classes
    certified: int  # the highest level that it may operate at
    stance: str  # "slack", "usual" or "spike"
    n_moves: int  # since the row before, this one included: a load that flaps has one row a minute
    age_s: float  # from the latest of them to this row
    reason: str  # the measured load, as a sentence
    author: str = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRates:
    route: str
    number: int  # of the route's settings of rates: 1 is the first
    sample_rate: float  # the owner's, which the rates keep to; a changed one voids them
    read_to_seq: int  # place in the log up to which it was read
    other: float  # of classes that are not named
    after: tuple[tuple[str, float], ...]  # sorted by class
    before: tuple[tuple[str, float], ...]
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRefusal:
    route: str
    number: int  # of the publication; 0: a completed rollout
    fit: str  # address of the version
    reason: str  # why, as a sentence
    serves: str  # the version that serves instead, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOutage:
    gateway: str  # a unique name of the gateway
    since_s: float  # Unix time
    until_s: float  # Unix time
    reason: str  # why the log could not be read
    after: str  # what was served meanwhile, in words
    n_rows: int  # that waited and were written afterwards
    n_dropped: int  # for which the queue had no room


# ---- the table of kinds ---------------------------------------------------------------------------

MAX_BODY_BYTES = 16 * 2**20  # a row larger than this is refused, not written

_OfRuns: TypeAlias = Request | Outcome | FeedbackEvent | RequestCount | LabelRequest | QuestionText | Sources
_OfJobs: TypeAlias = RowRates | OperatingMove | ProposedVersion | ProposedBudget
_OfLoop: TypeAlias = Epoch | Publication | AgentPlan | Alarm | Pause | Resumption | JobRun | _OfJobs
_OfForecasts: TypeAlias = RouteForecast | ForecastAction | SpendForecast | Alert
_OfAlerts: TypeAlias = _OfForecasts | AlertDelivery | FailOpenCount | VersionRefusal | LogOutage | WatchLapse
_OfExperiments: TypeAlias = ExperimentStart | ExperimentRevision | WorseArm | ExperimentEnd
_OfRollouts: TypeAlias = RolloutStart | RolloutMove | RolloutUndo
_OfReviews: TypeAlias = ReviewItem | ControlDraw | ReviewLease | ItemReturn | Verdict
_OfHolds: TypeAlias = Override | OverrideEnd | Incident | IncidentDecision | KillSwitchState
_OfServer: TypeAlias = Findings | RouteFindings | StoredObject | KeyUsage | KeyIssue | KeyEnd | ReplicaState
_OfOwner: TypeAlias = ConfigChange | Export | DaySalt | DayArchive | Erasure | AccessGrant
_OfVersions: TypeAlias = _OfExperiments | _OfRollouts | FleetRequirement | WarmStart
_OfPeople: TypeAlias = _OfReviews | _OfOwner | SavedView | AlertRule | RuleAlert | AlertMute
Event: TypeAlias = _OfRuns | _OfLoop | _OfAlerts | _OfVersions | _OfHolds | _OfServer | _OfPeople
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
    chained: bool = True  # kinds that come too often, and are neither decisions nor evidence, are not
    earlier: str = ""  # `field` in 0.2; rows have both as long as gateways of 0.2 may share the log

    def key_of(self, event: E) -> str:
        return self.key.format(event) if isinstance(self.key, str) else self.key(event)


_EPISODE: Final = "{0.episode_id}"
_SENT: Final = "{0.feedback.sender}/{0.feedback.feedback_id}"  # idempotency keys of senders are independent
_ROLLOUT: Final = "{0.state.route}:{0.number}"
_RUN: Final = "{0.experiment.name}:{0.experiment.run}"
_NUMBERED: Final = "{0.route}:{0.number}"
# Numbers with leading zeros sort by place: the unique index finds the newest row of a route.
_READ_TO: Final = "{0.route}:{0.read_to_seq:015}"
_LOOK: Final = "{0.route}:{0.epoch:06}:{0.at:012}"
# Places in the queue: two reviewers cannot take the same one, and a form sent twice is one row.
_TURN: Final = "{0.item}:{0.slot}:{0.turn}"


def _delivery_key(event: AlertDelivery) -> str:
    return f"{event.sink}:{event.read_to_seq:015}" + (f":over:{event.over:015}" if event.over else "")


def _switch_key(event: KillSwitchState) -> str:
    return f"{event.stamp}:{'on' if event.on else 'off'}{':order' if event.ordered else ''}"


_KINDS: Final[tuple[Kind[Any], ...]] = (
    Kind("request", Request, "request", _EPISODE, chained=False),
    Kind("outcome", Outcome, "outcome", _EPISODE, chained=False),
    Kind("feedback", FeedbackEvent, "", _SENT, episode=lambda e: e.feedback.episode_id),
    Kind("upstream_examined", Findings, "findings", "{0.examination_id}"),
    Kind("route_examined", RouteFindings, "findings", "{0.examination_id}"),
    Kind("policy_published", Publication, "publication", _NUMBERED),
    Kind("agent_planned", AgentPlan, "plan", _NUMBERED),
    Kind("epoch_began", Epoch, "epoch", _NUMBERED),
    Kind("alarm_raised", Alarm, "alarm", lambda e: f"{e.route}:{e.epoch}" + (f":{e.level}:{e.at}" if e.level else "")),
    Kind("enforcement_paused", Pause, "pause", _NUMBERED),
    Kind("enforcement_resumed", Resumption, "resumption", _NUMBERED),
    Kind("label_wanted", LabelRequest, "request", _EPISODE, chained=False),
    Kind("job_ran", JobRun, "run", "{0.run_id}", lambda e: e.route or None, chained=False),
    Kind("route_monitored", RouteForecast, "forecast", _LOOK, chained=False),
    Kind("forecast_acted", ForecastAction, "action", _LOOK),
    Kind("fleet_required", FleetRequirement, "requirement", "{0.number:09}"),
    Kind("warm_started", WarmStart, "start", "{0.route}:{0.epoch}"),
    Kind("spend_forecast", SpendForecast, "spending", "{0.route}:{0.hour:09}", chained=False),
    Kind("alert_raised", Alert, "alert", f"{_LOOK}:{{0.of}}"),
    Kind("version_proposed", ProposedVersion, "proposal", _READ_TO),
    Kind("budget_proposed", ProposedBudget, "proposal", _READ_TO),
    Kind("alert_sent", AlertDelivery, "delivery", _delivery_key, chained=False, earlier="telling"),
    Kind("fail_open_high", FailOpenCount, "failed", "{0.route}:{0.hour:09}", chained=False),
    Kind("version_refused", VersionRefusal, "refusal", lambda e: f"{e.route}:{e.number or e.fit}"),
    Kind("log_missed", LogOutage, "missing", "{0.gateway}:{0.since_s:.3f}"),
    Kind("replica_seen", ReplicaState, "replica", "{0.gateway}:{0.number:06}", chained=False),
    Kind("kill_switched", KillSwitchState, "state", _switch_key, earlier="switching"),
    Kind("experiment_started", ExperimentStart, "start", _RUN, earlier="begun"),
    Kind("experiment_changed", ExperimentRevision, "change", f"{_RUN}:{{0.revision}}", earlier="begun"),
    Kind("arm_worse", WorseArm, "finding", "{0.experiment}:{0.run}:{0.arm}:{0.verdict}"),
    Kind("experiment_stopped", ExperimentEnd, "ended", "{0.experiment}:{0.run}"),
    Kind("review_asked", ReviewItem, "item", _EPISODE),
    Kind("review_drawn", ControlDraw, "draw", _NUMBERED, earlier="drawing"),
    Kind("review_leased", ReviewLease, "lease", _TURN, chained=False),
    Kind("review_returned", ItemReturn, "returned", _TURN),
    Kind("review_verdict", Verdict, "verdict", "{0.item}:{0.reviewer}:{0.revision}"),
    Kind("question_kept", QuestionText, "question", _EPISODE, chained=False),
    Kind("sources_kept", Sources, "kept", _EPISODE, chained=False),
    Kind("override_set", Override, "override", _NUMBERED),
    Kind("override_ended", OverrideEnd, "end", _NUMBERED),
    Kind("incident_opened", Incident, "incident", "{0.incident}"),
    Kind("incident_decided", IncidentDecision, "decision", "{0.incident}"),
    Kind("config_changed", ConfigChange, "change", "{0.number:08}"),
    Kind("exported", Export, "export", "{0.export_id}"),
    Kind("salt_published", DaySalt, "salt", "{0.day:06}"),
    Kind("day_archived", DayArchive, "archived", "{0.day}:{0.digest}:{0.archive}"),
    Kind("erased", Erasure, "erasure", "{0.erasure_id}:{0.number:06}"),
    Kind("access_changed", AccessGrant, "access", "{0.access_id}"),
    Kind("rollout_begun", RolloutStart, "start", _ROLLOUT, lambda e: e.state.route, earlier="beginning"),
    Kind("rollout_moved", RolloutMove, "moved", "{0.transition.rollout}:{0.transition.number}"),
    Kind("rollout_undone", RolloutUndo, "undo", "{0.rollout}", earlier="undoing"),
    Kind("requests_counted", RequestCount, "counted", "{0.count_id}", chained=False),
    Kind("operating_moved", OperatingMove, "move", "{0.move_id}"),
    Kind("rates_set", RowRates, "rates", "{0.route}:{0.number:09}"),
    # The first row of an id counts: nobody can take over an existing object.
    Kind("object_made", StoredObject, "object", "{0.object_id}", chained=False, earlier="made"),
    # The key begins with the day, so that a day's rows are found by it.
    Kind("key_used", KeyUsage, "usage", "{0.day}:{0.usage_id}", chained=False),
    Kind("key_issued", KeyIssue, "issue", "{0.key_id}"),
    Kind("key_ended", KeyEnd, "end", "{0.key_id}:{0.ends_at_s:.3f}"),
    Kind("view_saved", SavedView, "view", "{0.person}:{0.number:06}", chained=False),
    Kind("alert_rule_set", AlertRule, "rule", "{0.rule}:{0.revision}", lambda e: e.route or None),
    Kind("watch_changed", WatchLapse, "watch", "{0.route}:{0.gateway}:{0.number:06}"),
    Kind("rule_checked", RuleAlert, "alert", "{0.rule}:{0.revision}:{0.route}:{0.number}"),
    Kind("alerts_muted", AlertMute, "mute", "{0.number:06}", lambda e: e.route or None),
)
EVENTS: Final[Mapping[str, type[Event]]] = {kind.name: kind.payload for kind in _KINDS}
EARLIER_KEYS: Final = {kind.name: (kind.earlier, kind.field) for kind in _KINDS if kind.earlier}
UNCHAINED: Final = frozenset(kind.name for kind in _KINDS if not kind.chained)
_BY_PAYLOAD: Final = {kind.payload: kind for kind in _KINDS}
# Nearly all rows; they are not chained, so that no digest depends on how they are written.
_COMPACT: Final[Mapping[type[Any], type[Any]]] = {record: struct_like(record) for record in (Request, Outcome)}


def _body_type(kind: Kind[Any]) -> type[Any]:
    if kind.earlier:
        return msgspec.defstruct("Body", [(name, kind.payload | None, None) for name in (kind.field, kind.earlier)])
    payload = _COMPACT.get(kind.payload, kind.payload)
    return msgspec.defstruct("Body", [(kind.field, payload)]) if kind.field else payload


_DECODERS: Final = {kind.payload: msgspec.json.Decoder(_body_type(kind)) for kind in _KINDS}
_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Row:
    kind: str  # a key of EVENTS
    key: str  # unique together with `kind`
    episode_id: str | None  # None: not named by the sender
    route: str | None  # None: known only through the episode
    body: str  # JSON of the whole event
    response_id: str | None = None  # that it names


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
    """Return the event's JSON. Numbers that are not finite become null: unknown. Raise ValueError for a wrong type."""
    kind, compact = kind_of(event), _COMPACT.get(type(event))
    plain = event if compact is None else msgspec.convert(event, compact, from_attributes=True)
    if kind.earlier:
        return _ENCODER.encode({kind.field: plain, kind.earlier: plain})
    return _ENCODER.encode({kind.field: plain} if kind.field else plain)


def decode_as(payload: type[E], body: bytes | str) -> E:
    kind, plain = _BY_PAYLOAD[payload], _DECODERS[payload].decode(body)
    if payload in _COMPACT:
        return msgspec.convert(getattr(plain, kind.field), payload, from_attributes=True)
    event: E | None = getattr(plain, kind.field) if kind.field else plain
    event = getattr(plain, kind.earlier) if event is None else event
    if event is None:
        raise ValueError(f"missing required field `{kind.field}`")
    return event


def to_row(event: Event) -> Row:
    """Return the row of an event, verified to be readable.

    Values that JSON cannot carry are replaced as in `to_plain`; a number that is not finite becomes null where the
    field may be unknown. Raises ValueError if the row still cannot be read back or exceeds MAX_BODY_BYTES.
    """
    kind = kind_of(event)
    try:
        body = encode(event)
        if kind.payload not in _COMPACT or b"null" in body:  # checked by type above, but a number may be lost
            _DECODERS[kind.payload].decode(body)
    except (ValueError, TypeError):
        event = _mended(kind, event)
        body = encode(event)
        _DECODERS[kind.payload].decode(body)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"event {kind.name}: got {len(body)} bytes; at most {MAX_BODY_BYTES}")
    named = event.feedback if isinstance(event, FeedbackEvent) else event if isinstance(event, Outcome) else None
    response_id = None if named is None else indexed_id(named.response_id)
    return Row(kind.name, kind.key_of(event), kind.episode(event), kind.route(event), body.decode(), response_id)


def indexed_id(response_id: str | None) -> str | None:
    """Return a response id as it is found by: without null characters, which PostgreSQL refuses in any text."""
    return None if response_id is None else response_id.replace("\0", "\ufffd")


def _mended(kind: Kind[Any], event: Event) -> Event:
    try:
        return msgspec.convert(to_plain(event), EVENTS[kind.name])
    except TypeError as error:
        raise ValueError(f"event {kind.name}: a field is no plain value: {error}") from None
