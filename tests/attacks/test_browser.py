"""Attacks from a browser: pages of other sites, names that point here, bodies without a type, and what CORS gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest

from suffice.errors import ConfigError
from suffice.gateway.app import endpoints
from suffice.settings import parse_settings
from tests.attacks.hostile import Answer, Stage, answer_of, stage
from tests.console.visitor import people_of

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
EVIL = "https://evil.example"
KEY = "sk-attacks-key"
FRIEND = "https://playground.example"
TOKEN = re.compile(rb'name="csrf" value="([0-9a-f]{64})"')


@pytest.fixture(scope="module")
def g(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """An open gateway, as it runs on somebody's machine."""
    with stage(tmp_path_factory.mktemp("open"), server={"relay": ["POST /tokenize", "OPTIONS /ping"]}) as made:
        yield made


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway with keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTACKS_KEYS", KEY)
        with stage(tmp_path_factory.mktemp("keyed"), server={"api_keys_env": "ATTACKS_KEYS"}) as made:
            yield made


@pytest.fixture(scope="module")
def friendly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway that a playground of another origin may use."""
    server = {"allowed_origins": [FRIEND, "chrome-extension://abc"], "allowed_hosts": ["suffice.example"]}
    with stage(tmp_path_factory.mktemp("friendly"), server=server) as made:
        yield made


def chat() -> bytes:
    return json.dumps({"model": "off", "messages": [{"role": "user", "content": "hello"}]}).encode()


def ask_chat(g: Stage, headers: Mapping[str, str], **options: Any) -> Answer:
    g.upstream.answer = answer_of()
    return g.ask("POST", CHAT, {**JSON, **headers}, chat(), **options)


def code_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"].get("code"))


# --------------------------------------------------------------------------- pages of other sites

FOREIGN: dict[str, dict[str, str]] = {
    "another site": {"origin": EVIL},
    "another site, by both headers": {"origin": EVIL, "sec-fetch-site": "cross-site"},
    "no origin, as an image or a link": {"sec-fetch-site": "cross-site"},
    "a link that is followed": {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    },
    "a frame": {"sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"},
    "another port of this machine": {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"},
    "another port, an old browser": {"origin": "http://127.0.0.1:3000"},
    "same site without an origin": {"sec-fetch-site": "same-site"},
    "a sandboxed frame or a file": {"origin": "null"},
    "a sandboxed frame, by both headers": {"origin": "null", "sec-fetch-site": "cross-site"},
    "our origin as a prefix": {"origin": "http://127.0.0.1:{port}.evil.example"},
    "our origin as a user": {"origin": "http://127.0.0.1:{port}@evil.example"},
    "our origin as a suffix": {"origin": "http://evil-127.0.0.1:{port}"},
    "our origin with a path": {"origin": "http://127.0.0.1:{port}/"},
    "two origins": {"origin": "http://127.0.0.1:{port} https://evil.example"},
    "a list of origins": {"origin": "http://127.0.0.1:{port}, https://evil.example"},
    "a word": {"origin": "127.0.0.1:{port}"},
    "no origin at all": {"origin": "://"},
    "a broken address": {"origin": "http://["},
    "a file": {"origin": "file://"},
    "an extension": {"origin": "chrome-extension://abc"},
    "localhost, asked by address": {"origin": "http://localhost:{port}"},
    "a site in capitals": {"sec-fetch-site": "CROSS-SITE"},
    "a site that no browser knows": {"sec-fetch-site": "other"},
    "a site told twice": {"sec-fetch-site": "same-origin, cross-site"},
    "nobody's page with an origin": {"origin": EVIL, "sec-fetch-site": "none"},
    "a very long origin": {"origin": "https://" + "a" * 20_000},
    "bytes": {"origin": "http://\xff\xfe"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_page_of_another_site_generates_nothing(g: Stage, name: str) -> None:
    headers = {key: value.replace("{port}", str(g.port)) for key, value in FOREIGN[name].items()}
    n_before = len(g.upstream.heads)
    answer = ask_chat(g, headers)
    assert (answer.status, code_of(answer)) == (403, "cross_site")
    assert len(g.upstream.heads) == n_before
    assert not [one for one in answer.names if one.startswith("access-control-")]


OWN_PAGES: dict[str, dict[str, str]] = {
    "a program": {},
    "our own page": {"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"},
    "our own page, an old browser": {"origin": "http://127.0.0.1:{port}"},
    "our own page, which tells no address": {"origin": "null", "sec-fetch-site": "same-origin"},
    "the address bar": {"sec-fetch-site": "none"},
    "a proxy that writes another host": {"origin": "https://app.example", "sec-fetch-site": "same-origin"},
}


@pytest.mark.parametrize("name", OWN_PAGES)
def test_programs_and_own_pages_are_served(g: Stage, name: str) -> None:
    headers = {key: value.replace("{port}", str(g.port)) for key, value in OWN_PAGES[name].items()}
    assert ask_chat(g, headers).status == 200


TABLE = [e for e in endpoints(["POST /tokenize", "OPTIONS /ping"]) if not e.public]


@pytest.mark.parametrize("at", range(len(TABLE)), ids=[f"{e.method} {e.path}" for e in TABLE])
def test_no_endpoint_serves_pages_of_other_sites_or_names_of_strangers(g: Stage, at: int) -> None:
    endpoint, n_before = TABLE[at], len(g.upstream.heads)
    path, body = endpoint.path.replace("{id}", "resp_1"), b"" if endpoint.method == "GET" else b'{"model": "off"}'
    for headers in ({"origin": EVIL}, {"sec-fetch-site": "cross-site"}):
        answer = g.ask(endpoint.method, path, {**JSON, **headers}, body)
        assert (answer.status, b"cross_site" in answer.body or endpoint.x_api_key) == (403, True)
    assert g.ask(endpoint.method, path, JSON, body, host="evil.example").status == 421
    assert len(g.upstream.heads) == n_before


# --------------------------------------------------------------------------- labels

LABEL = {"episode_id": "ep_1", "correct": True, "source": "reviewer", "feedback_id": "from-a-page"}
BEACONS = {
    "a blob without a type": {},
    "text": {"content-type": "text/plain;charset=UTF-8"},
    "a form": {"content-type": "application/x-www-form-urlencoded"},
    "a form with files": {"content-type": "multipart/form-data; boundary=x"},
    "json, after a preflight that was refused": {"content-type": "application/json"},
}


@pytest.mark.parametrize("name", BEACONS)
@pytest.mark.parametrize(
    "door", ["/v1/feedback", "/v1/feedback/batch", "/v1/feedback/label-studio", "/v1/feedback/langfuse", "/feedback"]
)
def test_a_page_of_another_site_labels_nothing(g: Stage, name: str, door: str) -> None:
    body = json.dumps(LABEL if door.endswith("feedback") else {"feedback": [LABEL]}).encode()
    answer = g.ask("POST", door, {"origin": EVIL, "sec-fetch-site": "cross-site", **BEACONS[name]}, body)
    assert answer.status in (403, 415)
    assert b"accepted" not in answer.body
    unseen = g.ask("POST", door, BEACONS[name], body) if "json" not in name else answer
    assert unseen.status == 415 or "json" in name


def test_a_page_of_another_site_may_rate_the_answer_whose_token_it_holds_and_no_other(g: Stage) -> None:
    given = ask_chat(g, {})
    vote = {"thumbs": "up", "token": given["x-suffice-feedback-token"]}
    page = {"origin": EVIL, "sec-fetch-site": "cross-site", "content-type": "text/plain;charset=UTF-8"}
    assert g.ask("POST", "/v1/feedback", page, json.dumps(vote).encode()).status == 200
    forged = {"thumbs": "up", "token": "x" + vote["token"][1:]}
    assert g.ask("POST", "/v1/feedback", page, json.dumps(forged).encode()).status == 401
    for other in ({"episode_id": "ep_other"}, {"source": "reviewer"}, {"source": "gold"}):
        assert g.ask("POST", "/v1/feedback", page, json.dumps({**vote, **other}).encode()).status == 403


# --------------------------------------------------------------------------- bodies that need no leave

TYPES: dict[str, list[str]] = {
    "none": [],
    "empty": [""],
    "text": ["text/plain"],
    "text that names json": ["text/plain; application/json"],
    "form": ["application/x-www-form-urlencoded"],
    "files": ["multipart/form-data; boundary=application/json"],
    "nearly json": ["application/jsonx"],
    "json in text": ["text/json"],
    "a list": ["application/json, text/plain"],
    "twice": ["text/plain", "application/json"],
    "twice, json first": ["application/json", "text/plain"],
    "no subtype": ["application"],
    "a parameter alone": ["; charset=application/json"],
    "xml": ["application/xml"],
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/decide", "/v1/feedback/batch"])
def test_a_body_must_say_that_it_is_json(g: Stage, name: str, path: str) -> None:
    n_before = len(g.upstream.heads)
    answer = g.ask("POST", path, [("content-type", value) for value in TYPES[name]], chat())
    assert (answer.status, code_of(answer)) == (415, "unsupported_media_type")
    assert len(g.upstream.heads) == n_before


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_json_is_json_however_it_is_spelt(g: Stage, kind: str) -> None:
    g.upstream.answer = answer_of()
    assert g.ask("POST", CHAT, {"content-type": kind}, chat()).status == 200


def test_a_relayed_path_needs_some_type(g: Stage) -> None:
    assert g.ask("POST", "/tokenize", {}, b'{"content": "x"}').status == 415
    assert g.ask("POST", "/tokenize", {"content-type": "multipart/form-data; boundary=x"}, b"--x--").status == 200


# --------------------------------------------------------------------------- names that point here

STRANGE_HOSTS = [
    "evil.example",
    "evil.example:8400",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil-localhost",
    "localhostx",
    "evil.example.",
    "EVIL.EXAMPLE",
    "2130706433",
    "0x7f000001",
    "127.1",
    "0177.0.0.1",
    "127.0.0.1.nip.io",
    "1.2.3.4.5",
    "[::1].evil",
    "metadata",
    "suffice",
    "wpad",
    "xn--e1afmkfd.example",
    "...",
    "-",
    "127.0.0.1:1:2",
    "[]",
    "[::ffff:zz]",
    "a" * 253,
]
OWN_HOSTS = [
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "a.localhost:8400",
    "127.0.0.1",
    "127.9.9.9:80",
    "[::1]:8400",
    "192.0.2.7:8400",
    "[fe80::1]",
    "10.0.0.8",
]


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_an_open_gateway_answers_to_no_name_of_a_stranger(g: Stage, host: str) -> None:
    n_before = len(g.upstream.heads)
    page = {"origin": f"http://{host}", "sec-fetch-site": "same-origin"}  # what a browser sends after rebinding
    for headers in ({}, page):
        answer = ask_chat(g, headers, host=host)
        assert answer.status in (400, 421)
        assert answer.status == 400 or (code_of(answer), b"allowed_hosts" in answer.body) == ("unknown_host", True)
    assert len(g.upstream.heads) == n_before
    assert g.ask("GET", "/console", host=host).status in (400, 421)
    assert g.ask("GET", "/api/overview", host=host).status in (400, 421)


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_an_address_and_localhost_are_names_of_every_gateway(g: Stage, host: str) -> None:
    assert ask_chat(g, {}, host=host).status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_told_under_every_name(g: Stage, path: str) -> None:
    answer = g.ask("GET", path, {"origin": EVIL}, host="probe.example")
    assert (answer.status, "access-control-allow-origin" in answer.names) == (200, False)


@pytest.mark.parametrize("host", ["gateway.example", "suffice.default.svc:8400", "llm"])
def test_a_gateway_with_keys_serves_under_every_name_who_has_one(keyed: Stage, host: str) -> None:
    key = {"authorization": f"Bearer {KEY}"}
    assert ask_chat(keyed, key, host=host).status == 200
    assert ask_chat(keyed, {}, host=host).status == 401
    assert ask_chat(keyed, {**key, "origin": EVIL}, host=host).status == 403
    assert keyed.ask("GET", "/console", host=host).status == 421, "the console has cookies, and so has names"


def test_a_listed_name_is_a_name_of_gateway_and_console(friendly: Stage) -> None:
    assert ask_chat(friendly, {}, host="suffice.example").status == 200
    assert friendly.ask("GET", "/console/login", host="suffice.example:443").status == 200
    assert ask_chat(friendly, {}, host="x.suffice.example").status == 421


# --------------------------------------------------------------------------- what CORS gives

PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-suffice-route",
}


def test_a_page_of_an_allowed_origin_may_ask_and_read(friendly: Stage) -> None:
    page = {"origin": FRIEND, "sec-fetch-site": "cross-site"}
    leave = friendly.ask("OPTIONS", CHAT, {**page, **PREFLIGHT})
    assert leave.status == 204
    assert leave["access-control-allow-origin"] == FRIEND
    assert leave["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert leave["access-control-allow-methods"] == "POST"
    answer = ask_chat(friendly, page)
    assert (answer.status, answer["access-control-allow-origin"], answer["vary"]) == (200, FRIEND, "origin")
    refused = friendly.ask("POST", CHAT, {**page, **JSON}, b"{")
    assert (refused.status, refused["access-control-allow-origin"]) == (400, FRIEND), "a page can read why"
    assert "access-control-allow-credentials" not in leave.names | answer.names | refused.names


NOT_FRIENDS = [
    EVIL,
    "null",
    FRIEND + ".evil.example",
    FRIEND + ":8443",
    "http://playground.example",
    FRIEND + "/",
    FRIEND.upper(),
    "https://xplayground.example",
    "https://x.playground.example",
    f"{FRIEND}, {EVIL}",
    f"{FRIEND} {EVIL}",
    "*",
    "",
    "chrome-extension://abcd",
    "https://playground.example@evil.example",
    "https://playground.example\xa0",
]


@pytest.mark.parametrize("origin", NOT_FRIENDS)
def test_no_other_origin_gets_leave(friendly: Stage, origin: str) -> None:
    for headers in ({"origin": origin, **PREFLIGHT}, {"origin": origin, "sec-fetch-site": "cross-site", **PREFLIGHT}):
        leave = friendly.ask("OPTIONS", CHAT, headers)
        assert leave.status == 405
        assert not [one for one in leave.names if one.startswith("access-control-")]
    assert ask_chat(friendly, {"origin": origin, "sec-fetch-site": "cross-site"}).status == 403


ASKS = ["x\r\nset-cookie: a=b", "x, <script>", "a" * 9_000, "*", "x;y", "\xff", ""]


@pytest.mark.parametrize("wanted", ASKS[1:], ids=range(1, len(ASKS)))
def test_a_preflight_gives_back_names_of_headers_alone(friendly: Stage, wanted: str) -> None:
    request = {"origin": FRIEND, "access-control-request-method": "POST", "access-control-request-headers": wanted}
    assert "access-control-allow-headers" not in friendly.ask("OPTIONS", CHAT, request).names


@pytest.mark.parametrize("path", ["/console", "/console/login", "/api/overview", "/api/routes/pause", "/nothing"])
def test_an_allowed_origin_opens_no_console(friendly: Stage, path: str) -> None:
    for method in ("OPTIONS", "GET", "POST"):
        answer = friendly.ask(method, path, {"origin": FRIEND, "sec-fetch-site": "cross-site", **PREFLIGHT})
        assert not [one for one in answer.names if one.startswith("access-control-")]
        assert answer.status in (303, 401, 403, 404) or (method, path) == ("GET", "/console/login")


def test_without_a_list_no_preflight_is_answered(g: Stage) -> None:
    for origin in (EVIL, FRIEND, "null", f"http://127.0.0.1:{g.port}"):
        leave = g.ask("OPTIONS", CHAT, {"origin": origin, **PREFLIGHT})
        assert leave.status == 405
        assert "access-control-allow-origin" not in leave.names


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "https://*.example.com",
        "https://a.example/",
        "https://a.example/x",
        "a.example",
        "https://A.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://a b",
        "https://a.example\r\nx: y",
        "",
    ],
)
def test_no_origin_that_means_many_or_none_can_be_listed(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.allowed_origins"):
        parse_settings({"server": {"allowed_origins": [origin]}})


@pytest.mark.parametrize("name", ["*", "*.example.com", "https://a.example", "a.example:8400", "a/b", "", "a b"])
def test_no_host_that_means_many_or_none_can_be_listed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.allowed_hosts"):
        parse_settings({"server": {"allowed_hosts": [name]}})


# --------------------------------------------------------------------------- a session of the console

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def session(g: Stage) -> dict[str, str]:
    """What a browser holds after an admin has logged in: the cookie, and the token of the pages."""
    secret = people_of(g.settings).first() or ""
    page = g.ask("GET", "/console/login")
    result = TOKEN.search(page.body)
    assert result is not None
    come_in = g.ask(
        "POST",
        "/console/login",
        {**FORM, "cookie": page["set-cookie"].partition(";")[0]},
        f"secret={secret}&csrf={result.group(1).decode()}".encode(),
    )
    assert come_in.status == 303
    cookies = [value for name, value in come_in.headers if name == "set-cookie"]
    assert all("HttpOnly; SameSite=Strict" in one for one in cookies)
    cookie = next(one for one in cookies if one.startswith("suffice_session=")).partition(";")[0]
    result = TOKEN.search(g.ask("GET", "/console", {"cookie": cookie}).body)
    assert result is not None
    return {"cookie": cookie, "csrf": result.group(1).decode()}


ACTIONS = [
    "/console/routes/pause",
    "/console/routes/resume",
    "/console/incidents/open",
    "/console/logout",
    "/console/episodes.csv",
    "/console/changes.csv",
    "/api/routes/pause",
    "/api/incidents/open",
]


@pytest.mark.parametrize("path", ACTIONS)
def test_a_session_that_a_page_of_another_site_rides_does_nothing(g: Stage, session: dict[str, str], path: str) -> None:
    form = f"route=off&reason=x&csrf={session['csrf']}".encode()
    for name, foreign in FOREIGN.items():
        headers = {key: value.replace("{port}", str(g.port)) for key, value in foreign.items()}
        if name == "localhost, asked by address" or len(str(headers)) < 2_000:
            answer = g.ask("POST", path, {**FORM, "cookie": session["cookie"], **headers}, form)
            assert answer.status == 403, name
    without = g.ask("POST", path, {**FORM, "cookie": session["cookie"]}, b"route=off&reason=x")
    assert without.status == 403, "a form without its token"
    assert g.ask("GET", path, {"cookie": session["cookie"]}).status in (404, 405), "a GET changes nothing"


INCLUDED = {
    "a script": {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
    "an image": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    "a fetch": {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "origin": "http://127.0.0.1:3000"},
    "a fetch of an old browser": {"origin": "http://127.0.0.1:3000"},
    "a stream": {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "accept": "text/event-stream"},
    "a websocket": {"origin": EVIL, "connection": "upgrade", "upgrade": "websocket"},
}


@pytest.mark.parametrize("name", INCLUDED)
@pytest.mark.parametrize("path", ["/console", "/console/live", "/console/login", "/api/overview"])
def test_a_page_of_another_site_includes_no_part_of_the_console(
    g: Stage, session: dict[str, str], name: str, path: str
) -> None:
    answer = g.ask("GET", path, {"cookie": session["cookie"], **INCLUDED[name]})
    assert answer.status == 403
    assert answer["cross-origin-resource-policy"] == "same-origin"
    assert "set-cookie" not in answer.names


def test_a_link_leads_to_the_console(g: Stage, session: dict[str, str]) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert g.ask("GET", "/console", {"cookie": session["cookie"], **link}).status == 200
    assert "frame-ancestors 'none'" in g.ask("GET", "/console", link)["content-security-policy"]


PLACES = [
    "https://evil.example",
    "//evil.example",
    "/\\evil.example",
    "/console//evil.example",
    "javascript:alert(1)",
    "/console\r\nset-cookie: a=b",
    "/console/../v1/responses/resp_1",
    "/consoleX",
    "/v1/responses/resp_1",
    "data:text/html,x",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_login_and_a_form_lead_to_the_console_alone(g: Stage, session: dict[str, str], place: str) -> None:
    page = g.ask("GET", "/console/login?" + urlencode({"back": place}))
    token = TOKEN.search(page.body)
    assert token is not None
    login = {"secret": "sfc_wrong", "csrf": token.group(1).decode(), "back": place}
    cookie = page["set-cookie"].partition(";")[0]
    refused = g.ask("POST", "/console/login", {**FORM, "cookie": cookie}, urlencode(login).encode())
    assert refused.status in (401, 429)
    request = urlencode({"csrf": session["csrf"], "back": place, "route": ""}).encode()
    done = g.ask("POST", "/console/review/next", {**FORM, "cookie": session["cookie"]}, request)
    assert done.status in (303, 404)
    wanted = done["location"] or "/console"
    assert wanted.startswith("/console")
    assert "evil" not in wanted
    assert ".." not in wanted or wanted.startswith("/console/")
    assert "set-cookie" not in done.names


def test_after_all_of_this_nothing_was_paused_written_or_let_out(g: Stage, session: dict[str, str]) -> None:
    def kinds() -> list[str]:
        report = json.loads(g.ask("GET", "/api/changes", {"cookie": session["cookie"]}).body)
        return [line["kind"] for line in report["lines"]]

    assert kinds() == ["config_changed"], "the gateway's start alone"
    metrics = g.ask("GET", "/metrics").body
    assert b'suffice_feedback_total{result="accepted"} 1.0' in metrics, "the one vote with a token"
    own = {"origin": f"http://127.0.0.1:{g.port}", "cookie": session["cookie"], **FORM}
    form = f"route=off&reason=x&csrf={session['csrf']}".encode()
    assert g.ask("POST", "/console/routes/pause", own, form).status == 303, "and its owner may still do so"
    assert g.ask("POST", "/console/changes.csv", own, form).status == 200
    assert kinds() == ["exported", "enforcement_paused", "config_changed"]
