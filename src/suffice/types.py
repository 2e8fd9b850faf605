"""The records that flow through Suffice: frozen, without logic, one for each arrow.

    Request ──▶ Signals ──▶ Decision ──▶ Outcome
    gateway     signals     policy       episode ──▶ store ──▶ assurance, learn ──▶ rollout

This file knows the words of the field and refuses to know HTTP, storage, clocks and models.
`None` always means *unknown*, never 0. Tokens are counted by the upstream's own tokenizer
wherever it tells us, and marked as counted or estimated where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

Kind: TypeAlias = Literal["reasoning", "samples", "rounds"]
Mode: TypeAlias = Literal["off", "observe", "enforce"]
Action: TypeAlias = Literal["continue", "stop"]
StopReason: TypeAlias = Literal["suffices", "hopeless", "budget"]
AnswerSource: TypeAlias = Literal["text", "probe", "sample", "caller"]
Verdict: TypeAlias = Literal[
    "yes",  # seen to work
    "no",  # refused, or seen not to be there
    "ignored",  # accepted and without effect
    "unclear",  # what was seen allows no verdict
]
KeptBy: TypeAlias = Literal["", "lot", "end"]
Purpose: TypeAlias = Literal["main", "sample", "probe", "continuation", "rerun"]
CountSource: TypeAlias = Literal["provider", "counted", "estimated"]
EndReason: TypeAlias = Literal[
    "done",  # the model finished by itself, or every sample was drawn
    "stopped",  # the policy ended the run early
    "truncated",  # the client's or the server's token cap cut the run
    "client_left",  # the client hung up; the upstream call was closed
    "upstream_error",  # the upstream failed or broke off; the client was told so
    "timeout",  # the upstream was silent for longer than its limit
    "rejected",  # our own 4xx: nothing was sent upstream
    "internal_error",  # our fault: nothing was lost but this request
    "shutdown",  # the gateway was told to end before the answer was complete; the client was told so
    "lost",  # the process died; written at the next start
]
AlarmCause: TypeAlias = Literal[
    "change",  # the upstream's model or fingerprint, the scorer or the route's own settings are others now
    "signals",  # early signals of all traffic moved
    "outcomes",  # audits lose more than the budget
    "disagreement",  # audits disagree more often than when the level was certified
    "finish",  # the finish changes more answers than it did at first
    "sample_ratio",  # the lot is not what it was drawn with: audits are missing
    "person",  # somebody asked for it
]
Promise: TypeAlias = Literal[
    "certified",  # of the level in force, at a confidence
    "budgeted",  # on average over audits, without a confidence
]
PauseCause: TypeAlias = Literal["critical_em", "sample_ratio", "person"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmDraw:
    """The arm of one experiment that a request drew, with the odds that are worthless when written down afterwards."""

    experiment: str  # its name
    run: int  # of that name: 1 is the first start
    arm: str
    propensity: float  # P(this arm) of a unit that takes part, when it was drawn, in (0, 1]
    others: tuple[tuple[str, float], ...]  # the other arms with their odds, as they were then
    unit: str  # keyed hash of what always draws the same: retries, turns, or a user share it


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for, as far as a policy, a lottery or an analyst may know it.

    Written to the log before the first step, because the lot and its odds are worthless
    when they are written down afterwards. It holds no prompt text.

    A delivery that repeats a request (a retry) keeps the audit draw of the first one, runs in full and is no evidence.
    One draw speaks for all deliveries. If a level could stop up to m of them, each bet on the draw would have to be
    divided by m. With m = 8, a harmless level would need 8 times the audits, for every client, so m is 1.
    """

    episode_id: str
    route: str  # name of the route; "" when no route matched
    kind: Kind
    mode: Mode
    model: str  # as the client wrote it
    stream: bool
    n_samples: int  # kind "samples": how many the full run draws; otherwise 1
    audit: bool  # drawn by lot, before the first step, to run in full
    propensity: float  # P(this value of `audit`) under the lottery that drew it, in (0, 1]
    policy_version: str  # pinned for the whole life of the request
    certified: bool  # is `policy_version` certified on this route?
    question_key: str  # keyed hash of the prompt: groups repeats, reveals nothing
    ungoverned: str | None  # why it passes through untouched; None: it is governed
    received_at_s: float  # Unix time; informative, never used to order events
    endpoint: str = "/v1/chat/completions"  # what was called; an id in a path is written {id}; "library": no HTTP
    query: Query | None = None  # what the caller declared of the question; None: nothing, or nobody looked
    unit: str = ""  # keyed hash of what was drawn for: one request; only its repeated deliveries share it
    setup: str = ""  # the route's settings that evidence rests on; others are another world
    promise: Promise = "certified"  # by which its level was chosen; "budgeted" above what is certified
    sender: str = ""  # keyed hash of the API key that it came with; "": none was asked for
    arms: tuple[ArmDraw, ...] = ()  # of the experiments that it takes part in, at most one a layer
    keep_rate: float = 1.0  # of the lottery of rows for live requests like it, in (0, 1]; see `assurance.sampling`
    kept_by: KeptBy = ""  # why it has rows: "" for certain, by "lot", or because of its "end"
    delivery: int = 1  # 1: the first; n: the n-th of the same request. From the second on it runs in full
    conversation: str = ""  # keyed hash of sender and conversation id; "": the client named none


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One segment of a run: a checkpoint in the thought, one sample, or one round."""

    index: int  # 1 is the first
    tokens: int  # generated in this step alone; 0 is legal
    answer: str | None  # normalised trial answer; None: there is none yet
    answer_source: AnswerSource | None  # where the trial answer came from
    logprobs: tuple[float, ...] = ()  # of the trial answer's tokens, natural log; (): unknown
    entropy: float | None = None  # nats, of the trial answer's first token
    text: str = ""  # the step's own new text; read by signals, never stored
    probe_tokens: int = 0  # generated by the probe that asked for `answer`
    ctx_tokens: int = 0  # prompt tokens read again at this step (agents)
    confidence: float | None = None  # probability of the trial answer as its source gave it; None: see `logprobs`
    mass: float | None = None  # probability on all valid answers together, before normalising, [0, 1]
    margin: float | None = None  # probability of the trial answer minus that of the runner-up, [0, 1]
    closed_entropy: float | None = None  # nats, of the first token behind the closed thought
    logprob: float | None = None  # mean log-probability of the step's own tokens, at most 0
    stated_confidence: float | None = None  # what the model said of itself, [0, 1]; rarely worth much
    said_done: bool | None = None  # the model's own flag that it is done
    action: str | None = None  # what the caller calls this kind of step: "tool", "propose" …
    vector: tuple[float, ...] = ()  # embedding of `text`, or of `answer` if there is none; (): unknown
    missing: bool = False  # a trial answer should have been there, and nobody got it


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is known of a question before the first token. It holds no text of the question.

    Everything here may be stored. `None` where the question itself was not shown.
    """

    query_class: str = ""  # declared (route, header, metadata) or found; "": none
    metadata: tuple[tuple[str, str], ...] = ()  # declared, sorted by name: model, task …
    planned_steps: int | None = None  # steps of a full run: samples asked for, the cap on rounds; None: open
    n_chars: int | None = None
    n_words: int | None = None
    n_numbers: int | None = None  # numbers written in digits
    n_operators: int | None = None  # marks of arithmetic and algebra
    question_type: str | None = None  # "choice", "number", "yes-no", "what", "who" … ; a word of signals.query
    script: str | None = None  # of most letters: "latin", "han" …; stands for the language
    ngrams: tuple[int, ...] = ()  # hashed word n-grams, bucket numbers, rising


