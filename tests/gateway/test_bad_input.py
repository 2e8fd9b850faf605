"""Bad input: ours is refused in OpenAI's shape, the upstream's is forwarded and its verdict relayed.

The numbers are those of the list of bad inputs that the contract sorts.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from itertools import product
from typing import Any

import pytest

from suffice_testing import Fault, Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import CHAT, Served, chat

SECRET = "sk-canary-5f1e"
AUTH = {"authorization": f"Bearer {SECRET}"}
VERDICT = b'{"error": {"message": "the model server says no", "type": "its_own", "param": "x", "code": "no"}}'
GOOD = json.dumps(chat()).encode()


def nested(depth: int) -> bytes:
    """A chat body nested so many levels deep, the outermost object included."""
    return b'{"model": "m", "messages": [], "x": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def with_content(raw: str) -> bytes:
    return b'{"model": "m", "messages": [{"role": "user", "content": ' + raw.encode() + b"}]}"


# by name: the body, its headers; the status, code and field of the refusal
REFUSED: dict[str, tuple[bytes, dict[str, str], int, str, str | None]] = {
    "1 no body": (b"", {}, 400, "empty_body", None),
    "1 blank body": (b" \r\n\t", {}, 400, "empty_body", None),
    "2 empty object": (b"{}", {}, 400, "empty_body", None),
    "3 list": (b"[1]", {}, 400, "not_an_object", None),
    "3 string": (b'"model"', {}, 400, "not_an_object", None),
    "3 number": (b"1", {}, 400, "not_an_object", None),
    "3 null": (b"null", {}, 400, "not_an_object", None),
    "4 invalid UTF-8": (b'{"model": "\xff\xfe"}', {}, 400, "bad_encoding", None),
    "4 overlong UTF-8": (b'{"model": "\xc0\xaf"}', {}, 400, "bad_encoding", None),
    "4 half a character": (b'{"model": "\xe5\x8c"}', {}, 400, "bad_encoding", None),
    "5 UTF-16": (GOOD.decode().encode("utf-16"), {}, 400, "bad_encoding", None),
    "5 UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), {}, 400, "bad_json", None),
    "6 byte order mark": (b"\xef\xbb\xbf" + GOOD, {}, 400, "bad_encoding", None),
    "7 trailing comma": (b'{"model": "m",}', {}, 400, "bad_json", None),
    "7 NaN": (b'{"model": "m", "temperature": NaN}', {}, 400, "bad_json", None),
    "7 Infinity": (b'{"model": "m", "temperature": -Infinity}', {}, 400, "bad_json", None),
    "7 1e999": (b'{"model": "m", "temperature": 1e999}', {}, 400, "bad_json", None),
    "7 half a body": (GOOD[:-1], {}, 400, "bad_json", None),
    "7 two bodies": (GOOD + GOOD, {}, 400, "bad_json", None),
    "7 single quotes": (b"{'model': 'm'}", {}, 400, "bad_json", None),
    "8 a key twice": (b'{"model": "m", "model": "n"}', {}, 400, "repeated_key", "model"),
    "8 a key twice, escaped": (b'{"model": "m", "mode\\u006c": "n"}', {}, 400, "repeated_key", "model"),
    "8 a key twice, inside": (b'{"model": "m", "x": {"a": 1, "a": 2}}', {}, 400, "repeated_key", "a"),
    "9 depth 129": (nested(129), {}, 400, "too_deep", None),
    "9 depth 100,000": (nested(100_000), {}, 400, "too_deep", None),
    "10 too long": (with_content('"' + "x" * 600_000 + '"'), {}, 413, "too_large", None),
    "14 gzip": (gzip.compress(GOOD), {"content-encoding": "gzip"}, 415, "unsupported_encoding", None),
    "14 gzip bomb": (gzip.compress(b" " * 10**6), {"content-encoding": "gzip"}, 415, "unsupported_encoding", None),
    "14 unknown encoding": (GOOD, {"content-encoding": "rot13"}, 415, "unsupported_encoding", None),
    "15 multipart": (
        b"--a\r\n",
        {"content-type": "multipart/form-data; boundary=" + "a" * 4000},
        415,
        "unsupported_media_type",
        None,
    ),
    "16 text/plain": (GOOD, {"content-type": "text/plain"}, 415, "unsupported_media_type", None),
    "32 stream is a string": (json.dumps(chat(stream="true")).encode(), {}, 400, "bad_request", "stream"),
    "32 stream is 1": (json.dumps(chat(stream=1)).encode(), {}, 400, "bad_request", "stream"),
    "37 temperature NaN": (b'{"model": "m", "messages": [], "temperature": NaN}', {}, 400, "bad_json", None),
    "31 model is a list": (b'{"model": ["m"], "messages": []}', {}, 400, "bad_request", "model"),
    "31 model is null": (b'{"model": null, "messages": []}', {}, 400, "bad_request", "model"),
    "46 version, header": (
        GOOD,
        {"x-suffice-policy-version": "p-../../x"},
        400,
        "unknown_policy_version",
        "policy_version",
    ),
    "46 version, body": (
        json.dumps(chat(suffice={"policy_version": "p-0"})).encode(),
        {},
        400,
        "unknown_policy_version",
        "policy_version",
    ),
    "46 route": (GOOD, {"x-suffice-route": "nobody"}, 400, "unknown_route", None),
    "suffice is a list": (json.dumps(chat(suffice=[])).encode(), {}, 400, "bad_request", "suffice"),
    "suffice is null": (json.dumps(chat(suffice=None)).encode(), {}, 400, "bad_request", "suffice"),
    "suffice, unknown option": (json.dumps(chat(suffice={"sample": 4})).encode(), {}, 400, "bad_request", "suffice"),
    **{
        f"suffice.samples is {wrong!r}": (
            json.dumps(chat(suffice={"samples": wrong})).encode(),
            {},
            400,
            "bad_request",
            "suffice.samples",
        )
        for wrong in (0, -1, 1.5, "4", True, 257, 2**70)
    },
    "suffice.conversation_id is 7": (
        json.dumps(chat(suffice={"conversation_id": 7})).encode(),
        {},
        400,
        "bad_request",
        "suffice.conversation_id",
    ),
}


def assert_openai_error(body: bytes, *, code: str, param: str | None = None) -> None:
    """OpenAI's shape, all four fields, and nothing that a client should not see."""
    parsed = json.loads(body)
    assert set(parsed) == {"error"}
    assert set(parsed["error"]) == {"message", "type", "param", "code"}
    assert parsed["error"]["code"] == code
    assert parsed["error"]["param"] == param
    assert parsed["error"]["message"]
    assert_no_leak(body)


