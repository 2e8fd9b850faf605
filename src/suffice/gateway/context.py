"""The application state that request handlers share, built by `wiring`."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from suffice.assurance.guarantee import WINDOW_RUNS, extractability_refusal
from suffice.assurance.load_level import even_loads
from suffice.assurance.money import RunLengths, TransitionCosts
from suffice.assurance.runs import is_audit
from suffice.assurance.sampling import UnloggedRequests, is_certain, live_rate
from suffice.assurance.saving import saved_tokens, saved_usd
from suffice.assurance.thoughts import SavingTrial
from suffice.episode.extra_calls import Vectors
from suffice.episode.ledger import Ledger
from suffice.episode.loop import StopRight
from suffice.episode.stream_relay import LiveRun
from suffice.errors import ConfigError
from suffice.gateway.auth import RequestKey, forget_oldest, sign_token
from suffice.gateway.clients import Clients
from suffice.gateway.kept_responses import KeptResponses
from suffice.gateway.kill import KillSwitch
from suffice.gateway.lease import Leases
from suffice.gateway.load_control import Breaker, LoadControl, UnreadAudits
from suffice.gateway.open_runs import OpenRuns
from suffice.gateway.tracing import Tracer
from suffice.review.route_guarantee import RouteGuarantee
from suffice.rollout.assign import AuditAssignment, audit_share, point_of
from suffice.rollout.experiment import Units
from suffice.scoring.base import scorer_label
from suffice.serving.route import BuiltRoute, Levels
from suffice.serving.variants import Variants
from suffice.settings import Settings
from suffice.settings.reloading import Reload
from suffice.signals.folds.wording import Embedder
from suffice.signals.query import class_of
from suffice.store.database.log import EventLog
from suffice.store.people.promises import read_other_arms
from suffice.store.rows.events import RequestCount, RowRates
from suffice.store.rows.watching import WatchLapse
from suffice.telemetry import LOG, Metrics
from suffice.types import ArmDraw, EndReason, Feedback, Outcome, Publication, RecalledRun, Request
from suffice.upstream.client import UpstreamClient

CHECK_RUNS = 100  # full runs between two checks whether a route's answers can be extracted


@contextmanager
def run_periodically(task: Callable[[], None], metrics: Metrics, *, site: str, every_s: float) -> Iterator[None]:
    """Call `task` on a grid of `every_s` seconds while the block runs. Failures are logged and counted."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def start_timer() -> None:
        nonlocal timer
        # A timer that fired a little early skips to the next tick. Those of one tick are due at once: one wake-up.
        n_ticks, part_s = divmod(loop.time(), every_s)
        timer = loop.call_at(every_s * (n_ticks + (1 if part_s < 0.9 * every_s else 2)), run_again)

    def run_again() -> None:
        start_timer()
        try:
            task()
        except Exception as error:  # noqa: BLE001 - the next run tries again
            LOG.error("%s: a periodic task failed (%s)", site, type(error).__name__)
            metrics.inc("suffice_failopen_total", site)

    start_timer()
    try:
        yield
    finally:
        timer.cancel()


def runs_in_full(request: Request) -> bool:
    """Return whether no policy could stop this run. Runs that were merely not stopped are biased: the hard ones."""
    return request.ungoverned is None and (request.mode != "enforce" or request.audit or request.delivery > 1)


def is_measured(request: Request) -> bool:
    """Return whether this run is an audit that enters the evidence; only such runs are worth calls for the record."""
    return request.audit and request.delivery == 1


def is_read_on(request: Request, route: BuiltRoute | None) -> bool:
    """Return whether this run is read to its end for the record, even if its client leaves."""
    return route is not None and is_audit(request, probes=route.settings.sees_only_drawn)


# --------------------------------------------------------------------------- rows in the log

COUNT_S: Final = 60.0  # longest time that counts wait …
COUNT_REQUESTS: Final = 1_000  # … and most requests of a route in them
COUNTS_S: Final = 5.0  # between two checks whether counts are due
MOST_CELLS: Final = 200  # per count; the rest is counted under OTHER
OTHER: Final = "(others)"
MOST_SENDERS: Final = 100_000  # remembered as written in counts
MOST_RECALLED: Final = 20_000  # live runs remembered for labels
MOST_ANSWER_CHARS: Final = 500  # of a remembered run; runs with longer answers are not remembered

