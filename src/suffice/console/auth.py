"""Who may ask for what: hosts, sessions, secrets, roles and tokens. Default: refused.

    Asked ──▶ host ──▶ who (cookie or bearer) ──▶ role ──▶ token, where something changes ──▶ Visitor, or Refused

A page without a session leads to the login; everything else is told 401 or 403. A secret is compared before anything
is throttled, so whoever has the right one comes in, whatever others try from the same address. Knows requests; refuses
to know pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from suffice.browsers import BrowserPolicy
from suffice.console import people, sessions
from suffice.console.exchange import Answer, ConsoleRequest, cookie
from suffice.console.people import Person, Role, Roster
from suffice.errors import BadRequest
from suffice.telemetry import LOG

SESSION: Final = "suffice_session"
LOGIN: Final = "suffice_login"  # ties the token of a login page to the browser that asked for it
LOGIN_S: Final = 3_600  # how long a login page may lie open
TOKEN: Final = "csrf"  # the field of a form; a script sends the header x-csrf-token  # noqa: S105

Needs: TypeAlias = Role | Literal["nobody"]  # "nobody": without a login, for what says nothing


class AccessDeniedError(BadRequest):
    """Somebody may not do this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    person: Person | None  # None: nobody has logged in
    token: str = ""  # that a page of ours must show with a change
    session: sessions.Session | None = None  # None: a program, which brings its secret each time

    @property
    def name(self) -> str:
        return self.person.name if self.person is not None else ""

    @property
    def role(self) -> Role | None:
        """What they may do; None: nothing."""
        return self.person.role if self.person is not None else None


NOBODY: Final = Principal(person=None)


class ConsoleAuth:
    """Lets in who may.

    roster        the people as the file has them now; None: there is no file yet
    browsers      which names a browser may call us by
    session_s     how long a login lasts
    random_bytes  of the system
    """

    def __init__(
        self,
        *,
        roster: Callable[[], Roster | None],
        browsers: BrowserPolicy,
        session_s: float,
        random_bytes: Callable[[int], bytes],
        now: Callable[[], float],
        monotonic_s: Callable[[], float],
    ) -> None:
        self.roster = roster
        self._browsers = browsers
        self._session_s, self._random, self._now, self._monotonic_s = session_s, random_bytes, now, monotonic_s
        self._attempts = sessions.Attempts()
        self._ended: dict[str, int] = {}  # nonces of sessions that were logged out: when they expire

    # ---- who asks ----------------------------------------------------------------------------------

    def admit(self, asked: ConsoleRequest, needs: Needs) -> Principal:
        """Who asks, if they may. Raises AccessDenied."""
        self._browsers.check_host(asked.headers.get("host", ""))
        if not _is_link(asked):
            self._browsers.check_page(asked.headers)
        visitor = self._visitor(asked)
        if needs == "nobody":
            return visitor
        if visitor.person is None:
            raise AccessDeniedError(
                "log in first, or send 'authorization: Bearer SECRET'", status=401, code="not_logged_in"
            )
        if not people.may(visitor.person.role, needs):
            message = f"this needs the role {needs}; {visitor.name} has the role {visitor.role}"
            raise AccessDeniedError(message, status=403, code="role")
        return visitor

    def check_change(self, asked: ConsoleRequest, visitor: Principal) -> None:
        """Refuse a change unless the visitor's browser shows that the page was ours; secrets need no page."""
        if visitor.session is not None:
            self._check_token(asked, visitor.session.nonce)

    def _visitor(self, asked: ConsoleRequest) -> Principal:
        roster = self.roster()
        if roster is None:
            return NOBODY
        given = asked.headers.get("authorization", "")
        if given:
            kind, _, secret = given.partition(" ")
            if kind.lower() != "bearer" or not asked.is_api:
                return NOBODY
            return Principal(person=self._tried(roster, secret.strip(), asked.address))
        session = sessions.read_session(asked.cookies.get(SESSION, ""), roster.key, now_s=self._now())
        person = roster.by_id(session.person_id) if session is not None else None
        if session is None or person is None or session.nonce in self._ended:
            return NOBODY
        return Principal(person=person, session=session, token=sessions.token(session.nonce, roster.key))

    def _tried(self, roster: Roster, secret: str, address: str) -> Person | None:
        """Whose secret it is. Raises AccessDenied where too many from this address were wrong, and this one is, too."""
        person = people.authenticate(roster, secret)
        if person is not None:
            return person
        now_s = self._monotonic_s()
        wait_s = self._attempts.wait_s(address, now_s=now_s)
        if wait_s:
            raise AccessDeniedError(
                f"too many wrong secrets; try again in {wait_s} s", status=429, code="too_many_attempts"
            )
        self._attempts.failed(address, now_s=now_s)
        LOG.warning("console: a wrong secret from %s", address)
        return None

    def _check_token(self, asked: ConsoleRequest, what: str) -> None:
        roster = self.roster()
        given = asked.headers.get("x-csrf-token") or asked.form.get(TOKEN, "")
        if roster is None or not sessions.is_token(given, what, roster.key):
            raise AccessDeniedError("the form has no valid token; load the page again", status=403, code="csrf")

    # ---- coming and going --------------------------------------------------------------------------

    def login_page(self, asked: ConsoleRequest) -> tuple[str, tuple[str, str]]:
        """A token for a login page, and the cookie that it belongs to. Raises AccessDenied without a roster."""
        nonce, roster = self._random(16).hex(), self._roster()
        return sessions.token(f"login {nonce}", roster.key), cookie(
            LOGIN, nonce, age_s=LOGIN_S, secure=asked.behind_tls
        )

    def login(self, asked: ConsoleRequest) -> Answer | None:
        """The cookies of a new session; None: the secret is wrong. Raises AccessDenied."""
        roster = self._roster()
        self._check_token(asked, f"login {asked.cookies.get(LOGIN, '')}")
        person = self._tried(roster, asked.form.get("secret", "").strip(), asked.address)
        if person is None:
            return None
        session = sessions.Session(
            person_id=person.id, expires_s=int(self._now() + self._session_s), nonce=self._random(16).hex()
        )
        LOG.info("console: %s logged in", person.name)
        return Answer(
            headers=(
                cookie(
                    SESSION,
                    sessions.write_session(session, roster.key),
                    age_s=int(self._session_s),
                    secure=asked.behind_tls,
                ),
                cookie(LOGIN, "", age_s=0, secure=asked.behind_tls),
            )
        )

    def logout(self, visitor: Principal, asked: ConsoleRequest) -> tuple[str, str]:
        now_s = self._now()
        self._ended = {nonce: until for nonce, until in self._ended.items() if now_s < until}
        if visitor.session is not None:
            self._ended[visitor.session.nonce] = visitor.session.expires_s
        return cookie(SESSION, "", age_s=0, secure=asked.behind_tls)

    def holds(self, session: sessions.Session) -> bool:
        roster = self.roster()
        known = roster is not None and roster.by_id(session.person_id) is not None
        return known and self._now() < session.expires_s and session.nonce not in self._ended

    def _roster(self) -> Roster:
        roster = self.roster()
        if roster is None:
            message = "nobody can log in yet: run suffice admin reset-secret beside the settings file"
            raise AccessDeniedError(message, status=401, code="no_people")
        return roster


def _is_link(asked: ConsoleRequest) -> bool:
    is_read = asked.method in ("GET", "HEAD") and "origin" not in asked.headers
    return is_read and asked.headers.get("sec-fetch-mode", "navigate") == "navigate"
