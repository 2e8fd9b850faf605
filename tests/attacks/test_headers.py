"""Attacks by headers: an upstream that commands browsers and proxies, types that run, hops that are mixed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

import pytest

from tests.attacks.hostile import COMPLETION, STREAM, Answer, Stage, answer_of, stage

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
STORED = "/v1/responses/resp_1"
HTML = b"<!doctype html><script>fetch('/console/routes/pause', {method: 'POST'})</script>"
RELAYED = re.compile(
    r"content-(type|length|encoding)|retry-after(-ms)?|x-should-retry|x-accel-buffering|.*ratelimit.*|(openai|anthropic)-.+"
    r"|(.+-)?(request|correlation|trace)-?id|cf-ray|x-suffice-(route|mode|policy-version|episode-id|feedback-token)"
    r"|x-content-type-options|content-security-policy|cross-origin-resource-policy|cache-control|connection"
    r"|transfer-encoding"
)


@pytest.fixture(scope="module")
def g(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("headers")) as made:
        yield made


def chat(model: str = "off", *, stream: bool = False) -> bytes:
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    return json.dumps(body).encode()


def assert_inert(answer: Answer) -> None:
    """No browser runs this answer, frames it, includes it or keeps it."""
    assert answer["x-content-type-options"] == "nosniff"
    assert answer["content-security-policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
    assert answer["cross-origin-resource-policy"] == "same-origin"
    assert answer["cache-control"] == "no-store"
    assert len([name for name, _ in answer.headers if name == "content-type"]) == 1
    assert all(RELAYED.fullmatch(name) for name in answer.names), answer.names


# --------------------------------------------------------------------------- headers that browsers and proxies act on

ACTED_ON = {
    "set-cookie": "suffice_session=evil; Path=/",
    "set-cookie2": "a=b",
    "service-worker-allowed": "/",
    "clear-site-data": '"*"',
    "refresh": "0; url=https://evil.example/",
    "location": "https://evil.example/",
    "content-location": "/console",
    "access-control-allow-origin": "*",
    "access-control-allow-credentials": "true",
    "access-control-allow-headers": "*",
    "link": "</evil.css>; rel=stylesheet",
    "x-suffice-certified": "true",
    "x-suffice-episode-id": "ep_of_somebody_else",
    "X-Suffice-Feedback-Token": "forged",
    "x-accel-redirect": "/etc/passwd",
    "x-sendfile": "/etc/passwd",
    "x-reproxy-url": "http://10.0.0.1/",
    "content-security-policy": "default-src * 'unsafe-inline'",
    "content-security-policy-report-only": "default-src 'none'; report-uri https://evil.example/",
    "x-content-type-options": "sniff",
    "x-frame-options": "ALLOWALL",
    "cross-origin-resource-policy": "cross-origin",
    "cross-origin-opener-policy": "unsafe-none",
    "cross-origin-embedder-policy": "unsafe-none",
    "cache-control": "public, max-age=31536000, immutable",
    "expires": "Thu, 01 Jan 2099 00:00:00 GMT",
    "age": "0",
    "etag": '"x"',
    "vary": "*",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "public-key-pins": "max-age=1",
    "alt-svc": 'h2="evil.example:443"',
    "nel": '{"report_to":"x","max_age":99999}',
    "report-to": '{"group":"x","max_age":99999,"endpoints":[{"url":"https://evil.example"}]}',
    "reporting-endpoints": 'x="https://evil.example"',
    "www-authenticate": 'Basic realm="Your Suffice secret"',
    "proxy-authenticate": "Basic",
    "authentication-info": "nextnonce=x",
    "sourcemap": "/v1/responses/map",
    "x-sourcemap": "/v1/responses/map",
    "content-disposition": 'attachment; filename="run-me.html"',
    "origin-trial": "token",
    "permissions-policy": "geolocation=*",
    "speculation-rules": '"/v1/responses/rules"',
    "timing-allow-origin": "*",
    "referrer-policy": "unsafe-url",
    "x-permitted-cross-domain-policies": "all",
    "server": "evil/1.0",
    "via": "1.1 evil",
    "upgrade": "h2c",
    "keep-alive": "timeout=99999",
    "trailer": "set-cookie",
}


@pytest.mark.parametrize("name", ACTED_ON)
def test_a_header_that_a_browser_or_proxy_acts_on_stays_upstream(g: Stage, name: str) -> None:
    for how in ("stored", "body", "stream"):
        body, kind = (STREAM, "text/event-stream") if how == "stream" else (COMPLETION, "application/json")
        g.upstream.answer = answer_of(body, [("content-type", kind), (name, ACTED_ON[name]), ("x-request-id", "req_1")])
        if how == "stored":
            answer = g.ask("GET", STORED)
        else:
            answer = g.ask("POST", CHAT, JSON, chat("observe" if how == "stream" else "off", stream=how == "stream"))
        assert answer.status == 200, how
        assert ACTED_ON[name] not in [value for _, value in answer.headers], how
        assert answer["x-request-id"] == "req_1"
        assert_inert(answer)


WANTED_HEADERS = {
    "retry-after": "7",
    "retry-after-ms": "7000",
    "x-should-retry": "false",
    "x-request-id": "req_1",
    "request-id": "req_2",
    "openai-processing-ms": "12",
    "openai-version": "2020-10-01",
    "openai-organization": "org",
    "x-ratelimit-remaining-requests": "3",
    "x-ratelimit-reset-tokens": "1s",
    "anthropic-ratelimit-requests-limit": "5",
    "ratelimit-limit": "5",
    "apim-request-id": "a",
    "x-amzn-requestid": "b",
    "x-accel-buffering": "no",
    "cf-ray": "1-FRA",
}


@pytest.mark.parametrize("name", WANTED_HEADERS)
def test_what_clients_read_is_relayed(g: Stage, name: str) -> None:
    g.upstream.answer = answer_of(headers=[*JSON.items(), (name, WANTED_HEADERS[name])])
    assert g.ask("POST", CHAT, JSON, chat())[name] == WANTED_HEADERS[name]


# --------------------------------------------------------------------------- types that run

RUNS = [
    "text/html",
    "text/html; charset=utf-8",
    "TEXT/HTML",
    " text/html",
    "text/html;",
    "text/html ; a=b",
    "text/xml",
    "application/xhtml+xml",
    "application/xml",
    "image/svg+xml",
    "text/xsl",
    "application/xslt+xml",
    "text/javascript",
    "application/javascript",
    "application/x-javascript",
    "text/ecmascript",
    "module",
    "text/css",
    "text/vtt",
    "application/wasm",
    "application/pdf",
    "application/x-shockwave-flash",
    "multipart/x-mixed-replace; boundary=x",
    "multipart/related",
    "message/rfc822",
    "application/manifest+json",
    "application/speculationrules+json",
    "application/importmap+json",
    "text/cache-manifest",
    "application/x-web-bundle",
    "application/signed-exchange",
    "application/json, text/html",
    "application/json;, text/html",
    "application/json; a=b, text/html",
    'application/json; a="b, text/html',
    "application/json text/html",
    "application/json\ttext/html",
    "application/json/html",
    "json",
    "*/*",
    "",
    "/",
    ";",
    "text/plain, text/html",
    "image/png, text/html",
    "x" * 5_000,
    "application/json" + ";a=b" * 2_000 + "!",
    "audio/x\xe9",
    "text/html\xa0",
]
SAFE = re.compile(r"text/plain; charset=utf-8|application/octet-stream|application/json(;.*)?")


@pytest.mark.parametrize("kind", RUNS, ids=range(len(RUNS)))
def test_a_type_that_runs_is_relayed_as_one_that_does_not(g: Stage, kind: str) -> None:
    for status in ("200 OK", "404 Not Found", "503 Service Unavailable"):
        g.upstream.answer = answer_of(HTML, [("content-type", kind)], status)
        for answer in (g.ask("GET", STORED), g.ask("POST", CHAT, JSON, chat("observe"))):
            assert answer.status == int(status[:3]) or status == "200 OK"
            assert SAFE.fullmatch(answer["content-type"]), status
            assert "html" not in answer["content-type"]
            assert_inert(answer)


PAIRED = {
    "json, then html": ("application/json", "text/html"),
    "html, then json": ("text/html", "application/json"),
    "stream, then html": ("text/event-stream", "text/html"),
    "html, then stream": ("text/html", "text/event-stream"),
    "script, three times": ("text/javascript", "text/javascript", "text/javascript"),
}


@pytest.mark.parametrize("name", PAIRED)
def test_of_two_types_none_runs(g: Stage, name: str) -> None:
    g.upstream.answer = answer_of(HTML, [("content-type", kind) for kind in PAIRED[name]])
    answer = g.ask("GET", STORED)
    assert answer["content-type"] in ("text/plain; charset=utf-8", "application/octet-stream")
    assert_inert(answer)


def test_an_answer_without_a_type_is_bytes(g: Stage) -> None:
    g.upstream.answer = answer_of(HTML, [])
    assert g.ask("GET", STORED)["content-type"] == "application/octet-stream"


API_TYPES = [
    "application/json",
    "application/json; charset=utf-8",
    "application/json;charset=UTF-8",
    "text/event-stream",
    "text/event-stream; charset=utf-8",
    "application/x-ndjson",
    "text/plain",
    "text/plain; version=0.0.4",
    "audio/mpeg",
    "audio/pcm; rate=24000; channels=1",
    "image/png",
    "application/octet-stream",
    'audio/ogg; codecs="opus"',
]


@pytest.mark.parametrize("kind", API_TYPES)
def test_a_type_of_an_api_is_relayed_as_it_came(g: Stage, kind: str) -> None:
    g.upstream.answer = answer_of(b"data: {}\n\n", [("content-type", kind)])
    answer = g.ask("GET", STORED)
    assert (answer["content-type"], answer.body) == (kind, b"data: {}\n\n")
    assert_inert(answer)


# --------------------------------------------------------------------------- redirects and odd answers

ODD = [
    "101 Switching Protocols",
    "300 Multiple Choices",
    "301 Moved",
    "302 Found",
    "303 See Other",
    "304 Not Modified",
    "305 Use Proxy",
    "307 Temporary",
    "308 Permanent",
    "600 Odd",
    "999 Odd",
]


@pytest.mark.parametrize("status", ODD, ids=[one[:3] for one in ODD])
@pytest.mark.parametrize("path", [STORED, CHAT, "/v1/models"])
def test_no_redirect_and_no_odd_status_is_relayed(g: Stage, status: str, path: str) -> None:
    g.upstream.answer = answer_of(HTML, [("location", "https://evil.example/"), ("content-type", "text/html")], status)
    answer = g.ask("POST", path, JSON, chat("observe")) if path == CHAT else g.ask("GET", path)
    assert answer.status == 502
    assert "location" not in answer.names
    assert b"evil" not in answer.body
    assert_inert(answer)


OWN = {
    "400": ("POST", CHAT, JSON, b"{"),
    "404": ("GET", "/v1/<script>alert(1)</script>", {}, b""),
    "404 page": ("GET", "/index.html", {}, b""),
    "405": ("GET", CHAT, {}, b""),
    "403": ("GET", "/v1/models", {"origin": "https://evil.example"}, b""),
    "415": ("POST", CHAT, {"content-type": "text/html"}, b"{}"),
    "431": ("GET", "/v1/models", [("x-a", "a" * 60_000), ("x-b", "b" * 10_000)], b""),
    "health": ("GET", "/healthz", {}, b""),
    "ready": ("GET", "/readyz", {}, b""),
    "metrics": ("GET", "/metrics", {}, b""),
    "feedback": ("POST", "/v1/feedback", JSON, b'{"episode_id": 1}'),
    "decide": ("POST", "/v1/decide", JSON, b"{}"),
}


@pytest.mark.parametrize("name", OWN)
def test_our_own_answers_are_inert_as_well(g: Stage, name: str) -> None:
    method, target, headers, body = OWN[name]
    answer = g.ask(method, target, headers, body)  # type: ignore[arg-type]
    if name[:3].isdigit():
        assert answer.status == int(name[:3])
    assert "html" not in answer["content-type"]
    assert_inert(Answer(answer.status, [pair for pair in answer.headers if pair[0] != "allow"], answer.body))


# --------------------------------------------------------------------------- hops

NOMINATED = [
    [("connection", "x-hop"), ("x-hop", "1")],
    [("connection", "X-Hop, close"), ("x-hop", "1")],
    [("connection", "close"), ("connection", "x-hop"), ("x-hop", "1")],
    [("connection", " , x-hop ,"), ("X-HOP", "1")],
    [("connection", "keep-alive,\tx-hop"), ("x-hop", "1"), ("x-hop", "2")],
    [("connection", "x-hop;q=1, x-hop"), ("x-hop", "1")],
    [("x-hop", "1"), ("connection", "x-hop")],
]


@pytest.mark.parametrize("headers", NOMINATED, ids=range(len(NOMINATED)))
def test_a_nominated_header_of_a_request_goes_no_further(g: Stage, headers: list[tuple[str, str]]) -> None:
    g.upstream.answer = answer_of()
    assert g.ask("POST", CHAT, [*JSON.items(), *headers], chat()).status == 200
    seen = g.upstream.heads[-1].lower()
    assert "x-hop" not in seen
    assert "content-type: application/json" in seen


@pytest.mark.parametrize("headers", NOMINATED, ids=range(len(NOMINATED)))
def test_a_nominated_header_of_an_answer_goes_no_further(g: Stage, headers: list[tuple[str, str]]) -> None:
    renamed = [
        (name, value.lower().replace("x-hop", "x-request-id")) if name == "connection" else ("x-request-id", value)
        for name, value in headers
    ]
    g.upstream.answer = answer_of(headers=[*JSON.items(), *renamed])
    ids = [value for name, value in g.ask("POST", CHAT, JSON, chat()).headers if name == "x-request-id"]
    assert [bool(re.fullmatch("req_[0-9a-f]{16}", one)) for one in ids] == [True], "only the gateway's own"


FRAMES = [
    "content-length",
    "transfer-encoding",
    "host",
    "content-type",
    "content-encoding",
    "connection",
    "te",
    "*",
    "accept-encoding",
    "expect",
    "upgrade",
    "x-suffice-route",
    "idempotency-key",
    "\xe9",
    "a b",
]


@pytest.mark.parametrize("name", FRAMES)
def test_a_nomination_breaks_no_framing(g: Stage, name: str) -> None:
    g.upstream.answer = answer_of(headers=[*JSON.items(), ("connection", name)])
    for model in ("off", "observe"):
        answer = g.ask("POST", CHAT, [*JSON.items(), ("connection", name)], chat(model))
        assert answer.status in ((200,) if model == "off" else (200, 502))
        head = g.upstream.heads[-1].lower()
        assert head.count("content-length: ") == 1
        assert head.count("host: ") == 1
        assert head.count("transfer-encoding") == 0
        assert head.count("content-type: application/json") == 1
    answer = g.ask("GET", STORED, [("connection", name)])
    assert answer.body == COMPLETION
    assert answer["content-type"] == "application/json"


ALWAYS_HOP = [
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "cookie",
    "expect",
    "x-suffice-route",
    "x-suffice-anything",
]


@pytest.mark.parametrize("name", ALWAYS_HOP)
def test_a_header_of_this_hop_goes_no_further(g: Stage, name: str) -> None:
    g.upstream.answer = answer_of()
    value = {"expect": "100-continue", "x-suffice-route": "off"}.get(name, "x")
    assert g.ask("POST", CHAT, [*JSON.items(), (name, value)], chat()).status == 200
    assert f"{name}: " not in g.upstream.heads[-1].lower()


def test_a_request_to_leave_http_is_a_plain_request(g: Stage) -> None:
    headers = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "x3JJHMbDL1EzLkh9GBhXDw==",
    }
    assert g.ask("GET", CHAT, headers).status == 405
    assert g.ask("GET", "/healthz", headers).status == 200


# --------------------------------------------------------------------------- fuzz

PIECES = [
    "text/html",
    "application/json",
    "set-cookie",
    "location",
    "x-suffice-mode",
    "connection",
    "content-type",
    "refresh",
    "access-control-allow-origin",
    "content-encoding",
    "x-request-id",
    "openai-version",
    "*",
    "0",
    "",
    " ",
    ",",
    ";",
    "\t",
    "\xff",
    "a" * 300,
    "<script>",
    "identity",
    "x-ratelimit-reset",
    "no",
    "nosniff",
    "sandbox",
]
NAMES = [piece for piece in PIECES if re.fullmatch(r"[a-z-]+", piece)]


@pytest.mark.parametrize("seed", range(24))
def test_no_head_of_an_upstream_makes_an_answer_that_runs(g: Stage, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        headers = [
            (chance.choice(NAMES), "".join(chance.choices(PIECES, k=chance.randint(0, 4))).strip())
            for _ in range(chance.randint(0, 12))
        ]
        g.upstream.answer = answer_of(HTML, headers, chance.choice(["200 OK", "400 Bad", "500 Odd", "302 Found"]))
        answer = g.ask("GET", STORED)
        assert answer.status in (200, 400, 500, 502), headers
        assert not re.search("html|script|xml", answer["content-type"]), headers
        assert answer["x-suffice-mode"] in ("off", ""), headers
        assert_inert(answer)
    assert g.ask("GET", "/healthz").status == 200


def test_none_of_this_broke_the_gateway(g: Stage) -> None:
    assert b"suffice_requests_total" in g.ask("GET", "/metrics").body
