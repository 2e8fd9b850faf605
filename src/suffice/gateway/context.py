"""What every request handler needs, as one value: made by `wiring`, read by the handlers."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from suffice.assurance.guarantee import WINDOW_RUNS, extractability_refusal
from suffice.assurance.load_level import even_loads
from suffice.assurance.money import HandOvers, RunLengths
from suffice.episode.rounds import RoundsRun
from suffice.errors import ConfigError
from suffice.gateway.auth import KeyLimits, KeyRing
from suffice.gateway.deployment import Variants
from suffice.gateway.kill import KillSwitch
from suffice.gateway.load_control import Breaker, LoadControl
from suffice.gateway.objects import Objects
from suffice.gateway.route import BuiltRoute
from suffice.gateway.sampling import LogSampler
from suffice.policy.base import version_of
from suffice.review.route_guarantee import RouteGuarantee
from suffice.rollout import feedback_token
from suffice.rollout.assign import AuditAssignment, assign_audit, audit_share, conversation_key, joined
from suffice.scoring.base import scorer_label
from suffice.settings import Settings
from suffice.signals.folds.drafts import Embedder
from suffice.store.database.log import EventLog
from suffice.store.people.promises import read_other_arms
from suffice.telemetry import LOG, Metrics
from suffice.types import Outcome, Request
from suffice.upstream.client import UpstreamClient

KEY_WINDOW_S: Final = 600.0  # for which an idempotency key is remembered at least, whatever the settings say
MOST_DELIVERIES: Final = 500_000  # requests that are remembered; the oldest is forgotten first


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """Everything by which a delivery is recognised as a repeat of an earlier one.

    caller           value of the header `authorization`; "": none was sent
    conversation     id that the client gave; None: none
    idempotency_key  that the client gave; None: the body tells requests apart
    """

    route: str
    caller: str
    body: bytes
    conversation: str | None = None
    idempotency_key: str | None = None

    @property
    def digest(self) -> bytes:
        """16 bytes, equal for deliveries of one request only."""
        prefix = joined(self.route, self.caller, self.conversation or None, self.idempotency_key or None)
        body = b"" if self.idempotency_key else self.body
        # The prefix ends where its four parts end, so whatever follows it is the body.
        return hashlib.blake2b(prefix.encode("utf-8", "surrogatepass") + body, digest_size=16).digest()


@dataclass(slots=True)
class DeliveryMemory:
    """Remembers requests with their audit draws for as long as a delivery may repeat them.

    One draw speaks for all deliveries of a request. If a level could stop m of them, a bet on the draw would have to be
    divided by the largest m allowed. With 8, a harmless level would need 8 times the audits (456 become 3,634 at a
    budget of 1 point and 95 % confidence). So m is 1: from the second delivery on, a request runs in full and is no
    evidence.

    The draw of a first delivery is made for its key and its episode id. The gateway makes that id, so no client can
    choose or repeat a draw, and a process that has forgotten a request makes an independent draw for the next one.
    """

    _known: dict[bytes, tuple[float, AuditAssignment]] = field(default_factory=dict)  # the oldest first

    def assign(
        self, key: RequestKey, *, episode_id: str, share: float, salt: str, window_s: float, now_s: float
    ) -> AuditAssignment:
        """Draw for a first delivery; give a repeated delivery the draw of the first, and its own number.

        share     of audits, for a first delivery, in [0, 1]
        window_s  after the first delivery within which the same body is a repeat; 0: only an idempotency key makes one
        now_s     monotonic

        Raises ValueError for a share outside [0, 1].
        """
        own_window_s = max(window_s, KEY_WINDOW_S) if key.idempotency_key else window_s
        self._forget(now_s - max(window_s, KEY_WINDOW_S))
        digest = key.digest
        first_s, first = self._known.get(digest, (now_s, None))
        if first is not None and own_window_s > 0 and now_s - first_s <= own_window_s:
            repeated = replace(first, delivery=first.delivery + 1)
            self._known[digest] = first_s, repeated
            return repeated
        assigned = assign_audit(joined(digest.hex(), episode_id), share=share, salt=salt)
        if own_window_s > 0:
            self._known.pop(digest, None)  # entries stand in the order of first deliveries
            self._known[digest] = now_s, assigned
        return assigned

    def _forget(self, before_s: float) -> None:
        """Drop requests whose first delivery is too old, and the oldest where there are too many."""
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest][0] >= before_s and len(self._known) < MOST_DELIVERIES:
                return
            del self._known[oldest]


@contextmanager
def run_periodically(look: Callable[[], None], metrics: Metrics, *, site: str, every_s: float) -> Iterator[None]:
    """A block in which something is looked at every `every_s` seconds, in the running event loop.

    A look that fails leaves all as it is. Looks fall on one grid of the loop's clock, so a process at rest wakes up
    once for all of them: to wake up costs it more than what it then does.

    site  under which a look that fails is counted
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look_again() -> None:
        nonlocal timer
        timer = loop.call_later(_until_next_s(loop.time(), every_s), look_again)
        try:
            look()
        except Exception as error:  # noqa: BLE001 - everything stays where it is
            LOG.error("%s: a look failed (%s)", site, type(error).__name__)
            metrics.inc("suffice_failopen_total", site)

    timer = loop.call_later(_until_next_s(loop.time(), every_s), look_again)
    try:
        yield
    finally:
        timer.cancel()


