"""Makes what serves a route from its publication and its overrides.

A publication that does not fit the settings, the promise and the epoch, or cannot be read, gives level 0: full runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from suffice.agent.mixture import mixture_of
from suffice.agent.plan import AgentPlan
from suffice.errors import ConfigError
from suffice.policy.base import Policy, build_policy
from suffice.policy.folded_version import FoldedVersion
from suffice.review.holds import NO_OVERRIDES, ActiveOverrides
from suffice.review.route_guarantee import covers, effective_publication
from suffice.serving.route import NEVER, BuiltRoute, CertifiedArm, FixedPolicy, Levels, Serving
from suffice.signals.observe import Observer
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.routes.rollouts import own_version
from suffice.types import Pause, Publication


class LevelPolicies(Sequence[Policy]):
    """The policy of one fold at each level, built on first use: of about forty, one is active."""

    def __init__(self, version: FoldedVersion, fold: int, level: int) -> None:
        self._models, self._thresholds = version.models[fold], version.levels[fold][:level]
        self._built: dict[int, Policy] = {0: NEVER}

    def __len__(self) -> int:
        return len(self._thresholds) + 1

    def __getitem__(self, level: Any) -> Any:
        """Raise IndexError for a level out of range."""
        policy = self._built.get(level)
        if policy is None:
            threshold = self._thresholds[level - 1]
            table = {"policy": "learned", "model": self._models, "threshold": threshold, "on_hopeless": "stop"}
            # Another thread may build the same policy, so store it only when complete.
            policy = self._built[level] = build_policy(table)
        return policy


def observe_route(base: BuiltRoute, why: str) -> BuiltRoute:
    return replace(base, holding=replace(NO_OVERRIDES, observe=why))


def deploy_route(base: BuiltRoute, held: RouteDeployment, version: FoldedVersion | None = None) -> BuiltRoute:
    """Raise ConfigError for a version that cannot be served."""
    made = held.publication
    settings = base.settings
    serving = None
    if made is not None and held.level and covers(settings, settings.max_em_drop, base.setup, made):
        # The loop does not test where the agent takes an arm from a class (docs/reference/paired-calls.md).
        plan = None if settings.is_paired else held.plan
        serving = _serving(base, made, version, ceiling=_untested_level(made, plan, base.holding))
    return replace(base, active=held, serving=serving or base.serving)


def _serving(
    base: BuiltRoute, made: Publication, version: FoldedVersion | None, *, ceiling: int | None
) -> Serving | None:
    """Return what serves as published; None: the publication is not about these settings."""
    settings, own = base.settings, base.serving
    if settings.is_paired:
        if made.arm not in settings.arms[made.level - 1 : made.level]:
            return None
        return CertifiedArm(arm=made.arm, arms=settings.arms, version=made.version, needs=own.needs, ceiling=ceiling)
    if settings.is_owned:
        if not isinstance(own, FixedPolicy) or made.version != own_version(settings).address:
            return None
        return replace(own, voucher="certificate", ceiling=ceiling)
    if version is None:
        return None
    if version.address != made.fit or made.level >= version.n_levels:
        raise ConfigError(f"routes.{base.name}: version {made.fit} does not have what was published")
    folds = tuple(LevelPolicies(version, fold, made.level) for fold in range(len(version.models)))
    needed = tuple(dict.fromkeys(need for fold in folds for need in fold[made.level].needs))
    needs = (*(need for need in own.needs if need not in needed), *needed)
    Observer(needs, settings.kind)  # fails here, not in a request, for an unknown signal
    floor = None if made.spending is None else made.spending.floor
    return Levels(folds=folds, version=made.fit, needs=needs, floor=floor, ceiling=ceiling)


def _untested_level(made: Publication, plan: AgentPlan | None, holding: ActiveOverrides) -> int | None:
    """Return the highest level while classes get others than the publication was tested with; None: they do not."""
    mixture = mixture_of(holding.classes, plan, level=made.level)
    return None if not mixture or mixture == made.mixture else made.any_level


def apply_pin(held: RouteDeployment, holding: ActiveOverrides) -> RouteDeployment:
    if held.pause is not None or held.publication is None:
        return held
    made = effective_publication(held.publication, held.n_epochs, holding)
    return held if made is held.publication else replace(held, publication=made)


def apply_pause(holding: ActiveOverrides, pause: Pause | None) -> ActiveOverrides:
    """Return the overrides with the pause added as "observe", for routes without a certificate to withdraw."""
    if pause is None or holding.observe is not None:
        return holding
    return replace(holding, observe=f"paused by {pause.author}: {pause.reason}")
