"""The tables of a settings file: every field with its unit and a safe default."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import msgspec

from suffice.settings.limits import *  # noqa: F403 - the types in which every table is written
from suffice.types import Kind, Mode, Promise, ReplyForm


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 8400
    api_keys_env: str = ""  # environment variable with comma-separated keys; "": open
    require_keys: bool = False  # ask every client for a key, and accept those that `suffice key` writes into the log
    feedback_keys_env: str = ""  # likewise, for keys that may only label, as reviewers
    allowed_hosts: tuple[HostName, ...] = ()  # names that browsers may use, besides localhost and IP addresses
    allowed_origins: tuple[Origin, ...] = ()  # other sites whose pages may call the API, as "https://app.example.com"
    max_body_bytes: int = 20 * 2**20  # larger bodies are refused with 413
    max_depth: int = 128  # JSON nesting
    max_items: int = 300_000  # values in one JSON body: numbers, texts, lists, objects
    max_sample_bytes: int = 8 * 2**20  # of each repeated sample, in memory
    ping_s: float = 15.0  # comment line on a silent stream
    grace_s: float = 10.0  # how long live streams may finish at shutdown
    head_timeout_s: TimeLimit = 30.0  # for a request's head, and for the first byte of a new connection
    body_timeout_s: TimeLimit = 30.0  # for a request's body, plus one second for each 16 KiB of it
    keepalive_s: TimeLimit = 75.0  # how long a connection may wait for its next request
    max_connections: PositiveInt | None = None  # at once; None: as many as the process's descriptors allow
    max_connections_per_address: AddressLimit = 1024  # at once from one address, or one /64 of IPv6; 0: no limit
    client_idle_timeout_s: float = 300.0  # a client that reads nothing for this long while bytes wait is disconnected
    ready_needs_upstream: bool = False  # `/readyz` is 503 while no upstream answers
    tells_stops: bool = True  # replies say whether the run was stopped, which tells audits from stopped runs
    retry_window_s: Seconds = 600.0  # a later repeat of a body is a new request; 0: only idempotency keys mark repeats
    replica: ReplicaName = ""  # of this gateway among those on one log; "": host:pid
    kill_file: DataFile = ""  # early stopping is off while it exists; "": beside the log, `.kill`
    relay: tuple[RelayedPath, ...] = ()  # further paths of the engine that are relayed, such as "POST /tokenize"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.host, *self.allowed_hosts)


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    key_env: str  # environment variable with the key; several are separated by commas
    tenant: TenantName = ""  # whose requests it sends and whose it may see; "": of no tenant
    scopes: tuple[KeyScope, ...] = ("complete", "feedback")  # what it may do
    routes: tuple[str, ...] | None = None  # allowed ones; (): none, it only sends feedback; None: see `auth.Caller`
    sources: tuple[str, ...] | None = None  # of feedback that it may send; None: all but reviewers' and judges'
    all_objects: bool = False  # may use, list and rate objects of other keys
    requests_per_minute: RequestsPerMinute | None = None  # None: no limit
    concurrency: PositiveInt | None = None  # requests at once; None: no limit
    tokens_per_day: PositiveInt | None = None  # prompt and answer, of a UTC day; None: no limit
    usd_per_day: Positive | None = None  # US dollars at the upstreams' prices, of a UTC day; None: no limit
    usd_per_month: Positive | None = None  # likewise, of a calendar month (UTC)

    @property
    def has_budget(self) -> bool:
        return any(limit is not None for limit in (self.tokens_per_day, self.usd_per_day, self.usd_per_month))


class Extra(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    calls_per_s: NonNegative | None = None  # probes a second; None: only the shares below limit them
    tokens_per_s: NonNegative | None = None  # processed and generated for probes, a second; None: likewise
    concurrency_share: Fraction = 0.5  # fraction of `slots` that probes may take at once; at least one
    when_busy: Literal["skip", "queue"] = "skip"  # a probe while all slots are taken: dropped, or it waits
    rate_limit_share: Fraction = 0.2  # fraction of the rate limits in the upstream's response headers


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    input_usd_per_mtok: UsdPerMtok
    output_usd_per_mtok: UsdPerMtok
    cached_input_usd_per_mtok: UsdPerMtok | None = None  # prompt tokens from a prefix cache; None: as input


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    turn: str  # one message, around {role} and {content}
    generate: str  # where generation starts, with the opening tag if the template writes it
    begin: str = ""  # before the first message


class ModelFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    efforts: tuple[Effort, ...]  # accepted levels; any other is reported, and not sent
    fields: dict[str, Any] = {}  # request fields for a level, which replaces "{effort}"; empty: the driver's own
    off: dict[str, Any] = {}  # request fields for the level "none"; empty: as another level's
    takes_budget: bool = True  # false: it refuses a token budget, and none is sent


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    url: str  # base, with or without /v1
    driver: Driver = "openai"  # which extensions of the plain protocol may be used
    api_key_env: str = ""  # environment variable; "": the client's own header is forwarded
    api_key_file: FileName = ""  # file with the key instead, which is read again when it changes
    slots: int = 1  # concurrent requests; 1: cancel before the stop transition
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: TimeLimit = 600.0  # until the whole response head has arrived; 0: no limit
    idle_timeout_s: float = 300.0  # silence on an open response
    keepalive_s: float = 4.0  # llama.cpp closes idle connections after 5 s
    retries: int = 1  # only before the client has received anything
    finish: tuple[FinishMethod, ...] = ()  # ways to end the reasoning, best first; (): the driver's
    think_open: str = "<think>"
    think_close: str = "</think>"
    think_opened: bool = False  # the chat template opens the reasoning: content starts inside it
    lowest_effort: Effort | None = None  # at which a re-ask may reason; None: the driver's lowest
    template: Template | None = None  # None: the server is queried where it supports that
    extra: Extra = Extra()  # limits on probes
    affinity_header: HeaderName = ""  # header with which a router in front of replicas keeps related calls together
    prices: Prices | None = None  # None: unknown, so no costs are reported
    models: dict[str, ModelFacts] = {}  # by shell pattern of the name; before what is known of the service's models
    paired_fields: dict[str, Any] = {}  # request fields of paired calls, such as service_tier; empty: as other calls
    paired_price: Fraction = 1.0  # of a paired call with these fields, as a share of `prices`
    cancel_saves: CancelSaves | None = None  # whether a cancelled call is billed no further; None: `doctor`, the driver


class Embeddings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The server whose vectors compare drafts by meaning."""

    url: str  # base of a server with OpenAI's /v1/embeddings, with or without /v1
    model: str  # the server's name for it
    api_key_env: str = ""  # environment variable; "": no key is sent
    timeout_s: PositiveSeconds = 1.0  # a vector that takes longer is missing: words are compared
    pause_s: PositiveSeconds = 30.0  # after a failure, no calls for this long