def assert_no_leak(body: bytes) -> None:
    assert SECRET.encode() not in body
    assert b"Traceback" not in body
    assert b".py" not in body
    assert len(body) < 1000


async def assert_alive(g: Served) -> None:
    async with g.session.get(g.url + "/healthz") as response:
        assert response.status == 200


@pytest.mark.slow(keep=16)
@pytest.mark.parametrize("name", REFUSED)
async def test_what_we_read_and_cannot_is_refused_and_counted(serve: Serve, name: str) -> None:
    body, headers, code_number, code, param = REFUSED[name]
    async with serve(server={"max_body_bytes": 500_000}) as g:
        answer = await g.ask(body, headers={**AUTH, **headers})
        assert answer.status == code_number
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-suffice-episode-id"]
        assert_openai_error(answer.raw, code=code, param=param)
        await assert_alive(g)
        assert g.fake.calls == []
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.status, outcome.calls) == ("rejected", code_number, ())
        counted = g.gateway.metrics.value("suffice_requests_total", route="", mode="off", end_reason="rejected")
        assert counted == 1


async def test_depth_128_is_allowed(serve: Serve) -> None:
    async with serve() as g:
        assert (await g.ask(nested(128))).status == 200
        assert len(g.fake.completions) == 1


GRAPHEMES = "\u202eevil\u202c \x01\x7f e\u0301 👩‍👩‍👧‍👦 \u2028"
RECURSIVE = [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}]
CAPS: list[Any] = [0, -1, 1.5, "10", 2**63, None, []]
N_ODD: list[Any] = [0, 128, -1, "2", True, None]
TEMPERATURES: list[Any] = [-1, "0", [], 1e300]
FORWARDED: dict[str, bytes] = {
    name: body if isinstance(body, bytes) else json.dumps(body).encode()
    for name, body in {
        "25 messages absent": {"model": "m"},
        "25 messages null": {"model": "m", "messages": None},
        "25 messages empty": {"model": "m", "messages": []},
        "25 messages a string": {"model": "m", "messages": "hello"},
        "25 messages of strings": {"model": "m", "messages": ["hello"]},
        "26 many messages": {"model": "m", "messages": [{"role": "user", "content": ""}] * 20_000},
        "27 content null": with_content("null"),
        "27 content of parts": with_content('[{"type": "text", "text": "hi"}]'),
        "27 content empty": with_content('""'),
        "27 content a number": with_content("7"),
        "27 image": with_content('[{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]'),
        "28 unknown role": {"model": "m", "messages": [{"role": "wizard", "content": "hi"}]},
        "28 no role": {"model": "m", "messages": [{}]},
        "29 lone surrogate": with_content(r'"\ud800"'),
        "29 lone surrogate in a field": b'{"model": "\\udc00", "messages": [{"role": "user", "content": "a"}]}',
        "30 odd characters": chat(GRAPHEMES),
        "31 model absent": {"messages": [{"role": "user", "content": "a"}]},
        **{f"31 model {m[:8]!r}": chat() | {"model": m} for m in ("", "unknown", "../x", "m" * 10_000, "a\nb: c\x00")},
        "32 stream null": chat(stream=None),
        "33 stream_options without stream": chat(stream_options={"include_usage": True}),
        "33 stream_options a string": chat(stream_options="yes"),
        **{f"34 max_tokens {n!r}": chat(max_tokens=n) for n in CAPS},
        "35 two caps": chat(max_tokens=10, max_completion_tokens=20),
        **{f"36 n {n!r}": chat(n=n) for n in N_ODD},
        **{f"37 temperature {t!r}": chat(temperature=t) for t in TEMPERATURES},
        "38 many stops": chat(stop=["x"] * 1000),
        "38 stop empty": chat(stop=""),
        "38 stop is our tag": chat(stop="</think>"),
        **{f"39 seed {str(s)[:8]}": chat(seed=s) for s in (2**80, -(2**80), 10**60, 1.5, "7", True, None)},
        "40 logit_bias": chat(logit_bias={"nonsense": "x", "-1": 1000}),
        "41 tools": chat(tools=RECURSIVE, tool_choice={"type": "function"}),
        "41 tools a string": chat(tools="all"),
        "42 pattern": chat(response_format={"type": "json_schema", "json_schema": {"pattern": "(a+)+$"}}),
        "42 long schema": chat(response_format={"type": "json_schema", "json_schema": {"d": "x" * 900_000}}),
        "44 metadata": chat(metadata={"a": "<script>" * 1000}, user="=HYPERLINK()"),
        "45 reasoning_effort": chat(reasoning_effort="heroic"),
        "a field that nobody knows": chat(__class__={"__proto__": 1}, quantum=[None, {"a": 1.0}]),
    }.items()
}
ROUTES: dict[str, Any] = {
    "off": {"upstream": "up", "mode": "off"},
    "reasoning": {"upstream": "up", "match": {"header": "reasoning"}},
    "samples": {"upstream": "up", "match": {"header": "samples"}, "kind": "samples", "samples": 2, "scorer": "number"},
}


