"""P7 and stale connections: a server that closes what it keeps open costs no request, and nothing is asked twice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Literal, Self

import pytest

from suffice.settings import Upstream
from suffice.upstream.client import UpstreamClient
from suffice_testing import Fault, Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import chat
from tests.simulators.fault_proxy import FaultProxy, LinkFaults

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Moody:
    """Answers the first `n_good` requests of each connection; then it goes wrong as it is told.

    mood  "reads": reads the next request whole and closes; "at once": closes when its first byte comes;
          "resets": the same, with a reset; "half": begins to answer and closes
    """

    def __init__(self, mood: Literal["reads", "at once", "resets", "half"], n_good: int = 1) -> None:
        self._mood, self._n_good = mood, n_good
        self.n_connections = self.n_requests = self.n_answers = 0
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(t for t in self._tasks if t is not None), return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        self.n_connections += 1
        try:
            for n in range(self._n_good + 1):
                first = await reader.read(1)
                if not first:
                    return
                self.n_requests += 1
                if n == self._n_good and self._mood in ("at once", "resets"):
                    if self._mood == "resets":
                        writer.transport.abort()
                    return
                head = first + await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                if n == self._n_good:
                    if self._mood == "half":
                        writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
                    return
                writer.write(ANSWER)
                await writer.drain()
                self.n_answers += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


BODIES = {"short": b"{}", "long": b'{"x":"' + b"y" * 3_000_000 + b'"}'}


@contextlib.asynccontextmanager
async def client_of(url: str, **settings: Any) -> Any:
    async with UpstreamClient("up", Upstream(url=url, **settings), None) as client:
        yield client


async def ask(client: UpstreamClient, body: bytes) -> bool:
    code, answer, _ = await client.fetch("/v1/chat/completions", body, timeout_s=10)
    return (code, answer) == (200, b"{}")


@pytest.mark.parametrize("size", BODIES)
@pytest.mark.parametrize("mood", ["reads", "at once", "resets"])
async def test_a_kept_connection_that_closes_at_the_wrong_moment_costs_no_request(mood: Any, size: str) -> None:
    async with Moody(mood) as server, client_of(server.url) as client:
        n = 10
        for _ in range(n):
            assert await ask(client, BODIES[size])
        assert server.n_answers == n
        assert server.n_requests <= n + n // 2 + 1  # asked again only where nothing had come back


async def test_when_all_kept_connections_are_stale_one_more_try_is_enough() -> None:
    """The second try has a connection of its own: another one from the pool would be as stale."""
    async with Moody("reads") as server, client_of(server.url) as client:
        for _ in range(3):
            assert all(await asyncio.gather(*(ask(client, b"{}") for _ in range(20))))
        assert server.n_answers == 60


@pytest.mark.parametrize("retries", [1, 5])
async def test_an_answer_that_had_begun_is_not_asked_for_again(retries: int) -> None:
    from suffice.errors import UpstreamDown

    async with Moody("half") as server, client_of(server.url, retries=retries) as client:
        assert await ask(client, b"{}")
        with pytest.raises(UpstreamDown):
            await ask(client, b"{}")
        assert server.n_requests == 2


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_an_upstream_that_closes_idle_connections_as_requests_arrive_costs_none(serve: Serve, mode: str) -> None:
    """Requests come just when the upstream's idle time is over, a little before and a little after."""
    idle_s, n_clients, n_rounds = 0.3, 12, 6  # far longer than a busy machine holds up a new connection
    says = Reply(answer=("four",))
    async with serve(says, fake={"idle_close_s": idle_s}, upstream={"keepalive_s": 60.0}, route={"mode": mode}) as g:

        async def one(n: int) -> int:
            good = 0
            for turn in range(n_rounds):
                answer = await g.ask(chat(stream=(n + turn) % 2 == 0))
                good += (answer.status, answer.text) == (200, "four")
                await asyncio.sleep(idle_s + (n - n_clients / 2) * 0.0005)
            return good

        assert sum(await asyncio.gather(*(one(n) for n in range(n_clients)))) == n_clients * n_rounds
        await g.quiet()
        outcomes = [e.episode.outcome for e in await g.episodes(n_clients * n_rounds)]
        assert {(o.end_reason, len(o.calls)) for o in outcomes} == {("done", 1)}


@pytest.mark.parametrize("line", [LinkFaults(reset_after=0), LinkFaults(limit_bytes=0)], ids=["reset", "closed"])
@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_attempts_are_never_more_than_was_said(serve: Serve, line: LinkFaults, retries: int) -> None:
    """F12: the upstream answers, but nothing of it ever comes through."""
    async with serve(Reply(answer=("four",))) as direct, FaultProxy(direct.fake.url, to_client=line) as proxy:
        async with UpstreamClient("up", Upstream(url=proxy.url, retries=retries), None) as client:
            with pytest.raises(Exception, match="up"):
                await client.fetch("/v1/chat/completions", b"{}", timeout_s=5)
        assert proxy.n_connections == retries + 1
        assert len(direct.fake.calls) <= retries + 1


@pytest.mark.parametrize(
    "says",
    [
        Reply(answer=("four",) * 9, faults=(Fault(die_after=1),)),
        Reply(faults=(Fault(status=429, status_body=b"{}", status_headers={"retry-after": "7"}),)),
        Reply(faults=(Fault(status=500),)),
        Reply(faults=(Fault(status=503),)),
    ],
    ids=["dies", "429", "500", "503"],
)
@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_what_was_answered_is_not_asked_again_and_its_headers_are_kept(
    serve: Serve, mode: str, says: Reply
) -> None:
    """F12: the client's own retries are its own; ours would multiply with them."""
    async with serve(says, upstream={"retries": 3}, route={"mode": mode}) as g:
        answer = await g.ask(chat(stream=True), headers={"idempotency-key": "k-1"})
        assert answer.headers.get("retry-after") == ("7" if answer.status == 429 else None)
        await g.quiet()
        assert [call.request.header("idempotency-key") for call in g.fake.calls] == ["k-1"]
