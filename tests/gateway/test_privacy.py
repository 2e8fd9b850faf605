"""P4 and P12: one record for every request, and neither a prompt nor a key in it, in the logs or in the metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from suffice_testing import FakeRequest, Fault, Reply, ScriptedThought
from tests.faults.test_broken_parts import with_settings
from tests.gateway.conftest import Serve
from tests.gateway.served import chat
from tests.gateway.test_stop import enforcing

PROMPT, CLIENT_KEY, GATEWAY_KEY, UPSTREAM_KEY = (
    "prompt-canary-2d1f",
    "sk-client-canary-77",
    "sk-gateway-canary-88",
    "sk-upstream-canary-99",
)
SECRETS = (PROMPT, CLIENT_KEY, GATEWAY_KEY, UPSTREAM_KEY)
BODY = chat(f"my name is {PROMPT}", user=PROMPT, metadata={"a": PROMPT}, api_key=CLIENT_KEY)
STEPS = [(f"step {n}\n", "4") for n in range(6)]


def files_of(database: Path) -> bytes:
    return b"".join(path.read_bytes() for path in database.parent.iterdir() if path.is_file())


def assert_clean(where: str, text: bytes) -> None:
    result = [secret for secret in SECRETS if secret.encode() in text]
    assert not result, f"{where} holds {result}"


def says(seen: FakeRequest) -> Reply:
    """A model, and now and then an upstream that quotes what it was sent."""
    kind = seen.body.get("seed")
    if kind == 1:
        quoted = json.dumps({"error": {"message": f"bad key {UPSTREAM_KEY} for {PROMPT}"}}).encode()
        return Reply(faults=(Fault(status=401, status_body=quoted),))
    if kind == 2:
        return Reply(reasoning=("so\n",) * 4, faults=(Fault(die_after=2),))
    return ScriptedThought(STEPS, "4")(seen)


ROUTES: dict[str, Any] = {
    "off": {"upstream": "up", "mode": "off", "match": {"header": "off"}},
    "observe": {"upstream": "up", "match": {"header": "observe"}},
    "enforce": {"upstream": "up", "match": {"header": "enforce"}, **enforcing(audit_share=0.5)},
    "samples": {"upstream": "up", "match": {"header": "samples"}, "kind": "samples", "samples": 2},
}


async def test_no_prompt_and_no_key_is_kept_anywhere(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_KEYS", f"other, {GATEWAY_KEY}")
    monkeypatch.setenv("UPSTREAM_KEY", UPSTREAM_KEY)
    caplog.set_level(logging.INFO)
    upstream = {"finish": ["raw"], "slots": 4, "api_key_env": "UPSTREAM_KEY"}
    n_begun = 0
    async with serve(
        says, routes=ROUTES, upstream=upstream, server={"api_keys_env": "GATEWAY_KEYS"}, fake={"api_key": UPSTREAM_KEY}
    ) as g:
        headers = {"authorization": f"Bearer {GATEWAY_KEY}", "x-conversation-id": PROMPT}
        for route in ROUTES:
            for kind in (None, 1, 2):
                for stream in (True, False):
                    requested = headers | {"x-suffice-route": route}
                    answer = await g.ask(BODY | {"stream": stream, "seed": kind}, headers=requested)
                    n_begun += 1
                    assert GATEWAY_KEY.encode() not in answer.raw
                    if kind != 1:
                        assert_clean("the answer", answer.raw)
        refused = [json.dumps(BODY).encode()[:-1], b'{"model": "m", "model": "' + PROMPT.encode() + b'"}']
        for body in refused:
            answer = await g.ask(body, headers=headers)
            n_begun += 1
            assert answer.status == 400
            assert_clean("a refusal", answer.raw)
        assert (await g.ask(BODY, headers={"authorization": f"Bearer {CLIENT_KEY}"})).status == 401
        async with g.session.get(f"{g.url}/metrics", headers=headers) as response:
            assert_clean("the metrics", await response.read())
        result = await g.episodes(n_begun)
        assert {e.episode.outcome.end_reason for e in result} >= {"done", "upstream_error", "rejected"}
        assert all(call.request.header("authorization") == f"Bearer {UPSTREAM_KEY}" for call in g.fake.calls)
        database = g.database
    assert len(files_of(database)) > 10_000
    assert_clean("the database", files_of(database))
    assert_clean("the log", "\n".join(f"{r.getMessage()} {r.exc_text} {r.args}" for r in caplog.records).encode())
    out, err = capfd.readouterr()
    assert_clean("the terminal", (out + err).encode())


async def test_a_failure_of_our_own_is_logged_without_what_was_asked(
    serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from suffice.settings import Steps

    caplog.set_level(logging.INFO)
    change = with_settings(steps=Steps(min_tokens=f"{PROMPT}"))  # type: ignore[arg-type]
    async with serve(says, change=change) as g:
        assert (await g.ask(BODY)).text == "4"
    assert any("governing failed (ValueError)" in r.getMessage() for r in caplog.records)
    assert_clean("the log", "\n".join(f"{r.getMessage()} {r.exc_text}" for r in caplog.records).encode())
    out, err = capfd.readouterr()
    assert_clean("the terminal", (out + err).encode())
    assert "Traceback" not in out + err


async def test_repeats_are_grouped_by_a_key_that_says_nothing(serve: Serve) -> None:
    async with serve(says) as g:
        for text in (PROMPT, PROMPT, "something else"):
            await g.ask(chat(text))
        keys = [e.episode.request.question_key for e in await g.episodes(3)]
        assert keys[0] == keys[1] != keys[2]
        assert all(len(key) == 16 for key in keys)
