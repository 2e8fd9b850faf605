"""Follows what the control loop decides: reads new decisions of the log, and gives requests to come their routes.

    told, or new rows ──▶ read (a thread) ──▶ built routes ──▶ swap (the event loop) ──▶ the last-good file

A request keeps the route that it got. A version that cannot be loaded leaves the last good one in force, if something
is certified still, and everybody is told. While the log cannot be read everything stays as it is, for as long as the
settings allow; then all runs in full until it can. A gateway that starts without its log does the same with what the
last-good file says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from suffice.assurance.estimate import saving_of
from suffice.assurance.forecast import Outlook
from suffice.assurance.runs import Tally
from suffice.assurance.satisfaction import SatisfactionEffect
from suffice.errors import ConfigError, StoreError
from suffice.gateway.context import GatewayState, run_periodically
from suffice.gateway.last_good import GoodRoute, LastGood, LastGoodWriter
from suffice.gateway.route import (
    BuiltRoute,
    RolloutTrial,
    apply_budget,
    apply_pause,
    apply_pin,
    deploy_route,
    rest_route,
)
from suffice.learn.version import FoldedVersion, load_version, read_version
from suffice.policy.base import build_policy
from suffice.review.holds import NO_OVERRIDES, InEffect, in_effect, standing
from suffice.review.route_guarantee import pin_publication
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.stages import State
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import CachedReader, LogReader, newest_of
from suffice.store.people.promises import audits_by_class
from suffice.store.routes.candidates import models_of
from suffice.store.routes.experiments import read_experiments, read_running_experiments
from suffice.store.routes.in_force import NOTHING, NOTHING_DECIDED, NOTHING_HELD, InForce, read_decided, read_holds
from suffice.store.routes.rollouts import own_version, read_rollouts, succession, version_at
from suffice.store.routes.rollouts import read_running_rollouts as running_rollouts
from suffice.store.routes.rollups import read_tallies, read_to
from suffice.store.routes.windows import newest_outlook, newest_place, newest_rates
from suffice.store.rows.records import (
    VersionRefusal,
)
from suffice.telemetry import LOG, Metrics

LOOK_S: Final = 1.0  # between two glances at the log; whoever is told looks at once
GAUGES_S: Final = 5.0  # after which the gauges are brought up to what the worker has summed up, in any case
AGAIN_S: Final = 60.0  # between two lines that say the same
_OF_REQUESTS: Final = frozenset({"request", "outcome"})  # most rows by far, and they decide nothing
_VARYING: Final = (
    "experiment_started",
    "experiment_changed",
    "experiment_stopped",
    "rollout_begun",
    "rollout_moved",
    "rollout_undone",
)


class Follower:
    """One gateway's view of what is decided. `look` may run in a thread; `take` belongs to the event loop."""

    def __init__(
        self, gw: GatewayState, path: Path, *, keeper: LastGoodWriter | None = None, good: LastGood | None = None
    ) -> None:
        """Begin.

        keeper  of the last-good file; None: none is written
        good    what that file says; None: nothing that may be served
        """
        self._gw, self._reader, self._keeper, self._good = gw, CachedReader(path, besides=_OF_REQUESTS), keeper, good
        self._decided = NOTHING_DECIDED
        self._holds = NOTHING_HELD
        self._tallies: dict[str, Tally] = {}  # that were summed up since the gauges were set
        self._gauged_s = gw.monotonic_s()  # when that was looked at last
        self._summed = 0  # how far the log was summed up then
        self._outlooks: dict[str, tuple[int, Outlook | None]] = {
            route.name: (0, None) for route in gw.deployment.routes
        }
        self._experiments: tuple[RunningExperiment, ...] = ()
        self._trials: Mapping[str, RolloutTrial] = {}
        self._standing: Mapping[str, Mapping[str, object]] = {}
        self._stands: dict[str, tuple[str, str]] = {}  # addresses: the settings' own, and what stands in its place
        self._varied_at = 0  # place of the newest row about experiments and rollouts
        self._policies: dict[str, Mapping[str, object] | str] = {}  # by address; a text: why there is none
        self._models: dict[str, FoldedVersion | None] = {}  # of learned candidates, by address
        self._versions: dict[str, FoldedVersion] = {}
        self._told = asyncio.Event()
        self._looked_s: float | None = None
        self._read_s = gw.monotonic_s()  # when the log last said what is in force
        self._in_full = False  # it could not be read for too long: nothing acts
        self._anew = False  # what is served came from elsewhere: all is built again from the log
        self._said = ("", 0.0)  # the latest complaint, and when
        self._refused: set[tuple[str, str]] = set()  # routes and versions that rollouts brought, which was said of
        self._in_force: dict[str, InForce] = {
            name: one.held for name, one in (good.routes if good is not None else {}).items()
        }  # what each route is served by: an earlier publication where the newest cannot be loaded
        self.rebase(gw.deployment.routes)

    def rebase(self, routes: Sequence[BuiltRoute]) -> None:
        """Take the routes as the settings have them, without any publication; all are built anew at the next look."""
        self._base = {route.name: route for route in routes if route.settings.mode != "off"}
        self._holding: dict[str, InEffect] = dict.fromkeys(self._base, NO_OVERRIDES)
        self._built_for: dict[str, InForce] = dict.fromkeys(self._base, NOTHING)
        self._changed = True  # since the last-good file was written

    def tell(self) -> None:
        self._told.set()

    def look(self) -> Mapping[str, BuiltRoute]:
        """Read what is new; the routes that it changes, as they serve from now on. Raises StoreError."""
        if self._gw.deployment.log_problem is not None:
            raise StoreError(self._gw.deployment.log_problem)
        with self._reader.reading() as connection:
            self._look_ahead(connection)
            self._decided = read_decided(connection, self._decided)
            self._holds = read_holds(connection, self._holds)
            with self._failing_open():  # a variant that cannot be read must not hold up a brake
                self._look_at_versions(connection)
            now_s, changed = self._gw.wall_s(), {}
            for name, base in self._base.items():
                held, holding = self._decided.of(name), self._holds.of(name).in_effect(now_s)
                if self._anew or held is not self._built_for[name] or holding != self._holding[name]:
                    changed[name] = self._serving(base, held, holding, connection)
                    self._built_for[name], self._holding[name] = held, holding
            return changed

    def _look_at_versions(self, connection: LogReader) -> None:
        """Read which experiments and rollouts run, and what rollouts have brought, where that has changed."""
        newest = newest_of(connection, _VARYING)
        if newest == self._varied_at:
            return
        experiments, held = read_running_experiments(read_experiments(connection)), read_rollouts(connection)
        tried = running_rollouts(held)
        trials, standing, stands = (
            dict[str, RolloutTrial](),
            dict[str, Mapping[str, object]](),
            dict[str, tuple[str, str]](),
        )
        for name, base in self._base.items():
            if base.settings.is_learned and name in tried and tried[name].state.fit:
                trial = self._learned(connection, tried[name].state)
                trials |= {} if trial is None else {name: trial}
            if not base.settings.policy or not any(one.state.route == name for one in held):
                continue
            line = succession(held, name, own_version(base.settings).address)
            good = self._newest_good(connection, name, line)
            policy, stands[name] = self._policies.get(good), (line[0], good)
            if good != line[0] and isinstance(policy, Mapping):
                standing[name] = policy
            one = tried.get(name)
            if one is None or good != line[-1]:  # compared with what is not served it would prove nothing
                continue
            policy = self._policy(connection, one.state.candidate)
            if isinstance(policy, Mapping):
                trials[name] = RolloutTrial(state=one.state, policy=policy)
        self._experiments, self._trials, self._standing, self._stands = experiments, trials, standing, stands
        self._varied_at = newest

    def _newest_good(self, connection: LogReader, route: str, line: Sequence[str]) -> str:
        """Which of the versions that followed each other on a route serves: the newest that can be, else its own.

        line  as `succession` has it
        """
        own, *brought = line
        good = next((a for a in reversed(brought) if not isinstance(self._policy(connection, a), str)), own)
        why = self._policies.get(line[-1])
        if good != line[-1] and isinstance(why, str) and (route, line[-1]) not in self._refused:
            self._refused.add((route, line[-1]))
            serves = "the settings' own policy serves" if good == own else f"version {good} stays in force"
            self._refuse(VersionRefusal(route=route, number=0, fit=line[-1], reason=why, serves=serves))
        return good

    def _learned(self, connection: LogReader, state: State) -> RolloutTrial | None:
        """A learned candidate as it stands, its models read once; None: they are gone or not what they were."""
        if state.candidate not in self._models:
            try:
                version = version_at(connection, state.candidate, secret=self._gw.salt)
                self._models = {state.candidate: models_of(version), **self._models}
            except ConfigError as error:
                LOG.error("control: %s; nobody is served by it", error)
                self._models = {state.candidate: None, **self._models}
        models = self._models[state.candidate]
        return None if models is None else RolloutTrial(state=state, models=models)

    def _policy(self, connection: LogReader, address: str) -> Mapping[str, object] | str:
        """The policy of a version, read once; a text: why there is none, and nobody is served by it."""
        if address not in self._policies:
            self._policies[address] = self._read_policy(connection, address)
        return self._policies[address]

    def _read_policy(self, connection: LogReader, address: str) -> Mapping[str, object] | str:
        try:
            version = version_at(connection, address, secret=self._gw.salt)
            if version.form == "policy":
                body: Mapping[str, object] = version.plain()["body"]
                return body
            why = f"version {address}: is no policy"
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - a version that crashes when it is loaded serves nobody
            why = _why(error)
        for told in () if self._good is None else self._good.routes.values():
            if told.stands == address and told.standing is not None:
                with contextlib.suppress(Exception):  # then it is as bad there
                    build_policy(told.standing)
                    return told.standing
        LOG.error("control: %s; nobody is served by it", why)
        return why

    def _look_ahead(self, connection: LogReader) -> None:
        """Read what the job `monitor` saw since, and rates of rows; what cannot be read holds up no decision."""
        with contextlib.suppress(StoreError):
            if self._gw.settings.adapts_rates:
                self._gw.sampling.rates = {
                    name: rates for name in self._outlooks if (rates := newest_rates(connection, name)) is not None
                }
            to, self._gauged_s = read_to(connection), self._gw.monotonic_s()
            if to.seq != self._summed:
                self._tallies |= read_tallies(connection, since=self._summed if to.seq > self._summed else 0)
                self._summed = to.seq
            for name, (seq, _) in self._outlooks.items():
                newest = newest_place(connection, name)
                if newest != seq:
                    self._outlooks[name] = newest, newest_outlook(connection, name)

    def _serving(self, base: BuiltRoute, held: InForce, holding: InEffect, connection: LogReader | None) -> BuiltRoute:
        """The route as it serves what is held. Raises nothing: what cannot be built is served by nobody.

        connection  to the log; None: versions are those of the last-good file
        """
        before, self._in_force[base.name] = self._in_force.get(base.name), held
        if not base.settings.certifies_itself:
            return replace(base, in_force=held, holding=apply_pause(holding, held.pause))
        own = replace(apply_budget(base, holding), holding=holding)
        if base.settings.is_paired:
            # One that acts uncertified has no certificate that a pause could take away.
            rests = replace(own, holding=apply_pause(holding, held.pause)) if base.settings.uncertified else own
            return deploy_route(rests, apply_pin(held, holding))
        if base.settings.is_owned:
            return deploy_route(own, apply_pin(held, holding))
        try:
            return self._built(own, apply_pin(held, holding), connection)
        except Exception as error:  # noqa: BLE001 - a policy that crashes when it is loaded serves nobody
            why = _why(error)
        earlier = _earlier(held, before)
        if earlier is not None:
            with contextlib.suppress(Exception):
                built = self._built(own, apply_pin(earlier, holding), connection)
                if built.certified:
                    self._in_force[base.name] = earlier
                    self._refuse(_refusal(base.name, held, why, f"publication {_number(earlier)} stays in force"))
                    return built
        self._refuse(_refusal(base.name, held, why, "the route runs in full"))
        return deploy_route(own, held, None)

    def _built(self, own: BuiltRoute, held: InForce, connection: LogReader | None) -> BuiltRoute:
        """The route with the version that is in force. Raises ConfigError, and whatever the version does."""
        return deploy_route(own, held, self._version(held, connection))

    def _refuse(self, told: VersionRefusal) -> None:
        """Say it in the log of the process, in the metrics and in the log, where the job `notify` finds it."""
        what = f"publication {told.number}" if told.number else f"version {told.fit}"
        LOG.error("routes.%s: %s cannot be served: %s; %s", told.route, what, told.reason, told.serves)
        self._gw.metrics.inc("suffice_versions_refused_total", told.route)
        if told.number or told.fit:
            self._gw.log.append(told)

    def _version(self, held: InForce, connection: LogReader | None) -> FoldedVersion | None:
        """The version that is in force, read once. Raises ConfigError when it is gone or another one."""
        made = held.publication
        if made is None or not made.fit or not held.level:
            return None
        if made.fit not in self._versions:
            version = self._kept(made.fit) or read_version(
                made.fit, None if connection is None else read_artefact(connection, made.fit)
            )
            self._versions = {made.fit: version, **dict(list(self._versions.items())[:8])}
        return self._versions[made.fit]

    def _kept(self, fit: str) -> FoldedVersion | None:
        """A version of the last-good file; None: it is not there, or cannot be used here."""
        plain = None if self._good is None else self._good.versions.get(fit)
        if plain is None:
            return None
        with contextlib.suppress(Exception):  # then the log has it, or says better what is wrong with it
            version = load_version(plain)
            return version if version.address == fit else None
        return None

    def take(self, changed: Mapping[str, BuiltRoute]) -> None:
        """Give requests to come these routes, and metrics what the job `monitor` saw and what people hold."""
        for name, (_, outlook) in self._outlooks.items():
            if outlook is not None:
                export_gauges(outlook, name, self._gw.metrics)
                self._gw.deployment.classes[name] = audits_by_class(outlook)
        for name in {route.name for route in self._gw.deployment.routes} & self._tallies.keys():
            saving = saving_of(self._tallies[name])
            if saving is not None:
                self._gw.metrics.set("suffice_token_saving_ratio", saving.value, name)
        self._tallies.clear()
        for name in self._base:
            held = self._holds.of(name)
            n_held = len(standing(held.overrides, self._gw.wall_s()))
            self._gw.metrics.set("suffice_overrides", n_held, name)
            self._gw.metrics.set("suffice_open_incidents", len(held.open_cases), name)
        variants = self._gw.deployment.variants
        variants.experiments, variants.trials = self._experiments, self._trials
        self._changed = self._changed or bool(changed) or variants.standing != self._standing
        variants.standing = self._standing
        for name, route in changed.items():
            self._gw.deployment.activate(name, route)
        if self._gw.deployment.serves:
            LOG.warning("control: the log can be read again, and what it says is in force")
        self._read_s, self._in_full, self._anew, self._gw.deployment.serves = self._gw.monotonic_s(), False, False, ""
        self._gw.metrics.set("suffice_log_unread_seconds", 0)

    def serve_last_good(self, *, age_s: float) -> None:
        """Serve what the last-good file says until the log can be read; where it says nothing, in full.

        age_s  of the file, by its own time
        """
        self._read_s, self._anew = self._gw.monotonic_s() - age_s, True
        if self._good is None:
            self._rest("there is no last-good file that may be served")
            return
        now_s, standing = self._gw.wall_s(), dict[str, Mapping[str, object]]()
        for name, base in self._base.items():
            told = self._good.routes.get(name)
            if told is None:
                self._gw.deployment.activate(name, rest_route(base, "the last-good file does not know this route"))
                continue
            self._gw.deployment.activate(name, self._serving(base, told.held, in_effect(told.overrides, now_s), None))
            own = own_version(base.settings).address if base.settings.policy else ""
            if told.standing is not None and told.instead_of == own:  # where its owner wrote another one, that serves
                standing[name], self._stands[name] = told.standing, (own, told.stands)
        self._standing = self._gw.deployment.variants.standing = standing
        self._gw.deployment.serves = "last good"
        self._said_without_log()

    def _rest(self, why: str) -> None:
        """Let nothing act on any route until the log can be read."""
        self._in_full, self._anew, self._gw.deployment.serves = True, True, "full"
        variants = self._gw.deployment.variants
        variants.experiments, variants.trials, variants.standing = (), {}, {}
        for name, base in self._base.items():
            self._gw.deployment.activate(name, rest_route(base, f"the log cannot be read, and {why}"))
        self._said_without_log()

    def _said_without_log(self) -> None:
        self._gw.metrics.set("suffice_log_unread_seconds", self._gw.monotonic_s() - self._read_s)

    def _unread(self) -> None:
        """The log could not be read: what is in force stays for as long as the settings allow."""
        self._said_without_log()
        most_s = self._gw.settings.store.last_good_s
        if not self._in_full and self._gw.monotonic_s() - self._read_s >= most_s:
            why = f"nobody has said for {most_s:,.0f} s what is in force (store.last_good_s)"
            LOG.error("control: everything runs in full until the log can be read: %s", why)
            self._rest(why)
        self._gw.deployment.serves = self._gw.deployment.serves or "last good"

    def _keeps(self) -> bool:
        return self._keeper is not None and self._keeper.is_due(changed=self._changed)

    def _keep(self) -> None:
        if self._keeper is None:
            return
        with self._failing_open():
            if self._keeper.keep(self._as_good, changed=self._changed):
                self._changed = False

    def _as_good(self) -> LastGood:
        gw, now = self._gw, {route.name: route for route in self._gw.deployment.routes}
        routes = {}
        for name in self._base:
            own, stands = self._stands.get(name, ("", ""))
            routes[name] = GoodRoute(
                held=self._in_force.get(name, NOTHING),
                overrides=self._holds.of(name).overrides,
                standing=self._standing.get(name),
                stands=stands,
                instead_of=own,
                refused=now[name].refused,
                n_requests=gw.statistics[name].n_requests,
            )
        acting = {one.held.publication.fit for one in routes.values() if one.held.publication and one.held.level}
        return LastGood(
            at_s=gw.wall_s(),
            seq=self._decided.seq,
            routes=routes,
            versions={fit: one.plain() for fit, one in self._versions.items() if fit in acting},
            findings={name: one.findings for name, one in gw.upstreams.items() if one.findings is not None},
        )

    def refresh(self) -> None:
        """Look and take, at most once a second: for a process without an event loop. Raises nothing."""
        now_s = self._gw.monotonic_s()
        if self._looked_s is not None and now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        seen = False
        if self._gw.deployment.log_problem is not None:  # it has been said, and there is nothing to look at
            self._gw.metrics.inc("suffice_failopen_total", "follow")
        else:
            with self._failing_open():
                self.take(self.look())
                self._confirm()
                seen = True
        if not seen:
            self._unread()
        self.close()

    async def follow(self) -> None:
        """Look whenever told, until cancelled."""
        while True:
            seen = False
            with self._failing_open():
                self.take(await asyncio.to_thread(self.look))
                self._confirm()
                seen = True
            if not seen:
                self._unread()
            elif self._keeps():
                await asyncio.to_thread(self._keep)
            await self._told.wait()
            self._told.clear()

    def _confirm(self) -> None:
        """Say up to where decisions are acted on, for commands that wait for it."""
        if self._gw.deployment.kill.presence is not None:
            self._gw.deployment.kill.presence.update(decided=self._reader.seq)

    def glance(self) -> None:
        """Have it looked where rows are new, or where the clock alone changes something. Waits for nothing.

        Where nothing is new, the log says what it said; to see that takes a few system calls, to look ten times that.
        """
        by_clock = any(held.until_s is not None for held in self._holding.values()) or self._keeps()
        # Sums of the worker change beside rows of requests, which alone are nothing new.
        by_clock = by_clock or self._gw.monotonic_s() - self._gauged_s >= GAUGES_S
        if by_clock or self._reader.has_new():
            self._told.set()
        else:
            self._read_s = self._gw.monotonic_s()

    def close(self) -> None:
        self._reader.close()

    @contextlib.contextmanager
    def _failing_open(self) -> Iterator[None]:
        """Whatever goes wrong here leaves everything as it is."""
        try:
            yield
        except StoreError as error:
            now_s = self._gw.monotonic_s()
            if str(error) != self._said[0] or now_s - self._said[1] >= AGAIN_S:
                self._said = str(error), now_s
                LOG.warning("control: %s", error)
            self._gw.metrics.inc("suffice_failopen_total", "follow")
        except Exception as error:  # noqa: BLE001 - what is in force stays in force
            LOG.error("control: what was decided could not be followed (%s)", type(error).__name__)
            self._gw.metrics.inc("suffice_failopen_total", "follow")