@pytest.mark.parametrize("route", ROUTES)
async def test_what_only_the_upstream_reads_is_forwarded_and_its_verdict_relayed(serve: Serve, route: str) -> None:
    async with serve(Reply(faults=(Fault(status=422, status_body=VERDICT),)), routes=ROUTES) as g:
        for name, sent in FORWARDED.items():
            n_before = len(g.fake.completions)
            answer = await g.ask(sent, headers={**AUTH, "x-suffice-route": route})
            assert (answer.status, answer.raw) == (422, VERDICT), name
            calls = g.fake.completions[n_before:]
            assert calls, name
            for call in calls:
                assert call.request.header("authorization") == AUTH["authorization"]
                assert_forwarded(json.loads(sent), json.loads(call.raw_body), name)
            if route == "off":
                assert [call.raw_body for call in calls] == [sent], name
            await assert_alive(g)
        ends = {result.episode.outcome.end_reason for result in await g.episodes(len(FORWARDED))}
        assert not ends & {"rejected", "internal_error"}
        assert g.failed_open("govern") == 0


def assert_forwarded(requested: dict[str, Any], seen: dict[str, Any], name: str) -> None:
    """Everything arrives as it was sent, but for what a governed request may change."""
    for field in requested.keys() - {"stream", "stream_options"}:
        number = type(requested[field]) is int
        allowed = [requested[field], requested[field] + 1] if field == "seed" and number else [requested[field]]
        assert seen[field] in allowed, (name, field)
        assert type(seen[field]) is type(requested[field]), (name, field)