class Pressure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The operating point within the certified levels, by the load that the gateway measures.

    A target of None is not watched; at least one must be given. An operating point is a fraction of the certified
    levels: 0 never stops, 1 saves the most.
    """

    queue: Positive | None = None  # target: calls open at the upstream, divided by its `slots`
    latency_s: Positive | None = None  # target: 95th percentile of the route's runs that may be stopped
    tokens_per_s: Positive | None = None  # target: generated for the route
    usd_per_hour: Positive | None = None  # target: spent by the route; needs `prices`
    operating_point: Fraction = 1.0  # normal operating point; under pressure it is 1
    slack_point: float | None = None  # operating point while the load is far below the targets; None: `operating_point`
    hold_s: Positive = 30.0  # how long the load must be low before the next step to the safer side


class Judge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    url: str  # base of an OpenAI-compatible server, with or without /v1
    model: str  # the server's name for it
    api_key_env: str = ""  # environment variable; "": no key is sent
    questions: FileName = ""  # file of the route's questions; "": given on each command
    timeout_s: PositiveSeconds = 60.0  # for one grade
    max_tokens: PositiveInt = 1_024  # of one grade; a reasoning model needs more


class Review(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    per_day: ReviewsPerDay = 50  # runs queued for review per UTC day, at most; 0: none
    control_share: Fraction = 0.2  # fraction of them drawn at random from all runs; others are chosen for information
    reviewers: Reviewers = 1  # independent reviewers per run; a further one resolves disagreement
    lease_s: Positive = 900.0  # how long a reviewer holds a run before it returns to the queue
    open_days: Positive = 14.0  # after which a run leaves the queue
    questions: FileName = ""  # file of the route's questions; "": the judge's
    keep_text: bool = False  # keep texts in the log for reviewers: the question, a loop's sources
    text_days: Positive = 30.0  # how long a kept text is shown


class ReviewCap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    per_day: ReviewsPerDay = 200  # runs of all routes queued for review per UTC day, at most; 0: none


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    max_tokens: int = 16  # of the trial answer
    formed_tokens: PositiveInt = 256  # of a trial answer that is a tool call or under a schema
    closing: str = "\n"  # written before the closing tag; must not end in a space
    answer_prefix: str = ""  # written after the closing tag
    stop: tuple[str, ...] = ("\n",)  # where a trial answer ends
    timeout_s: PositiveSeconds = 30.0  # a trial answer that takes longer counts as missing
    reask_thought: str = "My reasoning so far:\n\n{thought}"  # `re-ask`: the assistant's message
    reask_ask: str = (  # `re-ask`: the user's message after it
        "Stop reasoning here. Give only the final answer to my question, in the form that it asked for."
    )
    reask_tools_ask: str = (  # the same, where the request offers tools
        "Stop reasoning here. Do what it leads to: call the tools that it chose, or give only the final answer."
    )
    propose: dict[str, Any] = {}  # a policy over the stream: probes are sent only where it would stop; empty: all
    propose_every: NonNegativeInt = 0  # probe also each checkpoint that comes this many after the last; 0: none
    verified_by: VerifiedBy = "doctor"  # who verified that the upstream continues a text and caches prefixes


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    boundary: str = "line"  # where a step may end: a name of `episode.chain_reader.SEGMENTERS`
    min_tokens: int = 24  # a step is at least this long
    growth: float = 1.15  # each step is this much longer than the last: geometric probing
    max_tokens: int = 512  # a step without a boundary ends here, between words


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[rollout]`, and `[routes.NAME.rollout]` over it. docs/reference/rollout.md explains the defaults."""

    automatic: bool = False  # every refit that looks better than the active version starts one, and none acts without
    # Size of the steps.
    shares: tuple[CandidateShare, ...] = (0.10, 0.25, 0.50)  # of new units: the canary's, then the ramp's, rising
    audit_share: Fraction = 0.8  # of requests, requested until EM is proved
    # Margins: the candidate passes when it provably loses no more than each of these.
    em_margin: Margin = 0.01  # overall EM, a fraction
    class_em_margin: Margin = 0.03  # EM of one query class, a fraction
    latency_margin: LatencyMargin = 0.20  # relative to the control's mean seconds: 0.2 is a fifth slower
    error_margin: Margin = 0.02  # of requests, above the control's
    no_answer_margin: Margin = 0.02  # of requests, above the control's
    satisfaction_margin: Margin = 0.05  # of [0, 1], below the control's
    required: tuple[LiveRail, ...] = ("latency", "errors", "no_answer")  # must be proved before all are served
    # Confidence.
    confidence: Confidence = 0.95  # of each proof that no more than the margin is lost
    harm_confidence: Confidence = 0.90  # of the evidence of harm of each guardrail, all classes of EM together
    # Amount of evidence.
    least_audits: PositiveInt = 400
    least_class_audits: PositiveInt = 200
    rare_share: Fraction = 0.05  # of the traffic: smaller classes are judged together
    least_requests: PositiveInt = 100  # of each arm, more with every step
    least_stage_s: NonNegative = 600.0  # seconds per step at least
    warmup_requests: NonNegativeInt = 100  # of the route, from the start of a step: they do not count
    warmup_s: NonNegative = 60.0  # … and seconds
    most_requests: PositiveInt = 20_000  # of the route, per step: what is not proved by then is rolled back
    most_idle_requests: PositiveInt = 5_000  # … once a saving is all that is missing
    latency_cap_s: PositiveSeconds = 120.0  # a longer request counts as this, or as 16 means of the control if less
    # Limits on savings.
    least_kept: Fraction = 0.05  # of the full runs' tokens: a version that keeps less is refused
    most_cut: Fraction = 0.75  # of the tokens that the active version keeps: no version cuts more at once
    # Frequency.
    cool_down_s: NonNegative = 3_600.0  # after a rollback; doubled after each further one
    most_cool_down_s: NonNegative = 86_400.0
    most_a_day: PositiveInt = 4  # rollouts started in 24 hours


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: str = ""  # shell pattern on the request's model; "": any
    header: str = ""  # value of x-suffice-route; "": any


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    upstream: str = ""  # name of an upstream; "": only where the caller runs the loop (kind "rounds")
    match: Match = Match()
    kind: Kind = "reasoning"
    mode: Mode = "observe"
    scorer: str | dict[str, Any] = "text"  # a name, or {"scorer": name, **parameters}
    policy: dict[str, Any] = {}  # {"policy": name, **parameters}; empty: learned, and certified before it acts
    uncertified: bool = False  # let an uncertified policy act; every report says so
    max_em_drop: EmFraction = 0.02  # fraction: the largest EM drop that the owner accepts
    confidence: EmFraction = 0.95  # fraction: confidence of the guarantee
    promise: Promise = "certified"  # "budgeted": the drop keeps to max_em_drop on average, with no confidence
    label_timeout_s: Seconds | None = None  # longest normal delay of a label; None: learned from earlier labels
    agent: AgentMode = "auto"  # which levels and settings its query classes get, inside what is certified
    token_price: Positive | None = None  # EM fraction that 1,000 tokens are worth; None: set by the EM budget
    latency_price: NonNegative = 0.0  # EM fraction that a second is worth
    explore_cost: Fraction = 0.01  # of a full run's tokens: what the agent's trials may cost per request, at most
    critical_em: EmFraction | None = None  # fraction: below it a person must decide
    min_satisfaction: Satisfaction | None = None  # fraction, or above 1 a rating up to 5; None: ratings do not steer
    audit_share: EmFraction | None = None  # fraction; None: 0.05 once something is certified, see `rollout.assign`
    most_audit_share: EmFraction = 0.5  # fraction: the audit share rises up to this while audits look worse than before
    sample_rate: SampleRate | None = None  # fraction of its requests that have rows in the log; None: `monitoring`'s
    model: str | None = None  # model name to send upstream; None: the client's
    reply_forms: tuple[ReplyForm, ...] = ("text", "json", "tools")  # that it governs; others pass through
    turns: str = ""  # name of a route of the kind "rounds" that governs the turns of an agent's loop; "": none does
    reading_tools: tuple[str, ...] = ()  # patterns of tools that change nothing; turns are governed if all match
    samples: PositiveInt = 1  # kind "samples": answers in a full run; 1 = pass-through
    wave: PositiveInt = 4  # kind "samples": answers requested at once
    max_extra_calls: NonNegativeInt = 32  # per request: probes, further samples, continuation, reruns together
    probe: Probe | None = None  # None: observing adds no upstream calls
    steps: Steps = Steps()
    embeddings: Embeddings | None = None  # None: drafts are compared by their words
    judge: Judge | None = None  # None: no judge model
    review: Review = Review()  # which runs people review
    rollout: Rollout = Rollout()  # how a new version reaches traffic: the deployment's rules, some replaced
    # Sent with the call where the route acts; several: the proved ones, from the most expensive; None: the client's.
    effort: Effort | tuple[Effort, ...] | None = None
    budget_tokens: TokenBudget | None = None  # of reasoning, enforced by the engine where the route acts; None: none
    pressure: Pressure | None = None  # None: always the most aggressive certified level
    fallback_capacity: Capacity | None = None  # further tokens/s that the upstream can serve for it; None: unknown
    on_fallback: OnFallback = "quality_first"  # what is shed when all runs in full exceed the capacity
    finish_unclosed: bool = False  # a run cut inside its reasoning: give the client a forced answer
    handover_ms: int = 5_000  # a continuation that takes longer is abandoned
    handover_buffer_bytes: int = 256 * 1024

    @property
    def later_audit_share(self) -> float:
        return LATER_SHARE if self.audit_share is None else self.audit_share

    @property
    def is_learned(self) -> bool:
        return not self.policy and self.mode != "off" and not self.arms

    @property
    def is_owned(self) -> bool:
        written = self.policy.get("policy", "never") != "never"
        return written and self.mode == "enforce" and not self.uncertified and not self.arms

    @property
    def is_replayed(self) -> bool:
        return self.is_learned or self.is_owned

    @property
    def sees_only_drawn(self) -> bool:
        """Whether only drawn audits are seen in full, even if it observes: they take trial answers or a second call."""
        return self.probe is not None or bool(self.arms)

    @property
    def efforts(self) -> tuple[Effort, ...]:
        return (self.effort,) if isinstance(self.effort, str) else self.effort or ()

    @property
    def arms(self) -> tuple[str, ...]:
        """Its efforts and its budget, as outcomes name them; where pairs certify them, arm k is level k."""
        efforts = tuple(f"effort={effort}" for effort in self.efforts)
        return efforts if self.budget_tokens is None else (*efforts, f"budget_tokens={self.budget_tokens}")

    @property
    def is_paired(self) -> bool:
        """Its efforts or its budget are certified by audits with a paired call."""
        return bool(self.arms) and not self.policy and self.mode != "off"

    @property
    def certifies_itself(self) -> bool:
        return self.is_replayed or self.is_paired


