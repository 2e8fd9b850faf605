"""How a route serves what the control loop has published: models by prompt, levels up to the certified one.

    InForce (log), version (artefact) ──▶ serving ──▶ BuiltRoute ──▶ for_prompt ──▶ one request's own

Pure. A publication is taken at its word only where it fits: made for this promise or a stricter one, on these settings,
in the epoch that is running. Whatever does not fit, or cannot be read, is level 0: everything runs in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import overload

from suffice.errors import ConfigError
from suffice.gateway.route import BuiltRoute
from suffice.learn.version import FoldedVersion
from suffice.policy.base import build_policy
from suffice.policy.learned import LearnedPolicy
from suffice.policy.protocol import Policy
from suffice.policy.rules import Never
from suffice.review import route_guarantee
from suffice.review.holds import NO_OVERRIDES
from suffice.signals.observe import Observer
from suffice.store.routes.in_force import InForce
from suffice.types import Publication


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
    """May this publication be acted on here?"""
    return route_guarantee.covers(route.settings, route.settings.max_em_drop, route.setup, made)


def rested(base: BuiltRoute, why: str) -> BuiltRoute:
    """The route without anything that could act, whatever its settings say: it behaves as observe."""
    return replace(base, holding=replace(NO_OVERRIDES, observe=why))


def deploy_route(base: BuiltRoute, held: InForce, version: FoldedVersion | None) -> BuiltRoute:
    """The route as it serves what is in force.

    base     the route as its settings have it, without any publication
    version  of the publication in force; None: there is none, or it cannot be read

    Raises ConfigError for a version that cannot be served.
    """
    waiting = replace(base, in_force=held, in_burst=held.epoch is not None and held.in_burst)
    made = held.publication
    if made is None or version is None or not held.level or not is_servable(base, made):
        return waiting
    if version.address != made.fit or made.level >= version.n_levels:
        raise ConfigError(f"routes.{base.name}: version {made.fit} does not have what was published")
    folds = tuple(LevelPolicies(version, fold, made.level) for fold in range(len(version.models)))
    asked = tuple(dict.fromkeys(need for fold in folds for need in fold[made.level].needs))
    needs = (*(need for need in base.needs if need not in asked), *asked)
    Observer(needs, base.settings.kind)  # a signal that does not exist must fail here, not in a request
    floor = None if made.spending is None else made.spending.floor
    return replace(waiting, certified=True, folds=folds, policy_version=made.fit, needs=needs, floor=floor)