async def test_when_the_upstream_takes_it_the_answer_is_whole(serve: Serve) -> None:
    """The same fields, and an upstream that does not mind: no field breaks a governed run."""
    async with serve(routes=ROUTES) as g:
        for name in ("30 odd characters", "34 max_tokens '10'", f"39 seed {str(2**80)[:8]}"):
            for route in ROUTES:
                answer = await g.ask(FORWARDED[name], headers={"x-suffice-route": route})
                assert (answer.status, answer.text) == (200, "ok"), (name, route)
        assert g.failed_open("govern") == 0


async def test_override_fields_are_removed_and_counted(serve: Serve) -> None:
    given: dict[str, Any] = {
        "api_base": "http://169.254.169.254",
        "base_url": "http://127.0.0.1:1",
        "api_key": SECRET,
        "extra_headers": {"x": "y"},
        "user_config": {"a": 1},
        "custom_llm_provider": "openai",
    }
    async with serve(routes=ROUTES) as g:
        for route in ROUTES:
            assert (await g.ask(chat(**given), headers={"x-suffice-route": route})).text == "ok"
        assert len(g.fake.completions) == 4
        assert not any(field in call.body for call in g.fake.completions for field in given)
        assert not any(SECRET.encode() in call.raw_body for call in g.fake.completions)
        for field in given:
            assert g.gateway.metrics.value("suffice_stripped_fields_total", field=field) == 3


async def test_our_own_policy_version_may_be_named(serve: Serve) -> None:
    async with serve() as g:
        version = (await g.ask(chat())).headers["x-suffice-policy-version"]
        assert (await g.ask(chat(), headers={"x-suffice-policy-version": version})).status == 200
        assert (await g.ask(chat(suffice={"policy_version": version}))).status == 200


# ---------------------------------------------------------------- below what an HTTP client would send