def _why(error: Exception) -> str:
    """What is wrong with a version that cannot be loaded: a stranger's error may quote what it was given."""
    return str(error) if isinstance(error, ConfigError) else f"it crashes at load ({type(error).__name__})"


def _refusal(route: str, held: InForce, why: str, serves: str) -> VersionRefusal:
    fit = "" if held.publication is None else held.publication.fit
    return VersionRefusal(route=route, number=_number(held), fit=fit, reason=why, serves=serves)


def _earlier(held: InForce, before: InForce | None) -> InForce | None:
    """What is held, with the publication that was served before it; None: that one may not be served any more."""
    made, told = held.publication, None if before is None else before.publication
    if made is None or told is None or before is None or not held.level or not before.level:
        return None
    return replace(held, publication=pin_publication(made, told)) if told.epoch == held.n_epochs else None


def _number(held: InForce) -> int:
    return 0 if held.publication is None else held.publication.number


def export_gauges(outlook: Outlook, route: str, metrics: Metrics) -> None:
    """Write the latest look at a route into the gauges; what is not known is left out."""
    whole, drop = outlook.whole, outlook.drop
    if whole is not None and whole.em_drop is not None and whole.em_drop.high is not None:
        metrics.set("suffice_em_drop_upper_bound", whole.em_drop.high, route)
    if drop is not None:
        metrics.set("suffice_em_drop_forecast", drop.ahead, route)
    metrics.set("suffice_alerts", len(outlook.alerts), route)
    _export_satisfaction(outlook.satisfaction, route, metrics)


def _export_satisfaction(effects: SatisfactionEffect | None, route: str, metrics: Metrics) -> None:
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


@asynccontextmanager
async def following(follower: Follower, metrics: Metrics) -> AsyncIterator[None]:
    """A block in which the gateway follows; what is decided already is in force before it begins."""
    follower.refresh()
    task = asyncio.create_task(follower.follow())
    try:
        with run_periodically(follower.glance, metrics, site="follow", every_s=LOOK_S):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(follower.close)