_PURPOSE: Final = b"kept-rows"
_Cell: TypeAlias = tuple[str, str, str, str]


def _amounts_of(request: Request, outcome: Outcome) -> dict[str, Any]:
    usage, spent = outcome.usage, outcome.overhead
    amounts: dict[str, Any] = {
        "n": 1,
        "duration_s": outcome.duration_s,
        "probe_tokens": spent.probe_tokens,
        "extra_prompt_tokens": spent.extra_prompt_tokens,
        "cached_prompt_tokens": spent.cached_prompt_tokens,
        "discarded_tokens": spent.discarded_tokens,
        "saved_tokens": saved_tokens(request, outcome) or 0,
        "saved_usd": saved_usd(request, outcome) or 0.0,
    }
    if usage is not None:
        amounts |= {"n_counted": 1, "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens}
        amounts["completion_tokens"] = usage.completion_tokens
    if outcome.cost_usd is not None:
        amounts |= {"n_priced": 1, "cost_usd": outcome.cost_usd, "overhead_usd": outcome.overhead_usd or 0.0}
    if outcome.stopped:
        amounts["n_stopped"] = 1
    return amounts


@dataclass(slots=True)
class _Count:
    since_s: float  # monotonic, of the first request
    # By query class, version, why ungoverned, and tenant.
    ends: defaultdict[_Cell, Counter[EndReason]] = field(default_factory=lambda: defaultdict(Counter))
    sums: defaultdict[_Cell, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    senders: list[str] = field(default_factory=list)
    n: int = 0
    audit_share: float | None = None  # the lowest of the governed ones
    last: str = ""  # the last counted episode, which names the count


@dataclass(slots=True, kw_only=True)
class LogSampler:
    """Draws which requests get rows in the log."""

    settings: Settings
    salt: str
    rates: Mapping[str, RowRates] = field(default_factory=dict)  # by route, set by the control loop
    _sample_rates: Mapping[str, float] = field(init=False)  # by route, "" included
    _counts: dict[str, _Count] = field(default_factory=dict)
    _senders: dict[str, None] = field(default_factory=dict)  # already written, oldest first
    _open: set[str] = field(default_factory=set)  # drawn runs that have not ended
    _recent: dict[str, RecalledRun] = field(default_factory=dict)  # by episode, oldest first
    _answered: dict[str, str | None] = field(default_factory=dict)  # episodes by response id; None: ambiguous

    def __post_init__(self) -> None:
        self.follow(self.settings)

    def follow(self, settings: Settings) -> None:
        self.settings = settings
        self._sample_rates = {name: settings.sample_rate_of(name) for name in ("", *settings.routes)}

    def drawn(self, request: Request) -> tuple[Request, bool]:
        """Return the request for its row, and whether it has rows. One without gets them later if it ends badly."""
        rate = self.rate_of(request)
        if rate >= 1 or (request.ungoverned is None and request.mode != "enforce"):
            return request, True
        if is_certain(request):
            return replace(request, keep_rate=rate), True
        if request.ungoverned is None:
            self._open.add(request.episode_id)
        if point_of(request.unit or request.episode_id, salt=self.salt, purpose=_PURPOSE) < rate:
            return replace(request, keep_rate=rate, kept_by="lot"), True
        return request, False

    def rate_of(self, request: Request) -> float:
        """Return the probability that requests like it have rows, in (0, 1]."""
        sample_rate = self._sample_rates.get(request.route, self._sample_rates[""])
        if sample_rate >= 1:
            return 1.0
        if request.ungoverned is not None:
            return sample_rate
        rates = self.rates.get(request.route)
        if rates is None or rates.sample_rate != sample_rate:  # the sample rate has changed
            return live_rate(sample_rate, request.propensity if request.audit else 1 - request.propensity)
        return dict(rates.after).get(class_of(request.query), rates.other)

    def remember(self, request: Request, outcome: Outcome, *, now_s: float) -> None:
        name, response = outcome.episode_id, outcome.response_id
        if name not in self._open:
            return
        self._open.discard(name)
        if len(outcome.answer or "") > MOST_ANSWER_CHARS:
            return
        self._recent[name] = RecalledRun(
            episode_id=name,
            response_id=response,
            route=request.route,
            query_class=class_of(request.query),
            policy_version=request.policy_version,
            stopped=outcome.stopped,
            end_reason=outcome.end_reason,
            answer=outcome.answer,
            ended_at_s=now_s,
            tenant=request.tenant,
        )
        if response is not None:
            self._answered[response] = None if response in self._answered else name
        forget_oldest(self._recent, MOST_RECALLED)
        forget_oldest(self._answered, MOST_RECALLED)

    def is_open(self, label: Feedback) -> bool:
        """Return whether the label is about an open run. A client gets its answer shortly before its run is closed."""
        return label.episode_id in self._open

    def recalled(self, label: Feedback) -> RecalledRun | None:
        name = label.episode_id
        if name is None and label.response_id is not None:
            name = self._answered.get(label.response_id)
        return None if name is None else self._recent.get(name)

    def count(self, request: Request, outcome: Outcome, *, now_s: float) -> RequestCount | None:
        """Count an ended request without rows. Return its route's count if it is due to be written."""
        count = self._counts.setdefault(request.route, _Count(now_s))
        key = class_of(request.query), request.policy_version, request.ungoverned or "", request.tenant
        if key not in count.ends and len(count.ends) >= MOST_CELLS:
            key = OTHER, OTHER, *key[2:]
        count.ends[key][outcome.end_reason] += 1
        count.sums[key].update(_amounts_of(request, outcome))
        count.n, count.last = count.n + 1, outcome.episode_id
        if request.ungoverned is None and request.delivery == 1:
            share = 1.0 - request.propensity  # not an audit: audits have rows
            count.audit_share = share if count.audit_share is None else min(count.audit_share, share)
        if request.sender and request.sender not in self._senders:
            count.senders.append(request.sender)
            self._senders[request.sender] = None
            forget_oldest(self._senders, MOST_SENDERS)
        is_due = count.n >= COUNT_REQUESTS or now_s - count.since_s >= COUNT_S
        return self._written(request.route) if is_due else None

    def due(self, *, now_s: float, all_of_them: bool = False) -> Iterator[RequestCount]:
        for route, count in list(self._counts.items()):
            if all_of_them or now_s - count.since_s >= COUNT_S:
                yield self._written(route)

    def _written(self, route: str) -> RequestCount:
        count = self._counts.pop(route)
        cells = tuple(
            UnloggedRequests(
                query_class=query_class,
                version=version,
                ungoverned=ungoverned,
                tenant=tenant,
                ends=tuple(sorted(ends.items())),
                **count.sums[query_class, version, ungoverned, tenant],
            )
            for (query_class, version, ungoverned, tenant), ends in count.ends.items()
        )
        return RequestCount(
            count_id=count.last,
            route=route,
            n_requests=count.n,
            n_governed=sum(cell.n for cell in cells if not cell.ungoverned),
            cells=cells,
            senders=tuple(count.senders),
            audit_share=count.audit_share,
        )


# --------------------------------------------------------------------------- the state


@dataclass(slots=True)
class RouteStatistics:
    n_requests: int = 0
    full_runs: RunLengths = field(default_factory=RunLengths)
    hand_overs: TransitionCosts = field(default_factory=TransitionCosts)
    extracted: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW_RUNS))  # an answer was found
    n_since_check: int = 0  # full runs
    breaker: Breaker | None = None
    trial: SavingTrial = field(default_factory=SavingTrial)  # by audits of this process
    singled: Counter[str] = field(default_factory=Counter)  # audits of callers in doubt …
    singled_by: int = 0  # … since this publication named them

    def is_singled(self, caller: str, made: Publication) -> bool:
        """Whether a request is an audit because its caller's latest audits lose."""
        n_before = self.singled[caller] if made.number == self.singled_by else 0
        return n_before < dict(made.callers).get(caller, 0)

    def note_audit(self, caller: str, made: Publication | None) -> None:
        self.trial.n_begun += 1
        if made is None or caller not in dict(made.callers):
            return
        if made.number != self.singled_by:
            self.singled, self.singled_by = Counter(), made.number
        self.singled[caller] += 1

    def learn(self, request: Request, outcome: Outcome) -> None:
        if runs_in_full(request) and outcome.is_finished and outcome.usage is not None:
            usage = outcome.usage
            if request.kind == "rounds":  # no answer follows the rounds, so all tokens can be saved
                usage = replace(usage, reasoning_tokens=usage.completion_tokens)
            self.full_runs.add(usage, class_of(request.query))
        if request.ungoverned is not None or request.kind != "reasoning":
            return
        if is_measured(request):
            self.trial.add(outcome)
        for call in outcome.calls:
            if call.purpose in ("probe", "continuation") and call.source == "provider" and call.prompt_tokens:
                self.hand_overs.add_resent(call.prompt_tokens, call.cached_tokens)
            elif call.purpose == "main" and call.cancelled and outcome.stopped and outcome.stop_step is not None:
                used = sum(step.tokens for step in outcome.steps if step.index <= outcome.stop_step)
                self.hand_overs.add_overlap(max(0, call.completion_tokens - used))

    def note_full_run(self, outcome: Outcome) -> bool:
        """Return True if extraction should be checked now."""
        if outcome.end_reason not in ("done", "truncated"):
            return False
        self.extracted.append(outcome.answer is not None)
        self.n_since_check = (self.n_since_check + 1) % CHECK_RUNS
        return self.n_since_check == 0