SIGNAL_FIELDS: Final[set[str]] = set()  # names that folds declare; `signals.base` and `plugins` add them


@dataclass(frozen=True, slots=True, init=False)
class Signals:
    """What is known after one step. A policy may look at nothing else.

    Beside its own fields it has those that folds declare (docs/reference/signals.md), as attributes: numbers, or None
    where the number is unknown or nobody asked for the fold.
    """

    step: int  # 1 is the first
    tokens_used: int  # generated so far, this step included, probes left out
    answer: str | None  # the answer that would be delivered now
    query: Query | None  # what was known before the first token
    values: Mapping[str, float | None] = field(hash=False)  # what folds filled, by field

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

    def __getattr__(self, name: str) -> float | None:
        """A fold's field. Raises AttributeError for a name that no fold declares."""
        if name != "values":  # it is not there yet while a copy is made
            try:
                return self.values[name]
            except KeyError:
                if name in SIGNAL_FIELDS or not (SIGNAL_FIELDS or name.startswith("_")):
                    return None
        raise AttributeError(f"signals have no field {name!r}: no fold declares it")

    def replace(self, **changes: Any) -> Signals:
        """The same with other values for some fields. Any: fields differ in type."""
        own = {"step": self.step, "tokens_used": self.tokens_used, "answer": self.answer, "query": self.query}
        return Signals(**{**own, **self.values, **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do next, and what is needed to defend it or to learn from it later."""

    action: Action
    reason: str  # a short sentence an operator can read in the log
    stop_reason: StopReason | None = None  # None when the action is "continue"
    propensity: float = 1.0  # P(this action | these signals), in (0, 1]
    score: float | None = None  # the number that was compared with a threshold

    @property
    def stop(self) -> bool:
        return self.action == "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamCall:
    """One call to the model server and what it cost. The sum over calls is the whole cost."""

    purpose: Purpose
    prompt_tokens: int | None  # None: cut off before the server said so
    cached_tokens: int  # part of `prompt_tokens` served from a prefix cache
    completion_tokens: int  # for a cancelled call: what was received
    source: CountSource
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int  # the client's prompt, once
    completion_tokens: int  # everything generated for the delivered run
    reasoning_tokens: int = 0  # part of `completion_tokens` before the thought closed
    cached_tokens: int = 0  # part of `prompt_tokens`, if the upstream said so


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What Suffice itself spent. Client usage plus overhead is what the upstreams counted."""

    probe_tokens: int = 0  # generated by probes
    extra_prompt_tokens: int = 0  # prompts sent again: probes, samples, continuation
    cached_prompt_tokens: int = 0  # part of them served from a prefix cache
    discarded_tokens: int = 0  # generated, paid for, and not part of the answer
    n_extra_calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step as the log keeps it: what replay needs, and no text beyond the trial answer."""

    index: int
    tokens: int
    answer: str | None
    answer_source: AnswerSource | None
    confidence: float | None
    entropy: float | None
    probe_tokens: int
    action: Action  # what the policy said; in shadow it was not done
    reason: str
    logprobs: tuple[float, ...] = ()
    hedges: int | None = None
    ctx_tokens: int = 0  # prompt tokens read again at this step
    logprob: float | None = None  # mean log-probability of the step's own tokens
    stated_confidence: float | None = None  # what the model said of itself, [0, 1]
    said_done: bool | None = None  # the model's own flag that it is done
    caller_action: str | None = None  # `Step.action`: what the caller calls this kind of step
    draft_distance: float | None = None  # signal: from the step before; its text is not kept
    hedge_rate: float | None = None  # signal, as `draft_distance`
    loop_share: float | None = None  # signal, as `draft_distance`
    margin: float | None = None  # probability of the trial answer minus the runner-up's, [0, 1]
    mass: float | None = None  # probability on all valid answers together, [0, 1]
    closed_entropy: float | None = None  # nats, of the first token behind the closed thought
    missing: bool = False  # a trial answer should have been there, and nobody got it


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one request ended. Exactly one is written, whatever the end."""

    episode_id: str
    end_reason: EndReason
    status: int  # HTTP status that the client saw; 0: none was sent
    answer: str | None  # normalised final answer; None: no answer, which is wrong
    response_id: str | None  # the id in the answer's body; feedback may use it
    usage: Usage | None  # None: nothing was generated
    overhead: Overhead = field(default_factory=Overhead)
    calls: tuple[UpstreamCall, ...] = ()
    stopped: bool = False  # the policy ended the run and was obeyed
    stop_reason: StopReason | None = None
    stop_step: int | None = None  # where the policy stopped, or would have (shadow)
    would_answer: str | None = None  # the answer at `stop_step`: what a stop delivers
    decision: str = ""  # the policy's own sentence
    finish_method: str | None = None  # how the thought was closed, or was kept short before the call
    handover_ms: float | None = None  # pause that the client saw at the stop
    tokens_saved_estimate: int | None = None
    estimate_method: str | None = None
    cost_usd: float | None = None  # all calls at the prices then in force; None: unknown
    overhead_usd: float | None = None  # part of it that the run alone would not have cost
    would_cost_usd: float | None = None  # with the shadow stop at `stop_step` made; None: none, or unknown
    saved_usd_estimate: float | None = None  # a stop's, net of everything spent; may be below 0
    degraded: tuple[str, ...] = ()  # places where Suffice failed open
    vote: tuple[tuple[str, int], ...] = ()  # kind "samples": answers and their votes, leader first
    steps: tuple[StepRecord, ...] = ()
    unclosed: bool = False  # the cap was reached inside the thought
    duration_s: float = 0.0
    ttft_s: float | None = None  # to the first byte that the client got
    model: str | None = None  # as the upstream names itself; None: it did not say
    system_fingerprint: str | None = None  # of its engine and weights; None: it did not say
    finish_step: int | None = None  # audits: behind it a whole finish was asked for, for the record; None: none
    finish_answer: str | None = None  # what that finish answered, normalised; None: no answer
    pair_arm: str | None = None  # audits: what it was asked a second time with; "full": nothing else
    pair_propensity: float | None = None  # P(this arm) under the lot that drew it; None: it was asked once
    pair_answer: str | None = None  # what the second call answered, normalised; None: no answer, or it failed
    pair_tokens: int | None = None  # generated by it, and counted among `probe_tokens`


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Someone, or something, said how good an answer was. Joined to its episode when read."""

    feedback_id: str  # idempotency key, chosen by the sender
    episode_id: str | None = None
    response_id: str | None = None  # either of the two ids names the request
    correct: bool | None = None
    gold: str | None = None  # the right answer, to be compared by the route's scorer
    answer: str | None = None  # a corrected answer
    rating: int | None = None  # 1 to 5
    thumbs: Literal["up", "down"] | None = None
    comment: str | None = None
    source: str = ""  # "user", "exact-match", "reviewer", "behaviour" …
    reason: str | None = None
    sender: str = ""  # keyed hash of the API key that it came with; "": none was asked for
    asked_for: str = ""  # why a reviewer was asked, a word of `review.items.Why`; "": nobody was
    metrics: tuple[tuple[str, bool | float | str], ...] = ()  # declared ones, sorted by name
    satisfaction: float | None = None  # of the questions of a survey among them, mean, [0, 1]; as declared then
    event: Literal["regenerate", "abandon"] | None = None  # what the user did, without a word
    user: str = ""  # keyed hash of who said it, as the sender names people; "": not named
    propensity: float | None = None  # P(that this person was asked), in (0, 1]; None: nobody was picked
    door: str = ""  # how it came: "key", "feedback-key", "token", "open", "import" …


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalledRun:
    """A live run as its gateway still knew it when somebody said something of it, whether or not it has rows."""

    episode_id: str
    response_id: str | None
    route: str
    query_class: str
    policy_version: str
    stopped: bool
    end_reason: EndReason
    answer: str | None
    ended_at_s: float  # Unix time


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    request: Request
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    experiment: str  # a name of `upstream.findings.EXPERIMENTS`
    verdict: Verdict
    evidence: str  # one sentence with the numbers that were measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What `suffice doctor` saw a model server do. Read it with `upstream.drivers`."""

    examination_id: str
    upstream: str  # its name in the settings
    url_key: str  # hash of its address: another server's findings say nothing
    model: str  # the model that was asked
    at_s: float  # Unix time of the examination; informative
    findings: tuple[Finding, ...] = ()
    n_slots: int | None = None  # requests that it serves at once; None: it did not say
    context_tokens: int | None = None  # of one slot; None: it did not say
    finish: tuple[str, ...] = ()  # ways to close a thought that were seen to work, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFindings:
    examination_id: str
    route: str
    scorer: str  # that read the answers; another one would read others
    at_s: float  # Unix time of the examination; informative
    n_runs: int  # full runs
    n_extractable: int  # of them with an answer that the scorer can read
    n_repeats: int = 0  # questions that were run twice in full
    n_agreeing: int = 0  # of them with twice the same answer; none is never the same


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSummary:
    n_audits: int = 0  # that were counted
    n_gained: int = 0  # of them, at the level: the stop alone was right
    n_lost: int = 0  # of them, at the level: lost by the stop, or held to be lost
    n_pending: int = 0  # of them: have not returned, and count as lost
    n_disagreeing: int | None = None  # of them, at the level: the stop answers otherwise; None: unknown
    e_value: float | None = None  # of the level, against "it loses the budget or more"; 1/delta accepts it
    share: float | None = None  # of tokens that the level would have saved on them
    n_missing: int | None = None  # audits to the next level at the rates seen; None: no number, or no next one
    max_em_drop: float | None = None  # what was tested: the owner's budget, less what finishing may change
    confidence: float | None = None
    window_start: float | None = None  # number of the first request that the claim is about; None: there is none …
    window_end: float | None = None  # … of the first one behind it …
    window_share: float | None = None  # … and the audit share that no request in between fell below
    judge_charge: float = 0.0  # part of the budget that a judge model's mistakes took; 0: it was not heard


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSummary:
    n: int  # pairs with the arm that counted
    n_disagree: int  # of them: the two answers differ
    n_repeats: int  # pairs of two full runs
    n_repeats_disagree: int  # of them: so much is the model's own noise


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetAccount:
    """The account of a route in budgeted mode: an average over audits, and no confidence in it."""

    floor: int  # the highest level that is certified; in force is that one or a higher
    affordable: int  # the last level whose mean drop on the window's audits is within the budget
    n_audits: int  # of the epoch, each booked at the level that was in force
    n_waiting: int  # of them: would have been answered otherwise, and no label has come yet
    em_drop: float | None  # their mean drop, those that wait with a guess; None: none was booked
    max_em_drop: float | None  # the mean budget under which they were booked
    clipped: float  # levels by which bounds have moved the account's place, in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What is in force on a route from here on: a version at a level, learned or its owner's; what vouches for it."""

    route: str
    number: int  # of the route's publications, from 1: no two publishers take the same one
    epoch: int  # in which the evidence was gathered; in a later one this is void
    at: int  # requests of the route when it was decided
    version: str  # address by content of what may act, and level; "": nothing is there yet
    fit: str  # address of the artefact that holds models and thresholds; "": none
    level: int  # 0 never stops
    n_levels: int
    certified: bool  # has the test accepted the level?
    share: float  # fraction of the next requests to be audited
    reason: str  # a short sentence
    author: str  # a worker, or a person
    evidence: EvidenceSummary = EvidenceSummary()
    setup: str = ""  # of the requests that the evidence was gathered on
    upstream: tuple[tuple[str, str, str], ...] = ()  # (model asked for, its own name, fingerprint) behind the evidence
    ceiling: int | None = None  # the highest level that people's ratings allow; None: they take nothing off
    classes: tuple[tuple[str, int], ...] = ()  # classes of questions that run below the level, and theirs; sorted
    arm: str = ""  # the effort or budget that level 1 is, as outcomes name it; "": stops
    pairs: PairSummary | None = None  # behind the arm; None: there is none
    spending: BudgetAccount | None = None  # budgeted mode: its account; None: the level is certified or nothing is

    @property
    def may_act(self) -> bool:
        """May its level be acted on, where the route asks for the promise that it was made for?"""
        return self.certified or self.spending is not None

    @property
    def is_owned(self) -> bool:
        """Is level 1 the policy that the route's owner wrote down, whose address is the version?"""
        return bool(self.version) and not self.fit and not self.arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Evidence of a route counts from here on: what came before belongs to another world."""

    route: str
    number: int  # 1 is the cold start
    at: int  # requests of the route when it began
    since_seq: int  # place in the log: requests that came behind it count
    reason: str
    author: str
    kept: tuple[str, ...] = ()  # episodes of earlier audits that teach all the same, oldest first …
    kept_at: tuple[int, ...] = ()  # … and the number of each request; they prove what lies in `windows`
    windows: tuple[tuple[float, float, float | None], ...] = ()  # that go on: (start, share, end); none: it begins anew
    pending: tuple[tuple[int, float], ...] = ()  # audits in them that had not returned, lost for good: number, share
    delta_share: float = 1.0  # part of 1 - confidence that its certificates may use, (0, 1]
    burst: int = 0  # requests that run in full from here on
    max_em_drop: float = 0.02  # fraction: the promise that is kept in it
    confidence: float = 0.95  # fraction
    promise: Promise = "certified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    route: str
    epoch: int  # that it ended
    at: int  # requests of the route when it was raised
    cause: AlarmCause
    reason: str  # a short sentence
    author: str = ""  # a worker, or a person; "": an earlier version did not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    route: str
    number: int  # of the route's pauses, from 1
    cause: PauseCause
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    route: str
    number: int  # of the pause that ends
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequest:
    """A label is worth asking for: this audit disagrees at a level in play."""

    episode_id: str
    route: str
    level: int  # the safest level in play at which the stop would have answered otherwise
    would_answer: str | None  # what that stop would have delivered
    answer: str | None  # what the full run delivered
    why: str  # a short sentence
    deadline_s: float | None = None  # Unix time after which it counts as a loss; None: it does already


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One run of a job that did something, failed, or was asked for by a person."""

    run_id: str
    job: str
    route: str  # "": all routes
    author: str  # a worker, or a person
    began_at_s: float  # Unix time; informative
    duration_s: float  # of the route's own work; for all routes, of the whole pass
    ok: bool
    said: str  # what it did, or the error's kind
    read_to_seq: int = 0  # place in the log up to which it has read
    at: int = 0  # requests of the route up to which everything is decided
