"""Observe with default settings adds nothing and changes nothing: counted upstream, compared with direct."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from suffice.server import serve_in_loop
from suffice.store.database.views import read_episodes
from suffice.upstream.connection import REST_S
from suffice_testing import FakeRequest, FakeUpstream, Reply, ScriptedThought, ServerBehaviour
from tests.fake_models import EchoNonce, nonce_of
from tests.gateway.conftest import Serve
from tests.gateway.served import CHAT, Answer, chat, post, settings_for

N_REQUESTS = 1_000
N_AT_ONCE = 16
THINKS = Reply(reasoning=(" so", " it", " is\n", " four"), answer=("four", " it", " is"))
DIALECTS = ("llama.cpp", "openai")
SHAPES: dict[str, dict[str, Any]] = {
    "body": {},
    "stream": {"stream": True},
    "stream-usage": {"stream": True, "stream_options": {"include_usage": True}},
    "stream-no-usage": {"stream": True, "stream_options": {"include_usage": False}},
    "capped": {"max_tokens": 3},
    "capped-stream": {"max_completion_tokens": 5, "stream": True},
    "seeded": {"seed": 7, "temperature": 0.3, "user": "u", "metadata": {"a": "b"}},
}


@pytest.mark.slow
async def test_a_thousand_requests_make_a_thousand_calls_and_not_one_token_more(tmp_path: Path) -> None:
    async with (
        FakeUpstream(EchoNonce(n_reasoning=3, n_answer=2)) as fake,
        serve_in_loop(settings_for(fake.url, tmp_path)) as url,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        gate = asyncio.Semaphore(N_AT_ONCE)

        async def one(n: int) -> Answer:
            shape = {"stream": n % 2 == 1} | ({"stream_options": {"include_usage": True}} if n % 4 == 1 else {})
            async with gate:
                return await post(session, url + CHAT, chat(f"nonce=q{n}", **shape), {})

        answers = await asyncio.gather(*(one(n) for n in range(N_REQUESTS)))
        await fake.idle()
        assert len(fake.calls) == N_REQUESTS
        assert {call.path for call in fake.calls} == {"/chat/completions"}
        by_nonce = {nonce_of(call.request): call for call in fake.calls}
        assert len(by_nonce) == N_REQUESTS
        for n, answer in enumerate(answers):
            call = by_nonce[f"q{n}"]
            assert (answer.status, answer.text, answer.thought) == (200, f"q{n} " * 2, f"q{n} " * 3)
            assert answer.finish == "stop"
            ids = {c["id"] for c in answer.chunks} if n % 2 else {answer.json["id"]}
            assert ids == {f"chatcmpl-fake-{call.request.nth}"}
            if n % 2 == 0 or n % 4 == 1:
                assert {k: answer.usage[k] for k in ("prompt_tokens", "completion_tokens")} == {
                    "prompt_tokens": call.prompt_tokens,
                    "completion_tokens": 5,
                }
            else:
                assert answer.usage is None
            assert answer.report is None
    # The gateway is closed: what it knew is on disk.
    outcomes = [e.episode.outcome for e in read_episodes(tmp_path / "log.db")]
    assert len(outcomes) == N_REQUESTS
    report = [o.usage for o in outcomes if o.usage is not None]
    assert sum(u.completion_tokens for u in report) == fake.total_completion_tokens == 5 * N_REQUESTS
    assert sum(u.prompt_tokens for u in report) == fake.total_prompt_tokens
    assert all(o.overhead.n_extra_calls == 0 and o.end_reason == "done" for o in outcomes)


def comparable(answer: Answer) -> Any:
    """What a client can tell apart after parsing, frame by frame; times of the engine's own left out."""
    if "event-stream" not in answer.headers["content-type"]:
        return answer.status, answer.json
    frames = [{k: v for k, v in chunk.items() if k not in ("timings", "usage") or v} for chunk in answer.chunks]
    return answer.status, [{k: v for k, v in f.items() if k != "timings"} for f in frames], answer.done


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking", "inline", "inline-opened"])
async def test_every_shape_of_answer_equals_the_direct_one(serve: Serve, dialect: Any, field: Any) -> None:
    says = Reply(reasoning=THINKS.reasoning, answer=THINKS.answer, reasoning_field=field)
    async with (
        FakeUpstream(says, ServerBehaviour(dialect=dialect)) as other,
        serve(says, fake={"dialect": dialect}) as g,
    ):
        for name, shape in SHAPES.items():
            direct, through = await g.ask(chat(**shape), url=other.url), await g.ask(chat(**shape))
            assert comparable(through) == comparable(direct), name
            if "stream" not in name:
                assert through.json == direct.json
        for episode in await g.episodes(len(SHAPES)):
            assert episode.episode.outcome.degraded == ()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_no_trace_is_left_of_the_usage_that_was_asked_for_on_our_behalf(serve: Serve, stream: bool) -> None:
    async with serve(THINKS, fake={"dialect": "openai"}) as g:
        answer = await g.ask(chat(stream=stream))
        assert g.fake.calls[0].body["stream_options"] == {"include_usage": True}
        if stream:
            assert not any("usage" in chunk for chunk in answer.chunks)
        else:
            assert answer.usage["completion_tokens"] == 7