@dataclass(slots=True, kw_only=True)
class Deployment:
    """The active routes of one gateway. A request keeps the route that it got."""

    routes: tuple[BuiltRoute, ...]
    metrics: Metrics
    salt: InitVar[str]
    variants: Variants = field(init=False)  # experiments and rollouts
    leases: Leases = field(init=False)  # of certificates
    monotonic_s: Callable[[], float]
    load: LoadControl = field(default_factory=LoadControl)
    kill: KillSwitch = field(default_factory=KillSwitch)
    classes: dict[str, Mapping[str, int]] = field(default_factory=dict)  # audits by class, by route
    log_problem: str | None = None  # why the log could not be opened; None: it could
    serves: Literal["", "last good", "full"] = ""  # what is served while the log cannot be read; "": it is read
    refresh: Callable[[], None] = lambda: None  # reads new decisions in a process without timers
    notify: Callable[[], None] = lambda: None  # reads new decisions at once
    _failing: set[str] = field(default_factory=set)  # jobs, as exported
    _states: dict[str, str] = field(default_factory=dict)  # of promises, by route, as exported

    def __post_init__(self, salt: str) -> None:
        self.variants = Variants(salt=salt, metrics=self.metrics)
        self.leases = Leases(monotonic_s=self.monotonic_s, is_unread=lambda: bool(self.serves))

    def route(self, name: str) -> BuiltRoute | None:
        return next((one for one in self.routes if one.name == name), None)

    def varied(
        self, route: BuiltRoute, units: Callable[[], Units], question: str
    ) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        """Return the route for a request and its drawn arms; the same object if nothing varies it."""
        now = self.variants.running
        if route.plan is None and not (now.experiments or route.name in now.trials or route.name in now.standing):
            return route, ()
        return self.variants.place(route, units, question)

    def rollout_share(self, route: str) -> float:
        """Return the share of audits that a rollout of the route needs."""
        trial = self.variants.running.trials.get(route)
        return 0.0 if trial is None else trial.state.audit_share or 0.0

    def activate(self, name: str, route: BuiltRoute) -> None:
        now = next(one for one in self.routes if one.name == name)
        made, operation = replace(route, refused=now.refused), self.load.of(name, route.settings)
        if made.certified:
            operation.certified = made.active.level
            operation.resume()
        else:
            if now.certified and made.settings.mode == "enforce":
                now_s = self.monotonic_s()  # before the certificate is withdrawn
                operation.fall_back(now_s, even_loads(operation.load.ratio(now_s), operation.level))
            safer, falls_back = now.serving, operation.fallback is not None
            if falls_back and isinstance(safer, Levels) and made.settings.on_fallback == "availability_first":
                # A safer level may act, marked as uncertified, until a level is certified again.
                made = made.served_by(replace(safer, voucher="", floor=None, ceiling=None))
            operation.certified = 0
        self._replace(made)
        self._export_level(made)
        if now.certified != made.certified:
            state = "certified" if made.floor is None else "budgeted: its drop is kept on average, without a confidence"
            LOG.warning("routes.%s: %s", name, state if made.certified else "runs in full, nothing is certified")

    def _export_level(self, route: BuiltRoute) -> None:
        """Export the level that acts as certified: none while nobody watches the route."""
        level = self.load.of(route.name, route.settings).certified
        proved = level if route.floor is None else min(level, route.floor)
        self.metrics.set("suffice_certified_level", 0 if self.leases.lapsed(route.name) else proved, route.name)

    def check_leases(self) -> list[WatchLapse]:
        """End the leases that are over; return rows about those that have ended or begun anew."""
        self.leases.check()
        rows = list[WatchLapse]()
        for route, lease in self.leases.changed(self.routes):
            self._export_level(route)
            rows.append(self.leases.row_of(route.name, lease))
        return rows

    def _replace(self, route: BuiltRoute) -> None:
        self.routes = tuple(route if one.name == route.name else one for one in self.routes)

    def note_upstream(self, request: Request, outcome: Outcome) -> None:
        """Suspend a route at once if another model answers than in its evidence, until the control loop decides."""
        route = self.route(request.route)
        if route is None or not route.certified or request.policy_version.partition("@")[0] != route.serving.version:
            return  # not served by this publication
        named = outcome.model if request.kind != "rounds" else request.model or None
        if route.answers_as_known(request.model, named, outcome.system_fingerprint):
            return
        LOG.warning("routes.%s: the upstream reports another model than the evidence", route.name)
        self.activate(route.name, route.without_evidence(request.model))

    def check_answers(self, name: str, extracted: tuple[bool, ...]) -> None:
        """Refuse or allow enforcement of a route by whether answers were extracted from its latest full runs."""
        if (route := self.route(name)) is None:
            return
        refused = extractability_refusal(extracted, scorer_label(route.settings.scorer))
        if route.settings.mode == "enforce" and (refused is None) != (route.refused is None):
            LOG.warning("routes.%s: %s", name, f"behaves as observe: {refused}" if refused else "acts again")
        self._replace(replace(route, refused=refused))

    def has_ended(self, request: Request) -> bool:
        """Whether no stop acts on a run any more that began earlier: none acts anywhere, or its lease is over."""
        leased = request.certified or request.promise == "budgeted"
        return self.kill.on or (leased and bool(self.leases.lapsed(request.route)))

    def promise_to(self, route: BuiltRoute | None) -> Callable[[], str]:
        """Return a function that writes the guarantee for a reply, as of now, whatever is decided later."""
        if route is None:
            return str
        guaranteed = self.guarantee_of(route)
        return lambda: guaranteed().sentence

    def guarantee_of(self, route: BuiltRoute) -> Callable[[], RouteGuarantee]:
        """Return a function that determines the guarantee as of now; for a reply that shows none it is never called."""
        killed = self.kill.on
        unread = self.serves == "full"
        classes = self.classes.get(route.name)
        running, unwatched = self.variants.running, self.leases.lapsed(route.name)
        return lambda: route.guarantee(
            killed=killed,
            unread=unread,
            unwatched=unwatched,
            classes=classes,
            beside=read_other_arms(running.experiments, running.trials).get(route.name, ()),
        )

    def export_gauges(self) -> None:
        failing = Counter(one.job for one in self.leases.failing)
        for job in self._failing | failing.keys():
            self.metrics.set("suffice_failing_jobs", failing[job], job)
        self._failing = set(failing)
        try:
            self.load.export(self.metrics, now_s=self.monotonic_s())
        except Exception:  # noqa: BLE001 - a gauge is not a response
            self.metrics.inc("suffice_failopen_total", "load")
        for route in self.routes:
            self.leases.export(route, self.metrics)
            state, before = self.guarantee_of(route)().state, self._states.get(route.name)
            if before is not None and before != state:
                self.metrics.set("suffice_promise_state", 0, route.name, before)
            self.metrics.set("suffice_promise_state", 1, route.name, state)
            self._states[route.name] = state

    def update_load(self, upstreams: Mapping[str, UpstreamClient]) -> None:
        routes = [one if one.settings.pressure is None else self._as_served(one) for one in self.routes]
        self.load.update(upstreams, routes, self.metrics, now_s=self.monotonic_s())

    def _as_served(self, route: BuiltRoute) -> BuiltRoute:
        return replace(self.kill.apply(route), unwatched=self.leases.lapsed(route.name))

    def check_kill(self) -> None:
        self.kill.check()
        self.metrics.set("suffice_kill_switch", float(self.kill.on))
        self.metrics.set("suffice_kill_switch_local", float(self.kill.is_local))