class ExperimentArm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    weight: NonNegative = 1.0  # relative to the other arms'; raising it moves units into this arm only
    full: bool = False  # the full run: nothing is stopped, no effort or budget is sent
    policy: dict[str, Any] = {}  # as a route's; empty: the route's own
    threshold: float | None = None  # replaces the `threshold` of the route's own policy
    level: NonNegativeInt | None = None  # the highest level used of the certified ones; 0 never stops
    effort: Effort | None = None  # sent with the call, replaces the route's
    budget_tokens: NonNegativeInt | None = None  # of reasoning, enforced by the engine, replaces the route's
    uncertified: bool = False  # let this arm's own policy act without a certificate


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    routes: tuple[str, ...]  # whose requests take part
    arms: dict[str, ExperimentArm]  # by name; two or more
    unit: ExperimentUnit = "request"  # what always gets the same arm
    layer: LayerName = "default"  # experiments of one layer exclude each other where they share a route
    share: LayerShare = 1.0  # fraction of the layer's units that take part; raising it only adds units
    control: str = ""  # arm that the others are compared with; "": the full run, else the first
    primary: str = "tokens"  # metric that decides: tokens, latency, satisfaction, em, or a declared one
    margins: dict[str, float] = {}  # metric: acceptable loss against the control, in the metric's unit
    confidence: Confidence = 0.95  # fraction: of all comparisons together
    warmup_units: WarmupUnits = 100  # the first units, which do not count
    planned_units: PlannedUnits = 10_000  # at which intervals are tightest; they hold before and after it, too
    max_tokens: Positive | None = None  # a larger value counts as this; None: learned from the warm-up
    max_latency_s: Positive | None = None  # likewise
    end_when_worse: bool = False  # the worker ends it once an arm is proved worse than the control
    days: Positive | None = None  # after which the worker ends it; None: never
    hypothesis: str = ""  # what you expect, in a sentence


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    type: MetricType
    level: MetricLevel = "request"  # what one value describes, so that it counts once
    direction: Direction = "higher"  # which direction is better
    range: tuple[float, float] | None = None  # smallest and largest value; None: 1 to 5 of a rating
    values: tuple[str, ...] = ()  # of a category: the allowed words
    survey: str = ""  # the survey that it belongs to; "": none
    question: str = ""  # its text, for whoever shows the survey


