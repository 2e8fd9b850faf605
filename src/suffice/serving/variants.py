"""Experiments and rollouts: what they serve a part of the requests in place of the route's own publication."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from suffice.agent.plan import AGENT, FULL, ClassPlan, with_settings
from suffice.policy.base import build_policy, version_of
from suffice.policy.folded_version import FoldedVersion, prompt_fold
from suffice.review.holds import NO_OVERRIDES
from suffice.rollout.assign import keyed
from suffice.rollout.experiment import Arm, RunningExperiment, Units, draw_arms, draw_by_odds, with_arm
from suffice.rollout.stages import State, place
from suffice.serving.route import NEVER, BuiltRoute, FixedPolicy, Levels
from suffice.signals.observe import Observer
from suffice.telemetry import LOG, Metrics
from suffice.types import ArmDraw

MOST_VARIANTS = 256  # built variants in memory; beyond that the cache is cleared


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTrial:
    state: State
    policy: Mapping[str, object] = field(default_factory=dict)  # the candidate's table for `build_policy`
    models: FoldedVersion | None = None  # or a learned candidate, up to the level of `state`


@dataclass(frozen=True, slots=True)
class RunningVariants:
    experiments: tuple[RunningExperiment, ...] = ()
    trials: Mapping[str, RolloutTrial] = field(default_factory=dict)  # by route, at most one each
    standing: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # of finished rollouts, by route


@dataclass(slots=True, kw_only=True)
class Variants:
    """One gateway's experiments and rollouts. A variant that cannot be built draws no arm, so none is logged.

    Arms are drawn by keyed hash: retries, replicas and restarts draw the same.
    """

    salt: str
    metrics: Metrics
    running: RunningVariants = field(default_factory=RunningVariants)
    _built: dict[tuple[str, str], FixedPolicy | None] = field(default_factory=dict)

    def place(
        self, route: BuiltRoute, units: Callable[[], Units], question: str = ""
    ) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        """Return the route for a request and its drawn arms; the same object if nothing varies it."""
        try:
            return self._place(route, units(), question)
        except Exception as error:  # noqa: BLE001 - a broken experiment costs its own evidence, never an answer
            LOG.error("routes.%s: no arm could be assigned (%s)", route.name, type(error).__name__)
            self.metrics.inc("suffice_failopen_total", "arms")
            return route, ()

    def _place(self, route: BuiltRoute, units: Units, question: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        served, drawn = self._with_rollout(route, units, question)
        if served is route and route.plan is not None:
            served, drawn = self._with_plan(route, route.plan, units["request"] or "")
        for one in draw_arms(self.running.experiments, route=route.name, units=units, salt=self.salt):
            arm = next(e for e in self.running.experiments if e.name == one.experiment).arm(one.arm)
            varied = self._with_arm(served, arm, f"{one.experiment}:{one.run}:{one.arm}")
            if varied is not None:
                served, drawn = varied, (*drawn, one)
        return served, drawn

    def _with_rollout(self, route: BuiltRoute, units: Units, question: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        standing, trial = self.running.standing.get(route.name), self.running.trials.get(route.name)
        if standing is not None:
            route = self._with_policy(route, standing) or route
        if trial is None or (trial.state.fit and not _is_comparable(route, trial.state)):
            return route, ()
        unit, share = units["conversation"] or "", trial.state.share
        placed = place(trial.state, unit, salt=self.salt)
        varied = self._candidate(route, trial, question) if placed.arm == "candidate" else route
        if placed.arm is None or varied is None:
            return route, ()
        others = (("candidate", share), ("control", share), ("", 1 - 2 * share)) if share < 1 else ()
        draw = ArmDraw(
            experiment=f"rollout {trial.state.rollout}",
            run=1,
            arm=placed.arm,
            propensity=placed.propensity,
            others=tuple(one for one in others if one[0] != placed.arm and one[1] > 0),
            unit=keyed(unit, salt=self.salt, purpose=b"experiment-unit", n_bytes=8).hex(),
        )
        return varied, (draw,)

    def _with_plan(self, route: BuiltRoute, plan: ClassPlan, unit: str) -> tuple[BuiltRoute, tuple[ArmDraw, ...]]:
        """Draw the settings and the level that the agent planned. Audits draw, too: they stand for what is served."""
        draw = draw_by_odds(
            {one.settings: one.share for one in plan.draws},
            unit,
            experiment=AGENT,
            run=route.active.n_plans,
            assignment=f"agent/{route.name}",
            salt=self.salt,
        )
        drawn = next(one for one in plan.draws if one.settings == draw.arm)
        settings = route.settings if drawn.settings == FULL else with_settings(route.settings, drawn.settings)
        return replace(route, settings=settings, serving=route.serving.capped(drawn.ceiling), plan=None), (draw,)

    def _candidate(self, route: BuiltRoute, trial: RolloutTrial, question: str) -> BuiltRoute | None:
        state, models = trial.state, trial.models
        if models is None:
            return self._with_policy(route, trial.policy)
        level = min(state.level, models.n_levels - 1)
        # It needs its own certificate and the route's; without either, every run goes to its end.
        version = f"{state.fit}@{level}"
        if not level:
            return route.served_by(FixedPolicy(policy=NEVER, version=version, needs=route.serving.needs))
        name = f"{version}/{prompt_fold(question, len(models.models))}"
        built = self._built_with(route, models.policy(question, level), name)
        return None if built is None else route.served_by(replace(built, version=version, voucher="certificate"))

    def _with_arm(self, route: BuiltRoute, arm: Arm, name: str) -> BuiltRoute | None:
        settings = with_arm(route.settings, arm)
        if settings.policy != route.settings.policy:
            varied = self._with_policy(route, settings.policy, name)
            if varied is None:
                return None
            route = varied
        route = route.served_by(route.serving.capped(arm.level))
        # An audit runs in full under any arm, so its setup stays the route's.
        return replace(route, settings=settings) if settings is not route.settings else route

    def _with_policy(self, route: BuiltRoute, policy: Mapping[str, object], name: str = "") -> BuiltRoute | None:
        table = dict(policy)
        built = self._built_with(route, table, name or json.dumps(policy, sort_keys=True))
        if built is None:
            return None
        return replace(route, settings=msgspec.structs.replace(route.settings, policy=table), serving=built)

    def _built_with(self, route: BuiltRoute, table: dict[str, object], name: str) -> FixedPolicy | None:
        key = route.name, name
        if key in self._built:
            return self._built[key]
        if len(self._built) >= MOST_VARIANTS:
            self._built.clear()
        built: FixedPolicy | None = None
        try:
            policy = build_policy(table)
            needed = {need.partition("(")[0] for need in policy.needs}
            needs = (*(need for need in route.serving.needs if need.partition("(")[0] not in needed), *policy.needs)
            Observer(needs, route.settings.kind)  # fails here, not in a request, for an unknown signal
            built = FixedPolicy(policy=policy, version=version_of(policy), needs=needs)
        except Exception as error:  # noqa: BLE001 - a policy that crashes at load is not served
            LOG.error("routes.%s: a variant cannot be built (%s); it is not served", route.name, type(error).__name__)
            self.metrics.inc("suffice_failopen_total", "arms")
        self._built[key] = built
        return built


def _is_comparable(route: BuiltRoute, state: State) -> bool:
    """Return whether this request gets, unrestricted, the version that a learned candidate is compared with."""
    made, serving = route.active.publication, route.serving
    if made is None or made.fit != state.active or not isinstance(serving, Levels) or not route.certified:
        return False
    return serving.ceiling is None and route.holding == NO_OVERRIDES
