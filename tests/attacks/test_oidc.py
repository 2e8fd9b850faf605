"""Logins at an identity provider over real sockets: the right one, and every wrong one that we know."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import pytest

from suffice.console import oidc
from suffice.console.auth import ROLES
from suffice.console.oidc import Identity, is_safe_url, person_from
from suffice.errors import ConfigError
from suffice.server import serve_in_loop
from suffice.settings import OidcRole, Settings, parse_settings
from suffice.wiring.people import People
from tests.console.fake_provider import (
    CLIENT,
    SECRET,
    Provider,
    provider,
    signed_with_the_public_key,
    unsigned,
)

ROLE_TABLE = {
    "reviewers": {"role": "reviewer"},
    "ops": {"role": "operator", "tenants": ["acme"]},
    "bosses": {"role": "admin"},
}


@dataclass
class Browser:
    """Cookies as a browser keeps them, Strict ones only for our own pages, and no automatic redirects."""

    session: aiohttp.ClientSession
    url: str
    cookies: dict[str, str] = field(default_factory=dict)
    strict: set[str] = field(default_factory=set)

    async def get(self, place: str, *, from_elsewhere: bool = False, **headers: str) -> tuple[int, dict[str, str], str]:
        sent = {k: v for k, v in self.cookies.items() if not (from_elsewhere and k in self.strict)}
        named = {"cookie": "; ".join(f"{k}={v}" for k, v in sent.items())} if sent else {}
        if from_elsewhere:
            named |= {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        target = place if place.startswith("http") else self.url + place
        async with self.session.get(target, allow_redirects=False, headers={**named, **headers}) as got:
            for one in got.headers.getall("set-cookie", []):
                name, _, rest = one.partition("=")
                self.cookies[name] = rest.partition(";")[0]
                (self.strict.add if "SameSite=Strict" in one else self.strict.discard)(name)
                if "Max-Age=0" in one:
                    del self.cookies[name]
                assert "HttpOnly" in one
            return got.status, dict(got.headers), await got.text()

    async def begin(self, back: str = "/console/review") -> str:
        """Follow the link of the login page; the provider's address."""
        status, headers, _ = await self.get(f"/console/oidc/login?{urlencode({'back': back})}")
        assert status == 303
        return headers["Location"]

    async def come_back(self, query: dict[str, str]) -> tuple[int, str]:
        status, _, text = await self.get(f"/console/oidc/callback?{urlencode(query)}", from_elsewhere=True)
        return status, text

    async def login(self, there: Provider) -> tuple[int, str]:
        return await self.come_back(there.authorize(await self.begin()))

    async def who(self) -> str | None:
        status, _, text = await self.get("/console/runs")
        match = re.search(r'<span class="name">([^<]+)</span>', text)
        return match[1] if status == 200 and match else None


@pytest.fixture
def there() -> Iterator[Provider]:
    with provider() as made:
        yield made


@pytest.fixture
async def browser(tmp_path: Path, there: Provider, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Browser]:
    monkeypatch.setenv("OIDC_SECRET", SECRET)
    settings = settings_for(tmp_path, there.url)
    People.of(settings).first()
    async with serve_in_loop(settings) as url, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Browser(session, url)


def settings_for(folder: Path, issuer: str, /, **changes: Any) -> Settings:
    table = {"issuer": issuer, "client_id": CLIENT, "client_secret_env": "OIDC_SECRET", "roles": ROLE_TABLE} | changes
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "store": {"url": f"sqlite:///{folder}/log.db"},
            "control": {"enabled": False},
            "console": {"oidc": table},
        }
    )


async def test_a_person_logs_in_and_is_named_in_the_console(browser: Browser, there: Provider) -> None:
    _, _, page = await browser.get("/console/login?back=/console/review")
    assert "/console/oidc/login?back=%2Fconsole%2Freview" in page
    address = await browser.begin()
    query = dict(pair.split("=") for pair in urlsplit(address).query.split("&"))
    assert query["tenant"] == "x", "what the provider's address had stays"
    assert query["redirect_uri"].endswith("%2Fconsole%2Foidc%2Fcallback")
    status, text = await browser.come_back(there.authorize(address))
    assert (status, 'url=/console/review"' in text) == (200, True)
    assert await browser.who() == "rita@example.com (oidc) · reviewer"
    assert "suffice_oidc" not in browser.cookies


async def test_a_role_is_the_highest_and_its_tenants_are_its_own(browser: Browser, there: Provider) -> None:
    there.claims = {"groups": ["reviewers", "ops"]}
    assert (await browser.login(there))[0] == 200
    assert await browser.who() == "rita@example.com (oidc) · operator"
    assert (await browser.get("/console/routes"))[0] == 403, "an operator of one tenant sees no totals of all"