Reloading: TypeAlias = Callable[[str | None, str], Awaitable[Reload]]


@dataclass(slots=True)
class ProcessState:
    ready: bool = False
    draining: bool = False  # shutdown has begun: connections close after their response
    n_live: int = 0  # running handlers, of any path
    unread: UnreadAudits = field(default_factory=UnreadAudits)
    tracer: Tracer | None = None  # None: traces are off
    live_runs: dict[str, LiveRun] = field(default_factory=dict)  # by episode
    # Applies changed settings, by an author for a reason; without an author it says what would change. None: it cannot.
    reload: Reloading | None = None


@dataclass(slots=True, kw_only=True)
class GatewayState:
    settings: Settings
    salt: str  # of audit draws and question keys; secret, stable
    log: EventLog
    metrics: Metrics
    new_id: Callable[[], str]
    wall_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    upstreams: dict[str, UpstreamClient]
    via: str = ""  # name of this gateway in the header `via` of its calls
    embedders: Mapping[str, Embedder] = field(default_factory=dict)  # by route; opened by `wiring` or the library
    clients: Clients
    deployment: Deployment
    sampling: LogSampler  # which requests have rows in the log
    statistics: defaultdict[str, RouteStatistics] = field(default_factory=lambda: defaultdict(RouteStatistics))
    runs: OpenRuns = field(default_factory=OpenRuns)
    responses: KeptResponses = field(default_factory=KeptResponses)
    process: ProcessState = field(default_factory=ProcessState)

    def vectors(self, route: BuiltRoute, ledger: Ledger, *, keep: int = 0) -> Vectors | None:
        embedder, most = self.embedders.get(route.name), route.settings.max_extra_calls
        return None if embedder is None else Vectors(embedder=embedder, ledger=ledger, max_calls=most, keep=keep)

    def stop_right(self, route: BuiltRoute, ledger: Ledger) -> StopRight:
        return StopRight(ledger=ledger, acts=route.acts, has_ended=partial(self.deployment.has_ended, ledger.request))

    def assign(
        self, route: BuiltRoute, key: RequestKey, episode_id: str, *, caller: str, wall_s: float
    ) -> AuditAssignment:
        assigned = self.clients.deliveries.assign(
            key,
            episode_id=episode_id,
            share=self.share(route, caller),
            salt=self.salt,
            window_s=self.settings.server.retry_window_s,
            now_s=self.monotonic_s(),
            wall_s=wall_s,
        )
        if assigned.audit and assigned.delivery == 1:
            self.metrics.inc("suffice_audits_total", route.name)
            self.statistics[route.name].note_audit(caller, route.active.publication)
        return assigned

    def share(self, route: BuiltRoute, caller: str) -> float:
        made, settings = route.active.publication, route.settings
        for_rollout = self.deployment.rollout_share(route.name)
        if settings.mode == "enforce" and route.serving.voucher != "fallback" and settings.is_replayed:
            # If everything runs in full and no probe costs tokens, every run can be an audit.
            free = not route.certified and settings.probe is None and settings.audit_share is None
            if route.in_burst or free:
                return 1.0 if settings.probe is None else self.statistics[route.name].trial.share
            if made is not None:
                is_singled = self.statistics[route.name].is_singled(caller, made)
                # While all requests are audits, those that probe them are as few as the trial needs.
                most = 1.0 if route.certified or settings.probe is None else self.statistics[route.name].trial.share
                return 1.0 if is_singled else max(min(made.share, most), for_rollout)
        usual = audit_share(self.statistics[route.name].n_requests, settings.audit_share)
        return max(usual, for_rollout)

    def feedback_token(self, episode_id: str) -> str:
        hours = self.settings.feedback.token_hours
        return sign_token(episode_id, until_s=int(self.wall_s() + 3600 * hours), salt=self.salt) if hours else ""

    def fallback_upstream(self) -> str:
        """Return the first upstream, for requests without a route. Raise ConfigError if there is none."""
        if not self.upstreams:
            raise ConfigError("upstreams: none is configured")
        return next(iter(self.upstreams))