class Langfuse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    secret_env: str = ""  # environment variable with the secret that signs its requests; "": none
    scores: dict[str, str] = {}  # name of a score: the field of feedback that it maps to, or "metrics.NAME"


class FeedbackRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    token_hours: NonNegative = 720.0  # lifetime of the token with which an answer's recipient may rate it; 0: no tokens
    park_days: Positive = 30.0  # feedback whose request has not arrived by then is a dead letter
    least_propensity: Propensity = 1.0  # fraction: smaller propensities of being asked count as this
    langfuse: Langfuse = Langfuse()


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    url: FileUrl = "sqlite:///suffice.db"  # or postgresql://user@host:5432/database
    local_files: DataFile = "suffice"  # their names without endings, on each machine, where the log is on a server
    queue_rows: int = 50_000  # waiting for the writer; further requests and feedback are dropped and counted
    flush_ms: int = 50  # the writer collects this long before it commits; a sender that waits ends it
    last_good_file: DataFile = ""  # file with what is served while the log cannot be read; "": beside it, `.good`
    last_good_s: Seconds = 3_600.0  # for how long; then all runs in full; 0: never, and no file is written
    # The rest is for PostgreSQL.
    password_env: str = ""  # environment variable with the password; "": none, or from the file
    password_file: FileName = ""  # file with the password, read at every connection
    sslmode: SslMode = ""  # as libpq's; "": the URL's, else "prefer"
    ca_file: FileName = ""  # certificates of the authorities that may vouch for the server
    schema_name: str = "suffice"  # that holds the log's tables; created if it is missing
    statement_timeout_s: PositiveSeconds = 30.0  # of one query


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    enabled: bool = True  # a worker runs beside `suffice serve`; False: only with `suffice worker`
    period_s: PositiveSeconds = 2.0  # between two reads of the log
    tick_requests: PositiveInt = 100  # of a route, between two evaluations of its evidence
    burst_requests: PositiveInt | None = None  # run in full at a cold start and after an alarm; None: 24 / max_em_drop
    refit_requests: PositiveInt = 1_000  # between two fits
    refit_processes: PositiveInt = 1  # fits of routes at a time; 1: in the worker's own process
    ray: str = ""  # address of a Ray cluster that runs them; "": this machine
    window_audits: PositiveInt | None = None  # that a certificate covers; None: 16 / max_em_drop
    unread_audits: NonNegativeInt = 256  # at once whose client has left, per gateway, a quarter per key; 0: none
    unread_observed: NonNegativeInt = 0  # runs of `observe`, the same
    lease_s: PositiveSeconds = 60.0  # for which what is certified acts without another look at its route …
    lease_requests: PositiveInt = 500  # … and for how many requests of the route, at all gateways together