@pytest.mark.parametrize("groups", [[], ["staff"], None, "staff", 7, {"reviewers": True}])
async def test_without_a_known_role_nobody_comes_in(browser: Browser, there: Provider, groups: Any) -> None:
    there.claims = {"groups": groups}
    status, text = await browser.login(there)
    assert status == 403
    assert "none of the roles" in text
    assert await browser.who() is None


def other_key(there: Provider) -> Callable[[dict[str, Any]], str]:
    stranger = type(there.key).generate_key(2048, {"kid": str(there.key.kid)})
    return lambda claims: there.sign(claims, stranger)


FORGERIES: dict[str, Callable[[Provider], None]] = {
    "signed by another key of the same name": lambda there: setattr(there, "forge", other_key(there)),
    "not signed at all": lambda there: setattr(there, "forge", unsigned),
    "signed with the public key as a secret": lambda there: setattr(
        there, "forge", lambda claims: signed_with_the_public_key(there, claims)
    ),
    "no token": lambda there: setattr(there, "forge", lambda _: "a.b"),
    "text for a token": lambda there: setattr(there, "forge", lambda _: 7),
    "another audience": lambda there: there.claims.update(aud="other"),
    "other audiences beside ours, for another client": lambda there: there.claims.update(aud=[CLIENT, "x"], azp="x"),
    "other audiences beside ours, for nobody": lambda there: there.claims.update(aud=[CLIENT, "x"]),
    "no audience": lambda there: there.claims.update(aud=None),
    "another issuer": lambda there: there.claims.update(iss="https://evil.example.com"),
    "another nonce": lambda there: there.claims.update(nonce="0" * 64),
    "no nonce": lambda there: there.claims.update(nonce=None),
    "expired": lambda there: there.claims.update(exp=int(time.time()) - 61),
    "never expires": lambda there: there.claims.update(exp=None),
    "expires at no time": lambda there: there.claims.update(exp=float("nan")),
    "expires in infinity": lambda there: there.claims.update(exp=float("inf")),
    "expires beyond any number": lambda there: there.claims.update(exp=10**400),
    "expires in ten thousand years": lambda there: there.claims.update(exp=int(time.time()) + 10_000 * 31_557_600),
    "expires as a text": lambda there: there.claims.update(exp="never"),
    "expires as a yes": lambda there: there.claims.update(exp=True),
    "no subject": lambda there: there.claims.update(sub=None),
    "an e-mail address that is not verified": lambda there: there.claims.update(email_verified=False),
    "no name": lambda there: there.claims.update(email=None),
    "a name that writes to the terminal": lambda there: there.claims.update(email="\x1b[2J"),
    "a configuration of another issuer": lambda there: setattr(there, "issuer", "https://evil.example.com"),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_wrong_token_lets_nobody_in(browser: Browser, there: Provider, name: str) -> None:
    FORGERIES[name](there)
    if "configuration" in name:
        assert (await browser.get("/console/oidc/login"))[0] == 403
    else:
        status, text = await browser.login(there)
        assert status == 403, text
    assert "suffice_session" not in browser.cookies


async def test_a_small_difference_of_clocks_is_allowed(browser: Browser, there: Provider) -> None:
    there.claims = {"exp": int(time.time()) - 20, "iat": int(time.time()) - 320}
    assert (await browser.login(there))[0] == 200


async def test_a_callback_works_once(browser: Browser, there: Provider) -> None:
    query = there.authorize(await browser.begin())
    kept = dict(browser.cookies)
    assert (await browser.come_back(query))[0] == 200
    n_calls = len(there.calls)
    browser.cookies = kept  # as somebody who has copied both would send them
    status, text = await browser.come_back(query)
    assert (status, "finished before" in text) == (403, True)
    assert len(there.calls) == n_calls, "the provider is not asked again"


async def test_a_login_begun_in_another_browser_is_not_finished_here(browser: Browser, there: Provider) -> None:
    """Login CSRF: an attacker sends the victim a link to the end of the attacker's own login."""
    attacker = Browser(browser.session, browser.url)
    link = there.authorize(await attacker.begin())
    assert (await browser.come_back(link))[0] == 403, "the victim has begun nothing"
    await browser.begin()
    assert (await browser.come_back(link))[0] == 403, "the victim has begun another login"
    assert "suffice_session" not in browser.cookies


async def test_a_session_is_a_new_one_at_each_login(browser: Browser, there: Provider) -> None:
    fixed = browser.cookies["suffice_session"] = "0" * 12 + ".9999999999." + "0" * 32 + "." + "0" * 64
    await browser.login(there)
    first = browser.cookies["suffice_session"]
    await browser.login(there)
    assert len({fixed, first, browser.cookies["suffice_session"]}) == 3


@pytest.mark.parametrize(
    "back", ["https://evil.example.com", "//evil.example.com", "/console//evil", "/api/x", "javascript:x", "/console\n"]
)
async def test_a_login_leads_to_our_own_pages_only(browser: Browser, there: Provider, back: str) -> None:
    _, text = await browser.come_back(there.authorize(await browser.begin(back)))
    assert 'content="0; url=/console"' in text
    assert "evil" not in text


async def test_an_attempt_cannot_be_made_up(browser: Browser, there: Provider) -> None:
    query = there.authorize(await browser.begin())
    state, expires, back, mac = browser.cookies["suffice_oidc"].split(".")
    for forged in (
        f"{state}.{int(expires) + 9}.{back}.{mac}",
        f"{'0' * 32}.{expires}.{back}.{mac}",
        f"{state}.{expires}.{back}.{'0' * 64}",
        "",
    ):
        browser.cookies["suffice_oidc"] = forged
        assert (await browser.come_back({**query, "state": forged.partition(".")[0]}))[0] == 403
        browser.cookies.pop("suffice_oidc", None)


async def test_rotated_keys_are_read_again_and_not_for_every_wrong_token(
    browser: Browser, there: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "KEYS_AGAIN_S", 0.0)
    assert (await browser.login(there))[0] == 200
    there.rotate()
    assert (await browser.login(there))[0] == 200
    monkeypatch.setattr(oidc, "KEYS_AGAIN_S", 60.0)
    unknown = type(there.key).generate_key(2048, {"kid": "nobody's"})
    there.forge, before = lambda claims: there.sign(claims, unknown), there.calls.count("/keys")
    for _ in range(3):
        assert (await browser.login(there))[0] == 403
    assert there.calls.count("/keys") == before


async def test_sessions_outlive_the_provider_and_a_login_says_why_it_fails(browser: Browser, there: Provider) -> None:
    await browser.login(there)
    there.is_down = True
    assert await browser.who() == "rita@example.com (oidc) · reviewer"
    status, text = await browser.login(there)
    assert (status, "refused the login, or its answer cannot be read" in text) == (502, True)


def nested(depth: int) -> Any:
    inner: Any = []
    for _ in range(depth):
        inner = [inner]
    return inner


METADATA: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "an empty object": {},
    "another issuer": {"issuer": "https://evil.example"},
    "an issuer in another type": {"issuer": ["URL"]},
    "no place for tokens": {"token_endpoint": None},
    "a place for tokens in another type": {"token_endpoint": {"url": "URL/token"}},
    "a place for tokens in the clear": {"token_endpoint": "http://evil.example/token"},
    "a place for tokens with a login": {"token_endpoint": "https://user:word@evil.example/token"},
    "a file of keys": {"jwks_uri": "file:///etc/passwd"},
    "a program as a place to log in": {"authorization_endpoint": "javascript:alert(1)"},
    "lists in lists": {"token_endpoint_auth_methods_supported": nested(900), "issuer": "x"},
}
KEYS: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "no keys": {},
    "keys that are a number": {"keys": 5},
    "no key at all": {"keys": []},
    "a key that is a number": {"keys": [5]},
    "an empty key": {"keys": [{}]},
    "a key of no kind": {"keys": [{"kty": "XXX", "kid": "one"}]},
    "half a key": {"keys": [{"kty": "RSA", "kid": "one", "e": "AQAB"}]},
    "a key that is no number": {"keys": [{"kty": "RSA", "kid": "one", "e": "AQAB", "n": "!!"}]},
    "a key of numbers": {"keys": [{"kty": "RSA", "kid": "one", "e": 3, "n": 5}]},
    "a secret as a key": {"keys": [{"kty": "oct", "kid": "one", "k": "A" * 43}]},
}
TOKENS: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "no token": {},
    "a token that is a number": {"id_token": 5},
    "an empty token": {"id_token": ""},
    "dots": {"id_token": ".."},
    "a thousand dots": {"id_token": "." * 1_000},
    "an encrypted token": {"id_token": "a.b.c.d.e"},
    "bytes that are no text": {"id_token": "_w._w._w"},
    "a megabyte": {"id_token": "a" * 2**20},
}
REPLIES = [
    *(("/.well-known/openid-configuration", case, METADATA[case]) for case in METADATA),
    *(("/keys", case, KEYS[case]) for case in KEYS),
    *(("/token", case, TOKENS[case]) for case in TOKENS),
]


