"""Payloads of events that no other package defines; runs are in `suffice.types`. No record holds a secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.sampling import UnloggedRequests
from suffice.review.items import Source
from suffice.rollout.evidence import Rules
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.stages import State, Transition
from suffice.types import Feedback, RecalledRun


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
    card: dict[str, Any] | None  # as `learn.report_card` has it
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
    said: tuple[str, ...] = ()  # its result then, in sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    object_id: str  # as the upstream named it
    sender: str  # keyed hash of the key that made it
    upstream: str  # name of the upstream that keeps it


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsage:
    usage_id: str
    sender: str  # keyed hash of the key
    day: str  # UTC, as 2026-01-31
    n_tokens: int  # prompt and answer


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSwitchState:
    on: bool
    reason: str  # of its file, with who set it
    stamp: int  # modification time of the file, ns; 0: set by a gateway's environment


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
