"""Attacks on the console and its API: cookies, sessions, tokens, roles, secrets and paths, without a browser."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from suffice.console import auth
from suffice.console.app import ENDPOINTS
from suffice.console.auth import SESSION
from suffice.console.context import ConsoleEndpoint
from tests.console.conftest import Site, here
from tests.console.visitor import Got, Visitor

__all__ = ["here"]

PAUSE = "/console/routes/pause"


def _is_out(got: Got) -> bool:
    """Nothing was shown: an error, or the way to the login."""
    return got.status in {400, 401, 403, 404, 405, 415, 421, 429} or (
        got.status == 303 and got.headers["location"].startswith("/console/login")
    )


def _n_rows(here: Site) -> int:
    with closing(sqlite3.connect(here.settings.store.url.removeprefix("sqlite:///"))) as log:
        return int(log.execute("SELECT count(*) FROM events").fetchone()[0])


# ---- cookies ---------------------------------------------------------------------------------------------------------


def _edited(place: int, change: Callable[[str], str]) -> Callable[[str], str]:
    def edit(cookie: str) -> str:
        parts = cookie.split(".")
        parts[place] = change(parts[place])
        return ".".join(parts)

    return edit


COOKIES: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "one character less": lambda c: c[:-1],
    "one character more": lambda c: c + "0",
    "another person": _edited(0, lambda _: "0" * 12),
    "later": _edited(1, lambda s: str(int(s) + 1)),
    "for ever": _edited(1, lambda _: "9" * 12),
    "beyond all numbers": _edited(1, lambda _: "9" * 400),
    "below nothing": _edited(1, lambda s: "-" + s),
    "in other digits": _edited(1, lambda s: s.replace("1", "\u0661")),
    "with a zero before": _edited(1, lambda s: "0" + s),
    "another login": _edited(2, lambda _: "a" * 32),
    "not signed": _edited(3, lambda _: ""),
    "signed with zeros": _edited(3, lambda _: "0" * 64),
    "signed in capitals": _edited(3, str.upper),
    "signed twice": lambda c: f"{c}.{c.rpartition('.')[2]}",
    "two in one": lambda c: f"{c[:-1]}x; {SESSION}={c[:-1]}y",
    "in quotes": lambda c: f'"{c[:-1]}"',
    "with a line end": lambda c: c[:-1] + "\n",
    "with a null": lambda c: c[:-1] + "\0",
    "a megabyte": lambda _: "a" * 2**20,
    "a path": lambda _: "../../people.json",
    "a table": lambda _: '{"role":"admin"}',
    "of no ASCII": lambda c: "é" + c[1:],
    "signed as a token of a page": lambda c: ".".join(
        [*c.split(".")[:3], auth.signed(".".join(c.split(".")[:3]), "00" * 32, purpose="csrf")]
    ),
}


@pytest.mark.parametrize("attack", COOKIES)
def test_a_cookie_that_we_did_not_sign_lets_nobody_in(here: Site, attack: str) -> None:
    known = here.visitor("admin")
    forged = Visitor(here.app)
    cookie = COOKIES[attack](known.cookies[SESSION]).encode("utf-8", "replace").decode("latin-1")
    for place in ("/api/overview", "/console/settings"):
        got = forged.get(place, cookie=f"{SESSION}={cookie}".encode("latin-1", "replace").decode("latin-1"))
        assert _is_out(got), got.status
    assert known.get("/api/overview").status == 200


def test_a_session_of_another_deployments_key_lets_nobody_in(here: Site) -> None:
    person = here.visitor("admin").cookies[SESSION].split(".")[0]
    made = auth.Session(person_id=person, expires_s=10**10, nonce="a" * 32).cookie("ab" * 32)
    assert _is_out(Visitor(here.app, cookies={SESSION: made}).get("/api/overview"))


def test_a_session_that_has_expired_lets_nobody_in(here: Site) -> None:
    roster = here.people.now()
    assert roster is not None
    for expires_s, is_in in ((time.time() + 60, True), (time.time() - 1, False)):
        session = auth.Session(person_id=roster.people[0].id, expires_s=int(expires_s), nonce="b" * 32)
        made = session.cookie(roster.key)
        got = Visitor(here.app, cookies={SESSION: made}).get("/api/overview")
        assert (got.status == 200) is is_in


def test_a_session_that_was_planted_before_the_login_stays_what_it_was(here: Site) -> None:
    attacker = here.visitor("rita")
    planted = attacker.cookies[SESSION]
    attacker.post("/console/logout", {"csrf": attacker.token()})
    victim = Visitor(here.app, cookies={SESSION: planted})
    assert victim.login(here.secrets["admin"]).status == 303
    assert victim.cookies[SESSION] != planted
    assert _is_out(Visitor(here.app, cookies={SESSION: planted}).get("/api/overview"))


@pytest.mark.parametrize("way", ["logged out", "reset", "removed"])
def test_a_copied_session_ends_with_its_login(here: Site, way: str) -> None:
    reviewer = here.visitor("rita")
    copied = Visitor(here.app, cookies=dict(reviewer.cookies))
    assert copied.get("/api/overview").status == 200
    if way == "logged out":
        reviewer.post("/console/logout", {"csrf": reviewer.token()})
    elif way == "reset":
        here.people.reset("rita")
    else:
        here.people.remove("rita")
    assert _is_out(copied.get("/api/overview"))


# ---- changes ---------------------------------------------------------------------------------------------------------


def _token_elsewhere(here: Site, kind: str) -> str:
    if kind == "of the same person's other login":
        return here.visitor("admin").token()
    if kind == "of a login that has ended":
        gone = here.visitor("admin")
        token = gone.token()
        gone.post("/console/logout", {"csrf": token})
        return token
    if kind == "of a login page":
        page = Visitor(here.app)
        return page.get("/console/login").text.partition('name="csrf" value="')[2][:64]
    return {"empty": "", "zeros": "0" * 64, "of no ASCII": "é" * 64, "a megabyte": "0" * 2**19, "a null": "\0"}[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "of the same person's other login",
        "of a login that has ended",
        "of a login page",
        "empty",
        "zeros",
        "of no ASCII",
        "a megabyte",
        "a null",
    ],
)
def test_a_token_of_another_login_changes_nothing(here: Site, kind: str) -> None:
    admin = here.visitor("admin")
    token, before = _token_elsewhere(here, kind), _n_rows(here)
    got = admin.post(PAUSE, {"route": "math", "reason": "x", "csrf": token})
    assert got.status in {403, 413}
    assert _n_rows(here) == before


@pytest.mark.parametrize(
    "way",
    ["query", "cookie", "GET", "HEAD", "PUT", "DELETE", "override", "text/plain", "no type", "multipart", "twice"],
)
def test_a_change_comes_in_one_way_only(here: Site, way: str) -> None:
    admin = here.visitor("admin")
    token, before = admin.token(), _n_rows(here)
    form = f"route=math&reason=x&csrf={token}".encode()
    if way == "query":
        got = admin.post(f"{PAUSE}?csrf={token}", {"route": "math", "reason": "x"})
    elif way == "cookie":
        admin.cookies["csrf"] = token
        got = admin.post(PAUSE, {"route": "math", "reason": "x"})
    elif way in {"GET", "HEAD", "PUT", "DELETE"}:
        got = admin.ask(way, f"{PAUSE}?{form.decode()}", form, content_type="application/x-www-form-urlencoded")
    elif way == "override":
        got = admin.ask("GET", f"{PAUSE}?_method=POST&{form.decode()}", x_http_method_override="POST")
    elif way == "multipart":
        got = admin.ask("POST", PAUSE, form, content_type="multipart/form-data; boundary=x")
    elif way == "twice":
        got = admin.ask("POST", PAUSE, b"csrf=0&" + form + b"&csrf=0", content_type="application/x-www-form-urlencoded")
    else:
        got = admin.ask("POST", PAUSE, form, **({"content_type": way} if way != "no type" else {}))
    assert got.status >= 400, got.status
    assert _n_rows(here) == before


def _posts(here: Site) -> list[ConsoleEndpoint]:
    return [
        one
        for one in here.app.endpoints
        if one.method == "POST" and one.path not in ("/console/login", "/console/logout")
    ]


def test_a_reviewer_with_a_valid_token_changes_nothing_of_an_admins(here: Site) -> None:
    reviewer, tried = here.visitor("rita"), 0
    token, before = reviewer.token(), _n_rows(here)
    for endpoint in _posts(here):
        if endpoint.needs not in ("operator", "admin"):
            continue
        tried += 1
        place = endpoint.path.replace("{id}", "ep_1")
        fields = {"route": "math", "reason": "x", "csrf": token, "role": "admin", "name": "rita"}
        assert reviewer.post(place, fields).status == 403, place
        assert reviewer.post(place, fields, x_csrf_token=token).status == 403, place
        got = reviewer.post(place, fields, authorization=f"Bearer {here.secrets['rita']}")
        assert got.status in {401, 403, 303}, place
    assert tried > 5
    assert _n_rows(here) == before


def test_nobody_changes_anything_by_any_post(here: Site) -> None:
    before = _n_rows(here)
    for endpoint in _posts(here):
        for headers in ({}, {"x_forwarded_user": "admin"}, {"authorization": "Bearer admin"}, {"remote_user": "admin"}):
            got = Visitor(here.app).post(
                endpoint.path.replace("{id}", "ep_1"), {"route": "math", "reason": "x"}, **headers
            )
            assert _is_out(got), endpoint.path
    assert _n_rows(here) == before


# ---- secrets ---------------------------------------------------------------------------------------------------------

SECRETS: dict[str, Callable[[str, str], str]] = {
    "nothing": lambda _, __: "",
    "its public part": lambda admin, _: admin.rpartition("_")[0],
    "the id of one and the secret of another": lambda admin, rita: (
        f"{admin.rpartition('_')[0]}_{rita.rpartition('_')[2]}"
    ),
    "in capitals": lambda admin, _: admin.upper(),
    "one digit off": lambda admin, _: admin[:-1] + "xg"[admin[-1] == "g"],
    "one digit more": lambda admin, _: admin + "0",
    "with a null": lambda admin, _: admin + "\0",
    "a megabyte": lambda admin, _: admin + "0" * 2**20,
    "other digits": lambda admin, _: admin.replace("0", "\u0660") + "\u0660",
    "two": lambda admin, rita: f"{rita[:-1]}x {admin}",
    "a pattern": lambda _, __: "sfc_.*",
    "true": lambda _, __: "true",
}


@pytest.mark.parametrize("attack", SECRETS)
def test_what_is_no_secret_opens_nothing(here: Site, attack: str) -> None:
    secret = SECRETS[attack](here.secrets["admin"], here.secrets["rita"])
    bearer = f"Bearer {secret}".encode("ascii", "replace").decode()
    assert _is_out(Visitor(here.app).ask("GET", "/api/overview", authorization=bearer))
    got = Visitor(here.app).login(secret)
    assert got.status != 303 or got.headers["location"].startswith("/console/login")
    assert not any(one.startswith(f"{SESSION}=sfc") or len(one) > 4_000 for one in got.cookies)


@pytest.mark.parametrize("place", ["/api/overview?secret={}", "/api/overview?access_token={}", "/console?secret={}"])
def test_a_secret_in_an_address_opens_nothing(here: Site, place: str) -> None:
    assert _is_out(Visitor(here.app).get(place.format(here.secrets["admin"])))


def test_a_secret_of_the_api_opens_no_page(here: Site) -> None:
    """A page that a program could open is one that a stranger's page could have opened."""
    got = Visitor(here.app).get("/console/settings", authorization=f"Bearer {here.secrets['admin']}")
    assert _is_out(got)


