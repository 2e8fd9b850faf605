"""Promises of the fake upstream when it goes wrong: exactly as it was told, and byte for byte."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import pytest

from suffice.upstream.wire import DONE
from suffice_testing import FakeUpstream, Fault, Reply, Script, ServerBehaviour
from tests.fake_models import Replay
from tests.sse_scripts import SCRIPTS
from tests.testing.talk import EMPTY_REQUEST, address, answer_of, bytes_of, datas, posted


async def outcome_of(*faults: Fault, stream: bool = True) -> tuple[str, str, bytes]:
    """(how it ended, content type, body as far as it came)."""
    reply = Reply(answer=("a", "b", "c", "d"), faults=faults)
    async with FakeUpstream(reply) as fake:
        body = b""
        try:
            async with posted(fake, stream=stream) as response:
                async for data in response.content.iter_any():
                    body += data
                end = str(response.status)
                return end, response.content_type, body
        except aiohttp.ClientPayloadError as error:
            cause = error.__cause__
            end = "reset" if isinstance(cause, ConnectionResetError) else "torn"
            return end, response.content_type, body
        except aiohttp.ServerDisconnectedError:
            return "no answer", "", body
        except aiohttp.ClientOSError:
            return "reset", "", body


SSE, JSON_TYPE = "text/event-stream", "application/json"


async def test_dying_looks_as_it_was_told() -> None:
    end, _, body = await outcome_of(Fault(die_after=2, die_how="fin"))
    assert (end, body.count(b'"content":"')) == ("torn", 2)
    end, kind, body = await outcome_of(Fault(die_after=2, die_how="error_frame"))
    assert (end, kind) == ("200", SSE)
    assert datas(body)[-1]["error"]["type"] == "upstream_error"
    end, _, body = await outcome_of(Fault(die_after=0, die_how="rst"))
    assert end in ("reset", "torn")
    assert b'"content":"' not in body
    assert (await outcome_of(Fault(die_after=2, die_how="fin"), stream=False))[0] == "no answer"
    assert (await outcome_of(Fault(die_after=2, die_how="error_frame"), stream=False))[0] == "500"


async def test_a_reset_is_a_reset() -> None:
    async with FakeUpstream(Reply(first_delay_s=0.05, faults=(Fault(die_after=0, die_how="rst"),))) as fake:
        reader, writer = await asyncio.open_connection(*address(fake))
        writer.write(EMPTY_REQUEST)
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
        writer.close()


async def test_what_is_left_out_is_left_out() -> None:
    _, _, body = await outcome_of(Fault(finish=False))
    assert b'"finish_reason":"stop"' not in body
    assert body.endswith(DONE)
    _, _, body = await outcome_of(Fault(done=False))
    assert b'"finish_reason":"stop"' in body
    assert DONE not in body
    _, _, body = await outcome_of(Fault(finish=False), Fault(done=False))
    assert b"stop" not in body + DONE.replace(b"stop", b"")
    _, _, body = await outcome_of(Fault(finish=False), stream=False)
    assert json.loads(body)["choices"][0]["finish_reason"] is None


async def test_wrong_kinds_of_answer() -> None:
    end, kind, body = await outcome_of(Fault(html=True))
    assert (end, kind) == ("200", "text/html")
    assert (await outcome_of(Fault(status=503)))[:2] == ("503", JSON_TYPE)
    assert await outcome_of(Fault(status=429, status_body=b"{}", status_headers={"retry-after": "1"})) == (
        "429",
        JSON_TYPE,
        b"{}",
    )
    end, kind, body = await outcome_of(Fault(force="json"))
    assert (kind, json.loads(body)["object"]) == (JSON_TYPE, "chat.completion")
    end, kind, body = await outcome_of(Fault(force="sse"), stream=False)
    assert (kind, datas(body)[-1]) == (SSE, "[DONE]")
    _, _, body = await outcome_of(Fault(bad_frame_after=2))
    frames = body.split(b"\n\n")
    assert frames.index(b"data: {oops") == 3  # role, two tokens, then the bad one
    _, _, body = await outcome_of(Fault(bad_frame_after=4))
    assert b"oops" in body


@pytest.mark.parametrize("fault", [Fault(piece_bytes=1), Fault(piece_bytes=7), Fault(piece_bytes=10_000)])
async def test_cutting_changes_no_byte(fault: Fault) -> None:
    assert (await outcome_of(fault))[2] == (await outcome_of())[2]


async def test_waiting_takes_time() -> None:
    for fault in (Fault(header_delay_s=0.1), Fault(stall_after=2, stall_s=0.1)):
        start_s = time.monotonic()
        end, _, body = await outcome_of(fault)
        assert time.monotonic() - start_s >= 0.1
        assert (end, body[-len(DONE) :]) == ("200", DONE)


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"done_then_hang"}))
async def test_scripts_are_played_byte_for_byte(name: str) -> None:
    async with FakeUpstream(behaviour=ServerBehaviour(scripts=SCRIPTS)) as fake:
        body, torn = b"", False
        try:
            async with posted(fake, stream=True, model=name) as response:
                assert response.headers["connection"] == "close"
                async for data in response.content.iter_any():
                    body += data
        except aiohttp.ClientPayloadError:
            torn = True
        assert torn is (name == "truncated")
        assert body == SCRIPTS[name].body
        await fake.idle()
        assert fake.calls[0].n_bytes_sent == len(body)


async def test_done_then_hang_keeps_the_connection_open() -> None:
    fake = FakeUpstream(behaviour=ServerBehaviour(scripts=SCRIPTS))
    async with fake, posted(fake, stream=True, model="done_then_hang") as response:
        stream = b""
        while not stream.endswith(DONE):
            stream += await response.content.readany()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.1)


async def test_a_record_is_played_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "recorded.sse"
    file.write_bytes(SCRIPTS["crlf"].body)
    async with FakeUpstream(Replay(file, piece_bytes=5)) as fake:
        assert await bytes_of(fake) == file.read_bytes()
    async with FakeUpstream(Replay(b"")) as fake:
        assert await bytes_of(fake) == b""
    script = Script(pieces=(b"{}",), content_type="application/json", keep_alive=True)
    async with FakeUpstream(script) as fake:
        assert await answer_of(fake) == {}
