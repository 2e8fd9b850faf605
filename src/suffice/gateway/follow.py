"""Follows what the control loop decides: reads new decisions of the log, and gives requests to come their routes.

    told, or once a second ──▶ read (a thread) ──▶ built routes ──▶ swap (the event loop)

A request keeps the route that it got. When a decision cannot be read or its version cannot be loaded, a route that has
lost its certificate runs in full, and every other one stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from suffice.assurance.liking import Liking
from suffice.assurance.outlook import Outlook
from suffice.errors import ConfigError, StoreError
from suffice.gateway.arms import serving_arm
from suffice.gateway.context import Gateway
from suffice.gateway.in_force import serving
from suffice.gateway.overridden import pinned, promised, resting
from suffice.gateway.route import BuiltRoute
from suffice.gateway.variants import Trial
from suffice.learn.version import Version, load_version
from suffice.review.override import NO_OVERRIDES, InEffect, standing
from suffice.rollout.experiment import Experiment
from suffice.store.advice import newest_outlook, newest_place
from suffice.store.decisions import read_artefact
from suffice.store.experiment_events import ExperimentChanged, ExperimentStarted, ExperimentStopped
from suffice.store.experiments import read_experiments, running
from suffice.store.holds import NOTHING_HELD, read_holds
from suffice.store.in_force import NOTHING_DECIDED, InForce, read_decided
from suffice.store.rollout_events import RolloutBegun, RolloutMoved, RolloutUndone
from suffice.store.rollouts import own_version, read_rollouts, version_at
from suffice.store.rollouts import running as running_rollouts
from suffice.store.rollouts import serving as in_force_on
from suffice.store.views import newest_of, reading
from suffice.telemetry import LOG, Metrics

LOOK_S: Final = 1.0  # between two looks at the log; whoever is told looks at once
_VARYING: Final = tuple(event.kind for event in (
    ExperimentStarted, ExperimentChanged, ExperimentStopped, RolloutBegun, RolloutMoved, RolloutUndone,
))  # fmt: skip


class Follower:
    """One gateway's view of what is decided. `look` may run in a thread; `take` belongs to the event loop."""

    def __init__(self, gw: Gateway, path: Path) -> None:
        self._gw, self._path = gw, path
        self._decided = NOTHING_DECIDED
        self._holds = NOTHING_HELD
        self._base = {route.name: route for route in gw.routes if route.settings.mode != "off"}
        self._holding: dict[str, InEffect] = dict.fromkeys(self._base, NO_OVERRIDES)
        self._versions: dict[str, Version] = {}
        self._outlooks: dict[str, tuple[int, Outlook | None]] = {route.name: (0, None) for route in gw.routes}
        self._experiments: tuple[Experiment, ...] = ()
        self._trials: Mapping[str, Trial] = {}
        self._standing: Mapping[str, Mapping[str, object]] = {}
        self._varied_at = 0  # place of the newest row about experiments and rollouts
        self._policies: dict[str, Mapping[str, object] | None] = {}
        self._told = asyncio.Event()
        self._looked_s: float | None = None

    def tell(self) -> None:
        """Something was decided just now: look at once."""
        self._told.set()

    def look(self) -> Mapping[str, BuiltRoute]:
        """Read what is new; the routes that it changes, as they serve from now on. Raises StoreError."""
        with reading(self._path) as connection:
            self._look_ahead(connection)
            before, self._decided = self._decided, read_decided(connection, self._decided)
            self._holds = read_holds(connection, self._holds)
            with self._failing_open():  # a variant that cannot be read must not hold up a brake
                self._look_at_versions(connection)
            now_s, changed = self._gw.wall_s(), {}
            for name, base in self._base.items():
                held, holding = self._decided.of(name), self._holds.of(name).in_effect(now_s)
                if held is not before.of(name) or holding != self._holding[name]:
                    changed[name] = self._serving(base, held, holding, connection)
                    self._holding[name] = holding
            return changed

    def _look_at_versions(self, connection: sqlite3.Connection) -> None:
        """Read which experiments and rollouts run, and what rollouts have brought, where that has changed."""
        newest = newest_of(connection, _VARYING)
        if newest == self._varied_at:
            return
        experiments, held = running(read_experiments(connection)), read_rollouts(connection)
        tried = running_rollouts(held)
        trials, standing = dict[str, Trial](), dict[str, Mapping[str, object]]()
        for name, base in self._base.items():
            if not base.settings.policy or not any(one.state.route == name for one in held):
                continue
            own = own_version(base.settings).address
            now = in_force_on(held, name, own)
            if now != own and (policy := self._policy(connection, now)) is not None:
                standing[name] = policy
            one = tried.get(name)
            if one is not None and (policy := self._policy(connection, one.state.candidate)) is not None:
                trials[name] = Trial(state=one.state, policy=policy)
        self._experiments, self._trials, self._standing = experiments, trials, standing
        self._varied_at = newest

    def _policy(self, connection: sqlite3.Connection, address: str) -> Mapping[str, object] | None:
        """The policy of a version, read once; None: it is gone or not what it was, and nobody is served by it."""
        if address not in self._policies:
            try:
                version = version_at(connection, address, secret=self._gw.salt)
                self._policies[address] = version.plain()["body"] if version.form == "policy" else None
            except ConfigError as error:
                LOG.error("control: %s; nobody is served by it", error)
                self._policies[address] = None
        return self._policies[address]

    def _look_ahead(self, connection: sqlite3.Connection) -> None:
        """Read what the job `monitor` saw since; what cannot be read holds up no decision."""
        with contextlib.suppress(StoreError):
            for name, (seq, _) in self._outlooks.items():
                newest = newest_place(connection, name)
                if newest != seq:
                    self._outlooks[name] = newest, newest_outlook(connection, name)

    def _serving(
        self, base: BuiltRoute, held: InForce, holding: InEffect, connection: sqlite3.Connection
    ) -> BuiltRoute:
        if not base.settings.certifies_itself:
            return replace(base, holding=resting(holding, held.pause))
        base, held = replace(promised(base, holding), holding=holding), pinned(held, holding)
        if base.settings.is_paired:
            return serving_arm(base, held)
        try:
            return serving(base, held, self._version(held, connection))
        except ConfigError as error:
            LOG.error("control: %s; the route runs in full", error)
            return serving(base, held, None)

    def _version(self, held: InForce, connection: sqlite3.Connection) -> Version | None:
        """The version that is in force, read once. Raises ConfigError when it is gone or another one."""
        made = held.publication
        if made is None or not made.fit or not held.level:
            return None
        if made.fit not in self._versions:
            body = read_artefact(connection, made.fit)
            try:
                version = load_version(json.loads(body or "null"))
            except (ValueError, AttributeError, TypeError) as error:  # ConfigError is a ValueError
                raise ConfigError(f"version {made.fit}: cannot be read ({type(error).__name__})") from None
            if version.address != made.fit:
                raise ConfigError(f"version {made.fit}: what is kept under it is {version.address}")
            self._versions = {made.fit: version, **dict(list(self._versions.items())[:8])}
        return self._versions[made.fit]

    def take(self, changed: Mapping[str, BuiltRoute]) -> None:
        """Give requests to come these routes, and metrics what the job `monitor` saw and what people hold."""
        for name, (_, outlook) in self._outlooks.items():
            if outlook is not None:
                export(outlook, name, self._gw.metrics)
        for name in self._base:
            held = self._holds.of(name)
            n_held = len(standing(held.overrides, self._gw.wall_s()))
            self._gw.metrics.set("suffice_overrides", n_held, name)
            self._gw.metrics.set("suffice_open_incidents", len(held.open_cases), name)
        variants = self._gw.variants
        variants.experiments, variants.trials, variants.standing = self._experiments, self._trials, self._standing
        for name, route in changed.items():
            self._gw.put_in_force(name, route)

    def refresh(self) -> None:
        """Look and take, at most once a second: for a process without an event loop. Raises nothing."""
        now_s = self._gw.monotonic_s()
        if self._looked_s is not None and now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        with self._failing_open():
            self.take(self.look())

    async def follow(self) -> None:
        """Look whenever told, and once a second, until cancelled."""
        while True:
            with self._failing_open():
                self.take(await asyncio.to_thread(self.look))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._told.wait()
            self._told.clear()

    @contextlib.contextmanager
    def _failing_open(self) -> Iterator[None]:
        """Whatever goes wrong here leaves everything as it is."""
        try:
            yield
        except StoreError as error:
            LOG.warning("control: %s", error)
            self._gw.metrics.inc("suffice_failopen_total", "follow")
        except Exception as error:  # noqa: BLE001 - what is in force stays in force
            LOG.error("control: what was decided could not be followed (%s)", type(error).__name__)
            self._gw.metrics.inc("suffice_failopen_total", "follow")


