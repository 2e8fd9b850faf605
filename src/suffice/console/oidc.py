"""Login at an OpenID provider: the authorization code flow with PKCE (OpenID Connect Core 1.0, RFC 7636, RFC 9700).

Nothing of a login is kept before it succeeds: the browser holds a signed cookie with the state, and nonce and verifier
follow from the state by a keyed hash. The provider is asked during a login only, so sessions outlive its outages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import msgspec
from yarl import URL

from suffice.console.auth import ROLES, Person, signed
from suffice.errors import BadRequest, UpstreamError
from suffice.extras import how_to_install
from suffice.settings import Oidc, OidcRole
from suffice.telemetry import LOG
from suffice.upstream.client import helper_client
from suffice.upstream.wire import items_in

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")  # no shared keys
LEEWAY_S: Final = 60  # by which the provider's clock may differ
MOST_VALID_S: Final = 30 * 86_400  # of an ID token; providers give it for an hour to a day
ATTEMPT_S: Final = 600  # for a person to log in at the provider
METADATA_S: Final = 3_600.0  # after which the provider's addresses are read again
KEYS_AGAIN_S: Final = 10.0  # at the soonest, after a token that names an unknown key
MOST_BYTES: Final = 2**20  # of one answer
MOST_USED: Final = 10_000  # remembered states of finished attempts
MOST_NAME_CHARS: Final = 100
MOST_GROUPS: Final = 50  # of a person, of those that the settings name
_ATTEMPT: Final = re.compile(r"([0-9a-f]{32})\.(\d{1,12})\.([A-Za-z0-9_-]{0,800})\.([0-9a-f]{64})")


class Identity(msgspec.Struct, frozen=True):
    """What a session keeps of a person from the provider. Their role follows from the settings at each request."""

    name: str
    groups: tuple[str, ...]  # values of the roles claim that the settings name

    def encode(self) -> str:
        return _base64(msgspec.json.encode(self))

    @classmethod
    def decode(cls, text: str) -> Identity | None:
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=cls)
        except ValueError:  # msgspec's errors are ValueErrors
            return None


def person_from(identity: Identity, roles: Mapping[str, OidcRole]) -> Person | None:
    """Return the person with the highest of their roles, and the tenants that it is given for; None: no role."""
    given = [roles[group] for group in identity.groups if group in roles]
    if not given:
        return None
    highest = max((one.role for one in given), key=ROLES.index)
    tenants = [one.tenants for one in given if one.role == highest]
    seen = None if None in tenants else tuple(sorted({name for some in tenants for name in some or ()}))
    return Person(name=identity.name, role=highest, tenants=seen)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that has begun in one browser."""

    state: str
    expires_s: int  # Unix time
    back: str  # the page to go to afterwards

    def cookie(self, key: str) -> str:
        payload = f"{self.state}.{self.expires_s}.{_base64(self.back.encode())}"
        return f"{payload}.{signed(payload, key, purpose='oidc attempt')}"

    def nonce(self, key: str) -> str:
        return signed(self.state, key, purpose="oidc nonce")

    def verifier(self, key: str) -> str:
        return signed(self.state, key, purpose="oidc verifier")


def read_attempt(cookie: str, key: str, *, now_s: float) -> Attempt | None:
    """Parse an attempt's cookie; None: not signed by us, or expired."""
    match = _ATTEMPT.fullmatch(cookie)
    if match is None:
        return None
    right = signed(cookie.rpartition(".")[0], key, purpose="oidc attempt")
    if not hmac.compare_digest(match.group(4), right) or now_s >= int(match.group(2)):
        return None
    back = base64.urlsafe_b64decode(match.group(3) + "=" * (-len(match.group(3)) % 4)).decode("utf-8", "replace")
    return Attempt(match.group(1), int(match.group(2)), back)


