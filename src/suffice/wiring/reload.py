"""Applies changed settings to a running gateway: all that can be reloaded, or nothing.

Everything that can fail is built beside what serves; then the parts are swapped without a pause in which a request
could see some of them. Requests in flight go on with the route, the key and the connection that they began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import msgspec

from suffice.asgi import BrowserPolicy
from suffice.console.app import ConsoleApp
from suffice.edge.embedder import HttpEmbedder
from suffice.errors import ConfigError, SufficeError
from suffice.gateway.app import App
from suffice.gateway.log_follower import Follower
from suffice.rollout.assign import FIRST_REQUESTS
from suffice.serving.route import BuiltRoute
from suffice.settings import Settings
from suffice.settings.checks import check_settings
from suffice.settings.reloading import Reload, merge_settings, planned_changes
from suffice.store.database.location import log_location
from suffice.store.database.views import n_requests_of
from suffice.telemetry import LOG
from suffice.upstream.client import UpstreamClient
from suffice.wiring.audit import config_change, loggable_settings
from suffice.wiring.console import reconfigure
from suffice.wiring.keys import key_ring
from suffice.wiring.routes import build_routes, read_evidence, route_notes
from suffice.wiring.startup import Preflight, preflight

FORGET_S = 60.0  # after which a removed upstream is forgotten
MOST_REPORT_CHARS = 1_500  # of a result in the gateway's announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    reload: Reload
    checked: Preflight
    clients: Mapping[str, UpstreamClient]  # new or changed ones
    embedders: Mapping[str, HttpEmbedder]  # likewise, by route
    routes: tuple[BuiltRoute, ...]
    n_requests: Mapping[str, int]  # of the added routes


@dataclass(slots=True, kw_only=True)
class Reloader:
    """Reloads the settings of one gateway, one reload at a time.

    read  reads the settings' source again; None: they came from no file
    """

    app: App
    follower: Follower
    stack: AsyncExitStack
    checked: Preflight
    read: Callable[[], Settings] | None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _n_reloads: int = 0

    async def reload(self, author: str | None, reason: str = "") -> Reload:
        """Apply what has changed, or say what a reload would do. Raises ConfigError and StoreError; then nothing has.

        author  None: only say it
        """
        async with self._lock:
            if author is None:
                return msgspec.structs.replace((await self._read()).reload, is_preview=True)
            try:
                result = await self._reload(author, reason or "reloaded while the gateway runs")
            except SufficeError as error:
                self._announce(f"nothing was reloaded: {error}")
                LOG.error("reload: nothing has changed: %s", error)
                raise
            self._announce(result.sentence)
            (LOG.warning if result.need_restart else LOG.info)("reload by %s: %s", author, result.sentence)
            return result

    def _announce(self, sentence: str) -> None:
        self._n_reloads += 1
        presence = self.app.gateway.deployment.kill.presence
        if presence is not None:  # suffice reload waits for this
            presence.update(n_reloads=self._n_reloads, reloaded=sentence[:MOST_REPORT_CHARS])

    async def _read(self) -> _Prepared:
        if self.read is None:
            raise ConfigError("these settings come from no file; start suffice serve with one to reload it")
        problem = self.app.gateway.deployment.log_problem
        if problem is not None:
            raise ConfigError(f"a reload is recorded in the log, which cannot be opened: {problem}")
        return await asyncio.to_thread(self._prepare, await asyncio.to_thread(self.read))

    async def _reload(self, author: str, reason: str) -> Reload:
        prepared = await self._read()
        settings = prepared.reload.settings
        if not prepared.reload.applied:
            return prepared.reload
        path = log_location(settings.store)
        change = await asyncio.to_thread(config_change, settings, path, process="serve", author=author, reason=reason)
        if change is not None:
            await self.app.gateway.log.append_durable(change)
        for note in prepared.reload.notes:
            LOG.info(note)
        for embedder in prepared.embedders.values():
            await self.stack.enter_async_context(embedder)
        for client in prepared.clients.values():
            await self.stack.enter_async_context(client)
        async with self.follower.applying:  # no decision is applied meanwhile
            self._swap(prepared)
        self.follower.wake()
        return prepared.reload

    def _prepare(self, read: Settings) -> _Prepared:
        """Build everything that the new settings need. Raises ConfigError and StoreError."""
        gw = self.app.gateway
        result = merge_settings(gw.settings, read)
        settings = result.settings
        check_settings(settings)  # it may mix both
        known = self.checked
        checked = preflight(settings, host=known.host, port=known.port, insecure_open=known.insecure_open)
        evidence = read_evidence(settings)
        changed = [name for name in settings.routes if not _is_same(name, gw.settings, settings)]
        clients = {
            name: UpstreamClient(name, upstream, checked.upstream_keys[name], evidence.upstreams.get(name), via=gw.via)
            for name, upstream in settings.upstreams.items()
            if upstream != gw.settings.upstreams.get(name)
        }
        added = [name for name in settings.routes if name not in gw.settings.routes]
        return _Prepared(
            reload=msgspec.structs.replace(
                result,
                changes=planned_changes(loggable_settings(gw.settings), loggable_settings(read)),
                notes=tuple(route_notes(settings, evidence, changed)),
            ),
            checked=checked,
            clients=clients,
            embedders={
                name: one
                for name, one in checked.embedders.items()
                if name not in gw.embedders or settings.routes[name].embeddings != gw.settings.routes[name].embeddings
            },
            routes=build_routes(settings, evidence),
            n_requests=n_requests_of(log_location(settings.store), added, most=FIRST_REQUESTS),
        )

    def _swap(self, prepared: _Prepared) -> None:
        """Replace everything at once: nothing here waits, reads or raises."""
        gw = self.app.gateway
        settings = prepared.reload.settings
        before = self.app.gateway.settings
        gw.settings = settings
        gw.upstreams |= prepared.clients
        asyncio.get_running_loop().call_later(FORGET_S, self._forget_upstreams)
        gw.embedders = {name: prepared.embedders.get(name) or gw.embedders[name] for name in prepared.checked.embedders}
        gw.sampling.follow(settings)
        clients, checked = gw.clients, prepared.checked
        clients.build_keys, clients.langfuse_secret = partial(key_ring, settings, gw.salt), checked.langfuse_secret
        clients.follow_keys(clients.issued)
        for name, n in prepared.n_requests.items():
            gw.statistics[name].n_requests += n
        serving = {route.name: route for route in gw.deployment.routes}
        gw.deployment.routes = tuple(
            serving[route.name] if _is_same(route.name, before, settings) else route for route in prepared.routes
        )
        gw.deployment.load.follow(settings.routes)
        gw.deployment.leases.rules = settings.control
        self.follower.rebase(prepared.routes)
        server = settings.server
        self.app.browsers = BrowserPolicy(hosts=server.names, origins=server.allowed_origins)
        for site in {id(one): one for one in self.app.beside.values()}.values():
            if isinstance(site, ConsoleApp):
                reconfigure(site, settings)
        self.checked = checked
        self.app.reloaded(settings)

    def _forget_upstreams(self) -> None:
        """Drop removed servers, once no request that was admitted before can still look one up."""
        gw = self.app.gateway
        for name in gw.upstreams.keys() - gw.settings.upstreams.keys():
            del gw.upstreams[name]


def _is_same(name: str, before: Settings, after: Settings) -> bool:
    """Whether a route and its upstream are as they were."""
    old, new = before.routes.get(name), after.routes[name]
    return old == new and before.upstreams.get(new.upstream) == after.upstreams.get(new.upstream)
