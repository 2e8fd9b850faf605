"""The table of endpoints: further paths of the engine that settings list, and guards that no endpoint is without."""

from __future__ import annotations

import json

import pytest

from suffice.errors import ConfigError
from suffice.gateway.app import ENDPOINTS, endpoints
from suffice.settings import parse_settings
from suffice_testing import Script
from tests.gateway.conftest import Serve

OURS = "sk-ours-7c1d"
RELAY = ["GET /props", "POST /props", "POST /tokenize", "POST /completions"]


async def test_listed_paths_are_relayed_and_no_others(serve: Serve) -> None:
    odd = b"\xff\x00 not json"
    props = Script(pieces=(b'{"a": 1}',), content_type="application/json", status=200)
    counts = {"tokens_predicted": 6, "tokens_evaluated": 4, "timings": {"cache_n": 3}}
    own = json.dumps({"content": "x", "stop_type": "limit", **counts}).encode()
    played = {
        "GET /props": props,
        "POST /props": props,
        "POST /tokenize": Script(pieces=(odd,), content_type="text/plain", status=201),
        "POST /completions": Script(pieces=(own,), content_type="application/json"),
    }
    async with serve(server={"relay": RELAY}, fake={"paths": played}) as g:
        for entry in RELAY:
            method, _, path = entry.partition(" ")
            raw = None if method == "GET" else odd
            async with g.session.request(method, f"{g.url}{path}?q=1", data=raw) as answer:
                assert (answer.status, await answer.read()) == (played[entry].status, played[entry].body)
            call = g.fake.calls[-1].request
            assert (call.method, call.target, call.raw_body) == (method, f"{path}?q=1", raw or b"")
        for method, path, code in (("GET", "/tokenize", 405), ("POST", "/slots", 404), ("POST", "/v1/tokenize", 404)):
            async with g.session.request(method, g.url + path) as answer:
                assert answer.status == code
        assert len(g.fake.calls) == len(RELAY)
        result = [e.episode for e in await g.episodes(len(RELAY))]
        assert {e.request.ungoverned for e in result} == {"endpoint"}
        last = next(e for e in result if e.request.endpoint == "/completions")
        assert last.outcome.usage is not None
        assert (last.outcome.usage.prompt_tokens, last.outcome.usage.completion_tokens) == (4, 6)
        assert (last.outcome.usage.cached_tokens, last.outcome.end_reason) == (3, "truncated")


@pytest.mark.parametrize(
    "entry",
    [
        "/props",
        "GET props",
        "get /props",
        "GET  /props",
        "HEAD /props",
        "GET /a/../b",
        "GET /a//b",
        "GET /./a",
        "GET /..",
        "GET /a?b",
        "GET /a b",
        "GET /{id}",
        "GET /é",
        "GET /a%2e",
        "GET //a",
        "",
    ],
)
def test_a_path_that_is_not_exact_is_refused_at_start(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.relay: got"):
        parse_settings({"server": {"relay": [entry]}})


@pytest.mark.parametrize(
    "entry",
    [
        "POST /v1/chat/completions",
        "GET /chat/completions",
        "GET /metrics",
        "POST /feedback",
        "GET /healthz",
        "GET /models",
    ],
)
def test_a_path_of_our_own_cannot_be_relayed(entry: str) -> None:
    with pytest.raises(ConfigError, match="answered by Suffice itself"):
        endpoints(parse_settings({"server": {"relay": [entry]}}).server.relay)


# ---------------------------------------------------------------- guards on every endpoint


async def test_every_endpoint_has_its_guards(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks the table, so that an endpoint added tomorrow is tested today: no key, wrong key, two-faced host."""
    monkeypatch.setenv("OURS", OURS)
    async with serve(server={"api_keys_env": "OURS", "relay": [*RELAY, "DELETE /x/y"]}) as g:
        table = endpoints(g.gateway.settings.server.relay)
        assert len(table) == len(ENDPOINTS) + len(RELAY)  # one of RELAY takes a place, `DELETE /x/y` adds one
        assert [e.path for e in table if e.public] == ["/healthz", "/readyz"]
        for endpoint in table:
            url = g.url + endpoint.path.replace("{id}", "resp_1")
            refused = [{"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {}]
            for headers in [] if endpoint.public else refused:
                async with g.session.request(endpoint.method, url, headers=headers) as answer:
                    assert answer.status == 401, endpoint
                    assert json.loads(await answer.read())["error"]["type"] == "authentication_error"
            host = {"host": "a@b", "authorization": f"Bearer {OURS}"}
            async with g.session.request(endpoint.method, url, headers=host) as answer:
                assert answer.status == 400, endpoint
        assert g.fake.calls == []


async def test_no_endpoint_sends_our_key_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks the table with our key wherever a client may put one."""
    monkeypatch.setenv("OURS", OURS)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}]}).encode()
    ours = {"authorization": f"Bearer {OURS}", "x-api-key": OURS, "api-key": OURS, "content-type": "application/json"}
    async with serve(server={"api_keys_env": "OURS", "relay": RELAY}) as g:
        table = endpoints(g.gateway.settings.server.relay)
        for endpoint in table:
            url = g.url + endpoint.path.replace("{id}", "resp_1")
            data = body if endpoint.method == "POST" else None
            async with g.session.request(endpoint.method, url, data=data, headers=ours) as answer:
                assert answer.status != 401, endpoint
                await answer.read()
        assert len(g.fake.calls) >= len(table) - 25  # all but our own pages
        assert not [c for c in g.fake.calls if any(OURS in value for _, value in c.headers)]
