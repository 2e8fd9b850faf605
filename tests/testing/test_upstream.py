"""Promises of the fake upstream, over real sockets: it counts exactly and hears hang-ups at once."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suffice.upstream.assemble import Assembler
from suffice.upstream.wire import DONE, SseSplitter
from suffice_testing import (
    FakeCall,
    FakeRequest,
    FakeUpstream,
    Fault,
    Reply,
    ScriptedThought,
    ServerBehaviour,
    ToolCall,
)
from tests.drawn import examples
from tests.fake_models import EchoNonce
from tests.testing.talk import (
    CHAT,
    EMPTY_REQUEST,
    QUESTION,
    RAW,
    REPLY,
    address,
    answer_of,
    bytes_of,
    datas,
    dialled,
    head,
    posted,
)


async def test_it_speaks_openai_s_protocol_and_counts() -> None:
    async with FakeUpstream(REPLY, ServerBehaviour(dialect="openai")) as fake:
        answer = await answer_of(fake)
        assert answer["choices"][0]["message"] == {
            "role": "assistant",
            "content": "four",
            "refusal": None,
            "reasoning_content": "two and two",
        }
        assert answer["usage"]["prompt_tokens"] == 7
        assert answer["usage"]["completion_tokens"] == 5
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
        chunks = datas(await bytes_of(fake, stream_options={"include_usage": True}))
        assert chunks[-1] == "[DONE]"
        assert chunks[-2]["choices"] == []
        assert chunks[-2]["usage"]["completion_tokens"] == 5
        assert [c["usage"] for c in chunks[:-2]] == [None] * (len(chunks) - 2)
        last = chunks[-3]["choices"][0]
        assert last == {"index": 0, "finish_reason": "stop", "delta": {}, "logprobs": None}
        assert (fake.total_prompt_tokens, fake.total_completion_tokens) == (14, 10)
        assert [seen.cancelled for seen in fake.calls] == [False, False]


async def test_paths_with_and_without_v1_and_what_it_remembers() -> None:
    async with FakeUpstream(REPLY, ServerBehaviour(models=("a", "b"))) as fake, aiohttp.ClientSession() as session:
        for path in ("/models", "/v1/models", "/health", "/slots", "/metrics?x=1"):
            async with session.get(fake.url + path) as response:
                assert response.status == 200, path
        url, headers = fake.url + "/chat/completions", {"x-a": "b"}
        async with session.post(url, data=b"[1]", headers=headers) as response:
            assert response.status == 200
        async with session.get(fake.url + "/nowhere") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
        seen = fake.calls[5]
        assert (seen.path, seen.raw_body, seen.body, seen.request.header("X-A")) == (
            "/chat/completions",
            b"[1]",
            {},
            "b",
        )
        assert fake.completions == [seen]
        assert seen.closed_at_s is not None
        assert seen.closed_at_s >= seen.opened_at_s
        async with session.get(fake.url + "/metrics") as response:
            counted = f"llamacpp:tokens_predicted_total {fake.total_completion_tokens}\n"
            assert counted in await response.text()


async def test_template_and_tokenizer_agree_with_the_prompt_tokens() -> None:
    async with FakeUpstream(REPLY) as fake:
        prompt = (await answer_of(fake, "/apply-template", messages=QUESTION))["prompt"]
        assert prompt.endswith("<think>")
        tokens = (await answer_of(fake, "/tokenize", content=prompt))["tokens"]
        chat = await answer_of(fake)
        assert len(tokens) == chat["usage"]["prompt_tokens"] == 7
        raw = await answer_of(fake, RAW, prompt=prompt + "two and")
        assert raw["choices"][0]["text"] == "two</think>four"
        assert raw["usage"]["prompt_tokens"] == 9


# ---- streams and bodies are the same answer

texts = st.text('ab 北👩\u200d\u0301\n"\\<', min_size=1, max_size=5)
pieces = st.lists(texts, max_size=3).map(tuple)
replies = st.builds(
    Reply,
    answer=st.lists(texts, max_size=4).map(tuple),
    reasoning=pieces,
    reasoning_field=st.sampled_from(["reasoning", "reasoning_content", "thinking", "inline", "inline-opened"]),
    tool_calls=st.lists(st.builds(ToolCall, id=st.just("t"), name=st.just("f"), arguments=pieces), max_size=2).map(
        tuple
    ),
    finish_reason=st.sampled_from(["stop", "length"]),
    usage=st.sampled_from(["last", "always", "with_finish", "every", "zero_first"]),
    count_reasoning=st.booleans(),
    extra=st.sampled_from([{}, {"service_tier": "x", "citations": ["u"]}]),
)
options = st.fixed_dictionaries(
    {},
    optional={
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(0, 3),
        "n": st.integers(1, 3),
        "max_tokens": st.integers(1, 6),
        "stop": st.just("b"),
    },
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(
    reply=replies,
    body=options,
    dialect=st.sampled_from(["llama.cpp", "openai"]),
    raw=st.booleans(),
    echo=st.booleans(),
    size=st.integers(1, 400),
)
def test_the_reassembled_stream_is_the_direct_answer(
    reply: Reply, body: dict[str, Any], dialect: Any, raw: bool, echo: bool, size: int
) -> None:
    if raw:
        body = {**body, "prompt": "1 + 1 ="}
    elif echo:
        body = {**body, "messages": [*QUESTION, {"role": "assistant", "content": "<think>"}]}

    async def both() -> tuple[dict[str, Any], dict[str, Any]]:
        async with FakeUpstream(reply, ServerBehaviour(dialect=dialect, prefill_echo=echo)) as fake:
            path = RAW if raw else CHAT
            direct = await answer_of(fake, path, **body)
            stream = await bytes_of(fake, path, stream_options={"include_usage": True}, **body)
        splitter, assembler = SseSplitter(), Assembler()
        for at in range(0, len(stream), size):
            for frame in splitter.feed(stream[at : at + size]):
                assert frame.data is not None
                assembler.add(frame.data)
        return direct, assembler.result()

    direct, streamed = asyncio.run(both())
    assert streamed.pop("id") != direct.pop("id")
    assert streamed == direct


# ---- closing thoughts

CHAIN = ScriptedThought(
    [("I guess 3\n", "3"), ("I count 4\n", "4"), ("I am sure\n", "four")], "four", reply=Reply(delay_s=0.002)
)


async def test_control_ends_the_thought_in_the_running_stream() -> None:
    async with FakeUpstream(CHAIN) as fake, posted(fake, stream=True, reasoning_control=True) as response:
        stream, chunk_id = b"", None
        async for data in response.content.iter_any():
            stream += data
            if chunk_id is None and b"count" in stream:
                chunk_id = datas(stream[: stream.rfind(b"\n\n")])[0]["id"]
                answer = await answer_of(fake, CHAT + "/control", id=chunk_id, action="reasoning_end")
                assert answer == {"success": True}
        message = "".join(c["choices"][0]["delta"].get("content") or "" for c in datas(stream)[:-1])
        assert message in ("3", "4")
        assert b"sure" not in stream
        assert fake.completions[0].thought_ended_by == "control"


async def test_control_says_why_it_did_nothing() -> None:
    async with FakeUpstream(CHAIN) as fake:
        answer = await answer_of(fake, CHAT + "/control", id="x", action="reasoning_end")
        assert answer["success"] is False
        async with posted(fake, CHAT + "/control", id="x", action="stop") as response:
            assert response.status == 400
        async with posted(fake, stream=True) as response:
            first = datas(await response.content.readuntil(b"\n\n"))[0]["id"]
            answer = await answer_of(fake, CHAT + "/control", id=first, action="reasoning_end")
            assert answer["success"] is False
    async with FakeUpstream(CHAIN, ServerBehaviour(dialect="openai")) as fake:
        for path in (CHAT + "/control", "/apply-template"):
            async with posted(fake, path, id="x", action="reasoning_end") as response:
                assert response.status == 404


async def test_plain_openai_starts_over_instead_of_continuing() -> None:
    prefilled = [*QUESTION, {"role": "assistant", "content": "<think>I guess 3\n</think>"}]
    async with FakeUpstream(CHAIN, ServerBehaviour(dialect="openai")) as fake:
        assert (await answer_of(fake, messages=prefilled))["choices"][0]["message"]["content"] == "four"
    async with FakeUpstream(CHAIN, ServerBehaviour(prefill_echo=True)) as fake:
        answer = (await answer_of(fake, messages=prefilled))["choices"][0]["message"]["content"]
        assert answer == "<think>I guess 3\n</think>3"


async def test_a_thought_from_another_request_is_refused_and_remembered() -> None:
    async with FakeUpstream(CHAIN) as fake:
        crossed = [*QUESTION, {"role": "assistant", "content": "<think>someone else's</think>"}]
        async with posted(fake, messages=crossed) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "not_my_thought")
        assert fake.calls[0].error is not None
        assert fake.calls[0].usage is None


async def test_budget_cuts_the_thought() -> None:
    async with FakeUpstream(CHAIN) as fake:
        answer = await answer_of(fake, reasoning_budget_tokens=3)
        assert answer["choices"][0]["message"]["content"] == "3"
        assert answer["usage"]["completion_tokens"] == 4
        assert fake.calls[0].thought_ended_by == "budget"


# ---- log-probabilities, caches, slots, keys


async def test_log_probabilities_come_when_asked_for_in_the_shape_of_the_dialect() -> None:
    reply = Reply(answer=("a", "b"), answer_logprobs=(-0.1,))
    async with FakeUpstream(reply) as fake:
        content = (await answer_of(fake, logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
        results = [(t["token"], t["logprob"], len(t["top_logprobs"])) for t in content]
        assert results == [("a", -0.1, 2), ("b", -0.5, 2)]
        raw = (await answer_of(fake, RAW, prompt="x", logprobs=1))["choices"][0]["logprobs"]
        assert [t["token"] for t in raw["content"]] == ["a", "b"]
        assert "logprobs" not in (await answer_of(fake))["choices"][0]
    async with FakeUpstream(reply, ServerBehaviour(dialect="openai")) as fake:
        raw = (await answer_of(fake, RAW, prompt="x", logprobs=1))["choices"][0]["logprobs"]
        assert raw == {
            "tokens": ["a", "b"],
            "token_logprobs": [-0.1, -0.5],
            "top_logprobs": [{"a": -0.1}, {"b": -0.5}],
        }


async def test_the_prefix_cache_counts_common_words() -> None:
    async with FakeUpstream(REPLY, ServerBehaviour(prefix_cache=True)) as fake:
        usages = [
            (await answer_of(fake, messages=[{"role": "user", "content": text}]))["usage"]
            for text in ("a b c", "a b d", "x", "a b c e")
        ]
    assert [u["prompt_tokens_details"]["cached_tokens"] for u in usages] == [0, 2, 0, 3]


async def test_slots_limit_what_runs_at_once() -> None:
    async with FakeUpstream(Reply(answer=("a", "b"), delay_s=0.01), ServerBehaviour(slots=1)) as fake:
        answers = await asyncio.gather(*(answer_of(fake) for _ in range(3)))
        assert len(answers) == 3
        assert fake.max_in_flight == 3
        spans = sorted((s.closed_at_s or 0.0) for s in fake.calls)
        assert spans[2] - spans[0] > 0.03  # two more replies of two tokens each, one after the other


async def test_the_key_is_checked() -> None:
    async with FakeUpstream(REPLY, ServerBehaviour(api_key="k")) as fake, aiohttp.ClientSession() as session:
        for key, code in (("", 401), ("Bearer no", 401), ("Bearer k", 200)):
            headers = {"authorization": key} if key else {}
            async with session.get(fake.url + "/v1/models", headers=headers) as response:
                assert response.status == code


# ---- cross-talk and concurrency


async def test_parallel_streams_carry_only_their_own_nonce() -> None:
    async with FakeUpstream(EchoNonce(delay_s=0.001)) as fake, aiohttp.ClientSession() as session:

        async def one(nonce: str) -> None:
            body = {"messages": [{"role": "user", "content": f"nonce={nonce}"}], "stream": True}
            async with session.post(fake.url + CHAT, json=body) as response:
                chunks = datas(await response.read())[:-1]
            assert {c["nonce"] for c in chunks} == {nonce}
            output = [c["choices"][0]["delta"].get("content") for c in chunks]
            assert [text for text in output if text] == [nonce + " "] * 3

        await asyncio.gather(*(one(f"n{i}") for i in range(60)))
        assert len(fake.completions) == 60
        assert fake.max_in_flight > 1
        assert fake.in_flight == 0


async def test_a_connection_serves_many_requests_until_it_idles() -> None:
    async with FakeUpstream(REPLY, ServerBehaviour(idle_close_s=0.05)) as fake:
        reader, writer = await asyncio.open_connection(*address(fake))
        ask = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 14\r\n\r\n" + b'{"prompt":"x"}'
        chunked = b"POST /completions HTTP/1.1\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
        chunked += b'7\r\n{"promp\r\n7;x=y\r\nt":"x"}\r\n0\r\n\r\n'
        writer.write(ask + ask + chunked)  # pipelined
        answered = await reader.read(-1)  # ends when the idle connection is closed
        assert answered.count(b"HTTP/1.1 200") == 3
        assert b"100 Continue" in answered
        assert [s.body for s in fake.calls] == [{"prompt": "x"}] * 3
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / SPDY/3\r\n\r\n",
        b"x" * 70_000,
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_is_answered_with_400(sent: bytes) -> None:
    async with FakeUpstream(REPLY) as fake:
        reader, writer = await asyncio.open_connection(*address(fake))
        writer.write(sent)
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 400")
        writer.close()
        assert fake.calls == []


# ---- hang-ups


async def hang_up_of(reply: Reply, *, after_bytes: int, **body: Any) -> tuple[FakeCall, float]:
    """Hang up after some bytes; return what the fake saw, and how long it took to see it."""
    async with FakeUpstream(reply) as fake:
        sent = json.dumps({"model": "m", "messages": QUESTION, **body}).encode()
        _, writer = connection = await asyncio.open_connection(*address(fake))
        writer.write(head(sent) + sent)
        if after_bytes:
            await connection[0].readexactly(after_bytes)
        else:
            await asyncio.sleep(0.03)
        left_at_s = time.monotonic()
        writer.close()
        await fake.idle()
        seen = fake.calls[0]
        assert seen.closed_at_s is not None
        return seen, seen.closed_at_s - left_at_s


@pytest.mark.parametrize(
    ("reply", "after_bytes", "body"),
    [
        (Reply(answer=("x",) * 500, delay_s=0.005), 1_000, {"stream": True}),
        (Reply(answer=("x",) * 500, faults=(Fault(stall_after=0, stall_s=20),)), 100, {"stream": True}),
        (Reply(faults=(Fault(header_delay_s=20),)), 0, {"stream": True}),
        (Reply(first_delay_s=20), 0, {"stream": False}),
    ],
    ids=["while it speaks", "while it is silent", "before the headers", "not streamed"],
)
async def test_a_hang_up_is_seen_within_50_ms(reply: Reply, after_bytes: int, body: dict[str, Any]) -> None:
    for _ in range(20):  # the fastest counts: a busy machine takes its time
        seen, took_s = await hang_up_of(reply, after_bytes=after_bytes, **body)
        assert seen.cancelled
        assert seen.n_tokens_sent < 500
        if took_s < 0.05:
            break
    assert took_s < 0.05
    if seen.usage is not None:
        assert seen.usage["completion_tokens"] == seen.n_tokens_sent


async def test_leaving_after_done_is_not_a_hang_up() -> None:
    async with FakeUpstream(REPLY) as fake:
        async with posted(fake, stream=True) as response:
            stream = b""
            while not stream.endswith(DONE):
                stream += await response.content.readany()
        await fake.idle()
        assert [seen.cancelled for seen in fake.calls] == [False]


async def test_a_reader_that_stops_reading_stops_the_writer() -> None:
    big = Reply(answer=("x" * 20_000,) * 2_000)
    async with FakeUpstream(big) as fake:
        sent = json.dumps({"stream": True, "messages": QUESTION}).encode()
        with dialled(fake) as raw:
            raw.sendall(head(sent) + sent)
            seen = -1
            while not fake.calls or seen != fake.calls[0].n_tokens_sent or seen == 0:
                seen = fake.calls[0].n_tokens_sent if fake.calls else -1
                await asyncio.sleep(0.1)
            assert seen < 2_000
        await fake.idle()
        assert fake.calls[0].cancelled


async def test_a_client_that_never_reads_does_not_hold_up_the_end_of_a_test() -> None:
    start_s = time.monotonic()
    async with FakeUpstream(Reply(answer=("x" * 20_000,) * 2_000)) as fake:
        sent = json.dumps({"stream": True, "messages": QUESTION}).encode()
        raw = dialled(fake)
        raw.sendall(head(sent) + sent)
        await asyncio.sleep(0.1)
    raw.close()
    assert time.monotonic() - start_s < 30


# ---- in a thread, and when the test itself is wrong


def test_it_runs_in_a_thread() -> None:
    with FakeUpstream.in_thread(REPLY) as fake:
        sent = json.dumps({"messages": QUESTION}).encode()
        for _ in range(3):
            with urllib.request.urlopen(fake.url + CHAT, sent) as reply:
                assert json.load(reply)["choices"][0]["message"]["content"] == "four"
        fake.wait_idle()
        assert fake.total_completion_tokens == 15
        url = fake.url
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url + "/health")
    with pytest.raises(RuntimeError, match="not running"):
        _ = fake.url


def test_a_taken_port_is_reported_to_the_caller() -> None:
    with FakeUpstream.in_thread() as fake:
        port = int(fake.url.rsplit(":", 1)[1])
        with (
            pytest.raises(OSError, match="address already in use"),
            FakeUpstream.in_thread(behaviour=ServerBehaviour(port=port)),
        ):
            pass


async def test_a_mistake_in_the_test_s_own_function_is_not_swallowed() -> None:
    def broken(_: FakeRequest) -> Reply:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        async with FakeUpstream(broken) as fake, posted(fake) as response:
            assert response.status == 500


def test_waiting_for_the_end_gives_up() -> None:
    with FakeUpstream.in_thread(Reply(first_delay_s=5)) as slow, dialled(slow) as raw:
        raw.sendall(EMPTY_REQUEST)
        time.sleep(0.05)
        with pytest.raises(TimeoutError, match="still busy"):
            slow.wait_idle(0.05)