class OidcLogin:
    """One provider. Its metadata and keys are kept and read again when they are old or a key is unknown."""

    def __init__(
        self, settings: Oidc, secret: str | None, *, now: Callable[[], float], monotonic_s: Callable[[], float]
    ) -> None:
        self.settings, self._secret, self._now, self._monotonic_s = settings, secret, now, monotonic_s
        self._metadata: dict[str, Any] = {}
        self._metadata_s = self._keys_s = float("-inf")
        self._keys: KeySet | None = None
        self._used: dict[str, int] = {}  # states of finished attempts, with their expiry

    async def address(self, attempt: Attempt, key: str, *, redirect_uri: str) -> str:
        """The provider's page to which a browser is sent. Raises BadRequest if the provider cannot be reached."""
        metadata = await self._read_metadata()
        challenge = _base64(hashlib.sha256(attempt.verifier(key).encode()).digest())
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce(key),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        where: str = metadata["authorization_endpoint"]
        return f"{where}{'&' if '?' in where else '?'}{urlencode(query, quote_via=quote)}"

    async def finish(
        self, attempt: Attempt | None, query: Mapping[str, str], key: str, *, redirect_uri: str
    ) -> Identity:
        """Check what the provider sent back, and ask it who that is. Raises BadRequest; an attempt ends either way."""
        if attempt is None or not hmac.compare_digest(query.get("state", "").encode(), attempt.state.encode()):
            raise _refusal("this login was not begun in this browser, or too long ago; log in again")
        self._use(attempt)
        if query.get("iss", self.settings.issuer) != self.settings.issuer:
            raise _refusal("another provider answered than the one that was asked")
        if "error" in query or "code" not in query:
            code = re.sub(r"[^a-z_]", "", query.get("error", ""))[:40]
            raise _refusal(f"the identity provider refused the login ({code or 'no code'})")
        claims = await self._exchange(query["code"], attempt, key, redirect_uri)
        return self._identify(claims)

    def _use(self, attempt: Attempt) -> None:
        now_s = self._now()
        self._used = {state: until for state, until in self._used.items() if now_s < until}
        if attempt.state in self._used:
            raise _refusal("this login was finished before; log in again")
        self._used[attempt.state] = attempt.expires_s
        while len(self._used) > MOST_USED:
            del self._used[next(iter(self._used))]

    async def _exchange(self, code: str, attempt: Attempt, key: str, redirect_uri: str) -> Mapping[str, Any]:
        metadata, settings = await self._read_metadata(), self.settings
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        form |= {"code_verifier": attempt.verifier(key), "client_id": settings.client_id}
        headers = [("content-type", "application/x-www-form-urlencoded")]
        methods = items_in(metadata, "token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if self._secret is not None and "client_secret_basic" in methods:
            login = f"{quote(settings.client_id, safe='')}:{quote(self._secret, safe='')}".encode()
            headers.append(("authorization", f"Basic {base64.b64encode(login).decode()}"))
        elif self._secret is not None:
            form["client_secret"] = self._secret
        answer = await self._call(metadata["token_endpoint"], urlencode(form).encode(), headers)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise _refusal("the identity provider sent no ID token; does its client ask for the scope openid?")
        return await self._verify(token, attempt.nonce(key))

    async def _verify(self, token: str, nonce: str) -> Mapping[str, Any]:
        """Check an ID token by OpenID Connect Core 1.0, section 3.1.3.7. Raises BadRequest."""
        from joserfc import jwt
        from joserfc.errors import InvalidKeyIdError, JoseError

        client_id = self.settings.client_id
        wanted: Any = {
            "iss": {"essential": True, "value": self.settings.issuer},
            "aud": {"essential": True, "value": client_id},
            "nonce": {"essential": True, "value": nonce},
            **{name: {"essential": True} for name in ("sub", "exp", "iat")},
        }
        try:
            try:
                decoded = jwt.decode(token, await self._read_keys(), algorithms=ALGORITHMS)
            except InvalidKeyIdError:  # the provider has rotated its keys
                decoded = jwt.decode(token, await self._read_keys(again=True), algorithms=ALGORITHMS)
            jwt.JWTClaimsRegistry(now=int(self._now()), leeway=LEEWAY_S, **wanted).validate(decoded.claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:  # the last: of what publishes no keys
            LOG.warning("console: an ID token was refused: %s", getattr(error, "error", type(error).__name__))
            raise _refusal("the identity provider's ID token is not valid here") from None
        claims = decoded.claims
        if claims["exp"] > self._now() + MOST_VALID_S:
            raise _refusal("the ID token is valid for more than 30 days")
        others = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", "" if others else client_id) != client_id:
            raise _refusal("the ID token was made for another client")
        return claims

    def _identify(self, claims: Mapping[str, Any]) -> Identity:
        settings = self.settings
        name = claims.get(settings.name_claim)
        if settings.name_claim == "email" and claims.get("email_verified") is False:
            raise _refusal("the identity provider has not verified this e-mail address")
        if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME_CHARS or not name.isprintable():
            raise _refusal(f"the claim {settings.name_claim!r} of the ID token holds no name that can be used here")
        given = claims.get(settings.roles_claim)
        listed = given if isinstance(given, list) else [given]
        groups = tuple(one for one in listed if isinstance(one, str) and one in settings.roles)[:MOST_GROUPS]
        return Identity(name=name, groups=groups)

    # ---- the provider

    async def _read_metadata(self) -> Mapping[str, Any]:
        if self._metadata and self._monotonic_s() - self._metadata_s < METADATA_S:
            return self._metadata
        issuer = self.settings.issuer
        metadata = await self._call(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if metadata.get("issuer") != issuer:
            raise _refusal("the identity provider's configuration names another issuer than console.oidc.issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not isinstance(metadata.get(name), str) or not is_safe_url(metadata[name]):
                raise _refusal(f"the identity provider's configuration has no usable {name}")
        self._metadata, self._metadata_s = metadata, self._monotonic_s()
        return metadata

    async def _read_keys(self, *, again: bool = False) -> KeySet:
        from joserfc.jwk import KeySet

        now_s = self._monotonic_s()
        if self._keys is None or (again and now_s - self._keys_s >= KEYS_AGAIN_S):
            self._keys_s = now_s
            answer: Any = await self._call((await self._read_metadata())["jwks_uri"])
            self._keys = KeySet.import_key_set(answer)
        return self._keys

    async def _call(
        self, url: str, body: bytes | None = None, headers: list[tuple[str, str]] | None = None
    ) -> dict[str, Any]:
        """Return the JSON object that an address of the provider answers. Raises BadRequest."""
        parsed, timeout_s = URL(url), self.settings.timeout_s
        sent = [("accept", "application/json"), ("accept-encoding", "identity"), *(headers or [])]
        try:
            async with (
                helper_client("identity provider", str(parsed.origin()), timeout_s=timeout_s) as client,
                client.open(parsed.raw_path_qs, body, sent, method="GET" if body is None else "POST") as call,
            ):
                status, answer = call.status, await call.read_all(MOST_BYTES)
        except (UpstreamError, ValueError) as error:
            LOG.warning("console: the identity provider cannot be reached: %s", error)
            message = "the identity provider cannot be reached now; try again later, or log in with a secret"
            raise BadRequest(message, status=503, code="oidc_unreachable") from None
        try:
            plain = msgspec.json.decode(answer) if status == 200 else None
        except ValueError:
            plain = None
        if not isinstance(plain, dict):
            LOG.warning("console: the identity provider answered %d to %s", status, parsed.path)
            raise _refusal("the identity provider refused the login, or its answer cannot be read", status=502)
        return plain


def require_package() -> None:
    """Raise BadRequest with what to install where the extra is missing."""
    try:
        import joserfc  # noqa: F401 - only looked for
    except ImportError:
        message = f"a login at an identity provider needs a package: {how_to_install('oidc')}"
        raise BadRequest(message, status=501, code="oidc") from None


def is_safe_url(url: str) -> bool:
    """Return whether tokens and codes may travel there: over TLS, or inside this computer."""
    parsed = URL(url)
    if parsed.scheme != "http":
        return parsed.scheme == "https" and bool(parsed.host)
    try:
        return parsed.host == "localhost" or ipaddress.ip_address(parsed.host or "").is_loopback
    except ValueError:
        return False


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _refusal(message: str, *, status: int = 403) -> BadRequest:
    return BadRequest(message, status=status, code="oidc")
