"""How a route serves what the control loop has published, what people hold on it, and the variants of it that run.

    InForce (log), version (artefact) ──▶ serving ──▶ BuiltRoute ──▶ for_prompt ──▶ one request's own

Pure. A publication is taken at its word only where it fits: made for this promise or a stricter one, on these settings,
in the epoch that is running. Whatever does not fit, or cannot be read, is level 0: everything runs in full. An override
ends when its time is over, whoever looks: no worker takes part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import msgspec

from suffice.errors import ConfigError
from suffice.gateway.route import BuiltRoute
from suffice.learn.groups import prompt_fold
from suffice.learn.version import FoldedVersion
from suffice.learn.version import FoldedVersion as Models
from suffice.policy.base import build_policy, version_of
from suffice.policy.learned import LearnedPolicy
from suffice.policy.protocol import Policy
from suffice.policy.rules import Never
from suffice.review import route_guarantee
from suffice.review.holds import NO_OVERRIDES, InEffect
from suffice.review.route_guarantee import effective_publication
from suffice.rollout.assign import keyed
from suffice.rollout.experiment import Arm, RunningExperiment, UnitIds, draw_arms, with_arm
from suffice.rollout.stages import State, place
from suffice.signals.observe import Observer
from suffice.store.routes.in_force import InForce
from suffice.store.routes.rollouts import own_version
from suffice.telemetry import LOG, Metrics
from suffice.types import ArmDraw, Pause, Publication


class LevelPolicies(Sequence[Policy]):
    """The policy of one fold at each level, built when it is first asked for: there are forty, and one is in use."""

    def __init__(self, version: FoldedVersion, fold: int, level: int) -> None:
        self._version, self._fold = version, fold
        self._built: dict[int, Policy] = {0: Never()}
        self._n = level + 1

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, at: int) -> Policy: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Policy]: ...
    def __getitem__(self, at: int | slice) -> Policy | Sequence[Policy]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(self._n))]
        if not 0 <= at < self._n:
            raise IndexError(f"level: got {at}; 0 to {self._n - 1}")
        if at not in self._built:
            # Whole before it is seen: another thread may be building it, too.
            self._built[at] = self._of(at)
        return self._built[at]

    def _of(self, level: int) -> Policy:
        return build_policy(
            {
                "policy": LearnedPolicy.name,
                "model": self._version.models[self._fold],
                "threshold": self._version.levels[self._fold][level - 1],
                "on_hopeless": "stop",
            }
        )

    def __iter__(self) -> Iterator[Policy]:
        return (self[at] for at in range(self._n))


def is_servable(route: BuiltRoute, made: Publication) -> bool:
    return route_guarantee.covers(route.settings, route.settings.max_em_drop, route.setup, made)


def rest_route(base: BuiltRoute, why: str) -> BuiltRoute:
    """The route without anything that could act, whatever its settings say: it behaves as observe."""
    return replace(base, holding=replace(NO_OVERRIDES, observe=why))


def deploy_route(base: BuiltRoute, held: InForce, version: FoldedVersion | None = None) -> BuiltRoute:
    """The route as it serves what is in force: certified levels, an arm, its owner's policy, or full runs.

    base     the route as its settings have it, without any publication
    version  of the publication in force; None: there is none, or it cannot be read

    Raises ConfigError for a version that cannot be served.
    """
    settings, made = base.settings, held.publication
    in_burst = held.epoch is not None and held.in_burst and not settings.is_paired
    waiting = replace(base, in_force=held, in_burst=in_burst)
    if made is None or not held.level or not is_servable(base, made):
        return waiting
    if settings.is_paired and made.arm in settings.arms:
        return replace(waiting, certified=True, arm=made.arm, policy_version=made.version)
    if settings.is_owned and made.version == own_version(settings).address:  # the very policy that was proved
        return replace(waiting, certified=True)
    if settings.is_paired or settings.is_owned or version is None:
        return waiting
    if version.address != made.fit or made.level >= version.n_levels:
        raise ConfigError(f"routes.{base.name}: version {made.fit} does not have what was published")
    folds = tuple(LevelPolicies(version, fold, made.level) for fold in range(len(version.models)))
    asked = tuple(dict.fromkeys(need for fold in folds for need in fold[made.level].needs))
    needs = (*(need for need in base.needs if need not in asked), *asked)
    Observer(needs, base.settings.kind)  # a signal that does not exist must fail here, not in a request
    floor = None if made.spending is None else made.spending.floor
    return replace(waiting, certified=True, folds=folds, policy_version=made.fit, needs=needs, floor=floor)


def apply_pin(held: InForce, holding: InEffect) -> InForce:
    """What is in force where a person has pinned an earlier publication."""
    if held.pause is not None or held.publication is None:
        return held
    made = effective_publication(held.publication, held.n_epochs, holding)
    return held if made is held.publication else replace(held, publication=made)


def apply_budget(base: BuiltRoute, holding: InEffect) -> BuiltRoute:
    """The route under the smaller of its own EM budget and the one that a person holds it to."""
    budget = holding.budget(base.settings.max_em_drop)
    if budget == base.settings.max_em_drop:
        return base
    return replace(base, settings=msgspec.structs.replace(base.settings, max_em_drop=budget))


def apply_pause(holding: InEffect, pause: Pause | None) -> InEffect:
    """What people hold on a route whose policy its owner wrote: a pause has no certificate there to take away."""
    if pause is None or holding.observe is not None:
        return holding
    return replace(holding, observe=f"paused by {pause.author}: {pause.reason}")


MOST_BUILT = 256  # variants that are kept; more than that: all are built anew


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTrial:
    """A rollout that runs on a route, with what its candidate is."""

    state: State
    policy: Mapping[str, object] = field(default_factory=dict)  # the candidate's table, as `build_policy` takes it
    models: Models | None = None  # in place of that: a learned candidate, which acts up to the level of `state`


@dataclass(slots=True, kw_only=True)
class Variants:
    """One gateway's experiments and rollouts. The follower writes them; requests read them.

    Arms are drawn by keyed hash of what the request belongs to, so that retries, replicas and restarts draw the same.
    A variant is built once and kept. One that cannot be built leaves the route as it is and draws nothing: what is not
    served must not be on record as served.

    salt  secret of the deployment
    """

    salt: str
    metrics: Metrics
    experiments: tuple[RunningExperiment, ...] = ()  # that run now
    trials: Mapping[str, RolloutTrial] = field(default_factory=dict)  # by route; at most one runs on each
    standing: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # policies that rollouts have brought
    _built: dict[tuple[str, str], BuiltRoute | None] = field(default_factory=dict)

    def place(
        self, route: BuiltRoute, units: Callable[[], UnitIds], question: str = ""
    ) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        """The route as a request gets it, and what it drew; the same object where nothing varies it.

        units     what the request belongs to; asked only where something runs
        question  `Request.question_key`: it is served by models that have not seen it
        """
        if not self.experiments and route.name not in self.trials and route.name not in self.standing:
            return route, ()
        try:
            return self._place(route, units(), question)
        except Exception as error:  # noqa: BLE001 - a broken experiment costs its own evidence, never an answer
            LOG.error("routes.%s: no arm could be drawn (%s)", route.name, type(error).__name__)
            self.metrics.inc("suffice_failopen_total", "arms")
            return route, ()

    def audit_share(self, route: str) -> float:
        """The share of requests to audit that a rollout of the route asks for; 0: none does."""
        trial = self.trials.get(route)
        return 0.0 if trial is None else trial.state.audit_share or 0.0

    def _place(self, route: BuiltRoute, units: UnitIds, question: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        served, drawn = self._tried(route, units, question)
        for one in draw_arms(self.experiments, route=route.name, units=units, salt=self.salt):
            arm = next(e for e in self.experiments if e.name == one.experiment).arm(one.arm)
            varied = self._with_arm(served, arm, f"{one.experiment}:{one.run}:{one.arm}")
            if varied is not None:
                served, drawn = varied, (*drawn, one)
        return served, drawn

    def _tried(self, route: BuiltRoute, units: UnitIds, question: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        """With the rollout of the route, if one runs."""
        standing, trial = self.standing.get(route.name), self.trials.get(route.name)
        if standing is not None:
            route = self._with_policy(route, standing, f"standing:{version_name(standing)}") or route
        if trial is None or (trial.state.fit and not _stands(route, trial.state)):
            return route, ()
        unit = units.conversation or units.request
        placed = place(trial.state, unit, salt=self.salt)
        if placed.arm is None:
            return route, ()
        if placed.arm == "candidate":
            varied = self._candidate(route, trial, question)
            if varied is None:
                return route, ()
            route = varied
        share = trial.state.share
        others = (("candidate", share), ("control", share), ("", 1 - 2 * share)) if share < 1 else ()
        return route, (
            ArmDraw(
                experiment=f"rollout {trial.state.rollout}",
                run=1,
                arm=placed.arm,
                propensity=placed.propensity,
                others=tuple(one for one in others if one[0] != placed.arm and one[1] > 0),
                unit=keyed(unit, salt=self.salt, purpose=b"experiment-unit", n_bytes=8).hex(),
            ),
        )

    def _candidate(self, route: BuiltRoute, trial: RolloutTrial, question: str) -> BuiltRoute | None:
        state = trial.state
        if trial.models is None:
            return self._with_policy(route, trial.policy, f"standing:{version_name(trial.policy)}")
        level = min(state.level, trial.models.n_levels - 1)
        # Its own certificate, and under that of the route: without either it lets every run come to its end.
        served = replace(route, levels=(), policy=Never(), certified=False, floor=None, risks=False)
        named = replace(served, policy_version=f"{state.fit}@{level}")
        if not level:
            return named
        fold = prompt_fold(question, len(trial.models.models))
        key = route.name, f"{state.fit}@{level}/{fold}"
        if key not in self._built:
            self._keep(key, self._build(route, trial.models.policy(question, level)))
        built = self._built[key]
        return None if built is None else replace(named, policy=built.policy, needs=built.needs, certified=True)

    def _keep(self, key: tuple[str, str], built: BuiltRoute | None) -> None:
        if len(self._built) >= MOST_BUILT:
            self._built.clear()
        self._built[key] = built

    def _with_arm(self, route: BuiltRoute, arm: Arm, name: str) -> BuiltRoute | None:
        settings = with_arm(route.settings, arm)
        if settings.policy != route.settings.policy:
            varied = self._with_policy(route, settings.policy, name)
            if varied is None:
                return None
            route = varied
        if arm.level is not None:
            route = replace(route, ceiling=arm.level if route.ceiling is None else min(route.ceiling, arm.level))
        # Evidence of an audit is of the run in full, whatever the arm: its setup stays the route's own.
        return replace(route, settings=settings) if settings is not route.settings else route

    def _with_policy(self, route: BuiltRoute, policy: Mapping[str, object], name: str) -> BuiltRoute | None:
        """The route with another policy, which nobody has certified; None: it cannot be built."""
        key = route.name, name
        if key not in self._built:
            self._keep(key, self._build(route, dict(policy)))
        built = self._built[key]
        if built is None:
            return None
        settings = msgspec.structs.replace(route.settings, policy=built.settings.policy)
        return replace(
            route,
            settings=settings,
            policy=built.policy,
            policy_version=built.policy_version,
            needs=built.needs,
            certified=False,
            folds=(),
            levels=(),
            risks=False,
        )

    def _build(self, route: BuiltRoute, policy: dict[str, object]) -> BuiltRoute | None:
        try:
            built = build_policy(policy)
            asked = {need.partition("(")[0] for need in built.needs}
            needs = (*(need for need in route.needs if need.partition("(")[0] not in asked), *built.needs)
            Observer(needs, route.settings.kind)  # a signal that does not exist must fail here, not in a request
        except Exception as error:  # noqa: BLE001 - a policy that crashes when it is loaded serves nobody
            LOG.error("routes.%s: a variant cannot be built (%s); nobody gets it", route.name, type(error).__name__)
            self.metrics.inc("suffice_failopen_total", "arms")
            return None
        settings = msgspec.structs.replace(route.settings, policy=policy)
        return replace(route, settings=settings, policy=built, policy_version=version_of(built), needs=needs)


def _stands(route: BuiltRoute, state: State) -> bool:
    """Is what a learned candidate is compared with in force for this request, with nothing that holds it back?"""
    made = route.in_force.publication
    if made is None or made.fit != state.in_force or not (route.certified and route.levels):
        return False
    return route.ceiling is None and route.holding == NO_OVERRIDES and route.promise == "certified"


def version_name(policy: Mapping[str, object]) -> str:
    return json.dumps(policy, sort_keys=True)
