"""Who may do what: every path has a guard, and each guard holds against those whom it is there for."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from suffice.console import auth
from suffice.console.app import MOUNTS
from suffice.console.context import ConsoleEndpoint
from suffice.console.exchange import ALWAYS
from suffice.errors import ConfigError
from suffice.gateway.app import ENDPOINTS, App
from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice.wiring.gateway import build_gateway
from suffice.wiring.people import People
from suffice_testing import FakeUpstream
from suffice_testing.reply import Reply
from tests.console.conftest import Site
from tests.console.visitor import Visitor, settings_in

# What may be asked without a login: it says nothing of the log. Whoever adds a line here opens a door.
OPEN = {"/console/static/{version}/{name}", "/console/login", "/console/oidc/login", "/console/oidc/callback"}
PUBLIC = {"/healthz", "/readyz"}


def concrete(door: ConsoleEndpoint) -> str:
    """A path as somebody asks for it."""
    return door.path.replace("{id}", "ep_1").replace("{version}", "0").replace("{name}", "console.css")


def test_every_route_of_the_whole_application_has_its_guard(here: Site) -> None:
    seen = set()
    for door in here.app.endpoints:
        seen.add((door.method, door.path))
        got = here.visitor().ask(door.method, concrete(door))
        if door.path in OPEN:
            assert door.needs == "nobody", door.path
            continue
        assert door.needs in auth.ROLES, door.path
        if door.path.startswith("/api"):
            assert (got.status, got.code) == (401, "not_logged_in"), door.path
        else:
            assert got.status == 303, door.path
            assert got.headers["location"].startswith("/console/login"), door.path
    assert len(seen) == len(here.app.endpoints) > 15
    assert {door.path for door in here.app.endpoints if door.needs == "nobody"} == OPEN
    assert all(door.path.startswith(MOUNTS) for door in here.app.endpoints)


def test_a_reviewer_passes_where_reviewers_may_and_nowhere_else(here: Site) -> None:
    reviewer, admin = here.visitor("rita"), here.visitor("admin")
    guarded = [(door, door.needs) for door in here.app.endpoints if door.needs != "nobody"]
    for door, needs in guarded:
        if door.path == "/console/logout":
            continue
        got, best = reviewer.ask(door.method, concrete(door)), admin.ask(door.method, concrete(door))
        assert best.status != 401, door.path
        if not auth.may("reviewer", needs):
            assert got.status == 403, door.path
        elif door.method == "POST":
            assert got.status == 403, f"{door.path}: a change without a token"
        else:
            assert got.status not in (401, 403), door.path
    assert {needs for _, needs in guarded} == set(auth.ROLES)


def test_every_change_without_its_token_is_refused_and_changes_nothing(here: Site) -> None:
    admin, other = here.visitor("admin"), here.visitor("rita")
    for door in here.app.endpoints:
        if door.method != "POST":
            continue
        form = {"route": "math", "reason": "x", "secret": here.secrets["admin"]}
        for token in ("", "0" * 64, other.token()):
            got = admin.post(concrete(door), {**form, "csrf": token})
            assert got.status == 403, f"{door.path} with the token {token[:4]!r}"
    assert admin.get("/console").status == 200, "nobody was logged out"
    assert "math is paused" not in admin.get("/console").text


def test_a_page_of_another_site_changes_nothing_even_with_a_token(here: Site) -> None:
    admin = here.visitor("admin")
    form = {"route": "math", "reason": "x", "csrf": admin.token()}
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "http://127.0.0.1:9999"},
    ):
        assert admin.post("/console/routes/pause", form, **headers).status == 403, headers
    assert admin.post("/console/routes/pause", form, origin="http://127.0.0.1:8400").status == 303
    # A browser whose page tells no address, as ours do not, sends this.
    again = {**form, "csrf": admin.token()}
    assert admin.post("/console/routes/resume", again, origin="null", sec_fetch_site="same-origin").status == 303


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8400", "127.0.0.1.evil.example", "", "a b", "localhost.evil"]
)
def test_a_name_that_was_made_to_point_here_is_refused(here: Site, host: str) -> None:
    visitor = here.visitor("admin")
    visitor.host = host
    got = visitor.get("/api/overview")
    assert (got.status, got.code) == (421, "unknown_host")


@pytest.mark.parametrize("host", ["localhost:8400", "127.0.0.1", "[::1]:8400", "192.0.2.7:8400", "LOCALHOST"])
def test_plain_addresses_and_localhost_are_names_of_ours(here: Site, host: str) -> None:
    visitor = here.visitor("admin")
    visitor.host = host
    assert visitor.get("/api/overview").status == 200


def test_a_configured_name_is_accepted(tmp_path: Path) -> None:
    from tests.console.visitor import people_of, site

    settings = settings_in(tmp_path, server={"allowed_hosts": ["suffice.example"]})
    secret = people_of(settings).first()
    with site(settings) as app:
        visitor = Visitor(app, host="suffice.example:443")
        assert visitor.get("/api/overview", authorization=f"Bearer {secret}").status == 200


def test_every_answer_carries_what_keeps_it_to_itself(here: Site) -> None:
    admin = here.visitor("admin")
    answers = [
        admin.get("/console"),
        admin.get("/api/overview"),
        admin.get("/console/nothing"),
        admin.get("/api/nothing"),
        here.visitor().get("/console"),
        here.visitor().get("/api/overview"),
        here.visitor().get("/console/login"),
        admin.post("/console/routes/pause", {}),
    ]
    assert [got.status for got in answers] == [200, 200, 404, 404, 303, 401, 200, 403]
    for got in answers:
        for name, value in ALWAYS:
            assert got.headers[name] == value
        assert got.headers["cache-control"] == "no-store"
        policy = got.headers["content-security-policy"]
        assert "'unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
    cookies = here.visitor().login(here.secrets["admin"]).cookies
    assert cookies
    assert all("HttpOnly; SameSite=Strict" in one for one in cookies)


def test_cookies_are_kept_from_scripts_and_other_sites_and_from_plain_http_behind_tls(here: Site) -> None:
    visitor = here.visitor()
    plain = visitor.get("/console/login").cookies
    secure = visitor.get("/console/login", x_forwarded_proto="https").cookies
    assert all("HttpOnly; SameSite=Strict" in one for one in (*plain, *secure))
    assert [one.endswith("; Secure") for one in (*plain, *secure)] == [False, True]


# ---- the secret ------------------------------------------------------------------------------------


def test_the_first_secret_is_made_once_and_kept_as_a_hash_that_only_its_owner_may_read(tmp_path: Path) -> None:
    people_file = People.of(settings_in(tmp_path))
    secret = people_file.first()
    assert secret is not None
    assert people_file.first() is None
    content = people_file.file.read_text()
    assert secret not in content
    assert secret.rpartition("_")[2] not in content
    assert stat.S_IMODE(people_file.file.stat().st_mode) == 0o600
    roster = people_file.now()
    assert roster is not None
    person = auth.authenticate(roster, secret)
    assert person is not None
    assert (person.name, person.role) == ("admin", "admin")
    for wrong in (
        "",
        "x",
        secret[:-1],
        secret + "0",
        secret.upper(),
        secret.replace("sfc", "sfd"),
        "\ud800",
        "0" * 10_000,
    ):
        assert auth.authenticate(roster, wrong) is None


def test_a_reset_ends_the_old_secret_and_its_sessions_and_nobody_elses(here: Site) -> None:
    admin, reviewer = here.visitor("admin"), here.visitor("rita")
    bearer = {"authorization": f"Bearer {here.secrets['rita']}"}
    assert here.visitor().get("/api/overview", **bearer).status == 200
    fresh = here.people.reset("rita")
    assert reviewer.get("/console").status == 303
    assert here.visitor().get("/api/overview", **bearer).status == 401
    assert admin.get("/console").status == 200
    assert here.visitor().get("/api/overview", authorization=f"Bearer {fresh}").status == 200


def test_whoever_is_removed_is_out_at_once_and_the_last_admin_stays(here: Site) -> None:
    reviewer = here.visitor("rita")
    here.people.remove("rita")
    assert reviewer.get("/console").status == 303
    with pytest.raises(ConfigError, match="last admin"):
        here.people.remove("admin")
    with pytest.raises(ConfigError, match="known: admin"):
        here.people.remove("rita")
    with pytest.raises(ConfigError, match="is taken"):
        here.people.add("admin", "reviewer")
    with pytest.raises(ConfigError, match="1 to 64"):
        here.people.add("../x", "reviewer")


def test_a_damaged_file_lets_nobody_in_and_says_what_to_do(here: Site) -> None:
    admin = here.visitor("admin")
    here.people.file.write_text("{}")
    assert admin.get("/console").status == 303
    assert "suffice admin reset-secret" in here.visitor().get("/console/login").text
    with pytest.raises(ConfigError, match="damaged"):
        here.people.listed()


def test_two_writers_at_once_lose_nobody(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    made = People.of(settings_in(tmp_path))
    made.first()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: People(made.file).add(f"p{number}", "reviewer"), range(8)))
    assert [one.name for one in made.listed()] == ["admin", *(f"p{number}" for number in range(8))]


# ---- sessions --------------------------------------------------------------------------------------


def test_a_session_is_only_what_we_signed_and_only_for_so_long() -> None:
    key, other = "ab" * 32, "cd" * 32
    session = auth.Session(person_id="0" * 12, expires_s=100, nonce="1" * 32)
    cookie = session.cookie(key)
    assert auth.read_session(cookie, key, now_s=99.9) == session
    assert auth.read_session(cookie, key, now_s=100) is None
    assert auth.read_session(cookie, other, now_s=0) is None
    for at in range(0, len(cookie), 7):
        flipped = cookie[:at] + ("0" if cookie[at] != "0" else "1") + cookie[at + 1 :]
        assert auth.read_session(flipped, key, now_s=0) is None
    assert auth.read_session(cookie.replace(".100.", ".999."), key, now_s=0) is None
    assert auth.token("1" * 32, key) != auth.signed("1" * 32, key, purpose="session")


def test_logging_out_ends_the_session_also_for_a_copy_of_its_cookie(here: Site) -> None:
    admin = here.visitor("admin")
    copy = Visitor(here.app, cookies=dict(admin.cookies))
    assert admin.post("/console/logout", {"csrf": admin.token()}).status == 303
    assert copy.get("/console").status == 303


def test_a_login_needs_the_token_of_its_own_page(here: Site) -> None:
    visitor = here.visitor()
    page = visitor.get("/console/login")
    token = page.text.split('name="csrf" value="')[1][:64]
    stranger = Visitor(here.app)  # has not opened the page, so has no cookie of it
    assert stranger.post("/console/login", {"secret": here.secrets["admin"], "csrf": token}).status == 403
    assert visitor.post("/console/login", {"secret": here.secrets["admin"], "csrf": token}).status == 303


@pytest.mark.parametrize(
    "back",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/v1/models",
        "/console//evil",
    ],
)
def test_a_login_leads_nowhere_else(here: Site, back: str) -> None:
    visitor = here.visitor()
    token = visitor.get("/console/login").text.split('name="csrf" value="')[1][:64]
    got = visitor.post("/console/login", {"secret": here.secrets["admin"], "csrf": token, "back": back})
    assert (got.status, got.headers["location"]) == (303, "/console")


def test_guessing_is_slowed_down_for_who_guesses_and_for_nobody_else(here: Site) -> None:
    guesser, other = Visitor(here.app, address="192.0.2.1"), Visitor(here.app, address="192.0.2.2")
    wrong = f"Bearer sfc_{'0' * 12}_{'0' * 64}"
    statuses = [guesser.get("/api/overview", authorization=wrong).status for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    assert guesser.get("/api/overview", authorization=wrong).headers["retry-after"]
    right = f"Bearer {here.secrets['admin']}"
    assert guesser.get("/api/overview", authorization=right).status == 200, "the right one never waits"
    assert guesser.get("/api/overview", authorization=wrong).status == 429
    assert other.get("/api/overview", authorization=right).status == 200
    attempts = auth.Attempts(burst=2, refill_s=10)
    for _ in range(4):
        attempts.failed("a", now_s=0)
    assert attempts.wait_s("a", now_s=0) == 30
    assert attempts.wait_s("a", now_s=30) == 0
    assert attempts.wait_s("b", now_s=0) == 0


def test_a_program_brings_its_secret_and_needs_no_token(here: Site) -> None:
    bearer = {"authorization": f"Bearer {here.secrets['admin']}", "content_type": "application/json"}
    visitor = here.visitor()
    body = json.dumps({"route": "math", "reason": "a drill"}).encode()
    done = visitor.ask("POST", "/api/routes/pause", body, **bearer)
    assert (done.status, done.json["done"]) == (200, True)
    again = visitor.ask("POST", "/api/routes/pause", body, **bearer)
    assert (again.status, again.code) == (409, "conflict")
    reviewer = {**bearer, "authorization": f"Bearer {here.secrets['rita']}"}
    assert visitor.ask("POST", "/api/routes/resume", body, **reviewer).status == 403
    assert visitor.get("/console", authorization=bearer["authorization"]).status == 303, "pages are for browsers"


# ---- keys ------------------------------------------------------------------------------------------


def test_every_endpoint_of_the_gateway_is_guarded_too() -> None:
    assert {one.path for one in ENDPOINTS if one.public} == PUBLIC


async def test_the_console_answers_beside_the_gateway_on_one_port(tmp_path: Path) -> None:
    import aiohttp

    with FakeUpstream.in_thread(Reply(answer=("fine",))) as fake:
        settings = settings_in(tmp_path, upstreams={"local": {"url": fake.url}})
        secret = People.of(settings).first()
        async with serve_in_loop(settings) as url, aiohttp.ClientSession() as session:
            async with session.get(f"{url}/console", allow_redirects=False) as got:
                assert (got.status, got.headers["location"]) == (303, "/console/login")
            async with session.get(f"{url}/api/overview", headers={"authorization": f"Bearer {secret}"}) as got:
                assert got.status == 200
                assert (await got.json())["window"]["name"] == "30"
            async with session.get(f"{url}/consolex") as got:
                assert got.status == 404
            async with session.get(f"{url}/healthz") as got:
                assert got.status == 200


async def test_a_console_that_is_not_wanted_does_not_exist(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, console={"enabled": False})
    async with build_gateway(settings) as app:
        assert isinstance(app, App)
        assert app.beside == {}
    assert parse_settings({}).console.enabled
    assert Settings().server.host == "127.0.0.1"
    await asyncio.sleep(0)