def export(outlook: Outlook, route: str, metrics: Metrics) -> None:
    """Write the latest look at a route into the gauges; what is not known is left out."""
    whole, drop = outlook.whole, outlook.drop
    if whole is not None and whole.em_drop is not None and whole.em_drop.high is not None:
        metrics.set("suffice_em_drop_upper_bound", whole.em_drop.high, route)
    if whole is not None and whole.saving is not None:
        metrics.set("suffice_token_saving_ratio", whole.saving.value, route)
    if drop is not None:
        metrics.set("suffice_em_drop_forecast", drop.ahead, route)
    metrics.set("suffice_alerts", len(outlook.alerts), route)
    _export_satisfaction(outlook.satisfaction, route, metrics)


def _export_satisfaction(said: Liking | None, route: str, metrics: Metrics) -> None:
    if said is None:
        return
    for runs, found in (("full", said.full), ("stopped", said.stopped)):
        if found is not None:
            metrics.set("suffice_satisfaction_ratio", found.value, route, runs)
    effect = said.effect
    if effect is not None and effect.low is not None and effect.high is not None:
        metrics.set("suffice_satisfaction_effect", effect.value, route)
        metrics.set("suffice_satisfaction_effect_lower_bound", effect.low, route)
        metrics.set("suffice_satisfaction_effect_upper_bound", effect.high, route)


@asynccontextmanager
async def following(follower: Follower) -> AsyncIterator[None]:
    """A block in which the gateway follows; what is decided already is in force before it begins."""
    follower.refresh()
    task = asyncio.create_task(follower.follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