@pytest.mark.parametrize("scheme", ["Basic", "Digest", "bearer:", "Token", ""])
def test_a_secret_in_another_scheme_opens_nothing(here: Site, scheme: str) -> None:
    assert _is_out(Visitor(here.app).get("/api/overview", authorization=f"{scheme} {here.secrets['admin']}"))


# ---- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/console/../api/overview",
        "/console/static/../../api/overview",
        "//api/overview",
        "/api//overview",
        "/API/overview",
        "/api/overview/",
        "/api/overview;x",
        "/api/overview%00",
        "/api/%6fverview",
        "/api/overview.json",
        "/console/login/../",
        "/console/static/0/..%2f..%2fpeople.json",
        "/console/static/0/../../../../etc/passwd",
        "/api/./overview",
        "/console\\",
        "/console/static/0/console.css/../../../settings",
        "/api/login",
        "/console/login?next=/api/overview",
        "/console/people.json",
    ],
)
def test_no_way_of_writing_a_path_goes_past_the_door(here: Site, path: str) -> None:
    got = Visitor(here.app).get(path)
    assert got.status != 200 or path.startswith("/console/login"), got.text[:200]
    assert b"sfc_" not in got.body
    assert b"root:" not in got.body


READS = [one.path for one in ENDPOINTS if one.method == "GET" and one.path.startswith("/api/")]


@pytest.mark.parametrize("path", [path for path in READS if "{" not in path])
def test_no_query_may_hold_what_a_database_cannot_compare(here: Site, path: str) -> None:
    visitor = Visitor(here.app)
    for query in ("route=%00", "q=a%00b", "cursor=%00", "%00=1"):
        got = visitor.get(f"{path}?{query}", authorization=f"Bearer {here.secrets['admin']}")
        assert got.status == 400, (path, query, got.text[:200])
        assert "NUL" in got.text


@pytest.mark.parametrize(
    "header", ["x_original_url", "x_rewrite_url", "x_forwarded_prefix", "x_forwarded_for", "forwarded"]
)
def test_no_header_of_a_proxy_lets_anybody_in(here: Site, header: str) -> None:
    for value in ("/api/overview", "127.0.0.1", "for=127.0.0.1;host=localhost"):
        assert _is_out(Visitor(here.app).get("/api/overview", **{header: value}))
        assert _is_out(Visitor(here.app).get("/console/settings", **{header: value}))
