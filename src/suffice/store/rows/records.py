"""Payloads of events that no other package defines; what happens to runs is in `suffice.types`.

No record holds a secret. Nothing of a forecast, a proposal or a delivery takes effect anywhere by itself.
"""

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
    about: RecalledRun | None = None  # None: its run has rows of its own, or no gateway knows it any more


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessGrant:
    """Somebody may come in, with another secret, or not any more."""

    access_id: str  # of this change
    name: str
    what: Literal["added", "reset", "removed"]
    role: str  # "": removed
    author: str  # the user of the computer that it was done on
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedVersion:
    """What a refit found: a version that is in force nowhere, and what is known of it."""

    route: str
    read_to_seq: int  # place in the log that had been read up to
    address: str  # of the version, which is kept beside the log
    parent: str | None  # address of the version that was in force
    reason: str  # schedule, drift, by hand
    verdict: str  # against the parent: better, worse, inconclusive, first
    why: str
    n_runs: int  # that it was learned from
    saving: IntervalEstimate | None  # at the route's own EM budget, on prompts that its models have not seen
    drop: IntervalEstimate | None  # likewise
    lineage: dict[str, Any]  # as `learn.retrain` has it; Any, because each key has its own type
    card: dict[str, Any] | None  # as `learn.report_card` has it
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmWorth:
    """What the tuner would put in force on a route, and what that stands on."""

    route: str
    arm: str  # as outcomes name it; "full": nothing but full runs is proved any more
    before: str  # what it takes the place of
    n_pairs: int  # audits that were asked twice with the route's arm
    reason: str
    log_e: float | None = None  # evidence against "it loses the budget or more"; None: full runs need none
    gain: float | None = None  # EM value by off-policy evaluation, a fraction
    gain_error: float | None = None  # standard error, for one look
    price: float | None = None  # EM that the tokens of a mean full run were worth
    read_to_seq: int = 0  # place in the log that had been read up to
    author: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDelivery:
    sink: str  # log, webhook or email
    read_to_seq: int  # place in the log of the event that it was told of: it knows all that stands before
    of: str  # kind of the notice; "": it began to listen here
    same: str  # what makes two notices the same; "": it began to listen here
    about_s: float  # Unix time at which the log took the event
    over: int = 0  # place in the log of an alert that it was told is over; 0: it was told of an event


@dataclass(frozen=True, slots=True, kw_only=True)
class FailOpenCount:
    route: str
    hour: int  # since 1970
    n_runs: int
    n_degraded: int  # of them, in which it failed open somewhere: they ran in full


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """One setting that is another one now. Values as JSON."""

    path: str  # such as routes.math.max_em_drop
    before: str | None  # None: it was not there
    after: str | None  # None: it is not there any more


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    number: int  # of the log's changes, from 1, which only records what is there
    author: str  # process and user; "file" where no user is known
    reason: str  # a short sentence
    changes: tuple[SettingChange, ...]  # by path; (): nothing was recorded before
    settings: dict[str, str]  # all of them, path to JSON; secrets never


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
    """Words that were taken out of rows. What they were is nowhere; that they were is for good."""

    erasure_id: str  # of the whole erasure, which may be written in several rows
    number: int  # of this row within it, from 1
    author: str
    reason: str
    what: str  # which rows were meant: "episode ep_…", "older than 90 days" …
    parts: tuple[str, ...]  # "answers", "comments", "metadata", "steps"
    n_rows: int  # rows that were changed
    chained: tuple[int, ...] = ()  # places in the log of those that stand in the chain
    until_seq: int = 0  # everything that was meant up to this place in the log is done; 0: nothing is said


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentStart:
    experiment: RunningExperiment
    revision: int  # of this run: 0 is the start
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRevision(ExperimentStart):
    """A running experiment with other weights or another share; what was drawn before keeps its odds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentEnd:
    experiment: str  # its name
    run: int
    author: str
    reason: str
    said: tuple[str, ...] = ()  # what it showed then, in sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object that an upstream keeps: a response, a file, a batch."""

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
    reason: str  # as its file says, with who pulled it
    stamp: int  # when that file was written, ns of its own clock; 0: the environment of a gateway said it


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionText:
    episode_id: str
    route: str
    text: str  # as a person reads it
    expires_at_s: float  # Unix time after which nobody is shown it; erasing it is another matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    episode_id: str
    route: str
    sources: tuple[Source, ...]  # in the order of the steps
    is_cut: bool  # there was more than is kept
    expires_at_s: float  # Unix time after which nobody is shown them; erasing them is another matter


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStart:
    state: State
    number: int  # of the route's rollouts: 1 is the first
    author: str
    reason: str
    rules: Rules = field(default_factory=Rules)  # that it keeps to its end, whatever the settings say later


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutUndo:
    rollout: str
    route: str
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutMove:
    route: str
    author: str  # a person, or the worker that took the step on evidence
    reason: str
    transition: Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCount:
    """What one gateway counted on one route since it last said so."""

    count_id: str
    route: str  # "" when no route matched
    n_requests: int
    n_governed: int
    cells: tuple[UnloggedRequests, ...]
    senders: tuple[str, ...] = ()  # keyed hashes of API keys that were not among those told before
    audit_share: float | None = None  # the lowest at which a governed one of them was drawn; None: none was governed


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRates:
    route: str
    number: int  # of the route's settings of rates: 1 is the first
    sample_rate: float  # the owner's, which they keep to; where it is another now they are void
    read_to_seq: int  # place in the log up to which it was read for them
    other: float  # of classes that are not named
    after: tuple[tuple[str, float], ...]  # sorted by class
    before: tuple[tuple[str, float], ...]
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRefusal:
    route: str
    number: int  # of the publication; 0: a rollout has brought it to everybody
    fit: str  # address of the version
    reason: str  # why, as a sentence
    serves: str  # what the route is served by instead, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOutage:
    gateway: str  # which, by a name that no other has
    since_s: float  # Unix time
    until_s: float  # Unix time
    reason: str  # why the log could not be read
    after: str  # what was served meanwhile, in words
    n_rows: int  # that waited, and were written afterwards
    n_dropped: int  # that found no place to wait
