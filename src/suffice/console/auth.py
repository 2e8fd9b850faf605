"""Authenticates and authorises console requests: people, secrets, sessions, hosts, roles and tokens. Default: refused.

A secret is `sfc_ID_RANDOM`: the id selects the one person whose hash is compared, so every guess costs one cheap hash;
256 random bits need no slow one. A session holds that id, so a reset of the secret ends it. A secret is compared before
any throttling: a right one is accepted, whatever others try from the same address.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol, TypeAlias, get_args

from suffice.asgi import BrowserPolicy
from suffice.console.exchange import ConsoleRequest, cookie
from suffice.errors import BadRequest
from suffice.settings import ConsoleRole
from suffice.telemetry import LOG

Role: TypeAlias = ConsoleRole
ROLES: Final[tuple[Role, ...]] = get_args(ConsoleRole)  # a later role may do all that an earlier one may

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SECRET = re.compile(r"sfc_([0-9a-f]{12})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    name: str  # the author of their changes
    role: Role
    id: str = ""  # public part of the secret; replaced at each reset, which ends old sessions. "": no secret of ours
    salt: str = ""  # hexadecimal
    hash: str = ""  # of the secret, hexadecimal
    since_s: float = 0.0  # Unix time at which the secret was created; informative
    tenants: tuple[str, ...] | None = None  # whose runs they see; None: everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    key: str  # hexadecimal; its holder can sign a session for anybody
    people: tuple[Person, ...] = ()
    ended: dict[str, int] = field(default_factory=dict)  # nonces of sessions that were logged out, with their expiry

    def by_id(self, given: str) -> Person | None:
        return next((one for one in self.people if one.id == given), None)

    def by_name(self, name: str) -> Person | None:
        return next((one for one in self.people if one.name == name), None)

    def with_person(self, person: Person) -> Roster:
        return replace(self, people=(*(one for one in self.people if one.name != person.name), person))

    def without(self, name: str) -> Roster:
        return replace(self, people=tuple(one for one in self.people if one.name != name))

    def without_session(self, nonce: str, expires_s: int, *, now_s: float) -> Roster:
        return replace(self, ended={nonce: expires_s, **{one: s for one, s in self.ended.items() if now_s < s}})


def may(role: Role, needs: Role) -> bool:
    return ROLES.index(role) >= ROLES.index(needs)


def name_problem(name: str) -> str | None:
    if _NAME.fullmatch(name):
        return None
    return f"got {name[:80]!r}; 1 to 64 letters, digits and . _ @ -, the first a letter or a digit"


def invite(
    name: str, role: Role, *, random_bytes: Callable[[int], bytes], now_s: float, tenants: tuple[str, ...] | None = None
) -> tuple[Person, str]:
    public, salt = random_bytes(6).hex(), random_bytes(16).hex()
    secret = f"sfc_{public}_{random_bytes(32).hex()}"
    hashed = _hashed(secret, salt)
    return Person(name=name, role=role, id=public, salt=salt, hash=hashed, since_s=now_s, tenants=tenants), secret


def authenticate(roster: Roster, secret: str) -> Person | None:
    """The person with this secret; None: nobody. Takes as long either way."""
    match = _SECRET.fullmatch(secret)
    person = roster.by_id(match.group(1)) if match is not None else None
    given = _hashed(secret, person.salt if person is not None else "00" * 16)
    right = hmac.compare_digest(given, person.hash if person is not None else "00" * 32)
    return person if right and person is not None else None


def _hashed(secret: str, salt: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode("utf-8", "surrogatepass")[:1024]).hexdigest()


# The id of a person's secret, or what an identity provider says of a person.
_SESSION = re.compile(r"([0-9a-f]{12}|~[A-Za-z0-9_-]{1,2000})\.(\d{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    person_id: str  # public part of the secret used; or "~" and an `oidc.Identity`
    expires_s: int  # Unix time
    nonce: str  # distinguishes two logins of one person

    def cookie(self, key: str) -> str:
        payload = f"{self.person_id}.{self.expires_s}.{self.nonce}"
        return f"{payload}.{signed(payload, key, purpose='session')}"


def read_session(cookie: str, key: str, *, now_s: float) -> Session | None:
    """Parse a session cookie; None: not signed by us, or expired."""
    match = _SESSION.fullmatch(cookie)
    if match is None:
        return None
    payload, _, given = cookie.rpartition(".")
    session = Session(person_id=match.group(1), expires_s=int(match.group(2)), nonce=match.group(3))
    right = hmac.compare_digest(given, signed(payload, key, purpose="session"))
    return session if right and now_s < session.expires_s else None


def token(what: str, key: str) -> str:
    return signed(what, key, purpose="csrf")


def signed(text: str, key: str, *, purpose: str) -> str:
    """A keyed hash. `purpose` prevents what is signed for one use from being accepted for another."""
    return hmac.new(bytes.fromhex(key), f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


class Attempts:
    """Throttles failed attempts by address: `burst` at once, then one more after each `refill_s`."""

    def __init__(self, *, burst: int = 5, refill_s: float = 12.0, most_addresses: int = 10_000) -> None:
        self._burst, self._refill_s, self._most = burst, refill_s, most_addresses
        self._spent: dict[str, tuple[float, float]] = {}  # by address: attempts, as of when (monotonic)

    def wait_s(self, address: str, *, now_s: float) -> int:
        over = self._now(address, now_s) - (self._burst - 1)
        return math.ceil(over * self._refill_s) if over > 1e-9 else 0

    def failed(self, address: str, *, now_s: float) -> None:
        spent = self._now(address, now_s)
        self._spent.pop(address, None)
        self._spent[address] = (spent + 1, now_s)
        while len(self._spent) > self._most:
            del self._spent[next(iter(self._spent))]

    def _now(self, address: str, now_s: float) -> float:
        spent, at_s = self._spent.get(address, (0.0, now_s))
        return max(0.0, spent - (now_s - at_s) / self._refill_s)


SESSION: Final = "suffice_session"
LOGIN: Final = "suffice_login"  # binds the token of a login page to the browser that requested it
LOGIN_S: Final = 3_600  # lifetime of a login page
TOKEN: Final = "csrf"  # the field of a form; a script sends the header x-csrf-token  # noqa: S105

Header: TypeAlias = tuple[str, str]
Needs: TypeAlias = Role | Literal["nobody"]  # "nobody": without a login, where nothing is disclosed


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    person: Person | None  # None: not logged in
    token: str = ""  # to be sent with a change made from a page
    session: Session | None = None  # None: a program, which sends its secret each time

    @property
    def name(self) -> str:
        return self.person.name if self.person is not None else ""

    @property
    def role(self) -> Role | None:
        return self.person.role if self.person is not None else None

    @property
    def tenants(self) -> tuple[str, ...] | None:
        """The tenants whose runs they see; None: everything."""
        return self.person.tenants if self.person is not None else ()


NOBODY: Final = Principal(person=None)


class PeopleSource(Protocol):
    def now(self) -> Roster | None:
        """Return the people as they are now, without waiting; None: there are none yet."""
        ...

    def end_session(self, nonce: str, expires_s: int) -> None:
        """End a session in every process. Raises SufficeError."""
        ...


class ConsoleAuth:
    """Authenticates and authorises requests; `session_s` is the lifetime of a session.

    holder  of a client's key that may act here, by that key; None: nobody
    known   a person from an identity provider, by what a session keeps of them; None: they have no role now
    """

    def __init__(
        self,
        *,
        people: PeopleSource,
        holder: Callable[[str], Person | None] = lambda _: None,
        known: Callable[[str], Person | None] = lambda _: None,
        browsers: BrowserPolicy,
        session_s: float,
        random_bytes: Callable[[int], bytes],
        now: Callable[[], float],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._people, self._holder, self._known = people, holder, known
        self._random, self._now, self._monotonic_s = random_bytes, now, monotonic_s
        self.configure(browsers=browsers, session_s=session_s)
        self._attempts = Attempts()

    def configure(self, *, browsers: BrowserPolicy, session_s: float) -> None:
        """Take over other settings; sessions stay."""
        self._browsers, self._session_s = browsers, session_s

    def roster(self) -> Roster | None:
        return self._people.now()

    def people(self) -> tuple[Person, ...]:
        roster = self.roster()
        return roster.people if roster is not None else ()

    def admit(self, request: ConsoleRequest, needs: Needs) -> Principal:
        """Return the principal, if their role suffices. Raises BadRequest."""
        self._browsers.check_host(request.headers.get("host", ""))
        is_read = request.method in ("GET", "HEAD") and "origin" not in request.headers
        if not is_read or request.headers.get("sec-fetch-mode", "navigate") != "navigate":  # anything but a link
            self._browsers.check_page(request.headers)
        principal = self._principal(request)
        if needs == "nobody":
            return principal
        if principal.person is None:
            message = "log in first, or send 'authorization: Bearer SECRET'"
            raise BadRequest(message, status=401, code="not_logged_in")
        if not may(principal.person.role, needs):
            message = f"this needs the role {needs}; {principal.name} has the role {principal.role}"
            raise BadRequest(message, status=403, code="role")
        return principal

    def check_change(self, request: ConsoleRequest, principal: Principal) -> None:
        """Refuse a change unless the browser proves that it came from our page; a program's secret needs no page."""
        if principal.session is not None:
            self._check_token(request, principal.session.nonce)

    def _principal(self, request: ConsoleRequest) -> Principal:
        roster = self.roster()
        if roster is None:
            return NOBODY
        given = request.headers.get("authorization", "")
        if given:
            kind, _, secret = given.partition(" ")
            if kind.lower() != "bearer" or not request.is_api:
                return NOBODY
            return Principal(person=self._authenticate(roster, secret.strip(), request.address))
        session = read_session(request.cookies.get(SESSION, ""), roster.key, now_s=self._now())
        person = self._person_of(session.person_id, roster) if session is not None else None
        if session is None or person is None or session.nonce in roster.ended:
            return NOBODY
        return Principal(person=person, session=session, token=token(session.nonce, roster.key))

    def _person_of(self, person_id: str, roster: Roster) -> Person | None:
        if not person_id.startswith("~"):
            return roster.by_id(person_id)
        person = self._known(person_id[1:])
        # Their names are the provider's: none may pass for a person of ours in the audit log.
        return person if person is None else replace(person, name=f"{person.name} (oidc)")

    def _authenticate(self, roster: Roster, secret: str, address: str) -> Person | None:
        """Check a secret or a key. Raises BadRequest if it is wrong and the address has failed too often."""
        person = authenticate(roster, secret) or self._holder(secret)
        if person is not None:
            return person
        now_s = self._monotonic_s()
        wait_s = self._attempts.wait_s(address, now_s=now_s)
        if wait_s:
            message = f"too many wrong secrets; try again in {wait_s} s"
            raise BadRequest(message, status=429, code="too_many_attempts")
        self._attempts.failed(address, now_s=now_s)
        LOG.warning("console: a wrong secret from %s", address)
        return None

    def _check_token(self, request: ConsoleRequest, what: str) -> None:
        roster = self.roster()
        given = request.headers.get("x-csrf-token") or request.form.get(TOKEN, "")
        right = "" if roster is None else token(what, roster.key)
        if not right or not hmac.compare_digest(given.encode("utf-8", "replace"), right.encode()):
            raise BadRequest("the form has no valid token; load the page again", status=403, code="csrf")

    def login_page(self, request: ConsoleRequest) -> tuple[str, Header]:
        """A token for a login page, and its cookie. Raises BadRequest without a roster."""
        nonce, roster = self._random(16).hex(), self._roster()
        return token(f"login {nonce}", roster.key), cookie(LOGIN, nonce, age_s=LOGIN_S, secure=request.behind_tls)

    def login(self, request: ConsoleRequest) -> tuple[Header, Header] | None:
        """The cookies of a new session; None: the secret is wrong. Raises BadRequest."""
        roster, secure = self._roster(), request.behind_tls
        self._check_token(request, f"login {request.cookies.get(LOGIN, '')}")
        person = self._authenticate(roster, request.form.get("secret", "").strip(), request.address)
        if person is None or not person.id:  # a client's key is for programs
            return None
        LOG.info("console: %s logged in", person.name)
        return self.begin_session(person.id, request), cookie(LOGIN, "", age_s=0, secure=secure)

    def begin_session(self, person_id: str, request: ConsoleRequest) -> Header:
        """The cookie of a new session, whose nonce nobody knows before."""
        expires_s = int(self._now() + self._session_s)
        session = Session(person_id=person_id, expires_s=expires_s, nonce=self._random(16).hex())
        content = session.cookie(self.signing_key())
        return cookie(SESSION, content, age_s=int(self._session_s), secure=request.behind_tls)

    def signing_key(self) -> str:
        """Raises BadRequest without a roster."""
        return self._roster().key

    def logout(self, principal: Principal, request: ConsoleRequest) -> Header:
        """End the session everywhere; may wait for a file or a database. Raises SufficeError."""
        if principal.session is not None:
            self._people.end_session(principal.session.nonce, principal.session.expires_s)
        return cookie(SESSION, "", age_s=0, secure=request.behind_tls)

    def _roster(self) -> Roster:
        roster = self.roster()
        if roster is None:
            message = "nobody can log in yet: run suffice admin reset-secret beside the settings file"
            raise BadRequest(message, status=401, code="no_people")
        return roster