async def raw(port: int, request: bytes, *, within_s: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are and read to the end of the connection: status, headers, body."""
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split(" ")[1]), {k.lower(): v.strip() for k, _, v in pairs}, body


def post(
    target: str = CHAT, *headers: str, body: bytes = GOOD, method: str = "POST", host: str | None = "localhost"
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers]
    lines += ["Content-Type: application/json"] if body or method == "POST" else []
    lines += [f"Authorization: Bearer {SECRET}", "Connection: close", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


HOSTS = ["a/health?", "a#", "a@b", "", "a b", "a,b", "a:99x", "http://a", "[::1", "a\xe9"]


@pytest.mark.parametrize("target", [CHAT, "/healthz"])
async def test_a_host_that_could_mean_two_things_is_refused(serve: Serve, target: str) -> None:
    async with serve() as g:
        method, body = ("GET", b"") if target == "/healthz" else ("POST", GOOD)
        for host in HOSTS:
            code, _, answer = await raw(g.port, post(target, host=host, method=method, body=body))
            assert code == 400, host
            assert_openai_error(answer, code="bad_host")
            await assert_alive(g)
        assert g.fake.calls == []


async def test_two_hosts_are_refused(serve: Serve) -> None:
    async with serve() as g:
        code, _, answer = await raw(g.port, post(CHAT, "Host: other"))
        assert code == 400
        assert_no_leak(answer)
        assert g.fake.calls == []
        await assert_alive(g)


async def test_a_plain_host_is_welcome(serve: Serve) -> None:
    async with serve(server={"allowed_hosts": ["a-b.example"]}) as g:
        for host in ("localhost", "127.0.0.1:8400", "A-B.example:80", "[::1]:80"):
            assert (await raw(g.port, post(host=host)))[0] == 200, host


PATHS = [
    "/",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/../admin",
    "/v1/../v1/chat/completions",
    "/%2e%2e/v1/chat/completions",
    "/v1/%2e%2e/v1/chat/completions",
    "/v1/%252e%252e/chat/completions",
    "/v1/chat/completions/",
    "/v1/chat/completions;a=b",
    "/V1/chat/completions",
    "/v1/Chat/Completions",
    "/v1/chat/completions%00",
    "/v1/chat/completions%20",
    "/v1/chat/completions%3Fa",
    "/v1/v1/chat/completions",
    "/v1/chat/completions/control",
    "/apply-template",
    "/admin",
    "/healthz/",
    "/v1/healthz",
    "/metrics%2f",
]


async def test_a_path_is_found_exactly_or_not_at_all(serve: Serve) -> None:
    async with serve() as g:
        for target in PATHS:
            code, _, answer = await raw(g.port, post(target))
            assert code == 404, target
            assert_openai_error(answer, code="not_found")
            await assert_alive(g)
        assert g.fake.calls == []


async def test_the_prefix_v1_may_be_left_out_and_a_query_is_ignored(serve: Serve) -> None:
    async with serve() as g:
        for target in (CHAT, "/chat/completions", CHAT + "?api-version=1"):
            assert (await raw(g.port, post(target)))[0] == 200, target
        assert [call.request.target for call in g.fake.completions] == [CHAT] * 3


METHODS = {
    "POST": ["/v1/chat/completions", "/chat/completions", "/v1/feedback", "/feedback"],
    "GET": ["/v1/models", "/models", "/healthz", "/readyz", "/metrics"],
}


@pytest.mark.parametrize("right", METHODS)
async def test_another_method_is_refused_and_the_right_one_named(serve: Serve, right: str) -> None:
    others = {"HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "GET", "POST"} - {right}
    async with serve() as g:
        for path, method in product(METHODS[right], sorted(others)):
            code, headers, answer = await raw(g.port, post(path, method=method, body=b""))
            assert (code, headers["allow"]) == (405, right), (method, path)
            if method != "HEAD":
                assert_openai_error(answer, code="method_not_allowed")
        assert g.fake.calls == []
        await assert_alive(g)


async def test_a_body_that_says_it_is_too_long_is_refused_before_it_comes(serve: Serve) -> None:
    async with serve() as g:
        head = post(body=b"").replace(b"Content-Length: 0", b"Content-Length: 104857600")
        code, _, answer = await raw(g.port, head)
        assert code == 413
        assert_openai_error(answer, code="too_large")
        assert (await g.outcome()).end_reason == "rejected"
        await assert_alive(g)


async def test_a_chunked_body_is_refused_at_the_limit(serve: Serve) -> None:
    async with serve(server={"max_body_bytes": 10_000}) as g:
        head = post(body=b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        chunks = b"1000\r\n" + b"x" * 4096 + b"\r\n4000\r\n" + b"x" * 16384 + b"\r\n"
        code, _, answer = await raw(g.port, head + chunks)
        assert code == 413
        assert_openai_error(answer, code="too_large")
        assert (await g.outcome()).end_reason == "rejected"
        await assert_alive(g)


async def test_a_number_of_a_million_digits_costs_nothing(serve: Serve) -> None:
    async with serve() as g:
        answer = await g.ask(b'{"model": "m", "messages": [], "x": ' + b"9" * 1_000_000 + b"}", headers=AUTH)
        assert answer.status == 400
        assert_openai_error(answer.raw, code="bad_json")
        await assert_alive(g)


AUTHORIZATIONS = ["", "Bearer", "bearer x", "Bearer x y", "' OR 1=1--", "Basic eDp5", "x" * 30_000]


async def test_without_keys_of_ours_the_clients_own_authorization_goes_on(serve: Serve) -> None:
    async with serve() as g:
        for value in AUTHORIZATIONS:
            answer = await g.ask(chat(), headers={"authorization": value})
            assert answer.status == 200, value[:20]
            assert g.fake.completions[-1].request.header("authorization") == value
