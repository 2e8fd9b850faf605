"""Runs the gateway's ASGI application under uvicorn, with a shutdown that loses no request and no event."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any, TypeAlias

import uvicorn

from suffice.control.worker_process import run_worker_process
from suffice.errors import SufficeError
from suffice.files import has_terminal
from suffice.gateway.app import App
from suffice.gateway.context import GatewayState, run_periodically
from suffice.gateway.http_protocol import Connections, LimitedHttp
from suffice.settings import Settings
from suffice.telemetry import LOG
from suffice.wiring.gateway import build_gateway
from suffice.wiring.startup import Preflight, preflight

Listening: TypeAlias = Callable[[str, str], None]  # gets the base address, and that of the console

LINGER_S = 0.25  # at shutdown: wait this long for requests already on their way on an open connection
CUT_S = 2.0  # at shutdown: how long cancelled requests have to write their outcome
POLL_S = 0.01
SWITCH_S = 2e-4  # longest time the log's thread holds the interpreter before it yields; Python's default is 5 ms
LOOK_S = 1.0  # between two checks for slow clients
BACKLOG = 2048
RESERVED_DESCRIPTORS = 64  # for the log, the worker, output files and listeners
DESCRIPTORS_PER_CLIENT = 2  # its connection and one to an upstream
MOST_DESCRIPTORS = 2**17  # stands for "unlimited"
ENDS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
IGNORED = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet. Raise OSError, naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With IPPROTO_TCP given, plain asyncio sets TCP_NODELAY, as uvloop does.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror or error if isinstance(error, OSError) else "a port is at most 65535"
        raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {base_url(host, port)}: {why}") from None
    return listener


def base_url(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _affordable_clients() -> int | None:
    """Raise the limit of open files as far as allowed; return how many clients it is enough for, None: any number."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return None
    return max(16, (soft - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CLIENT)


class StopSignal:
    """Counts signals: the first shuts down gracefully, a second SIGINT or SIGTERM at once.

    SIGHUP reloads the settings, unless the process's terminal was closed, which ends it. It is never urgent: a closing
    terminal and systemd's SendSIGHUP send it right after another signal.
    """

    def __init__(self) -> None:
        self.n_signals = self.n_urgent = 0
        self.on_signal: Callable[[], None] = lambda: None  # called at each signal
        self.on_reload: Callable[[], None] = lambda: None  # called at a SIGHUP that ends nothing
        self._had_terminal = has_terminal()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if number == HANGUP and not self.n_signals and (has_terminal() or not self._had_terminal):
            self.on_reload()
            return
        self.n_signals += 1
        self.n_urgent += number in (signal.SIGINT, signal.SIGTERM)
        self.on_signal()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals until the log is closed. A signal that nohup ignores stays ignored."""
        ends = [n for n in ENDS if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self) for number in ends}
        before |= {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class GatewayServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gw: GatewayState, stop: StopSignal) -> None:
        super().__init__(config)
        self._clock_s, self._looked_s = 0.0, time.monotonic()  # stops while the loop is blocked; its last advance
        self._gw, self._stop = gw, stop
        self._wake: Callable[[], object] = lambda: None  # makes the main loop check `should_exit`
        self._unread: dict[Any, tuple[int, float]] = {}  # by connection: buffered bytes, and since when
        stop.on_signal = self._begin_shutdown

    def _begin_shutdown(self) -> None:
        self._gw.process.ready = False
        self.force_exit = self._stop.n_urgent > 1
        self.end()

    def end(self) -> None:
        """Safe to call from a signal handler."""
        self.should_exit = True
        self._wake()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `StopSignal`: uvicorn would raise them again and kill the process before the log closes."""
        if self._stop.n_signals:
            self._begin_shutdown()
        yield

    async def main_loop(self) -> None:
        """Wait for the shutdown; uvicorn's own loop wakes up ten times a second."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        self._wake = partial(loop.call_soon_threadsafe, ended.set)
        await super().on_tick(0)  # sets the default response headers
        with run_periodically(self._look_at_clients, self._gw.metrics, site="clients", every_s=LOOK_S):
            try:
                while not self.should_exit:
                    await ended.wait()
            finally:
                self._wake = lambda: None  # the loop may be closed by the next signal

    def _look_at_clients(self) -> None:
        """Close connections of slow clients, by a clock that stops while this loop is blocked.

        Abort those whose client has read nothing for `client_idle_timeout_s` while bytes were waiting.
        """
        now_s, unread = time.monotonic(), {}
        self._clock_s += min(now_s - self._looked_s, 2 * LOOK_S)
        self._looked_s = now_s
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedHttp):
                connection.look(self._clock_s)
            size = connection.transport.get_write_buffer_size()
            if not size:
                continue
            before, since_s = self._unread.get(connection, (size, now_s))
            unread[connection] = (size, since_s if size == before else now_s)
            if size == before and now_s - since_s >= self._gw.settings.server.client_idle_timeout_s:
                LOG.warning("disconnected a client that read nothing; %d bytes were pending", size)
                connection.transport.abort()
        self._unread = unread

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, wait for open requests, cancel the rest, and return when every handler has ended."""
        state, gw = self.server_state, self._gw
        gw.process.ready, gw.process.draining = False, True
        await self._close_listeners(sockets or [])
        grace_s = gw.settings.server.grace_s
        end_s = time.monotonic() + grace_s

        def quiet() -> bool:
            return not (state.connections or state.tasks)

        await self._until(lambda: quiet() or self.force_exit, min(LINGER_S, grace_s))
        for connection in list(state.connections):
            connection.shutdown()  # closes idle connections; busy ones close after their response
        await self._until(lambda: quiet() or self.force_exit, end_s - time.monotonic())
        if state.tasks:
            LOG.warning("shutting down: aborting %d requests", len(state.tasks))
        for task in list(state.tasks):
            task.cancel()
        await self._until(quiet, CUT_S)
        for connection in list(state.connections):
            connection.transport.abort()  # otherwise a client that does not read holds its handler for ever
        await self._until(quiet, CUT_S)

    async def _close_listeners(self, listeners: list[socket.socket]) -> None:
        """Close the listeners, but accept the connections in their queue, which the kernel has already confirmed."""
        last = [listener.dup() for listener in listeners]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        await asyncio.sleep(0)
        loop, queued = asyncio.get_running_loop(), list[socket.socket]()
        for listener in last:
            listener.setblocking(False)
            with contextlib.suppress(OSError):  # BlockingIOError: the queue is empty
                while True:
                    queued.append(listener.accept()[0])
            listener.close()
        http: Any = self.config.http_protocol_class
        protocol = partial(http, config=self.config, server_state=self.server_state, app_state={})
        for client in queued:
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(protocol, client)

    async def _until(self, done: Callable[[], bool], within_s: float) -> None:
        end_s = time.monotonic() + within_s
        while not done() and time.monotonic() < end_s:
            await asyncio.sleep(POLL_S)


def _config(app: App, settings: Settings) -> uvicorn.Config:
    connections = Connections(settings.server, affordable=_affordable_clients())
    http: Any = partial(LimitedHttp, limits=settings.server, connections=connections)
    return uvicorn.Config(
        app,
        http=http,
        lifespan="off",
        ws="none",  # with a package for it installed, uvicorn would leave HTTP on request
        access_log=False,
        log_config=None,  # the process has configured logging; uvicorn would replace its handlers
        proxy_headers=False,  # API keys identify clients; addresses do not
        log_level="error",  # below it, uvicorn logs a line for each client that does not send HTTP
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=round(settings.server.grace_s),
        backlog=BACKLOG,
    )


def _url_of(listener: socket.socket) -> str:
    return f"http://{base_url(*listener.getsockname()[:2])}"


async def _reload(gw: GatewayState) -> None:
    try:
        if gw.process.reload is not None and not gw.process.draining:
            presence = gw.deployment.kill.presence
            order = presence and presence.take_order()
            author, reason = (order.author, order.reason) if order else ("SIGHUP", "by signal")
            await gw.process.reload(author, reason)
    except SufficeError:  # logged, and nothing has changed
        pass
    except Exception as error:  # noqa: BLE001 - requests are served as before
        LOG.error("reload: failed (%s)", type(error).__name__)


async def _serve(
    settings: Settings,
    checked: Preflight,
    read: Callable[[], Settings] | None,
    listeners: list[socket.socket],
    listening: Listening,
    stop: StopSignal,
) -> None:
    async with (
        build_gateway(settings, result=checked, read=read) as app,
        run_worker_process(settings, app.gateway.deployment.notify) as app.reloaded,
        asyncio.TaskGroup() as reloads,
    ):
        loop = asyncio.get_running_loop()

        def reload() -> None:
            loop.call_soon_threadsafe(lambda: reloads.create_task(_reload(app.gateway)))

        stop.on_reload = reload
        app.console_port = listeners[1].getsockname()[1] if len(listeners) > 1 else None
        server = GatewayServer(_config(app, settings), app.gateway, stop)
        for listener in listeners:
            listener.listen(BACKLOG)  # before `listening` reports it: connections queue from here on
        listening(_url_of(listeners[0]), _url_of(listeners[-1]))
        await server.serve(sockets=listeners)
        stop.on_reload = lambda: None


def run_server(
    settings: Settings,
    *,
    listening: Listening,
    host: str | None = None,
    port: int | None = None,
    insecure_open: bool = False,
    read: Callable[[], Settings] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends at once. SIGHUP reloads the settings.

    insecure_open  allow access from other machines even where no keys are required
    read           reads the settings again, for a reload; None: they came from no file

    Raise OSError for an address in use, and ConfigError or StoreError for what `preflight` rejects.
    """
    host = settings.server.host if host is None else host
    port = settings.server.port if port is None else port
    checked = preflight(settings, host=host, port=port, insecure_open=insecure_open)
    with ExitStack() as stack:
        listeners = [stack.enter_context(contextlib.closing(one)) for one in _listeners(settings, host, port)]
        stop = StopSignal()
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # excludes loaded modules from garbage collection; requests leave no cycles
        gc.set_threshold(20_000, 20, 20)
        with stop.installed(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, checked, read, listeners, listening, stop))


def _listeners(settings: Settings, host: str, port: int) -> Iterator[socket.socket]:
    yield _listen(host, port)
    console = settings.console
    if console.enabled and console.port is not None:
        yield _listen(console.host or host, console.port)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows has no uvloop; the standard loop is only slower
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def serve_in_loop(
    settings: Settings, *, port: int = 0, worker_after_s: float | None = None
) -> AsyncIterator[str]:
    """Serve inside a running loop, with a worker process after `worker_after_s`, for the demo and for tests."""
    listener = _listen("127.0.0.1", port)
    async with build_gateway(settings) as app, AsyncExitStack() as stack:
        if worker_after_s is not None:
            app.reloaded = await stack.enter_async_context(
                run_worker_process(settings, app.gateway.deployment.notify, first_s=worker_after_s)
            )
        server = GatewayServer(_config(app, settings), app.gateway, StopSignal())
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            yield _url_of(listener)
        finally:
            server.end()
            await task
