"""openai-python through the gateway: what it reads is what it would read directly."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from suffice_testing import Reply, ScriptedThought
from tests.gateway.served import Served, served

CHAIN = ScriptedThought(
    [("two and two\n", "4"), ("make four\n", "4"), ("so four\n", "4"), ("yes\n", "4")],
    "4",
    reply=Reply(delay_s=0.01),
)
ENFORCE: dict[str, Any] = {
    "mode": "enforce",
    "uncertified": True,
    "scorer": "number",
    "audit_share": 0.0,
    "probe": {},
    "policy": {"policy": "stable-answer", "streak": 2},
    "steps": {"min_tokens": 2, "growth": 1.0},
}
MESSAGES: Any = [{"role": "user", "content": "How much is 2 + 2?"}]


async def read(url: str, *, stream: bool) -> dict[str, Any]:
    """What a user of the library sees of one call."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        if not stream:
            whole = await client.chat.completions.create(model="m", messages=MESSAGES)
            message = whole.choices[0].message
            return {
                "text": message.content,
                "finish": whole.choices[0].finish_reason,
                "usage": whole.usage,
                "thought": getattr(message, "reasoning_content", None),
                "extra": whole.model_extra,
            }
        text, thought, finish, usage, extra = "", "", None, None, dict[str, Any]()
        chunks = await client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in chunks:
            usage = chunk.usage or usage
            extra |= chunk.model_extra or {}
            for choice in chunk.choices:
                text += choice.delta.content or ""
                thought += getattr(choice.delta, "reasoning_content", None) or ""
                finish = choice.finish_reason or finish
        return {"text": text, "finish": finish, "usage": usage, "thought": thought, "extra": extra}


async def both(g: Served, *, stream: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    return await read(g.fake.url, stream=stream), await read(g.url, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_off_and_observe_are_invisible(tmp_path: Any, mode: str, stream: bool) -> None:
    """Same text, thought, finish reason and usage, and no field of ours."""
    async with served(tmp_path, CHAIN, route={"mode": mode}) as g:
        direct, through = await both(g, stream=stream)
    for key in ("text", "finish", "usage", "thought"):
        assert through[key] == direct[key], key
    assert "suffice" not in through["extra"]


@pytest.mark.parametrize("stream", [False, True])
async def test_with_stopping_on_only_the_thought_and_the_object_differ(tmp_path: Any, stream: bool) -> None:
    """The answer and the finish reason are the same; the thought is a beginning of the full one."""
    async with served(tmp_path, CHAIN, upstream={"slots": 4}, route=ENFORCE) as g:
        direct, through = await both(g, stream=stream)
    assert (through["text"], through["finish"]) == (direct["text"], direct["finish"])
    assert direct["thought"].startswith(through["thought"])
    assert len(through["thought"]) < len(direct["thought"])
    assert through["extra"]["suffice"]["stopped"] is True
    assert through["extra"]["suffice"]["certified"] is False
    assert through["usage"].completion_tokens < direct["usage"].completion_tokens


async def test_errors_are_the_librarys_own(tmp_path: Any) -> None:
    """A refusal of ours and an error of the upstream arrive as the exceptions users already catch."""
    async with (
        served(tmp_path, CHAIN) as g,
        openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError, match=r"suffice\.sampels: unknown option"):
            await client.chat.completions.create(model="m", messages=MESSAGES, extra_body={"suffice": {"sampels": 3}})
        assert [m.id for m in (await client.models.list()).data] == ["fake"]
