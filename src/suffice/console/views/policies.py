"""The pages of policies, rollouts and experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from suffice.console.auth import Principal
from suffice.console.context import NotThere, ViewContext
from suffice.console.exchange import ConsoleRequest
from suffice.rollout.results import ExperimentResult, metric_of, summarize_arm
from suffice.rollout.stages import RolloutState
from suffice.settings import Route
from suffice.store.routes.experiments import ExperimentRun, read_experiments
from suffice.store.routes.in_force import InForce, decisions_of, read_decided
from suffice.store.routes.rollouts import (
    RolloutRun,
    own_version,
    read_rollouts,
    read_running_rollouts,
    read_serving_version,
)
from suffice.store.routes.windows import newest_arm, newest_proposal
from suffice.store.rows.records import ArmWorth, ProposedVersion
from suffice.types import Publication

MOST_PUBLICATIONS: Final = 20  # of a route
MOST_DECISIONS: Final = 200
MOST_PAST: Final = 10  # rollouts of a route that have ended
Evidence = Callable[
    [str, RolloutRun], RolloutState
]  # what the evidence says of a route's rollout now; it takes a while


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationRow:
    at_s: float
    publication: Publication
    in_force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    route: str
    mode: str
    owned: str  # the name of the policy that its owner wrote down; "": the control loop decides
    brought: str  # address of the policy that a rollout has put in its place; "": none has
    level: int  # in force
    paused: str  # why; "": it is not
    rollout: RolloutRun | None  # that runs; None: none does
    past: tuple[RolloutRun, ...]  # rollouts that have ended, the latest first
    published: tuple[PublicationRow, ...]  # the latest first
    proposal: ProposedVersion | None  # the newest version of a refit, in force nowhere by itself
    arm: ArmWorth | None  # the newest of the tuner, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class PoliciesView:
    routes: tuple[RoutePolicy, ...]


def policies(look: ViewContext, _asked: ConsoleRequest, _visitor: Principal) -> PoliciesView:
    """What is in force where. Raises StoreError."""
    decided, rollouts = read_decided(look.connection), read_rollouts(look.connection)
    return PoliciesView(
        routes=tuple(
            _of(look, name, route, decided.of(name), rollouts)
            for name, route in look.settings.routes.items()
            if route.mode != "off"
        )
    )


def _of(look: ViewContext, name: str, route: Route, held: InForce, rollouts: tuple[RolloutRun, ...]) -> RoutePolicy:
    now = held.publication
    published = [
        PublicationRow(
            at_s=stored.at_s,
            publication=stored.event,
            in_force=now is not None and stored.event.number == now.number,
        )
        for stored in decisions_of(look.connection, name, MOST_DECISIONS)
        if isinstance(stored.event, Publication)
    ]
    return RoutePolicy(
        route=name,
        mode=route.mode,
        owned=str(route.policy.get("policy", "")),
        brought=_brought(name, route, rollouts),
        level=held.level,
        paused=held.pause.reason if held.pause is not None else "",
        rollout=read_running_rollouts(rollouts).get(name),
        past=tuple(one for one in reversed(rollouts) if one.state.route == name and one.state.over)[:MOST_PAST],
        published=tuple(published[:MOST_PUBLICATIONS]),
        proposal=newest_proposal(look.connection, name),
        arm=newest_arm(look.connection, name),
    )


def _brought(name: str, route: Route, rollouts: tuple[RolloutRun, ...]) -> str:
    if not route.policy:
        return ""
    own = own_version(route).address
    now = read_serving_version(rollouts, name, own)
    return "" if now == own else now


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutAssessment:
    word: str  # "goes back", "broken", "not enough data" or "ready"
    why: str  # why it goes back, or why nothing can be compared; "": neither
    missing: tuple[str, ...]  # what is not there yet for the next step, each a sentence
    readings: tuple[str, ...]  # of the guard-rails, each a sentence


def view_assessment(evidence: Evidence) -> Callable[[ViewContext, ConsoleRequest, Principal], RolloutAssessment]:
    def view(look: ViewContext, asked: ConsoleRequest, _visitor: Principal) -> RolloutAssessment:
        name = asked.query.get("route", "")
        held = read_running_rollouts(read_rollouts(look.connection)).get(name)
        if held is None or name not in look.settings.routes:
            raise NotThere(f"rollout: none runs on {name[:80]!r}")
        seen = evidence(name, held)
        return RolloutAssessment(
            word=seen.word,
            why=seen.ends or seen.broken,
            missing=seen.missing,
            readings=tuple(one.sentence for one in seen.readings),
        )

    return view


Analyse = Callable[[ExperimentRun], ExperimentResult]  # what a run of an experiment shows now; it takes a while


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRow:
    name: str
    state: str  # "runs", "ended", "not started"
    routes: tuple[str, ...]
    odds: Mapping[str, float]  # of each arm
    primary: str
    control: str
    layer: str
    share: float  # of the layer's units
    run: int  # 0: it was never started
    started_at_s: float | None
    author: str
    reason: str
    ended: str  # why and by whom; "": it runs, or never did
    said: tuple[str, ...]  # what it showed when it was ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiments:
    lines: tuple[ExperimentRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentView:
    result: ExperimentResult
    reading: Mapping[str, tuple[str, ...]]  # by arm: in sentences
    units: Mapping[str, str]  # by metric: what its numbers are in


def experiments(look: ViewContext, _asked: ConsoleRequest, _visitor: Principal) -> Experiments:
    """All experiments of the settings and of the log. Raises StoreError."""
    latest = {one.experiment.name: one for one in read_experiments(look.connection)}
    lines = [_held(one) for one in latest.values()]
    lines += [
        ExperimentRow(
            name=name,
            state="not started",
            routes=written.routes,
            odds={
                arm: table.weight / sum(one.weight for one in written.arms.values())
                for arm, table in written.arms.items()
            },
            primary=written.primary,
            control=written.control,
            layer=written.layer,
            share=written.share,
            run=0,
            started_at_s=None,
            author="",
            reason="",
            ended="",
            said=(),
        )
        for name, written in look.settings.experiments.items()
        if name not in latest
    ]
    order = {"runs": 0, "not started": 1, "ended": 2}
    return Experiments(lines=tuple(sorted(lines, key=lambda one: (order[one.state], one.name))))


def _held(one: ExperimentRun) -> ExperimentRow:
    experiment, ended = one.experiment, one.ended
    return ExperimentRow(
        name=experiment.name,
        state="runs" if one.runs else "ended",
        routes=experiment.routes,
        odds=experiment.odds(),
        primary=experiment.primary,
        control=experiment.control,
        layer=experiment.layer,
        share=experiment.share,
        run=experiment.run,
        started_at_s=one.started_at_s,
        author=one.author,
        reason=one.reason,
        ended="" if ended is None else f"{ended.author}: {ended.reason}",
        said=() if ended is None else ended.said,
    )


def view_experiment(analyse: Analyse) -> Callable[[ViewContext, ConsoleRequest, Principal], ExperimentView]:
    def view(look: ViewContext, asked: ConsoleRequest, _visitor: Principal) -> ExperimentView:
        name = asked.query.get("name", "")
        mine = [one for one in read_experiments(look.connection) if one.experiment.name == name]
        if not mine:
            raise NotThere(f"experiment: no run of {name[:80]!r} was ever started")
        result = analyse(mine[-1])
        metrics = {comparison.metric for arm in result.arms for comparison in arm.comparisons}
        return ExperimentView(
            result=result,
            reading={arm.arm: summarize_arm(result, arm) for arm in result.arms},
            units={metric: metric_of(metric).margin for metric in sorted(metrics)},
        )

    return view