def _until_next_s(now_s: float, every_s: float) -> float:
    """Seconds to the next multiple of `every_s`; a timer that came a little early is not set for the same one again."""
    left_s = every_s - now_s % every_s
    return left_s if left_s > every_s / 10 else left_s + every_s


CHECK_RUNS = 100  # full runs after which a route is asked again whether its answers can be read
OPEN_RUNS = 10_000  # loops that clients drive, at once; the one that was idle longest makes room
IDLE_RUN_S = 1_800.0  # a loop that tells nothing for so long has been left
SPOKEN_ENTRIES = 50_000  # answers whose pieces of feedback with a token are counted


Named = tuple[str | None, str | None]  # a request: by its episode id, or by its response id


def runs_in_full(request: Request) -> bool:
    """Is this a run that no policy could stop? Those that it merely did not stop are the hard ones."""
    return request.ungoverned is None and (request.mode != "enforce" or request.audit or request.delivery > 1)


def may_stop(request: Request, route: BuiltRoute) -> bool:
    """May a policy act on this run? Not in an audit, and not in a repeated delivery of a request."""
    return request.ungoverned is None and route.acts and not request.audit and request.delivery == 1


def is_measured(request: Request) -> bool:
    """Is this run an audit that enters the evidence? Only such a run is worth calls for the record alone."""
    return request.audit and request.delivery == 1


class OpenRuns:
    """Runs whose loop a client drives, by episode id; the one that was touched last stands last.

    A run that has ended stays for as long, so that a repeated call gets its answer again.
    """

    def __init__(self, *, limit: int = OPEN_RUNS, idle_s: float = IDLE_RUN_S) -> None:
        self._limit, self._idle_s = limit, idle_s
        self._runs: dict[str, tuple[RoundsRun, float]] = {}
        self._opened: dict[str, str] = {}  # idempotency key of the opening call → episode
        self._key_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def put(self, run: RoundsRun, *, key: str | None, now_s: float) -> None:
        self._runs[run.id] = (run, now_s)
        if key is not None:
            self._opened[key], self._key_of[run.id] = run.id, key

    def get(self, episode_id: str, *, sender: str, now_s: float) -> RoundsRun | None:
        """A run of `sender` that is still kept; it counts as touched."""
        entry = self._runs.get(episode_id)
        if entry is None or entry[0].ledger.request.sender != sender:
            return None
        del self._runs[episode_id]
        self._runs[episode_id] = (entry[0], now_s)
        return entry[0]

    def opened_by(self, key: str) -> str | None:
        return self._opened.get(key)

    def pop_old(self, *, now_s: float) -> Iterator[RoundsRun]:
        """Let go of what nobody touched for too long, and of the oldest beyond the limit."""
        while self._runs:
            oldest, (run, touched_s) = next(iter(self._runs.items()))
            if now_s - touched_s <= self._idle_s and len(self._runs) <= self._limit:
                return
            self._drop(oldest)
            yield run

    def pop_all(self) -> Iterator[RoundsRun]:
        while self._runs:
            oldest, (run, _) = next(iter(self._runs.items()))
            self._drop(oldest)
            yield run

    def _drop(self, episode_id: str) -> None:
        del self._runs[episode_id]
        key = self._key_of.pop(episode_id, None)
        if key is not None:
            self._opened.pop(key, None)


