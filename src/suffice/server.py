"""Runs the gateway's ASGI application under uvicorn; shared by `serve` and `demo`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn

from suffice.settings import Settings
from suffice.telemetry import LOG
from suffice.wiring import gateway


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, so that plain asyncio sends small writes at once (TCP_NODELAY) as uvloop does.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _server(app: object, settings: Settings) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=round(settings.server.grace_s),
            timeout_keep_alive=75,
        )
    )


async def _serve(settings: Settings, listener: socket.socket, listening: Callable[[str], None]) -> None:
    async with gateway(settings) as app:
        host, port = listener.getsockname()[:2]
        listening(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await _server(app, settings).serve(sockets=[listener])


def run(settings: Settings, *, host: str | None = None, port: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises OSError when the address cannot be had."""
    listener = _listen(host or settings.server.host, settings.server.port if port is None else port)

    def listening(url: str) -> None:
        LOG.warning("suffice is listening on %s/v1", url)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, listener, listening))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows: the standard loop serves as well, only slower
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def serving(settings: Settings, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve inside a running loop; give the base URL. For the demo and for tests."""
    listener = _listen(host, port)
    async with gateway(settings) as app:
        server = _server(app, settings)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