@pytest.mark.parametrize(("path", "case", "content"), REPLIES, ids=[f"{path}: {case}" for path, case, _ in REPLIES])
async def test_no_reply_of_a_provider_lets_anybody_in_or_breaks_a_page(
    browser: Browser, there: Provider, path: str, case: str, content: Any
) -> None:
    place = f"/console/oidc/login?{urlencode({'back': '/console/runs'})}"
    if case in METADATA and path.startswith("/.well") and isinstance(content, dict) and content:
        names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        content = {"issuer": there.url} | {name: f"{there.url}/{at}" for name, at in names.items()} | content
    there.says[path] = content
    status, headers, text = await browser.get(place)
    if status == 303:
        status, text = await browser.come_back(there.authorize(headers["Location"]))
    assert 400 <= status < 600, case
    assert status != 500, text
    assert "Traceback" not in text
    assert await browser.who() is None
    there.says.clear()
    browser.cookies.clear()


@pytest.mark.parametrize("ways", [5, None, {}, "none", []], ids=repr)
async def test_ways_to_log_in_that_are_no_list_are_the_usual_one(browser: Browser, there: Provider, ways: Any) -> None:
    there.says["/.well-known/openid-configuration"] = {
        "issuer": there.url,
        "authorization_endpoint": f"{there.url}/authorize",
        "token_endpoint": f"{there.url}/token",
        "jwks_uri": f"{there.url}/keys",
        "token_endpoint_auth_methods_supported": ways,
    }
    assert (await browser.login(there))[0] == 200


