"""The state of a route's loop within one epoch, and the interface of its evidence sources."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import inf
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from suffice.agent.mixture import Mixture
from suffice.agent.plan import AgentPlan
from suffice.assurance.certify import WarmStart, Windows, read_windows
from suffice.assurance.forecast import ForecastAction
from suffice.assurance.runs import DEATH_ENDS, Match
from suffice.certification.certifier import SIGNALS_DRIFTED, Certifier
from suffice.certification.evidence import RunDurations
from suffice.certification.plan import Plan
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.cold_start import live_plan
from suffice.control.evidence.run_join import (
    GatewayDeaths,
    LabelDelay,
    LabelJoin,
    RepeatedDeliveries,
    StartOrder,
    UnreturnedAudits,
)
from suffice.control.evidence.versions import LiveLearner
from suffice.control.loop.live_agent import LiveAgent
from suffice.control.loop.safety_checks import SampleRatioTest, Traffic, Upstreams
from suffice.errors import SufficeError, problem_of
from suffice.learn.audits import AuditRuns
from suffice.learn.features import FeatureSelection
from suffice.learn.version import FoldedModels, Learner, ServedVersion
from suffice.settings import Control, Route
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import Event, RolloutMove, RolloutStart, RolloutUndo
from suffice.types import (
    Alarm,
    AlarmCause,
    Episode,
    Epoch,
    Feedback,
    LabelRequest,
    Outcome,
    Pause,
    Publication,
    Request,
)

MOST_MATCHES: Final = 20_000  # verdicts of a route's scorer that are remembered


LookPart: TypeAlias = Literal["agent", "label requests"]  # that nothing else of a look depends on
T = TypeVar("T")


class ReplayMismatch(SufficeError):
    """Replaying the log does not reproduce a decision that it holds; a new epoch has to begin."""


@dataclass(frozen=True, slots=True)
class Resolution:
    events: tuple[Event, ...]
    artefacts: Mapping[str, str] = field(default_factory=dict)  # by address

    @property
    def summary(self) -> str:
        n_wanted = sum(isinstance(event, LabelRequest) for event in self.events)
        sentences = [sentence for event in self.events if (sentence := _sentence(event))]
        return "; ".join([*sentences, *([f"{n_wanted} labels wanted"] if n_wanted else [])])


def _sentence(event: Event) -> str:
    if isinstance(event, Publication):
        return f"level {event.level} published ({event.reason})"
    if isinstance(event, Epoch):
        return f"epoch {event.number} begins ({event.reason})"
    if isinstance(event, Alarm) and event.level:
        return f"alarm ({event.reason})"
    return f"enforcement paused ({event.reason})" if isinstance(event, Pause) else ""


@dataclass(frozen=True, kw_only=True)
class RouteContext:
    name: str
    route: Route
    control: Control
    match: Match
    load: Callable[[str], ServedVersion]
    author: str

    @cached_property
    def cached_match(self) -> Match:
        """The same, for a source that compares the same answers at each look."""
        return lru_cache(MOST_MATCHES)(self.match)


class EpochState:
    """The evidence since the epoch began, whatever its source.

    expected  publications of the epoch that the log holds and the fold has not reached yet, oldest first
    audits    those that have returned: first those that the certifier has, in its order
    failing   parts of a look that raise, by name, with the problem: they produce nothing, and hold up nothing else
    """

    def __init__(
        self,
        context: RouteContext,
        epoch: Epoch,
        traffic: Traffic,
        *,
        kept: Sequence[Audit] = (),
        expected: Iterable[Publication] = (),
    ) -> None:
        """Begin an epoch; of earlier audits only `kept` count, as if they had just returned."""
        self.context = context
        self.epoch = epoch
        self.traffic = traffic
        self.n = epoch.at
        self.expected = deque(expected)
        self.required_wealth = epoch.required_wealth
        self.durations = RunDurations()
        self.died = set[float]()  # starts of audits that ended with their gateway
        self.singled = set[float]()  # starts of audits that were drawn for what their caller lost before
        self.looked_s: tuple[float, float] | None = None  # Unix times of the first and the latest look; None: no look
        self.starts = StartOrder()
        self.unreturned = UnreturnedAudits()
        self.labels = LabelJoin()
        self.deliveries, self.deaths = RepeatedDeliveries(), GatewayDeaths()
        self.plan: AgentPlan | None = None  # the agent's latest in the log; None: none in this epoch
        self.ceilings: Mapping[str, int] = {}  # of query classes by overrides, at the latest look
        self.delay = LabelDelay(context.route.label_timeout_s)
        self.audits = [audit.kept(at, epoch.at) for audit, at in zip(kept, epoch.kept_at, strict=True)]
        self.index_audits()
        self.failing = dict[LookPart, str]()
        traffic.upstreams = Upstreams()
        traffic.sample_ratio = SampleRatioTest()
        traffic.callers = set()
        for audit in self.audits:
            traffic.upstreams.note(audit.episode.request, audit.outcome, gathers=True)
            self.labels.ended(audit.outcome)

    @property
    def delta(self) -> float:
        """What this epoch's certificates may risk, see `assurance.certify.restart_share` and the fleet there."""
        return min(1 - self.epoch.confidence, 1 / self.required_wealth) * self.epoch.delta_share

    def attempt(self, part: LookPart, work: Callable[[], T]) -> T | None:
        """Do a part of a look that the rest does not need; None if it fails. Raises ReplayMismatch."""
        try:
            result = work()
        except ReplayMismatch:
            raise
        except Exception as error:  # noqa: BLE001 - what the certifier decided is published all the same
            self.failing[part] = problem_of(error)
            return None
        self.failing.pop(part, None)
        return result

    def note_end(self, outcome: Outcome, number: int, plan: Plan, windows: Windows) -> None:
        """Note the end of audit `number`. If it died with its gateway, claims are about others."""
        if outcome.end_reason not in DEATH_ENDS:
            self.durations.add([self.n + 1.0 - number])
            return
        longest = plan.window / plan.share if plan.share else inf  # that a window is used, see `restart_share`
        gap = self.deaths.note(number, now=self.n, every=longest)
        if gap is not None:
            windows.cut(*gap)
            self.died.add(float(number))

    def index_audits(self) -> None:
        self.places = {audit.id: place for place, audit in enumerate(self.audits)}

    def publication(self, held: RouteDeployment, **decided: Any) -> Publication:
        """Build a publication that follows the active one; `decided` are the fields set by the source of evidence."""
        return Publication(
            route=self.context.name,
            number=held.n_publications + 1,
            epoch=self.epoch.number,
            at=self.n,
            author=self.context.author,
            setup=self.traffic.setup,
            upstream=self.traffic.upstreams.plain(),
            **decided,
        )

    def alarm(self, cause: AlarmCause, reason: str, *, level: int = 0) -> Alarm:
        """Build an alarm that ends the epoch, or takes away the effort of a level and those after it."""
        context = self.context
        return Alarm(
            route=context.name,
            epoch=self.epoch.number,
            at=self.n,
            cause=cause,
            reason=reason,
            author=context.author,
            level=level,
        )

    def label_request(self, audit: Audit, *, level: int, would_answer: str | None, why: str) -> LabelRequest:
        timeout_s = self.delay.timeout_s
        # Without a time-out it counts as a loss from the start.
        deadline_s = audit.ended_at_s + timeout_s if timeout_s else None
        return audit.label_request(level=level, would_answer=would_answer, why=why, deadline_s=deadline_s)


