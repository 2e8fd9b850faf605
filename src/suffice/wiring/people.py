"""The people with access to the console, read and replaced whole, by one writer at a time.

They stand in a file beside the log, or, where the log is on a server, in a note there, so that all replicas have the
same people and sessions. Whoever can write to the database can only restore an earlier note: it is signed.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from suffice.console.auth import Person, Role, Roster, invite, name_problem, signed
from suffice.console.context import AccessChange
from suffice.errors import ConfigError, SufficeError
from suffice.files import file_mark, whole_file
from suffice.rollout.assign import keyed
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import database_at, local_path, log_location
from suffice.store.database.notes import Notes
from suffice.store.database.presence import try_lock
from suffice.store.database.protocol import Database
from suffice.store.rows.events import AccessGrant
from suffice.store.sql import LogReader
from suffice.telemetry import LOG
from suffice.wiring.audit import user_name
from suffice.wiring.keys import deployment_salt, has_secret

if TYPE_CHECKING:
    from suffice.gateway.auth import Caller

ADMIN: Final = "admin"  # the name of the person created at the first start
LOCK_S: Final = 5.0  # for another writer to finish
FOLLOW_S: Final = 1.0  # between two looks at the people of a server
NOTE: Final = "people"  # its name


class People:
    """The people beside a log; with `rehearses`, everything is checked and nothing is written."""

    rehearses = False

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: tuple[int, int, int] | None = None
        self._roster: Roster | None = None

    @staticmethod
    def of(settings: Settings) -> People:
        """The people of the settings' log. Raises ConfigError for a log on a server without its secret."""
        database = database_at(log_location(settings.store))
        if (notes := database.notes) is None:
            return People(people_file(settings))
        if not has_secret(settings):
            raise ConfigError("people: are signed with the deployment's secret: set SUFFICE_SALT as gateways have it")
        return SharedPeople(people_file(settings), database, notes, salt=deployment_salt(settings))

    def exists(self) -> bool:
        return self.file.exists()

    def follow(self) -> AbstractContextManager[None]:
        """Keep `now` up to date while the block runs."""
        return nullcontext()

    def now(self) -> Roster | None:
        if (mark := file_mark(self.file)) != self._seen:
            self._seen = mark
            try:
                self._roster = None if mark is None else self._read()
            except ConfigError as error:
                self._roster = None
                LOG.error("console: nobody can log in: %s", error)
        return self._roster

    def listed(self) -> tuple[Person, ...]:
        roster = self._read()
        return () if roster is None else tuple(sorted(roster.people, key=lambda one: one.name))

    def first(self) -> str | None:
        """Make the first admin and return the secret; None: there are people."""
        if self.exists():
            return None
        with self._held():
            return None if self.exists() else self._write(_new_roster(), ADMIN, "admin")

    def add(self, name: str, role: Role, tenants: tuple[str, ...] | None = None) -> str:
        """Add a person; return the secret, to be shown once. Raises ConfigError for a name that is taken or invalid."""
        if (problem := name_problem(name)) is not None:
            raise ConfigError(f"name: {problem}")
        with self._held():
            roster = self._read() or _new_roster()
            if roster.by_name(name) is not None:
                raise ConfigError(f"name: {name!r} is taken; give them a new secret with reset-secret, or remove them")
            return self._write(roster, name, role, tenants)

    def reset(self, name: str) -> str:
        """Replace a person's secret and end their sessions; return it, to be shown once. Raises ConfigError."""
        with self._held():
            roster = self._read() or _new_roster()
            person = roster.by_name(name)
            if person is None and (name != ADMIN or any(one.role == ADMIN for one in roster.people)):
                raise ConfigError(f"name: {self._unknown(roster, name)}")
            if person is None:
                return self._write(roster, name, "admin")
            return self._write(roster, name, person.role, person.tenants)

    def remove(self, name: str) -> None:
        """Remove a person. Raises ConfigError for an unknown name, and for the last admin."""
        with self._held():
            roster = self._read()
            person = roster.by_name(name) if roster is not None else None
            if roster is None or person is None:
                raise ConfigError(f"name: {self._unknown(roster, name)}")
            left = roster.without(name)
            if _rules_all(person) and not any(_rules_all(one) for one in left.people):
                raise ConfigError(f"name: {name!r} is the last admin; add another one first")
            self._replace(left)

    def end_session(self, nonce: str, expires_s: int) -> None:
        with self._held():
            if (roster := self._read()) is not None:
                self._replace(roster.without_session(nonce, expires_s, now_s=time.time()))

    @staticmethod
    def _unknown(roster: Roster | None, name: str) -> str:
        known = ", ".join(sorted(one.name for one in roster.people)) if roster is not None else ""
        return f"no person is called {name[:80]!r}; known: {known or 'nobody yet'}"

    def _read(self) -> Roster | None:
        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be read ({error.strerror})") from None
        try:
            roster = msgspec.json.decode(content, type=Roster)
            key = bytes.fromhex(roster.key)
        except ValueError:  # msgspec's errors are ValueErrors
            raise ConfigError(
                f"{self.file}: is damaged; restore it, or delete it and run suffice admin reset-secret"
            ) from None
        if len(key) < 32:  # white space is no part of it
            raise ConfigError(f"{self.file}: its key is too short; delete it and run suffice admin reset-secret")
        return roster

    def _write(self, roster: Roster, name: str, role: Role, tenants: tuple[str, ...] | None = None) -> str:
        person, secret = invite(name, role, random_bytes=secrets.token_bytes, now_s=time.time(), tenants=tenants)
        self._replace(roster.with_person(person))
        return secret

    def _replace(self, roster: Roster) -> None:
        if self.rehearses:
            return
        try:
            with whole_file(self.file) as part:
                part.write_bytes(msgspec.json.format(msgspec.json.encode(roster), indent=1))
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be written ({error.strerror})") from None

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Lock out other writers during the block. Raises ConfigError after `LOCK_S`."""
        if not self.file.parent.is_dir():
            raise ConfigError(f"{self.file}: the folder {self.file.parent} does not exist; create it first")
        try:
            descriptor = os.open(self.file.with_name(f"{self.file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be written ({error.strerror})") from None
        try:
            end_s = time.monotonic() + LOCK_S
            while not try_lock(descriptor):
                if time.monotonic() >= end_s:
                    raise ConfigError(f"{self.file}: another process has held it for {LOCK_S:g} s; try again")
                time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


class SharedPeople(People):
    """The people of a log on a server. The key that signs sessions follows from the deployment's secret."""

    def __init__(self, file: Path, database: Database, notes: Notes, *, salt: str) -> None:
        super().__init__(file)
        self._database, self._notes = database, notes
        self._key = keyed("", salt=salt, purpose=b"console", n_bytes=32).hex()
        self._lock, self._problem = threading.RLock(), ""
        self._connection: LogReader | None = None  # of the change that is being made
        self._noted_s: float | None = None  # time of the note that was read last; 0: there was none, None: never

    def now(self) -> Roster | None:
        return self._roster

    def exists(self) -> bool:
        return self._read() is not None

    def first(self) -> str | None:
        """As of a file; people whom this machine's file has from before are taken over."""
        with self._held():
            if self._read() is None and (before := super()._read()) is not None:
                self._replace(before)
        return super().first()

    @contextlib.contextmanager
    def follow(self) -> Iterator[None]:
        ends = threading.Event()

        def work() -> None:
            while not ends.wait(FOLLOW_S):
                self._look()

        self._look()
        thread = threading.Thread(target=work, name="suffice-people", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join(LOCK_S)

    def _look(self) -> None:
        try:
            if self._noted_s is None or not self._notes.is_unchanged(NOTE, self._noted_s):
                self._roster = self._read()
            self._problem = ""
        except SufficeError as error:  # who was in stays in: the kill switch may be needed now
            if str(error) != self._problem:
                LOG.error("console: its people cannot be read: %s", error)
            self._problem = str(error)

    def _read(self) -> Roster | None:
        with self._lock, self._database.reader() if self._connection is None else nullcontext(self._connection) as log:
            note = self._notes.read(log, NOTE).get(NOTE)
            self._noted_s = 0.0 if note is None else note.at_s
        if note is None:
            return None
        mac, _, body = note.body.partition(" ")
        if not hmac.compare_digest(mac, signed(body, self._key, purpose="people")):
            raise ConfigError("people: are signed with another secret: all replicas of a log need one SUFFICE_SALT")
        return replace(msgspec.json.decode(body, type=Roster), key=self._key)

    def _replace(self, roster: Roster) -> None:
        assert self._connection is not None
        if self.rehearses:
            return
        body = msgspec.json.encode(replace(roster, key="")).decode()
        self._notes.write(self._connection, NOTE, f"{signed(body, self._key, purpose='people')} {body}")
        self._roster = replace(roster, key=self._key)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock, self._database.transaction() as connection:
            self._connection = connection
            try:
                yield
            finally:
                self._connection = None


def people_file(settings: Settings) -> Path:
    return local_path(settings.store).with_suffix(".people")


def _rules_all(person: Person) -> bool:
    return person.role == "admin" and person.tenants is None


def _new_roster() -> Roster:
    return Roster(key=secrets.token_hex(32))


def access_changed(
    people: People, name: str, what: Literal["added", "reset", "removed"], *, author: str = "", reason: str = ""
) -> AccessGrant:
    person = next((one for one in people.listed() if one.name == name), None)
    role: str = "" if person is None else person.role
    if person is not None and person.tenants is not None:
        role = f"{role} of {', '.join(person.tenants)}"
    return AccessGrant(
        access_id=f"ac_{secrets.token_hex(8)}",
        name=name,
        what=what,
        role=role,
        author=author or user_name() or "unknown",
        reason=reason or ("asked for by suffice admin" if what != "added" or name != ADMIN else "the first run"),
    )


def change_access(people: People, writer: Decisions, change: AccessChange) -> str:
    """Change who has access and record it; return a new secret, "": none. Raises ConfigError and StoreError."""
    people.rehearses, name = writer.rehearses, change.name
    secret = ""
    if change.what == "added":
        secret = people.add(name, change.role, change.tenants)
    elif change.what == "reset":
        secret = people.reset(name)
    else:
        people.remove(name)
    row = access_changed(people, name, change.what, author=change.author, reason=change.reason)
    writer.write(None, [replace(row, role=change.role) if writer.rehearses and change.what == "added" else row])
    return secret


_ROLES: Final[Mapping[str, Role]] = {"admin": "admin", "operate": "operator", "read": "viewer"}  # the highest first


def person_with(caller: Caller | None) -> Person | None:
    """The holder of a client's key, as far as its scopes let it use the control API; None: not at all."""
    scopes = () if caller is None else caller.permits.scopes
    role = next((role for scope, role in _ROLES.items() if scope in scopes), None)
    if caller is None or role is None:
        return None
    tenant = caller.permits.tenant
    return Person(name=f"key {caller.name}", role=role, tenants=(tenant,) if tenant else None)