class Assurance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is promised of all certified routes together, in addition to each route's own promise."""

    fleet_confidence: Confidence | None = None  # 1 - the share of wrong ones expected among certified routes; None: off


class OidcRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    role: ConsoleRole
    tenants: tuple[TenantName, ...] | None = None  # whose runs they see; None: everything


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Log in to the console at an OpenID provider, by the authorization code flow with PKCE."""

    issuer: str  # as the provider's configuration names it, without /.well-known/…
    client_id: str
    client_secret_env: str = ""  # environment variable; "": a public client
    scopes: tuple[str, ...] = ("openid", "profile", "email")  # asked for at the provider
    name_claim: str = "email"  # claim of the ID token that names a person in the audit log
    roles_claim: str = "groups"  # claim with a text or a list of texts
    roles: dict[str, OidcRole] = {}  # by value of that claim; people without any of them are refused
    timeout_s: PositiveSeconds = 5.0  # for one answer of the provider


class Console(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    enabled: bool = True  # False: `/console` and `/api` do not exist
    host: str = ""  # address of a separate listener; "": `server.host`
    port: Port | None = None  # port of a separate listener; None: the gateway's own
    session_s: float = 43_200.0  # how long a login lasts
    oidc: Oidc | None = None  # None: people log in with secrets only
    live_s: float = 5.0  # between two reads of the log while somebody watches the first page


class AuditLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the heads of the hash chain are exported to, so that a cut or rebuilt chain is detected."""

    file: DataFile = ""  # signed heads are appended, one per line; "": no file
    webhook_env: str = ""  # environment variable with the URL that heads are posted to; "": none
    every_s: Interval = 3_600.0  # between two exports; an unchanged head is not exported again
    timeout_s: PositiveSeconds = 10.0  # for the webhook

    @property
    def is_exported(self) -> bool:
        return bool(self.file or self.webhook_env)


class ArchiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    address: DataFile = ""  # a folder, or an object store as s3://bucket/folder; "": given on the command
    after_days: Days = 1.0  # after its end until a day is written; labels that come later are not in it
    daily: bool = True  # the worker writes each day once it is closed; False: only `suffice archive` does


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the log keeps personal text. None: forever."""

    answers_days: Days | None = None  # trial and final answers, votes, references, corrections
    comments_days: Days | None = None  # what people wrote: comments and reasons of labels and reviews
    questions_days: Days | None = None  # texts of questions, where a route keeps them for reviewers
    metadata_days: Days | None = None  # what callers declared of a question
    steps_days: Days | None = None  # steps of runs, with their numbers
    requests_days: Days | None = None  # rows of requests and outcomes, once their day is archived
    redact: tuple[TextPart, ...] = ()  # never written
    every_s: Interval = 86_400.0  # between two searches for expired rows

    @property
    def days(self) -> dict[str, float]:
        days = {part: getattr(self, f"{part}_days") for part in (*get_args(TextPart), "steps")}
        return {part: limit for part, limit in days.items() if limit is not None}

    @property
    def erases(self) -> bool:
        return bool(self.days) or self.requests_days is not None


AlertKind: TypeAlias = Literal[
    "budget_nearly_spent",
    "breach_forecast",
    "drift",
    "incident",
    "rollback",
    "sample_ratio",
    "fail_open",
    "kill_switch",
    "version_refused",
    "log_missed",
    "worse_arm",
    "stops_cost_more",
    "unwatched",
    "rule",
]


class SamplingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    sample_rate: SampleRate = 1.0  # fraction of requests that have rows, audits included; the others are counted
    adapt: bool = True  # distribute it over classes of live requests by uncertainty; False: evenly


class Alerts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    webhook_url_env: str = ""  # environment variable with a Slack-compatible URL; "": none
    email_to: tuple[EmailAddress, ...] = ()  # (): no e-mail
    email_from: str = ""
    smtp_host: MailHost = ""
    smtp_port: MailPort = 587  # 465 starts with TLS; other ports are asked for it
    smtp_tls: MailTls | None = None  # None: "required" where there is a login, else "opportunistic"
    smtp_user_env: str = ""  # environment variable; "": no login
    smtp_password_env: str = ""
    kinds: tuple[AlertKind, ...] = get_args(AlertKind)
    repeat_s: Seconds = 3_600.0  # repeat an alert after this long
    tell_over: bool = True  # also notify when an alert is resolved
    link: str | None = None  # URL at which people reach the console's server; None: no links

    @property
    def has_sink(self) -> bool:
        return bool(self.webhook_url_env or self.email_to)

    @property
    def mail_tls(self) -> MailTls:
        return self.smtp_tls or ("required" if self.smtp_user_env else "opportunistic")


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Log lines, and traces over OTLP/HTTP. The standard OTEL_* variables apply, where the settings say nothing."""

    log_format: Literal["text", "json"] = "text"  # "json": one object per line
    otlp_endpoint: str = ""  # base URL of a collector, such as "http://collector:4318"; "": see above
    trace_share: Fraction | None = None  # of requests whose caller has not decided; None: OTEL_TRACES_SAMPLER, or all


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    server: Server = Server()
    keys: dict[str, Key] = {}
    upstreams: dict[str, Upstream] = {}
    routes: dict[str, Route] = {}
    store: Store = Store()
    control: Control = Control()
    assurance: Assurance = Assurance()
    console: Console = Console()
    audit: AuditLog = AuditLog()
    alerts: Alerts = Alerts()
    archive: ArchiveSettings = ArchiveSettings()
    retention: Retention = Retention()
    monitoring: SamplingSettings = SamplingSettings()
    review: ReviewCap = ReviewCap()
    experiments: dict[str, Experiment] = {}
    rollout: Rollout = Rollout()
    feedback: FeedbackRules = FeedbackRules()
    metrics: dict[str, Metric] = {}
    telemetry: Telemetry = Telemetry()

    def sample_rate_of(self, route: str) -> float:
        """Return the fraction of a route's requests that have rows in the log; also for requests without a route."""
        return self.sample_rate_on(self.routes.get(route))

    def sample_rate_on(self, route: Route | None) -> float:
        own = None if route is None else route.sample_rate
        return self.monitoring.sample_rate if own is None else own

    @property
    def adapts_rates(self) -> bool:
        return self.monitoring.adapt and any(self.sample_rate_of(name) < 1 for name in self.routes)

    @property
    def has_upkeep(self) -> bool:
        if any(route.policy and route.mode == "enforce" for route in self.routes.values()):
            return True
        if self.adapts_rates:
            return True
        return self.audit.is_exported or self.alerts.has_sink or self.retention.erases or self.console.enabled