async def test_observe_with_a_policy_and_probes_still_asks_nothing_outside_of_audits(serve: Serve) -> None:
    chain = ScriptedThought([(f"step number {n}\n", "4") for n in range(6)], "4")
    route = {
        "policy": {"policy": "stable-answer", "streak": 2},
        "probe": {},
        "audit_share": 0.0,
        "scorer": "number",
        "steps": {"min_tokens": 2, "growth": 1.0},
    }
    async with serve(chain, upstream={"finish": ["raw"], "slots": 4}, route=route) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == "4"
        assert len(g.fake.calls) == 1
        assert len((await g.outcome()).steps) == 6


async def test_shadow_says_where_it_would_have_stopped_and_what_it_would_have_answered(serve: Serve) -> None:
    says = ScriptedThought(
        [
            ("the answer is 3\n", "3"),
            ("the answer is 4\n", "4"),
            ("the answer is 4\n", "4"),
            ("hmm the answer is 5\n", "5"),
        ],
        "5",
    )
    route = {
        "policy": {"policy": "stable-answer", "streak": 2},
        "scorer": "number",
        "steps": {"min_tokens": 2, "growth": 1.0},
    }
    async with serve(says, route=route) as g:
        assert (await g.ask(chat())).text == "5"
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.stop_step, outcome.would_answer, outcome.answer) == (False, 3, "4", "5")
        assert [s.answer for s in outcome.steps] == ["3", "4", "4", "5"]


async def test_enforce_without_a_certificate_behaves_as_observe(serve: Serve) -> None:
    says = ScriptedThought([(f"the answer is 4, number {n}\n", "4") for n in range(6)], "4")
    route = {"mode": "enforce", "policy": {"policy": "stable-answer", "streak": 2}, "audit_share": 0.0}
    async with serve(says, upstream={"finish": ["native", "raw"]}, route=route) as g:
        answer = await g.ask(chat())
        assert answer.report is None
        assert len(g.fake.calls) == 1
        assert "reasoning_control" not in g.fake.calls[0].body
        assert not (await g.outcome()).stopped


async def test_the_upstreams_connections_are_used_again(serve: Serve) -> None:
    class Counting(FakeUpstream):
        n_connections = 0

        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.n_connections += 1
            await super()._serve(reader, writer)

    fake = Counting(THINKS)
    async with serve(fake) as g:
        for n in range(12):
            await g.ask(chat(stream=n % 2 == 0))
            await asyncio.sleep(1.5 * REST_S if n == 0 else 0)  # once it is seen whether the server keeps them
        assert fake.n_connections == 1


async def test_an_upstream_that_hangs_after_done_holds_nobody_up(serve: Serve) -> None:
    from dataclasses import replace

    from tests.sse_scripts import SCRIPTS

    hanging = replace(SCRIPTS["done_then_hang"], hang_s=60.0)
    async with serve(lambda _: hanging) as g:
        async with asyncio.timeout(30.0):
            for stream in (True, False):
                assert (await g.ask(chat(stream=stream))).text == "The answer is 42 北🙂"
        await g.episodes(2, within_s=30.0)


async def test_a_request_that_carries_suffice_gets_the_object_and_the_upstream_never_sees_it(serve: Serve) -> None:
    def says(seen: FakeRequest) -> Reply:
        assert "suffice" not in seen.body
        assert not any(k.lower().startswith("x-suffice") for k, _ in seen.headers)
        return THINKS

    async with serve(says) as g:
        for stream in (True, False):
            answer = await g.ask(chat(stream=stream, suffice={}), headers={"x-suffice-route": "r"})
            assert answer.report["episode_id"] == answer.headers["x-suffice-episode-id"]
            assert answer.report["stopped"] is False
            assert answer.report["mode"] == "observe"
            assert set(answer.report) == {
                "episode_id",
                "mode",
                "stopped",
                "stop_reason",
                "certified",
                "policy_version",
                "steps",
                "probe_tokens",
                "extra_prompt_tokens",
                "cached_prompt_tokens",
                "tokens_saved_estimate",
                "estimate_method",
                "cost_usd",
                "saved_usd_estimate",
                "degraded",
                "vote",
                "feedback_token",
                "promise",
            }