class FeedbackByToken:
    """How many pieces of feedback were written down with the token of each answer; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._n: dict[str, int] = {}

    def of(self, episode_id: str) -> int:
        return self._n.get(episode_id, 0)

    def note(self, episode_id: str) -> None:
        self._n[episode_id] = self._n.pop(episode_id, 0) + 1
        if len(self._n) > SPOKEN_ENTRIES:
            del self._n[next(iter(self._n))]


@dataclass(slots=True, kw_only=True)
class GatewayState:
    settings: Settings
    routes: tuple[BuiltRoute, ...]
    upstreams: Mapping[str, UpstreamClient]
    embedders: Mapping[str, Embedder] = field(default_factory=dict)  # by route; `wiring` or the library opens them
    log: EventLog
    metrics: Metrics
    keys: KeyRing = field(default_factory=KeyRing)  # accepted from clients; none: open
    salt: str  # of the lottery and of question keys; secret, stable
    new_id: Callable[[], str]
    wall_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    deliveries: DeliveryMemory = field(default_factory=DeliveryMemory)
    n_requests: dict[str, int] = field(default_factory=dict)  # by route, the log's history included
    full_runs: dict[str, RunLengths] = field(default_factory=dict)
    hand_overs: dict[str, HandOvers] = field(default_factory=dict)
    extracted: dict[str, deque[bool]] = field(default_factory=dict)  # by route: could full runs be read?
    n_since_check: dict[str, int] = field(default_factory=dict)  # by route: full runs since then
    objects: Objects = field(default_factory=Objects)  # that upstreams keep, and who made them
    # Whose the answers are that feedback names, as the log knows it; called in a thread, raises StoreError.
    senders_of: Callable[[Sequence[Named]], list[frozenset[str]]] = lambda named: [frozenset()] * len(named)
    breakers: dict[str, Breaker] = field(default_factory=dict)  # by route
    operating: LoadControl = field(default_factory=LoadControl)  # where routes operate inside what is certified
    kill: KillSwitch = field(default_factory=KillSwitch)  # takes enforcement away from every route
    runs: OpenRuns = field(default_factory=OpenRuns)  # loops that callers drive through /v1/decide
    words: FeedbackByToken = field(default_factory=FeedbackByToken)
    langfuse_secret: str | None = None  # that signs what Langfuse sends; None: nothing is signed
    refresh: Callable[[], None] = lambda: None  # sees what was decided, where no timer does
    told: Callable[[], None] = lambda: None  # something was decided just now: look at once
    without_log: str | None = None  # why the log cannot be used, as it could not be opened; None: it can
    serves: Literal["", "last good", "full"] = ""  # while the log cannot be read: by what; "": it can
    watches_runs: bool = False  # a look for loops that were left is due
    ready: bool = False
    draining: bool = False  # shutdown has begun: connections are closed behind their answer
    n_live: int = 0  # handlers that have not ended, whatever the path
    variants: Variants = field(init=False)  # arms of experiments, and candidates of rollouts
    sampling: LogSampler = field(init=False)  # which requests have rows in the log
    classes: dict[str, Mapping[str, int]] = field(default_factory=dict)  # audits by class, by route, as last seen
    _promised: dict[str, str] = field(default_factory=dict)  # by route: the state that /metrics has now
    limits: KeyLimits = field(init=False)  # of keys

    def __post_init__(self) -> None:
        """Nothing runs on any route until the log has been read."""
        self.variants = Variants(salt=self.salt, metrics=self.metrics)
        self.sampling = LogSampler(settings=self.settings, salt=self.salt)
        self.limits = KeyLimits(self.keys.callers)

    def conversation(self, sender: str, conversation: str | None) -> str:
        """A name for a client's conversation in the log; "" where the client named none."""
        return conversation_key(sender, conversation, salt=self.salt) if conversation else ""

    def assign(self, route: BuiltRoute, key: RequestKey, episode_id: str) -> AuditAssignment:
        """Draw whether a request is an audit, or find the draw of the delivery that this one repeats."""
        assigned = self.deliveries.assign(
            key,
            episode_id=episode_id,
            share=self.share(route),
            salt=self.salt,
            window_s=self.settings.server.retry_window_s,
            now_s=self.monotonic_s(),
        )
        if assigned.audit and assigned.delivery == 1:
            self.metrics.inc("suffice_audits_total", route.name)
        return assigned

    def share(self, route: BuiltRoute) -> float:
        """The audit share in force for a route's next request."""
        made = route.in_force.publication
        if route.settings.mode == "enforce" and not route.risks and route.settings.is_replayed:
            # Where all run in full anyway and no probe is paid for, every run may as well be evidence.
            free = not route.certified and route.settings.probe is None and route.settings.audit_share is None
            if route.in_burst or free:
                return 1.0
            if made is not None:
                return max(made.share, self.variants.audit_share(route.name))
        usual = audit_share(self.n_requests.get(route.name, 0), route.settings.audit_share)
        return max(usual, self.variants.audit_share(route.name))

    def put_in_force(self, name: str, route: BuiltRoute) -> None:
        """Give a route's requests to come what was decided; those that run now keep what they have."""
        now = next(one for one in self.routes if one.name == name)
        made, operation = replace(route, refused=now.refused), self.operating.of(name, route.settings)
        if made.certified:
            operation.certified = made.in_force.level
            operation.resume()
        else:
            if now.certified and made.settings.mode == "enforce":
                now_s = self.monotonic_s()  # told before the certificate goes
                operation.fall_back(now_s, even_loads(operation.load.ratio(now_s), operation.level))
            if operation.fallback is not None and now.folds and made.settings.on_fallback == "availability_first":
                # A safer level may act, and says so: until something is certified again, whatever else is decided.
                made = replace(made, folds=now.folds, needs=now.needs, policy_version=now.policy_version)
            operation.certified = 0
        self.routes = tuple(made if one.name == name else one for one in self.routes)
        proved = operation.certified if made.floor is None else min(operation.certified, made.floor)
        self.metrics.set("suffice_certified_level", proved, name)
        if now.certified != made.certified:
            state = "certified" if made.floor is None else "budgeted: its drop is kept on average, without a confidence"
            LOG.warning("routes.%s: %s", name, state if made.certified else "runs in full, nothing is certified")

    def note_upstream(self, request: Request, outcome: Outcome) -> None:
        """Suspend a route at once where another model answers than its evidence knows, until the loop has decided."""
        route = next((one for one in self.routes if one.name == request.route), None)
        if route is None or not route.certified or request.policy_version.partition("@")[0] != route.policy_version:
            return  # a request from before the publication says nothing about it
        named = outcome.model if request.kind != "rounds" else request.model or None
        if route.answers_as_known(request.model, named, outcome.system_fingerprint):
            return
        LOG.warning("routes.%s: the upstream answers as another model than the evidence knows", route.name)
        version = version_of(route.policy)
        resting = replace(route, certified=False, folds=(), arm="", in_burst=True, policy_version=version)
        self.put_in_force(route.name, resting)

    def look_at_load(self) -> None:
        self.operating.look(self.upstreams, self.routes, self.metrics, now_s=self.monotonic_s())

    def guarantee(self, route: BuiltRoute) -> RouteGuarantee:
        return self._guarantee(route)()

    def promise_to(self, route: BuiltRoute | None) -> Callable[[], str]:
        """The sentence for a reply, made only where a reply has one; of this moment, whatever is decided later."""
        if route is None:
            return str
        promised = self._guarantee(route)
        return lambda: promised().sentence

    def _guarantee(self, route: BuiltRoute) -> Callable[[], RouteGuarantee]:
        killed, unread, classes = self.kill.on, self.serves == "full", self.classes.get(route.name)
        experiments, trials = self.variants.experiments, self.variants.trials
        return lambda: route.guarantee(
            killed=killed,
            unread=unread,
            classes=classes,
            beside=read_other_arms(experiments, trials).get(route.name, ()),
        )

    def export_promises(self) -> None:
        for route in self.routes:
            state, before = self.guarantee(route).state, self._promised.get(route.name)
            if before is not None and before != state:
                self.metrics.set("suffice_promise_state", 0, route.name, before)
            self.metrics.set("suffice_promise_state", 1, route.name, state)
            self._promised[route.name] = state

    def export_load(self) -> None:
        try:
            self.operating.export(self.metrics, now_s=self.monotonic_s())
        except Exception:  # noqa: BLE001 - a gauge is no answer
            self.metrics.inc("suffice_failopen_total", "load")

    def look_at_kill(self) -> None:
        self.kill.look()
        self.metrics.set("suffice_kill_switch", float(self.kill.on))

    def note_full_run(self, request: Request, outcome: Outcome) -> None:
        """Take the end of a full run in; now and then, see whether its route may still be enforced."""
        if outcome.end_reason not in ("done", "truncated"):
            return
        self.extracted.setdefault(request.route, deque(maxlen=WINDOW_RUNS)).append(outcome.answer is not None)
        self.n_since_check[request.route] = self.n_since_check.get(request.route, 0) + 1
        if self.n_since_check[request.route] >= CHECK_RUNS:
            self.n_since_check[request.route] = 0
            self.routes = tuple(self._checked(r) if r.name == request.route else r for r in self.routes)

    def _checked(self, route: BuiltRoute) -> BuiltRoute:
        """The route as its latest full runs allow it. A request that runs now keeps the route it has."""
        refused = extractability_refusal(tuple(self.extracted[route.name]), scorer_label(route.settings.scorer))
        if route.settings.mode == "enforce" and (refused is None) != (route.refused is None):
            LOG.warning("routes.%s: %s", route.name, f"behaves as observe: {refused}" if refused else "acts again")
        return replace(route, refused=refused)

    def learn(self, request: Request, outcome: Outcome) -> None:
        """Keep what later requests of the route are judged by: lengths of full runs, prices of hand-overs."""
        if runs_in_full(request) and outcome.end_reason == "done" and outcome.usage is not None:
            usage = outcome.usage
            if request.kind == "rounds":  # no answer is written behind the rounds: all of it can be saved
                usage = replace(usage, reasoning_tokens=usage.completion_tokens)
            self.full_runs.setdefault(request.route, RunLengths()).add(usage)
        if request.ungoverned is not None or request.kind != "reasoning":
            return
        seen = self.hand_overs.setdefault(request.route, HandOvers())
        for call in outcome.calls:
            if call.purpose in ("probe", "continuation") and call.source == "provider" and call.prompt_tokens:
                seen.add_resent(call.prompt_tokens, call.cached_tokens)
            elif call.purpose == "main" and call.cancelled and outcome.stopped and outcome.stop_step is not None:
                used = sum(step.tokens for step in outcome.steps if step.index <= outcome.stop_step)
                seen.add_overlap(max(0, call.completion_tokens - used))

    def feedback_token(self, episode_id: str) -> str:
        """What lets the holder of an answer rate it; "": none is given out."""
        hours = self.settings.feedback.token_hours
        if not hours:
            return ""
        return feedback_token.sign(episode_id, until_s=int(self.wall_s() + 3600 * hours), salt=self.salt)

    def fallback_upstream(self) -> str:
        """Where a request goes that no route claims: the only upstream, or the first one."""
        if not self.upstreams:
            raise ConfigError("upstreams: none is configured")
        return next(iter(self.upstreams))
