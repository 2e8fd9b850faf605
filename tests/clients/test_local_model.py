"""openai-python through the gateway against the real model in the box; needs its weights in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from suffice.scoring.base import build_scorer
from suffice.server import serve_in_loop
from suffice.settings import parse_settings
from suffice.store.database.views import read_episodes
from suffice_demo.local.server import LocalServer, ServerSpec
from suffice_demo.local.tasks import questions
from tests.local.cached import cached

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTIONS = questions("reasoning", 4, seed=3)
ENFORCE: dict[str, Any] = {
    "mode": "enforce",
    "uncertified": True,
    "policy": {"policy": "confidence-threshold", "threshold": 0.5},
    "probe": {"max_tokens": 8},
    "steps": {"min_tokens": 12, "growth": 1.0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The served model's address; skipped, with the reason, where its weights were never fetched."""
    spec = ServerSpec(
        model_path=cached("qwen0.5b"), alias="qwen", template="think", n_parallel=4, ctx_tokens_per_slot=1024
    )
    with LocalServer(spec, log_path=tmp_path_factory.mktemp("local") / "server.log") as server:
        yield server.url


def gateway_settings(model: str, folder: Path, **changes: Any) -> Any:
    finish = changes.pop("finish", ["raw"])
    route = {"upstream": "local", "kind": "reasoning", "scorer": "number", "audit_share": 0.0} | changes
    return parse_settings(
        {
            "upstreams": {"local": {"url": model, "driver": "llama.cpp", "slots": 4, "finish": finish}},
            "routes": {"math": route},
            "store": {"url": f"sqlite:///{folder}/log.db"},
        }
    )


async def ask(url: str, question: Any, *, stream: bool) -> dict[str, Any]:
    """What a user of openai-python sees."""
    fixed: dict[str, Any] = {
        "model": "qwen",
        "messages": [dict(m) for m in question.messages],
        "max_tokens": 200,
        "temperature": 0,
        "seed": 1,
    }
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        if not stream:
            whole = await client.chat.completions.create(**fixed)
            message = whole.choices[0].message
            return {
                "text": message.content,
                "finish": whole.choices[0].finish_reason,
                "usage": whole.usage,
                "thought": getattr(message, "reasoning_content", None),
                "extra": whole.model_extra or {},
            }
        seen: dict[str, Any] = {"text": "", "thought": "", "finish": None, "usage": None, "extra": {}}
        async for chunk in await client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **fixed
        ):
            seen["usage"] = chunk.usage or seen["usage"]
            seen["extra"] |= chunk.model_extra or {}
            for choice in chunk.choices:
                seen["text"] += choice.delta.content or ""
                seen["thought"] += getattr(choice.delta, "reasoning_content", None) or ""
                seen["finish"] = choice.finish_reason or seen["finish"]
        return seen


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_off_and_observe_read_like_the_model_itself(model: str, tmp_path: Path, mode: str, stream: bool) -> None:
    """Same text, thought, finish reason and token counts as direct (the cache of prompts is the model's own)."""
    async with serve_in_loop(gateway_settings(model, tmp_path, mode=mode)) as url:
        for question in QUESTIONS[:2]:
            await ask(model, question, stream=stream)  # the prompt is in the model's cache from here on
            direct, through = await ask(model, question, stream=stream), await ask(url, question, stream=stream)
            for key in ("text", "thought", "finish"):
                assert through[key] == direct[key], key
            assert through["usage"].completion_tokens == direct["usage"].completion_tokens
            assert through["usage"].prompt_tokens == direct["usage"].prompt_tokens
            assert "suffice" not in through["extra"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["native", "raw", "prefill", "re-ask"])
async def test_every_way_to_finish_gives_an_answer_and_one_outcome(
    model: str, tmp_path: Path, method: str, stream: bool
) -> None:
    """The thought is cut short, an answer comes, and every token is accounted for."""
    methods = [method] if method != "native" else ["native", "raw"]  # probes need a second call
    n_stopped = 0
    async with serve_in_loop(gateway_settings(model, tmp_path, finish=methods, **ENFORCE)) as url:
        for question in QUESTIONS:
            seen = await ask(url, question, stream=stream)
            assert build_scorer("number").extract(seen["text"]) is not None
            assert seen["finish"] == "stop"
            n_stopped += bool(seen["extra"].get("suffice", {}).get("stopped"))
    assert n_stopped >= 1
    episodes = list(read_episodes(tmp_path / "log.db"))
    assert len(episodes) == len(QUESTIONS)
    for result in episodes:
        outcome = result.episode.outcome
        assert outcome.usage is not None
        assert outcome.end_reason == ("stopped" if outcome.stopped else "done")
        assert outcome.finish_method in (None, method)
        generated = sum(call.completion_tokens for call in outcome.calls)
        more = outcome.overhead
        assert generated == outcome.usage.completion_tokens + more.probe_tokens + more.discarded_tokens
        prompts = sum(call.prompt_tokens or 0 for call in outcome.calls)
        assert prompts == outcome.usage.prompt_tokens + more.extra_prompt_tokens
