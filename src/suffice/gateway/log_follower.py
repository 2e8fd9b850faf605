"""Polls the event log for new decisions and swaps the routes for later requests.

While the log cannot be read, routes stay unchanged for up to `store.last_good_s`; after that everything runs in full.
A gateway that starts without its log does the same with the last-good file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import msgspec

from suffice.assurance.estimate import em_drop_of, token_saving_of
from suffice.assurance.forecast import RouteForecast
from suffice.assurance.runs import Tally
from suffice.errors import ConfigError, StoreError
from suffice.gateway.auth import forget_oldest
from suffice.gateway.context import GatewayState, run_periodically
from suffice.gateway.last_good import GoodRoute, LastGood, LastGoodWriter
from suffice.policy.base import build_policy
from suffice.policy.folded_version import FoldedVersion, load_version, read_version
from suffice.review.holds import NO_OVERRIDES, ActiveOverrides, in_effect, unexpired
from suffice.review.route_guarantee import pin_publication
from suffice.rollout.assign import AuditAssignment
from suffice.rollout.stages import State
from suffice.serving.deploy import apply_pause, apply_pin, deploy_route, observe_route
from suffice.serving.route import BuiltRoute
from suffice.serving.variants import RolloutTrial, RunningVariants
from suffice.store.database.decisions import read_artefact
from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.protocol import LastWrite
from suffice.store.database.schema import INDEXED_KINDS
from suffice.store.database.views import LogReader, newest_event, read_news, snapshot
from suffice.store.database.watches import Watch, read_watches
from suffice.store.database.writer import EventQueue
from suffice.store.people.keys import KEY_KINDS, valid_keys
from suffice.store.people.promises import audits_by_class, read_unwatched
from suffice.store.routes.deployments import (
    NOTHING,
    NOTHING_DECIDED,
    NOTHING_HELD,
    RouteDeployment,
    read_decided,
    read_holds,
    read_kill_order,
)
from suffice.store.routes.experiments import read_experiments, read_running_experiments
from suffice.store.routes.rollouts import models_of, own_version, read_rollouts, succession, version_at
from suffice.store.routes.rollouts import read_running_rollouts as running_rollouts
from suffice.store.routes.rollups import read_tallies, read_to
from suffice.store.rows.events import KeyIssue, KillSwitchState, RowRates, VersionRefusal
from suffice.telemetry import LOG, Metrics

FIRST_ROWS: Final = 20_000  # of the log, in which a gateway looks for earlier deliveries when it starts
MOST_VERSIONS: Final = 1_000  # of rollouts, in memory, the running ones among them; else they are read again
LOOK_S: Final = 0.5  # between two polls of the log; a notification triggers one at once
WARN_AGAIN_S: Final = 60.0  # between two identical warnings
_VARYING: Final = (
    *("experiment_started", "experiment_changed", "experiment_stopped"),
    *("rollout_begun", "rollout_moved", "rollout_undone"),
)

PolicyTable = Mapping[str, object]


class VersionCache:
    def __init__(self, salt: str, good: LastGood | None) -> None:
        self.good, self._salt = good, salt
        self.published: dict[str, FoldedVersion] = {}
        self.policies: dict[str, PolicyTable | str] = {}  # by address; a text: why it cannot be used
        self._candidates: dict[str, FoldedVersion | None] = {}
        self.refused: set[tuple[str, str]] = set()  # (route, address), each reported once

    def of(self, held: RouteDeployment, connection: LogReader | None) -> FoldedVersion | None:
        """Return the published version. Raise ConfigError if neither the log nor the last-good file has it."""
        made = held.publication
        if made is None or not made.fit or not held.level:
            return None
        if made.fit not in self.published:
            version = self._kept(made.fit) or read_version(
                made.fit, None if connection is None else read_artefact(connection, made.fit)
            )
            self.published = {made.fit: version, **dict(list(self.published.items())[:8])}
        return self.published[made.fit]

    def _kept(self, fit: str) -> FoldedVersion | None:
        plain = None if self.good is None else self.good.versions.get(fit)
        if plain is None:
            return None
        with contextlib.suppress(Exception):  # then the log decides
            version = load_version(plain)
            return version if version.address == fit else None
        return None

    def candidate(self, connection: LogReader, state: State) -> RolloutTrial | None:
        if state.candidate not in self._candidates:
            models: FoldedVersion | None = None
            try:
                models = models_of(version_at(connection, state.candidate, secret=self._salt))
            except ConfigError as error:
                LOG.error("control: %s; it is not served", error)
            forget_oldest(self._candidates, MOST_VERSIONS - 1)
            self._candidates[state.candidate] = models
        models = self._candidates[state.candidate]
        return None if models is None else RolloutTrial(state=state, models=models)

    def policy(self, connection: LogReader, address: str) -> PolicyTable | str:
        if address not in self.policies:
            forget_oldest(self.policies, MOST_VERSIONS - 1)
            self.policies[address] = self._read_policy(connection, address)
        return self.policies[address]

    def _read_policy(self, connection: LogReader, address: str) -> PolicyTable | str:
        try:
            version = version_at(connection, address, secret=self._salt)
            if version.form == "policy":
                body: PolicyTable = version.plain()["body"]
                return body
            why = f"version {address} is not a policy"
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - a version that crashes at load is not served
            why = _load_problem(error)
        for one in () if self.good is None else self.good.routes.values():
            if one.active_policy == address and one.standing is not None:
                with contextlib.suppress(Exception):  # not loadable from the file either
                    build_policy(one.standing)
                    return one.standing
        LOG.error("control: %s; it is not served", why)
        return why


class MonitorFeed:
    def __init__(self, gw: GatewayState) -> None:
        self._gw = gw
        self._summed = 0  # place in the log up to which the sums went then
        self._n_behind = 0
        self._tallies: dict[str, Tally] = {}  # not exported yet
        self._forecasts: dict[str, RouteForecast | None] = {}

    def follow(self, names: Iterable[str]) -> None:
        self._forecasts = {name: self._forecasts.get(name) for name in names}

    def read(self, connection: LogReader, is_new: Callable[..., bool]) -> None:
        with contextlib.suppress(StoreError):
            if self._gw.settings.adapts_rates and is_new("rates_set"):
                rates = {name: newest_event(connection, RowRates, route=name) for name in self._forecasts}
                self._gw.sampling.rates = {name: one for name, one in rates.items() if one is not None}
            to = read_to(connection)
            self._n_behind = to.n_behind
            if to.seq != self._summed:
                self._tallies |= read_tallies(connection, since=self._summed if to.seq > self._summed else 0)
                self._summed = to.seq
            for name in self._forecasts:
                if is_new("route_monitored", route=name):
                    self._forecasts[name] = newest_event(connection, RouteForecast, route=name)

    def export(self) -> None:
        for name, forecast in self._forecasts.items():
            if forecast is not None:
                export_gauges(forecast, name, self._gw.metrics)
                self._gw.deployment.classes[name] = audits_by_class(forecast)
        for name in self._forecasts.keys() & self._tallies.keys():
            export_tally(self._tallies[name], name, self._gw.metrics)
        self._tallies.clear()
        self._gw.metrics.set("suffice_sums_lag_rows", self._n_behind)


def export_tally(tally: Tally, route: str, metrics: Metrics) -> None:
    saved, em_drop = token_saving_of(tally), em_drop_of(tally)
    if saved is not None:
        metrics.set("suffice_token_saving_ratio", saved.share, route)
        metrics.set("suffice_enforced_tokens", saved.spent, route)
        metrics.set("suffice_saved_tokens", saved.saved_certified, route, "yes")
        metrics.set("suffice_saved_tokens", saved.saved - saved.saved_certified, route, "no")
    if em_drop is not None:
        metrics.set("suffice_em_drop_ratio", em_drop.value, route)


def export_gauges(forecast: RouteForecast, route: str, metrics: Metrics) -> None:
    whole = forecast.whole
    drop = forecast.drop
    effects = forecast.satisfaction
    if whole is not None and whole.em_drop is not None and whole.em_drop.high is not None:
        metrics.set("suffice_em_drop_upper_bound", whole.em_drop.high, route)
    if drop is not None:
        metrics.set("suffice_em_drop_forecast", drop.ahead, route)
    metrics.set("suffice_alerts", len(forecast.alerts), route)
    if effects is None:
        return
    for runs, ratio in (("full", effects.full), ("stopped", effects.stopped)):
        if ratio is not None:
            metrics.set("suffice_satisfaction_ratio", ratio.value, route, runs)
    effect = effects.effect
    if effect is not None and effect.low is not None and effect.high is not None:
        metrics.set("suffice_satisfaction_effect", effect.value, route)
        metrics.set("suffice_satisfaction_effect_lower_bound", effect.low, route)
        metrics.set("suffice_satisfaction_effect_upper_bound", effect.high, route)


@dataclass(slots=True)
class _FollowedRoute:
    base: BuiltRoute  # from the settings, without a publication
    held: RouteDeployment = NOTHING  # publication that the route was built for …
    holding: ActiveOverrides = NO_OVERRIDES  # … and the overrides
    served: RouteDeployment = NOTHING  # an earlier publication if the newest cannot be loaded
    own: str = ""  # address of the settings' policy, if a rollout has replaced it …
    replacement: str = ""  # … and of its replacement


class Follower:
    """One gateway's view of the decisions. `read_changes` may run in a thread; `apply` runs on the event loop."""

    def __init__(
        self,
        gw: GatewayState,
        log: LogLocation,
        *,
        good_writer: LastGoodWriter | None = None,
        good: LastGood | None = None,
    ) -> None:
        self._gw = gw
        self._database = database_at(log)
        self._good_writer = good_writer
        self._versions, self._monitor = VersionCache(gw.salt, good), MonitorFeed(gw)
        self._decided = NOTHING_DECIDED
        self._holds = NOTHING_HELD
        self._running = RunningVariants()
        self._seq = 0  # place in the log up to which it was read …
        self._is_current = False  # … and everything known; False: a read failed, or the settings have changed
        self._keys: tuple[KeyIssue, ...] = () if good is None else good.keys
        self._deliveries: list[AuditAssignment] = []  # first ones of requests, read and not applied
        self._watches: Mapping[tuple[str, str], Watch] = {}
        self._unwatched: Mapping[str, str] = {}  # what the log said of earlier gateways
        self._order: KillSwitchState | None = None if good is None else good.killed
        self._followed = self._order  # of the kill switch, as it was last applied
        self._written: LastWrite | None = None  # the last write before that; None: unknown
        self._notified = asyncio.Event()
        self.applying = asyncio.Lock()  # held from a read of the log until what it says is applied
        self._refreshed_s: float | None = None
        self._read_s = gw.monotonic_s()  # when the log was last read
        self._rebuild = False  # routes were not built from the log: build all of them again
        self._warned = ("", 0.0)  # the latest warning and its time
        self._routes: dict[str, _FollowedRoute] = {}
        self.rebase(gw.deployment.routes)
        for name, one in self._routes.items():
            if good is not None and name in good.routes:
                one.served = good.routes[name].held

    def rebase(self, routes: Sequence[BuiltRoute]) -> None:
        """Replace the routes by those of the settings; the next read deploys to all of them."""
        known, self._routes = self._routes, {}
        for route in routes:
            if route.settings.mode != "off":
                before = known.get(route.name, _FollowedRoute(route))
                self._routes[route.name] = replace(before, base=route, held=NOTHING, holding=NO_OVERRIDES)
        self._monitor.follow(route.name for route in routes)
        self._changed = True  # since the last write of the last-good file
        self._is_current = False

    def wake(self) -> None:
        self._notified.set()

    def read_changes(self) -> Mapping[str, BuiltRoute] | None:
        """Read new rows and return the routes that they change; None: the log is as it was. Raise StoreError."""
        if self._gw.deployment.log_problem is not None:
            self._is_current = False
            raise StoreError(self._gw.deployment.log_problem)
        now_s = self._gw.wall_s()
        current = self._is_current
        self._is_current = False
        ends_s = (one.holding.until_s for one in self._routes.values() if one.holding.until_s is not None)
        if current and now_s < min(ends_s, default=inf) and self._database.is_unchanged(self._written, now_s=now_s):
            self._is_current = True
            return None
        with snapshot(self._database) as connection:
            self._written = self._database.find_last_write(connection, now_s=now_s)
            owner = self._gw.log.owner if isinstance(self._gw.log, EventQueue) else 0
            news = read_news(connection, self._seq, most=FIRST_ROWS, owner=owner)

            def is_new(*kinds: str, route: str | None = None) -> bool:
                return not current or any(
                    kind in kinds and (route is None or route == where) for kind, where in news.kinds
                )

            self._deliveries += [
                AuditAssignment(audit=audit, propensity=propensity, unit=unit)
                for unit, audit, propensity in news.deliveries
            ]
            self._monitor.read(connection, is_new)
            self._read_state(connection, is_new)
            if not self._seq:
                self._unwatched = read_unwatched(connection)
            before, self._watches = self._watches, read_watches(connection)
            changed = dict[str, BuiltRoute]()
            for name, one in self._routes.items():
                held, holding = self._decided.of(name), self._holds.of(name).in_effect(now_s)
                same = _agent_fails(before, name) == _agent_fails(self._watches, name)
                if self._rebuild or held is not one.held or holding != one.holding or not same:
                    changed[name] = self._serving(one, held, holding, connection)
                    one.held, one.holding = held, holding
            self._seq = news.last
        self._is_current = True
        return changed

    def _read_state(self, connection: LogReader, is_new: Callable[..., bool]) -> None:
        if is_new("kill_switched"):
            self._order = read_kill_order(connection)
        if is_new(*INDEXED_KINDS["decisions"]):
            self._decided = read_decided(connection, self._decided)
        if is_new(*INDEXED_KINDS["holds"]):
            self._holds = read_holds(connection, self._holds)
        if is_new(*KEY_KINDS):
            self._keys = valid_keys(connection)
        if is_new(*_VARYING):
            with self._failing_open():  # an unreadable variant must not delay a fallback
                self._read_variants(connection)

    def _read_variants(self, connection: LogReader) -> None:
        experiments, rollouts = read_running_experiments(read_experiments(connection)), read_rollouts(connection)
        running = running_rollouts(rollouts)
        trials, serving = dict[str, RolloutTrial](), dict[str, PolicyTable]()
        for name, followed in self._routes.items():
            settings, rollout = followed.base.settings, running.get(name)
            if settings.is_learned and rollout is not None and rollout.state.fit:
                trial = self._versions.candidate(connection, rollout.state)
                trials |= {} if trial is None else {name: trial}
            followed.own = followed.replacement = ""
            if not settings.policy or not any(one.state.route == name for one in rollouts):
                continue
            line = succession(rollouts, name, own_version(settings).address)
            good = self._newest_good(connection, name, line)
            policy = self._versions.policies.get(good)
            followed.own = line[0]
            followed.replacement = good
            if good != line[0] and isinstance(policy, Mapping):
                serving[name] = policy
            if rollout is None or good != line[-1]:  # a comparison needs the version that is served
                continue
            policy = self._versions.policy(connection, rollout.state.candidate)
            if isinstance(policy, Mapping):
                trials[name] = RolloutTrial(state=rollout.state, policy=policy)
        self._running = RunningVariants(experiments, trials, serving)

    def _newest_good(self, connection: LogReader, route: str, line: Sequence[str]) -> str:
        own, *later = line
        policy = self._versions.policy
        good = next((address for address in reversed(later) if not isinstance(policy(connection, address), str)), own)
        why = self._versions.policies.get(line[-1])
        if good != line[-1] and isinstance(why, str) and (route, line[-1]) not in self._versions.refused:
            self._versions.refused.add((route, line[-1]))
            serves = "the settings' own policy serves" if good == own else f"version {good} stays active"
            self._refuse(VersionRefusal(route=route, number=0, fit=line[-1], reason=why, serves=serves))
        return good

    def _serving(
        self, one: _FollowedRoute, held: RouteDeployment, holding: ActiveOverrides, connection: LogReader | None
    ) -> BuiltRoute:
        """Never raises: a version that cannot be built is not served."""
        base = one.base
        settings = one.base.settings
        before = one.served
        one.served = held
        if _agent_fails(self._watches, base.name):  # nobody watches what its plan costs
            held = replace(held, plan=None)
        if not settings.certifies_itself:
            return replace(base, active=held, holding=apply_pause(holding, held.pause))
        budgeted = msgspec.structs.replace(settings, max_em_drop=holding.budget(settings.max_em_drop))
        own, pinned = replace(base, settings=budgeted, holding=holding), apply_pin(held, holding)
        if settings.is_paired and settings.uncertified:  # it has no certificate for a pause to withdraw
            own = replace(own, holding=apply_pause(holding, held.pause))
        if settings.is_paired or settings.is_owned:
            return deploy_route(own, pinned)
        try:
            return deploy_route(own, pinned, self._versions.of(pinned, connection))
        except Exception as error:  # noqa: BLE001 - a policy that crashes at load is not served
            why = _load_problem(error)
        serves = "the route runs in full"
        built = deploy_route(own, held, None)
        earlier = _earlier(held, before)
        if earlier is not None:
            with contextlib.suppress(Exception):
                pinned = apply_pin(earlier, holding)
                fallback = deploy_route(own, pinned, self._versions.of(pinned, connection))
                if fallback.certified:
                    one.served, built = earlier, fallback
                    serves = f"publication {_number(earlier)} stays active"
        fit = "" if held.publication is None else held.publication.fit
        self._refuse(VersionRefusal(route=base.name, number=_number(held), fit=fit, reason=why, serves=serves))
        return built

    def _refuse(self, refusal: VersionRefusal) -> None:
        what = f"publication {refusal.number}" if refusal.number else f"version {refusal.fit}"
        LOG.error("routes.%s: %s cannot be served: %s; %s", refusal.route, what, refusal.reason, refusal.serves)
        self._gw.metrics.inc("suffice_versions_refused_total", refusal.route)
        if refusal.number or refusal.fit:
            self._gw.log.append(refusal)

    def apply(self, changed: Mapping[str, BuiltRoute] | None) -> None:
        if changed is None:
            self._read_s = self._gw.monotonic_s()
            return
        self._monitor.export()
        self._gw.deployment.leases.know(self._unwatched)
        self._gw.deployment.leases.follow(self._watches, last_seq=self._seq, wall_s=self._gw.wall_s())
        if self._keys != self._gw.clients.issued:
            with self._failing_open():  # the keys that are known go on working
                self._gw.clients.follow_keys(self._keys)
                self._changed = True
        for name in self._routes:
            held = self._holds.of(name)
            n_held = len(unexpired(held.overrides, self._gw.wall_s()))
            self._gw.metrics.set("suffice_overrides", n_held, name)
            self._gw.metrics.set("suffice_open_incidents", len(held.open_cases), name)
        deployment = self._gw.deployment
        self._gw.clients.deliveries.note_logged(self._deliveries, now_s=self._gw.monotonic_s())
        self._deliveries = []
        deployment.kill.follow(self._order)
        self._changed = self._changed or deployment.kill.order != self._followed
        self._followed = deployment.kill.order
        self._changed = self._changed or bool(changed) or deployment.variants.running.standing != self._running.standing
        deployment.variants.running = self._running
        for name, route in changed.items():
            deployment.activate(name, route)
        if deployment.serves:
            LOG.warning("control: the log can be read again, and its decisions are active")
        self._read_s = self._gw.monotonic_s()
        self._rebuild = False
        deployment.serves = ""
        self._gw.metrics.set("suffice_log_unread_seconds", 0)
        if deployment.kill.presence is not None:  # commands wait for this
            deployment.kill.presence.update(decided=self._seq)

    def serve_last_good(self, *, age_s: float) -> None:
        """Serve the last-good file until the log can be read. Routes that it does not know run in full."""
        self._read_s = self._gw.monotonic_s() - age_s
        self._rebuild = True
        good = self._versions.good
        self._gw.deployment.kill.follow(self._order)
        if good is None:
            self._run_in_full("there is no last-good file that may be served")
            return
        self._gw.clients.follow_keys(good.keys)
        now_s = self._gw.wall_s()
        serving = dict[str, PolicyTable]()
        activate = self._gw.deployment.activate
        for name, followed in self._routes.items():
            base, known = followed.base, good.routes.get(name)
            if known is None:
                activate(name, observe_route(base, "the last-good file does not contain this route"))
                continue
            activate(name, self._serving(followed, known.held, in_effect(known.overrides, now_s), None))
            own = own_version(base.settings).address if base.settings.policy else ""
            if known.standing is not None and known.instead_of == own:  # else the settings' new policy serves
                serving[name] = known.standing
                followed.own = own
                followed.replacement = known.active_policy
        self._running = self._gw.deployment.variants.running = replace(self._running, standing=serving)
        self._gw.deployment.serves = "last good"
        self._export_unread()

    def _run_in_full(self, why: str) -> None:
        self._rebuild, self._gw.deployment.serves = True, "full"
        self._gw.deployment.variants.running = RunningVariants()
        for name, one in self._routes.items():
            self._gw.deployment.activate(name, observe_route(one.base, f"the log cannot be read, and {why}"))
        self._export_unread()

    def _export_unread(self) -> None:
        self._gw.metrics.set("suffice_log_unread_seconds", self._gw.monotonic_s() - self._read_s)

    def _check_age(self) -> None:
        self._export_unread()
        self._is_current = False
        most_s, deployment = self._gw.settings.store.last_good_s, self._gw.deployment
        if deployment.serves != "full" and self._gw.monotonic_s() - self._read_s >= most_s:
            why = f"the log has not been read for {most_s:,.0f} s (store.last_good_s)"
            LOG.error("control: everything runs in full until the log can be read: %s", why)
            self._run_in_full(why)
        deployment.serves = deployment.serves or "last good"

    def _keep(self, writer: LastGoodWriter) -> None:
        with self._failing_open():
            if writer.keep(self._as_good, changed=self._changed):
                self._changed = False

    def _as_good(self) -> LastGood:
        gw, now = self._gw, {route.name: route for route in self._gw.deployment.routes}
        routes = {
            name: GoodRoute(
                held=one.served,
                overrides=self._holds.of(name).overrides,
                standing=self._running.standing.get(name),
                active_policy=one.replacement,
                instead_of=one.own,
                refused=now[name].refused,
                n_requests=gw.statistics[name].n_requests,
            )
            for name, one in self._routes.items()
        }
        acting = {one.held.publication.fit for one in routes.values() if one.held.publication and one.held.level}
        return LastGood(
            at_s=gw.wall_s(),
            seq=self._decided.seq,
            killed=gw.deployment.kill.order,
            routes=routes,
            versions={fit: one.plain() for fit, one in self._versions.published.items() if fit in acting},
            findings={name: one.findings for name, one in gw.upstreams.items() if one.findings is not None},
            keys=gw.clients.issued,
        )

    def refresh(self) -> None:
        """Read and apply changes, at most once a second, in a process without an event loop. Never raises."""
        now_s = self._gw.monotonic_s()
        if self._refreshed_s is not None and now_s - self._refreshed_s < LOOK_S:
            return
        self._refreshed_s = now_s
        if self._gw.deployment.log_problem is not None:  # logged before; there is no log to read
            self._gw.metrics.inc("suffice_failopen_total", "follow")
            self._check_age()
            return
        with self._failing_open(is_reading=True):
            self.apply(self.read_changes())

    async def follow(self) -> None:
        while True:
            async with self.applying:
                with self._failing_open(is_reading=True):
                    self.apply(await asyncio.to_thread(self.read_changes))
            with self._failing_open(is_reading=True):
                writer = self._good_writer
                if writer is not None and writer.is_due(changed=self._changed):
                    await asyncio.to_thread(self._keep, writer)
            await self._notified.wait()
            self._notified.clear()

    @contextlib.contextmanager
    def _failing_open(self, *, is_reading: bool = False) -> Iterator[None]:
        try:
            yield
            return
        except StoreError as error:
            now_s = self._gw.monotonic_s()
            if str(error) != self._warned[0] or now_s - self._warned[1] >= WARN_AGAIN_S:
                self._warned = str(error), now_s
                LOG.warning("control: %s", error)
        except Exception as error:  # noqa: BLE001 - what is active stays active
            LOG.error("control: new decisions could not be applied (%s)", type(error).__name__)
        self._gw.metrics.inc("suffice_failopen_total", "follow")
        if is_reading:
            self._check_age()


def _agent_fails(watches: Mapping[tuple[str, str], Watch], route: str) -> bool:
    watch = watches.get(("agent", route))
    return watch is not None and watch.n_failures > 0


def _load_problem(error: Exception) -> str:
    """Return why a version cannot be loaded; for a plug-in's error only its class, because it may quote its input."""
    return str(error) if isinstance(error, ConfigError) else f"it crashes at load ({type(error).__name__})"


def _earlier(held: RouteDeployment, before: RouteDeployment) -> RouteDeployment | None:
    """Return `held` with the publication served before it, or None if that may no longer be served."""
    made, served = held.publication, before.publication
    if made is None or served is None or not held.level or not before.level:
        return None
    return replace(held, publication=pin_publication(made, served)) if served.epoch == held.n_epochs else None


def _number(held: RouteDeployment) -> int:
    return 0 if held.publication is None else held.publication.number


@asynccontextmanager
async def follow_log(follower: Follower, metrics: Metrics) -> AsyncIterator[None]:
    follower.refresh()
    task = asyncio.create_task(follower.follow())
    try:
        with run_periodically(follower.wake, metrics, site="follow", every_s=LOOK_S):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
