"""The frozen records that flow through Suffice, without logic. `None` always means *unknown*, never 0.

Request ──▶ Signals ──▶ Decision ──▶ Outcome
gateway     signals     policy       episode ──▶ store ──▶ assurance, learn ──▶ rollout

Tokens are counted by the upstream's tokenizer where it reports them, else marked as counted or estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from suffice.records import frozen_struct

Kind: TypeAlias = Literal["reasoning", "samples", "rounds"]
Mode: TypeAlias = Literal["off", "observe", "enforce"]
Action: TypeAlias = Literal["continue", "stop"]
StopReason: TypeAlias = Literal["suffices", "hopeless", "budget"]
Wish: TypeAlias = Literal["answer_now", "think_more"]  # what a person asks of a running request
AnswerSource: TypeAlias = Literal["text", "probe", "sample", "caller"]
Verdict: TypeAlias = Literal[
    "yes",  # works
    "no",  # refused or missing
    "ignored",  # accepted and without effect
    "unclear",  # the evidence allows no verdict
]
KeptBy: TypeAlias = Literal["", "lot", "end"]
Purpose: TypeAlias = Literal["main", "sample", "probe", "continuation", "rerun"]
CountSource: TypeAlias = Literal["provider", "counted", "estimated"]
EndReason: TypeAlias = Literal[
    "done",  # the model finished by itself, or every sample was drawn
    "stopped",  # the policy ended the run early
    "truncated",  # the client's or the server's token cap cut the run
    "client_left",  # the client hung up; the upstream call was closed
    "upstream_error",  # the upstream failed or broke off; the client got an error
    "timeout",  # the upstream was silent for longer than its limit
    "rejected",  # our own 4xx: nothing was sent upstream
    "internal_error",  # a fault of ours; only this request is affected
    "shutdown",  # the gateway ended before the answer was complete; the client got an error
    "lost",  # the process died; written at the next start
    "asked",  # a person asked for the answer at once, or that the run goes on; no evidence of the policy
]
FINISHED_ENDS: Final = ("done", "truncated")  # of full runs with the model's answer
AlarmCause: TypeAlias = Literal[
    "change",  # the upstream's model or fingerprint, the scorer or the route's settings changed
    "signals",  # drift in the early signals of all traffic
    "outcomes",  # audits lose more exact match than the budget
    "disagreement",  # audits disagree more often than when the level was certified
    "finish",  # forced finishes change more answers than at first
    "sample_ratio",  # the share of audits does not match their propensity
    "person",  # requested by a person
]
ReplyForm: TypeAlias = Literal[
    "text",
    "json",  # constrained by a schema or a grammar
    "tools",  # a call of a tool, or a text
]
Promise: TypeAlias = Literal[
    "certified",  # for the active level, at a confidence
    "budgeted",  # on average over audits, without a confidence
]
PauseCause: TypeAlias = Literal["critical_em", "sample_ratio", "person"]


@frozen_struct
class ArmDraw:
    """The arm of one experiment that a request drew, with the propensities at that time."""

    experiment: str  # its name
    run: int  # of that experiment, from 1
    arm: str
    propensity: float  # P(this arm | the unit takes part) at the draw, in (0, 1]
    others: tuple[tuple[str, float], ...]  # the other arms with their propensities at the draw
    unit: str  # keyed hash of the randomisation unit: a request, a conversation or a user


@frozen_struct
class Request:
    """What a policy, the audit assignment or an analyst may know of a client's request. It holds no prompt text.

    It is logged before the first step, because a draw recorded afterwards is worthless. A repeated delivery keeps the
    first one's draw, runs in full and is no evidence; see `gateway.auth.DeliveryMemory`.
    """

    episode_id: str
    route: str  # name; "" when no route matched
    kind: Kind
    mode: Mode
    model: str  # as the client sent it
    stream: bool
    n_samples: int  # kind "samples": draws of a full run; otherwise 1
    audit: bool  # assigned at random, before the first step, to run in full
    propensity: float  # P(this value of `audit`) at the draw, in (0, 1]
    policy_version: str  # pinned for the whole life of the request
    certified: bool  # `policy_version` is certified on this route
    question_key: str  # keyed hash of the prompt; groups repeats
    ungoverned: str | None  # why it passes through unchanged; None: it is governed
    received_at_s: float  # Unix time; never used to order events
    endpoint: str = "/v1/chat/completions"  # path, with {id} for an id; "library": no HTTP
    query: Query | None = None  # features of the question; None: unknown
    unit: str = ""  # keyed hash of the request that was drawn; repeated deliveries share it
    setup: str = ""  # digest of the route's settings; evidence holds only for requests with the same one
    promise: Promise = "certified"  # that its level was chosen for; "budgeted" above what is certified
    sender: str = ""  # keyed hash of its API key; "": no key is required
    tenant: str = ""  # of its API key; "": none
    arms: tuple[ArmDraw, ...] = ()  # of its experiments, at most one per layer
    keep_rate: float = 1.0  # P(a live request like it has rows), in (0, 1]; see `assurance.sampling`
    kept_by: KeptBy = ""  # why it has rows: "": always has, "lot": drawn, "end": it ended badly
    delivery: int = 1  # of the same request, from 1; from the second on it runs in full
    conversation: str = ""  # keyed hash of sender and conversation id; "": none given
    seeded: bool = False  # the client fixed a seed, so the order of its samples is not random
    form: ReplyForm = "text"  # of the reply that it asks for


@frozen_struct
class Step:
    """One segment of a run: a checkpoint in the chain of thought, one sample, or one round."""

    index: int  # 1 is the first
    tokens: int  # generated in this step; may be 0
    answer: str | None  # normalised trial answer; None: none yet
    answer_source: AnswerSource | None
    logprobs: tuple[float, ...] = ()  # of the trial answer's tokens, natural log; (): unknown
    entropy: float | None = None  # nats, of the trial answer's first token
    text: str = ""  # new in this step; read by signals, never stored
    probe_tokens: int = 0  # generated by the probe for `answer`
    ctx_tokens: int = 0  # prompt tokens read again at this step (agents)
    confidence: float | None = None  # probability of the trial answer, given by its source; None: see `logprobs`
    mass: float | None = None  # probability on all valid answers together, before normalising, [0, 1]
    margin: float | None = None  # probability of the trial answer minus that of the runner-up, [0, 1]
    closed_entropy: float | None = None  # nats, of the first token after the closed thought
    end_margin: float | None = None  # nats: log-probability of the best next token minus that of the end of thought
    logprob: float | None = None  # mean log-probability of the step's own tokens, at most 0
    stated_confidence: float | None = None  # the model's own estimate, [0, 1]; rarely informative
    reported_done: bool | None = None  # the model's own flag that it is done
    action: str | None = None  # the caller's name for this kind of step: "tool", "propose" …
    vector: tuple[float, ...] = ()  # embedding of `text`, else of `answer`; (): unknown
    missing: bool = False  # an expected trial answer was not obtained


@frozen_struct
class Query:
    """What is known of a question before the first token. It holds no text and may be stored. `None`: unknown."""

    query_class: str = ""  # declared (route, header, metadata) or inferred; "": none
    metadata: tuple[tuple[str, str], ...] = ()  # declared, sorted by name: model, task …
    planned_steps: int | None = None  # steps of a full run: its samples or the cap on rounds; None: open
    n_chars: int | None = None
    n_words: int | None = None
    n_numbers: int | None = None  # numbers in digits
    n_operators: int | None = None  # symbols of arithmetic and algebra
    question_type: str | None = None  # "choice", "number", "yes-no", "what" …; see signals.query
    script: str | None = None  # of most letters: "latin", "han" …; a proxy for the language


SIGNAL_FIELDS: Final[set[str]] = set()  # fields that folds declare; filled by `signals.base` and `plugins`


@dataclass(frozen=True, slots=True, init=False)
class Signals:
    """Everything that a policy may look at after one step.

    The fields that folds declare (docs/reference/signals.md) are attributes, too: None if unknown, or not folded.
    """

    step: int  # 1 is the first
    tokens_used: int  # generated so far, with this step and without probes
    answer: str | None  # the answer that would be delivered now
    query: Query | None  # known before the first token
    values: Mapping[str, float | None] = field(hash=False)  # of folds, by field

    def __init__(
        self,
        *,
        step: int,
        tokens_used: int,
        answer: str | None = None,
        query: Query | None = None,
        **values: float | None,
    ) -> None:
        put = object.__setattr__
        put(self, "step", step)
        put(self, "tokens_used", tokens_used)
        put(self, "answer", answer)
        put(self, "query", query)
        put(self, "values", values)

    @classmethod
    def of(
        cls, values: Mapping[str, float | None], *, step: int, tokens_used: int, answer: str | None, query: Query | None
    ) -> Signals:
        """Return signals that keep this mapping, which must not be modified: thirty keywords would take 3 µs more."""
        made = cls(step=step, tokens_used=tokens_used, answer=answer, query=query)
        object.__setattr__(made, "values", values)
        return made

    def __getattr__(self, name: str) -> float | None:
        """Raise AttributeError for a name that no fold declares."""
        if name != "values":  # unset while a copy is being made
            try:
                return self.values[name]
            except KeyError:
                if name in SIGNAL_FIELDS or not (SIGNAL_FIELDS or name.startswith("_")):
                    return None
        raise AttributeError(f"signals have no field {name!r}: no fold declares it")

    def replace(self, **changes: Any) -> Signals:
        own = {"step": self.step, "tokens_used": self.tokens_used, "answer": self.answer, "query": self.query}
        return Signals(**{**own, **self.values, **changes})


@frozen_struct
class Decision:
    """What to do next, with what is needed to explain it and to evaluate it offline."""

    action: Action
    reason: str  # a short sentence for the operator, in the log
    stop_reason: StopReason | None = None  # None when the action is "continue"
    propensity: float = 1.0  # P(this action | these signals), in (0, 1]
    score: float | None = None  # compared with a threshold

    @property
    def stop(self) -> bool:
        return self.action == "stop"


@frozen_struct
class UpstreamCall:
    purpose: Purpose
    prompt_tokens: int | None  # None: cancelled before the server reported it
    cached_tokens: int  # part of `prompt_tokens` served from a prefix cache
    completion_tokens: int  # of a cancelled call: received so far
    source: CountSource
    cancelled: bool = False
    price_share: float = 1.0  # of the full price: a paired call may be made at a lower one


@frozen_struct
class Usage:
    prompt_tokens: int  # the client's prompt, once
    completion_tokens: int  # everything generated for the delivered run
    reasoning_tokens: int = 0  # part of `completion_tokens` before the thought closed
    cached_tokens: int = 0  # part of `prompt_tokens`, if the upstream reports it


@frozen_struct
class Overhead:
    """What Suffice itself spent. Client usage plus overhead equals what the upstreams counted."""

    probe_tokens: int = 0  # generated by probes
    extra_prompt_tokens: int = 0  # prompts sent again for probes, samples and continuations
    cached_prompt_tokens: int = 0  # part of them served from a prefix cache
    discarded_tokens: int = 0  # generated and not part of the answer
    n_extra_calls: int = 0


@frozen_struct
class StepRecord:
    """One step as logged: enough for replay, with no text beyond the trial answer."""

    index: int
    tokens: int
    answer: str | None
    answer_source: AnswerSource | None
    confidence: float | None
    entropy: float | None
    probe_tokens: int
    action: Action  # of the policy; in shadow it was not applied
    reason: str
    logprobs: tuple[float, ...] = ()
    hedges: int | None = None
    ctx_tokens: int = 0  # prompt tokens read again at this step
    logprob: float | None = None  # mean log-probability of the step's own tokens
    stated_confidence: float | None = None  # the model's own estimate, [0, 1]
    reported_done: bool | None = None  # the model's own flag that it is done
    caller_action: str | None = None  # `Step.action`
    draft_distance: float | None = None  # signal: from the previous step, whose text is not kept
    hedge_rate: float | None = None  # signal, as `draft_distance`
    loop_share: float | None = None  # signal, as `draft_distance`
    margin: float | None = None  # probability of the trial answer minus the runner-up's, [0, 1]
    mass: float | None = None  # probability on all valid answers together, [0, 1]
    closed_entropy: float | None = None  # nats, of the first token after the closed thought
    end_margin: float | None = None  # nats: log-probability of the best next token minus that of the end of thought
    known_words: float | None = None  # signal, as `draft_distance`
    pattern_code: float | None = None  # signal, as `draft_distance`: whether the owner's pattern is in the text
    missing: bool = False  # an expected trial answer was not obtained
    late_tokens: int | None = None  # generated by the run after this step until its decision fell; None: none


@frozen_struct
class Outcome:
    """How one request ended. Every request gets exactly one."""

    episode_id: str
    end_reason: EndReason
    status: int  # HTTP status sent to the client; 0: none
    answer: str | None  # normalised final answer; None: none, which counts as wrong
    response_id: str | None  # the id in the response body; feedback may use it
    usage: Usage | None  # None: nothing was generated
    overhead: Overhead = field(default_factory=Overhead)
    calls: tuple[UpstreamCall, ...] = ()
    stopped: bool = False  # the policy ended the run
    stop_reason: StopReason | None = None
    stop_step: int | None = None  # where the policy stopped, or in shadow would have
    would_answer: str | None = None  # the answer at `stop_step`, which a stop delivers
    decision: str = ""  # the policy's reason
    finish_method: str | None = None  # how the thought was closed, or limited before the call
    handover_ms: float | None = None  # pause in the client's stream at the stop
    tokens_saved_estimate: int | None = None
    estimate_method: str | None = None
    cost_usd: float | None = None  # all calls at the prices of that time; None: unknown
    overhead_usd: float | None = None  # part of `cost_usd` for extra calls
    would_cost_usd: float | None = None  # with the shadow stop at `stop_step`; None: none, or unknown
    saved_usd_estimate: float | None = None  # by a stop, net of overhead; may be below 0
    degraded: tuple[str, ...] = ()  # places where Suffice failed open
    vote: tuple[tuple[str, int], ...] = ()  # kind "samples": answers and their votes, leader first
    steps: tuple[StepRecord, ...] = ()
    unclosed: bool = False  # the token cap was reached inside the thought
    duration_s: float = 0.0
    ttft_s: float | None = None  # to the first byte sent to the client
    model: str | None = None  # as the upstream reports it; None: not reported
    system_fingerprint: str | None = None  # of the upstream's engine and weights; None: not reported
    finish_step: int | None = None  # audits: step after which a forced finish was measured; None: none
    finish_answer: str | None = None  # normalised answer of that finish; None: none
    pair_arm: str | None = None  # audits: arm of the paired second call; "full": without an arm
    pair_propensity: float | None = None  # P(this arm) at the draw; None: no second call
    pair_answer: str | None = None  # its normalised answer; None: none, or the call failed
    pair_tokens: int | None = None  # generated by it; part of `probe_tokens`
    finished_unread: bool = False  # audits: read to its end for the record after its client had left
    has_less_effort: bool = False  # it was asked for with less than the full run

    @property
    def is_finished(self) -> bool:
        """Whether a run, if it was not stopped, has the model's answer: also one that its client did not wait for."""
        return self.end_reason in FINISHED_ENDS or self.finished_unread


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A label for an answer, from a person or a program. It is joined to its episode when read."""

    feedback_id: str  # idempotency key, chosen by the sender
    episode_id: str | None = None
    response_id: str | None = None  # either of the two ids names the request
    correct: bool | None = None
    gold: str | None = None  # the right answer, compared by the route's scorer
    answer: str | None = None  # a corrected answer
    rating: int | None = None  # 1 to 5
    thumbs: Literal["up", "down"] | None = None
    comment: str | None = None
    source: str = ""  # "user", "exact-match", "reviewer", "behaviour" …
    reason: str | None = None
    sender: str = ""  # keyed hash of its API key; "": no key is required
    request_reason: str = ""  # reason of the label request, a `review.items.Why`; "": none
    metrics: tuple[tuple[str, bool | float | str], ...] = ()  # declared metrics, sorted by name
    satisfaction: float | None = None  # mean of its survey questions, [0, 1], as declared then
    event: Literal["regenerate", "abandon", "answer_now", "think_more"] | None = None  # what the user did
    user: str = ""  # keyed hash of the sender's name for the person; "": not named
    propensity: float | None = None  # P(this person was surveyed), in (0, 1]; None: no sampling
    door: str = ""  # channel: "key", "feedback-key", "token", "open", "import", "live" …


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalledRun:
    """A live run that the gateway still remembered when its label arrived, with or without rows."""

    episode_id: str
    response_id: str | None
    route: str
    query_class: str
    policy_version: str
    stopped: bool
    end_reason: EndReason
    answer: str | None
    ended_at_s: float  # Unix time
    tenant: str = ""  # of its API key; "": none


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    request: Request
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    experiment: str  # a name of `doctor.experiments.EXPERIMENTS`
    verdict: Verdict
    evidence: str  # one sentence with the measured numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What `suffice doctor` found out about a model server; see `upstream.drivers`."""

    examination_id: str
    upstream: str  # its name in the settings
    url_key: str  # hash of its address; findings hold for this server only
    model: str  # that was examined
    at_s: float  # Unix time
    findings: tuple[Finding, ...] = ()
    n_slots: int | None = None  # requests that it serves at once; None: unknown
    context_tokens: int | None = None  # of one slot; None: unknown
    finish: tuple[str, ...] = ()  # working ways to close a thought, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFindings:
    examination_id: str
    route: str
    scorer: str  # that read the answers
    at_s: float  # Unix time
    n_runs: int  # full runs
    n_extractable: int  # full runs with an answer that the scorer can read
    n_repeats: int = 0  # questions with two full runs
    n_agreeing: int = 0  # of those, with equal answers; a missing answer equals nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSummary:
    n_audits: int = 0  # counted
    n_conversations: int | None = None  # of these audits; one without a conversation is its own; None: not counted …
    n_prompts: int | None = None  # … and their distinct prompts …
    n_callers: int | None = None  # … and known callers
    n_gained: int = 0  # at the level, only the stop was right
    n_lost: int = 0  # at the level, lost by the stop or assumed lost
    n_pending: int = 0  # without an outcome yet; count as lost
    n_disagreeing: int | None = None  # at the level, the stop's answer differs; None: unknown
    e_value: float | None = None  # against "the level loses the budget or more"; 1/delta accepts the level
    share: float | None = None  # of all requests' tokens that the level is expected to save, net
    # What its stops cut off, over what runs of any kind that thought as far have left; None: too few stops.
    remaining_ratio: float | None = None
    n_missing: int | None = None  # audits to the next level at the present rates; None: unknown, or no next level
    # Of all requests: the owner's budget less what forced finishes may change. A level that acts on a share of them was
    # tested against this over its share.
    max_em_drop: float | None = None
    confidence: float | None = None
    window_start: float | None = None  # number of the first request that the claim covers; None: no claim …
    window_end: float | None = None  # … of the first one after it …
    window_share: float | None = None  # … and the lowest audit share between them
    judge_charge: float = 0.0  # part of the budget for a judge model's errors; 0: no judge


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSummary:
    n: int  # counted pairs with the arm
    n_disagree: int  # with two different answers
    n_repeats: int  # pairs of two full runs
    n_repeats_disagree: int  # with different answers: the model's own noise


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetAccount:
    """Account of a route in budgeted mode: an average over audits, without a confidence."""

    floor: int  # the highest certified level; the active level is this or higher
    affordable: int  # the highest level up to which all mean drops on the window's audits are within the budget
    n_audits: int  # of the epoch, each booked at its active level
    n_waiting: int  # of those, with a different answer and no label yet
    em_drop: float | None  # their mean drop, waiting ones estimated; None: none booked
    max_em_drop: float | None  # the mean budget at booking
    clipped: float  # total levels by which bounds have clipped the account


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The active version and level of a route from here on, with their evidence."""

    route: str
    number: int  # from 1, unique on the route
    epoch: int  # of the evidence; void in a later one
    at: int  # requests of the route at the decision
    version: str  # content address of what may act, with its level; "": none yet
    fit: str  # address of the artefact with models and thresholds; "": none
    level: int  # 0 never stops
    n_levels: int
    certified: bool  # the test has accepted the level
    share: float  # of the next requests to be audited
    reason: str  # a short sentence
    author: str  # a worker or a person
    evidence: EvidenceSummary = EvidenceSummary()
    setup: str = ""  # of the requests in the evidence
    upstream: tuple[tuple[str, str, str], ...] = ()  # (requested model, its own name, fingerprint) of the evidence
    ceiling: int | None = None  # the highest level that ratings allow; None: no limit
    cap: int | None = None  # the highest level that a forecast allows; None: no cap
    classes: tuple[tuple[str, int], ...] = ()  # (query class, its lower level), sorted
    class_ceilings: tuple[tuple[str, int], ...] = ()  # (query class, the highest level that ratings allow), sorted
    mixture: tuple[tuple[str, tuple[int, ...]], ...] = ()  # tested: (class, levels by overrides and the agent), sorted
    any_level: int = 0  # the highest level that is proved whatever lower levels query classes get
    callers: tuple[tuple[str, int], ...] = ()  # (caller, how many of its next requests are audits), sorted
    exposure: float = 1.0  # share of the requests on which the level may act; the others are audits
    arm: str = ""  # effort or budget that is the level, as outcomes name it; "": early stopping
    pairs: PairSummary | None = None  # evidence for the arm; None: no arm
    spending: BudgetAccount | None = None  # budgeted mode; None: certified mode, or no level

    @property
    def may_act(self) -> bool:
        return self.certified or self.spending is not None

    @property
    def is_owned(self) -> bool:  # level 1 is the policy that the operator wrote, whose address is the version
        return bool(self.version) and not self.fit and not self.arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Start of new evidence on a route; earlier evidence belongs to another regime."""

    route: str
    number: int  # 1 is the cold start
    at: int  # requests of the route at its start
    since_seq: int  # place in the log; later requests count
    reason: str
    author: str
    kept: tuple[str, ...] = ()  # episodes of earlier audits that stay training data, oldest first …
    kept_at: tuple[int, ...] = ()  # … and their request numbers; those in `windows` are evidence
    windows: tuple[tuple[float, float, float | None], ...] = ()  # carried over: (start, share, end); (): none
    pending: tuple[tuple[int, float], ...] = ()  # their audits without an outcome, lost: (number, share)
    delta_share: float = 1.0  # of 1 - confidence for its certificates, (0, 1]
    burst: int = 0  # requests that run in full from its start; audits by which a start by share is over
    ramps: bool = False  # no burst: a level acts on a share of the requests as soon as it is proved for it
    max_em_drop: float = 0.02  # fraction: the budget
    confidence: float = 0.95  # fraction
    promise: Promise = "certified"
    required_wealth: float = 1.0  # of its certificates, by `assurance.fleet_confidence`, until the log changes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    route: str
    epoch: int  # ended by the alarm, unless that took one effort away
    at: int  # requests of the route at the alarm
    cause: AlarmCause
    reason: str  # a short sentence
    author: str = ""  # a worker or a person; "": unknown
    level: int = 0  # of the effort that was taken away with those after it; 0: the epoch ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    route: str
    number: int  # from 1, on the route
    cause: PauseCause
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    route: str
    number: int  # of the ended pause
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequest:
    episode_id: str
    route: str
    level: int  # the safest eligible level at which the stop's answer differs
    would_answer: str | None  # answer of that stop
    answer: str | None  # answer of the full run
    why: str  # a short sentence
    deadline_s: float | None = None  # Unix time after which it counts as a loss; None: already does


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One run of a job that did something, failed, or was started by a person."""

    run_id: str
    job: str
    route: str  # "": all routes
    author: str  # a worker or a person
    began_at_s: float  # Unix time
    duration_s: float  # of the route's work; with route "", of the whole pass
    ok: bool
    summary: str  # result, or the error's class
    read_to_seq: int = 0  # place in the log that it has read up to
    at: int = 0  # requests of the route that decisions cover
