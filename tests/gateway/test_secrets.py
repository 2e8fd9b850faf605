"""P12: no prompt and no key in the log, on disk, in the metrics or in what the client gets back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from suffice.testing import Chain, Reply, die_after
from tests.gateway.served import chat, served

PROMPT = "canary-prompt-7731 of mallory@example.org"
CLIENT_KEY, UPSTREAM_KEY = "canary-client-key-1", "canary-upstream-key-2"
CHAIN = Chain([("two and two\n", "4"), ("make four\n", "4"), ("so four\n", "4")], "4")
ENFORCE: dict[str, Any] = {
    "mode": "enforce", "uncertified": True, "scorer": "number", "audit_share": 0.0, "probe": {},
    "policy": {"policy": "stable-answer", "streak": 2}, "steps": {"min_tokens": 2, "growth": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
@pytest.mark.parametrize("broken", [False, True])
async def test_no_prompt_and_no_key_is_kept_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str, broken: bool
) -> None:
    """Good requests, refused ones and broken upstreams: the canaries are nowhere but in the request itself."""
    monkeypatch.setenv("CLIENT_KEYS", CLIENT_KEY)
    monkeypatch.setenv("UPSTREAM_KEY", UPSTREAM_KEY)
    caplog.set_level(logging.INFO)
    says = Chain(CHAIN.steps, "4", reply=Reply(faults=(die_after(3),) if broken else ()))
    keys = {"authorization": f"Bearer {CLIENT_KEY}"}
    async with served(
        tmp_path, says, server={"api_keys_env": "CLIENT_KEYS"}, upstream={"api_key_env": "UPSTREAM_KEY", "slots": 2},
        route=ENFORCE | {"mode": mode},
    ) as g:
        answers = [
            await g.ask(chat(PROMPT, stream=True), headers=keys),
            await g.ask(chat(PROMPT, suffice={"bogus": PROMPT}), headers=keys),
            await g.ask(chat(PROMPT), headers={"authorization": f"Bearer {CLIENT_KEY}x"}),
        ]
        async with aiohttp.ClientSession() as session, session.get(g.url + "/metrics", headers=keys) as reply:
            metrics = await reply.read()
        assert PROMPT in str(g.fake.calls[0].body)
        assert UPSTREAM_KEY in str(g.fake.calls[0].headers)
        assert CLIENT_KEY not in str([call.headers for call in g.fake.calls])
        await g.episodes(2)
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240
    told = b"".join(a.raw + str(a.headers).encode() for a in answers)
    for canary in (PROMPT, "mallory", CLIENT_KEY, UPSTREAM_KEY):
        assert canary.encode() not in kept, "on disk"
        assert canary.encode() not in told, "told to the client"
        assert canary.encode() not in metrics, "in the metrics"
        assert canary not in caplog.text, "in the process's log"
