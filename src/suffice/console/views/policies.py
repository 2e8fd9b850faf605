"""The pages of policies, rollouts and experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from suffice.console.context import UnknownNameError, ViewContext, ViewRecord
from suffice.console.views.route_state import snapshots_of
from suffice.console.views.version_names import name_policy, name_publication, name_version
from suffice.report.snapshot import RouteSnapshot
from suffice.rollout.evidence import GuardrailValue
from suffice.rollout.results import ArmComparison, ExperimentResult, metric_of, summarize_arm
from suffice.rollout.stages import State
from suffice.settings import Experiment, Route
from suffice.store.database.views import newest_event
from suffice.store.routes.deployments import decisions_of
from suffice.store.routes.experiments import ExperimentRun, read_experiments
from suffice.store.routes.rollouts import (
    RolloutRun,
    own_version,
    read_rollouts,
    read_running_rollouts,
    read_serving_version,
)
from suffice.store.rows.events import ProposedVersion
from suffice.types import Publication

MOST_PUBLICATIONS: Final = 20  # of a route
MOST_DECISIONS: Final = 200
MOST_PAST: Final = 10  # rollouts of a route that have ended


class PublicationRow(ViewRecord, frozen=True):
    at_s: float
    name: str  # of its version, without its level; "": nothing was learned
    publication: Publication
    active: bool


class RoutePolicy(ViewRecord, frozen=True):
    route: str
    mode: str
    owned: str  # name of the fixed policy; "": the control loop decides
    activated: str  # address of the policy that a rollout activated; "": none
    level: int  # active
    capped: int | None  # the highest level that an override or a forecast allows; None: no cap
    served_level: int
    cap_reason: str  # why no higher level is served; "": nothing caps it
    paused: str  # reason; "": not paused
    rollout: RolloutRun | None  # running; None: none is
    past: tuple[RolloutRun, ...]  # ended, the latest first
    published: tuple[PublicationRow, ...]  # the latest first
    proposal: ProposedVersion | None  # the newest proposal of a refit, not active by itself
    names: Mapping[str, str]  # of the versions in its rollouts and its proposal, by address


class PoliciesView(ViewRecord, frozen=True):
    routes: tuple[RoutePolicy, ...]


def policies(view: ViewContext) -> PoliciesView:
    rollouts = read_rollouts(view.connection)
    names = [name for name, route in view.settings.routes.items() if route.mode != "off"]
    return PoliciesView(routes=tuple(policy_of(view, one, rollouts) for one in snapshots_of(view, names)))


def policy_of(view: ViewContext, one: RouteSnapshot, rollouts: tuple[RolloutRun, ...]) -> RoutePolicy:
    name, route, held = one.name, one.settings or Route(upstream="", mode="off"), one.deployment
    now, own = held.publication, own_version(route).address if route.policy else ""
    serving = read_serving_version(rollouts, name, own) if route.policy else ""
    published = [
        PublicationRow(
            at_s=stored.at_s,
            name=name_publication(view.connection, stored.event),
            publication=stored.event,
            active=now is not None and stored.event.number == now.number,
        )
        for stored in decisions_of(view.connection, name, MOST_DECISIONS)
        if isinstance(stored.event, Publication)
    ]
    running = read_running_rollouts(rollouts).get(name)
    past = tuple(run for run in reversed(rollouts) if run.state.route == name and run.state.over)[:MOST_PAST]
    states = [run.state for run in (*past, *((running,) if running else ()))]
    proposal = newest_event(view.connection, ProposedVersion, route=name)
    return RoutePolicy(
        route=name,
        mode=route.mode,
        owned=str(route.policy.get("policy", "")),
        activated="" if serving == own else serving,
        level=held.level,
        capped=one.cap,
        served_level=one.served_level,
        cap_reason=one.cap_reason,
        paused=held.pause.reason if held.pause is not None else "",
        rollout=running,
        past=past,
        published=tuple(published[:MOST_PUBLICATIONS]),
        proposal=proposal,
        names=_names(view, states, proposal) | ({own: name_policy(route.policy)} if own else {}),
    )


def _names(view: ViewContext, states: Iterable[State], proposal: ProposedVersion | None) -> dict[str, str]:
    versions = (
        {} if proposal is None else {proposal.address: proposal.address, proposal.parent or "": proposal.parent or ""}
    )
    for state in states:
        versions[state.active] = state.active
        learned = f"{state.fit}@{state.level}" if state.level else state.fit
        versions[state.candidate] = learned or state.candidate
    return {address: name_version(view.connection, one) for address, one in versions.items()}


class RolloutAssessment(ViewRecord, frozen=True):
    word: str  # "goes back", "broken", "not enough data" or "ready"
    why: str  # why it goes back, or why no comparison is possible; "": neither
    missing: tuple[str, ...]  # what the next step still needs, each a sentence
    readings: tuple[GuardrailValue, ...]  # of the guardrails


def view_assessment(view: ViewContext) -> RolloutAssessment:
    """Raises ConfigError, beside what every view raises."""
    name = view.query.get("route", "")
    run = read_running_rollouts(read_rollouts(view.connection)).get(name)
    if run is None or name not in view.settings.routes:
        raise UnknownNameError(f"rollout: none runs on {name[:80]!r}")
    state = view.services.assess(name, run)
    return RolloutAssessment(
        word=state.word, why=state.ends or state.broken, missing=state.missing, readings=state.readings
    )


class ExperimentRow(ViewRecord, frozen=True):
    name: str
    state: str  # "runs", "ended", "not started"
    routes: tuple[str, ...]
    odds: Mapping[str, float]  # of each arm
    primary: str
    control: str
    layer: str
    share: float  # of the layer's units
    run: int  # 0: never started
    started_at_s: float | None
    author: str
    reason: str
    ended: str  # why and by whom; "": it is running, or never started
    summary: tuple[str, ...]  # its result when it ended


class Experiments(ViewRecord, frozen=True):
    lines: tuple[ExperimentRow, ...]


class IntervalPlot(ViewRecord, frozen=True):
    """Places on an axis of 0 to 1,000; 500 is no difference."""

    low: float
    high: float
    value: float
    loss_from: float  # differences that are a loss of no more than the margin; equal: no margin is set
    loss_to: float
    is_primary: bool


def plot_interval(one: ArmComparison, *, is_primary: bool) -> IntervalPlot | None:
    """Draw an interval around no difference, with the zone of accepted losses; None: there is no interval."""
    if one.between is None or one.effect is None:
        return None
    margin = one.margin or 0.0
    most = 1.15 * max(abs(one.between.low), abs(one.between.high), margin, 1e-12)

    def place(value: float) -> float:
        return round(500 + 500 * value / most, 1)

    loss = -margin if metric_of(one.metric).higher_is_better else margin
    return IntervalPlot(
        low=place(one.between.low),
        high=place(one.between.high),
        value=place(one.effect),
        loss_from=place(min(0.0, loss)),
        loss_to=place(max(0.0, loss)),
        is_primary=is_primary,
    )


class ExperimentView(ViewRecord, frozen=True):
    result: ExperimentResult
    reading: Mapping[str, tuple[str, ...]]  # by arm, in sentences
    units: Mapping[str, str]  # by metric: its unit
    plots: Mapping[str, IntervalPlot]  # by "arm metric": its interval with the margin; those with one


def experiments(view: ViewContext) -> Experiments:
    latest = {one.experiment.name: one for one in read_experiments(view.connection)}
    lines = [_started(one) for one in latest.values()]
    lines += [_not_started(name, one) for name, one in view.settings.experiments.items() if name not in latest]
    order = {"runs": 0, "not started": 1, "ended": 2}
    return Experiments(lines=tuple(sorted(lines, key=lambda one: (order[one.state], one.name))))


def _design(experiment: object) -> dict[str, Any]:
    return {name: getattr(experiment, name) for name in ("routes", "primary", "control", "layer", "share")}


def _not_started(name: str, written: Experiment) -> ExperimentRow:
    weights = {arm: table.weight for arm, table in written.arms.items()}
    return ExperimentRow(
        **_design(written),
        name=name,
        state="not started",
        odds={arm: weight / sum(weights.values()) for arm, weight in weights.items()},
        run=0,
        started_at_s=None,
        author="",
        reason="",
        ended="",
        summary=(),
    )


def _started(one: ExperimentRun) -> ExperimentRow:
    experiment, ended = one.experiment, one.ended
    return ExperimentRow(
        **_design(experiment),
        name=experiment.name,
        state="runs" if one.runs else "ended",
        odds=experiment.odds(),
        run=experiment.run,
        started_at_s=one.started_at_s,
        author=one.author,
        reason=one.reason,
        ended="" if ended is None else f"{ended.author}: {ended.reason}",
        summary=() if ended is None else ended.summary,
    )


def view_experiment(view: ViewContext) -> ExperimentView:
    name = view.query.get("name", "")
    runs = [one for one in read_experiments(view.connection) if one.experiment.name == name]
    if not runs:
        raise UnknownNameError(f"experiment: no run of {name[:80]!r} was ever started")
    result = view.services.analyse(runs[-1])
    metrics = {comparison.metric for arm in result.arms for comparison in arm.comparisons}
    return ExperimentView(
        result=result,
        reading={arm.arm: summarize_arm(result, arm) for arm in result.arms},
        plots={
            f"{arm.arm} {one.metric}": plot
            for arm in result.arms
            for one in arm.comparisons
            if (plot := plot_interval(one, is_primary=one.metric == result.primary)) is not None
        },
        units={metric: metric_of(metric).margin for metric in sorted(metrics)},
    )