async def test_a_provider_that_cannot_be_reached_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OIDC_SECRET", SECRET)
    settings = settings_for(tmp_path, "http://127.0.0.1:1", timeout_s=0.5)
    secret = People.of(settings).first()
    async with serve_in_loop(settings) as url, aiohttp.ClientSession() as session:
        status, _, text = await Browser(session, url).get("/console/oidc/login")
        assert (status, "cannot be reached now" in text) == (503, True)
        bearer = {"authorization": f"Bearer {secret}"}
        async with session.get(f"{url}/api/overview", headers=bearer) as answer:
            assert answer.status == 200, "secrets go on working"


async def test_a_logout_ends_the_session_and_a_copy_of_it(browser: Browser, there: Provider) -> None:
    await browser.login(there)
    _, _, page = await browser.get("/console/runs")
    token = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert token is not None
    copied = dict(browser.cookies)
    headers = {"cookie": "; ".join(f"{k}={v}" for k, v in copied.items())}
    async with browser.session.post(
        f"{browser.url}/console/logout", data={"csrf": token[1]}, headers=headers, allow_redirects=False
    ) as answer:
        assert answer.status == 303
    assert await browser.who() is None


async def test_a_session_changed_by_its_holder_is_none(browser: Browser, there: Provider) -> None:
    await browser.login(there)
    _, expires, nonce, mac = browser.cookies["suffice_session"].split(".")
    boss = Identity(name="rita@example.com", groups=("bosses",)).encode()
    browser.cookies["suffice_session"] = f"~{boss}.{expires}.{nonce}.{mac}"
    assert await browser.who() is None


def test_a_role_that_is_taken_out_of_the_settings_ends_at_once() -> None:
    identity = Identity(name="a", groups=("ops", "reviewers"))
    table = {name: OidcRole(**one) for name, one in ROLE_TABLE.items()}  # type: ignore[arg-type]
    before = person_from(identity, table)
    assert before is not None
    assert (before.role, before.tenants) == ("operator", ("acme",))
    del table["ops"]
    after = person_from(identity, table)
    assert after is not None
    assert (after.role, after.tenants) == ("reviewer", None)
    assert person_from(identity, {}) is None
    assert ROLES == ("viewer", "reviewer", "operator", "admin")


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://id.example.com/token", True),
        ("http://127.0.0.1:8080/token", True),
        ("http://localhost/token", True),
        ("http://[::1]/token", True),
        ("http://id.example.com/token", False),
        ("http://169.254.169.254/latest", False),
        ("file:///etc/passwd", False),
        ("/token", False),
    ],
)
def test_codes_and_tokens_travel_over_tls_only(url: str, safe: bool) -> None:
    assert is_safe_url(url) is safe


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"issuer": "http://id.example.com"}, "issuer: needs https"),
        ({"issuer": "https://id.example.com/?a=b"}, "issuer: needs https"),
        ({"client_id": ""}, "client_id: is empty"),
        ({"roles": {}}, "roles: is empty"),
        ({"scopes": ["email"]}, "scopes: need 'openid'"),
        ({"roles": {"a": {"role": "root"}}}, "roles.a.role"),
        ({"client_secret": "x"}, "holds no secrets"),
    ],
)
def test_settings_that_would_be_unsafe_are_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        settings_for(tmp_path, "https://id.example.com", **change)