def cause_of(alarm: str) -> AlarmCause:
    """Return what an alarm of a certifier was raised by."""
    if alarm == SIGNALS_DRIFTED:
        return "signals"
    return "disagreement" if "disagree" in alarm else "outcomes"


class EpochEnd(NamedTuple):
    """The evidence no longer describes the traffic; audits of the last `keep` requests still do."""

    cause: AlarmCause
    reason: str
    keep: int = 0


class Draft(NamedTuple):
    """A publication, which the log may hold already."""

    publication: Publication
    artefacts: Mapping[str, str] = {}  # by address
    alarm: Alarm | None = None  # that took an effort away


class EvidenceSource:
    def __init__(self, state: EpochState, *, starting: FoldedModels | None = None, **planned: Any) -> None:
        """Certify from the epoch's beginning; `planned` are fields of the plan that differ from the route's.

        starting  a version that is certified from the first audit on; None: there is none
        """
        self.state = state
        epoch = state.epoch
        context = state.context
        self.certifier = Certifier(
            replace(live_plan(context.route, context.control, epoch), **planned),
            LiveLearner(FeatureSelection((), ())),
            fit=self.fit,
            starting=starting,
            first=None,  # the log has the share of each audit
            earlier=read_windows(epoch.windows),
            began=float(epoch.at),
            again=epoch.number > 1,
        )
        self.level = 0  # active; 0 never stops
        self.agent: LiveAgent | None = None  # None: the owner has switched it off
        self.callers: tuple[tuple[str, int], ...] = ()  # in doubt, and how many of their next requests are audits
        self.mixture: Mixture = ()  # of classes at other levels, with which the level was tested at the last look …
        self.any_level = 0  # … and up to which any mixture passed

    def fit(self, runs: AuditRuns, learner: Learner, **options: Any) -> FoldedModels | None:  # noqa: ARG002
        """Fit a version on the certifier's audits; None: the version stays. Raises ReplayMismatch."""
        return None

    def ask_agent(self, work: Callable[[LiveAgent], T]) -> T | None:
        """Call the agent, if there is one. One that has failed may have missed something: it decides nothing more."""
        agent = self.agent
        if agent is None:
            return None
        result = self.state.attempt("agent", lambda: work(agent))
        if "agent" in self.state.failing:
            self.agent = None
        return result

    @property
    def in_doubt(self) -> bool:
        """Whether more audits are asked for."""
        return False

    @property
    def log_wealth(self) -> float:
        """Natural logarithm of the wealth of the safest level at the last look; -infinity: there is no evidence."""
        raise NotImplementedError

    @property
    def delta_part(self) -> float:
        """The part of delta that the active version may use in this epoch, (0, 1]."""
        return self.state.epoch.delta_share

    def covers_others(self, before: Publication | None) -> bool:
        """Whether mixtures, models or callers are other than in the publication, and the log does not leave it so."""
        covered = self.mixture, self.any_level, self.state.traffic.upstreams.plain(), self.callers
        if before is None or covered == (before.mixture, before.any_level, before.upstream, before.callers):
            return False
        return self.may_repeat

    @property
    def may_repeat(self) -> bool:
        """Whether a publication may repeat the level, version and share: in a replay, where the log has one."""
        expected = self.state.expected  # of a log that an earlier release wrote, too
        return not expected or expected[0].at == self.state.n

    def is_evidence(self, request: Request, outcome: Outcome) -> bool:
        """Whether the end of this run is evidence about the loss of the active level, or of the next one."""
        raise NotImplementedError

    def look(self, held: RouteDeployment) -> EpochEnd | Draft | None:
        """Weigh the evidence so far; None: nothing changes. Raises ReplayMismatch."""
        raise NotImplementedError

    def label_requests(self, requested: set[str]) -> list[LabelRequest]:
        """Useful label requests, each once; adds their episodes to `requested`."""
        raise NotImplementedError

    def note_end(self, episode: Episode, at: int) -> None:
        """Note that request `at` of the route has ended, audit or not."""

    def note_label(self, episode_id: str, given: Feedback) -> None:
        """Note a label of a run that has ended."""

    def note_forecast(self, action: ForecastAction) -> None:
        """Note what a forecast asks for in this epoch from now on."""

    def note_warm_start(self, start: WarmStart) -> None:
        """Note that a similar route's version is to be tested. Raises ReplayMismatch."""

    def note_rollout(self, event: RolloutStart | RolloutMove | RolloutUndo) -> None:
        """Note a step of a rollout on the route. Raises ReplayMismatch."""
