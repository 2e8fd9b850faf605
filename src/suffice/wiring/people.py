"""The file of people with access to the console, read and replaced whole, by one writer at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from suffice.console.auth import Person, Role, Roster, invite, name_problem
from suffice.errors import ConfigError
from suffice.files import whole_file
from suffice.settings import Settings
from suffice.store.database.location import local_path
from suffice.store.database.presence import try_lock
from suffice.store.rows.events import AccessGrant
from suffice.telemetry import LOG
from suffice.wiring.audit import user_name

if TYPE_CHECKING:
    from suffice.gateway.auth import Caller

ADMIN: Final = "admin"  # the name of the person created at the first start
LOCK_S: Final = 5.0  # for another writer to finish


class People:
    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: tuple[int, int, int] | None = None
        self._roster: Roster | None = None

    @classmethod
    def of(cls, settings: Settings) -> People:
        """The people beside the settings' database. Raises ConfigError for a store without a file."""
        return cls(local_path(settings.store).with_suffix(".people"))

    def now(self) -> Roster | None:
        try:
            status = self.file.stat()
        except OSError:
            self._seen, self._roster = None, None
            return None
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        if mark != self._seen:
            self._seen = mark
            try:
                self._roster = self._read()
            except ConfigError as error:
                self._roster = None
                LOG.error("console: nobody can log in: %s", error)
        return self._roster

    def listed(self) -> tuple[Person, ...]:
        roster = self._read()
        return () if roster is None else tuple(sorted(roster.people, key=lambda one: one.name))

    def first(self) -> str | None:
        """Make the first admin and return the secret; None: the file exists."""
        if self.file.exists():
            return None
        with self._held():
            return None if self.file.exists() else self._write(_new_roster(), ADMIN, "admin")

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
            bytes.fromhex(roster.key)
        except ValueError:  # msgspec's errors are ValueErrors
            raise ConfigError(
                f"{self.file}: is damaged; restore it, or delete it and run suffice admin reset-secret"
            ) from None
        if len(roster.key) < 64:
            raise ConfigError(f"{self.file}: its key is too short; delete it and run suffice admin reset-secret")
        return roster

    def _write(self, roster: Roster, name: str, role: Role, tenants: tuple[str, ...] | None = None) -> str:
        person, secret = invite(name, role, random_bytes=secrets.token_bytes, now_s=time.time(), tenants=tenants)
        self._replace(roster.with_person(person))
        return secret

    def _replace(self, roster: Roster) -> None:
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


def _rules_all(person: Person) -> bool:
    return person.role == "admin" and person.tenants is None


def _new_roster() -> Roster:
    return Roster(key=secrets.token_hex(32))


def access_changed(people: People, name: str, what: Literal["added", "reset", "removed"]) -> AccessGrant:
    person = next((one for one in people.listed() if one.name == name), None)
    role: str = "" if person is None else person.role
    if person is not None and person.tenants is not None:
        role = f"{role} of {', '.join(person.tenants)}"
    return AccessGrant(
        access_id=f"ac_{secrets.token_hex(8)}",
        name=name,
        what=what,
        role=role,
        author=user_name() or "unknown",
        reason="asked for by suffice admin" if what != "added" or name != ADMIN else "the first run",
    )


_ROLES: Final[Mapping[str, Role]] = {"admin": "admin", "operate": "operator", "read": "viewer"}  # the highest first


def person_with(caller: Caller | None) -> Person | None:
    """The holder of a client's key, as far as its scopes let it use the control API; None: not at all."""
    scopes = () if caller is None else caller.permits.scopes
    role = next((role for scope, role in _ROLES.items() if scope in scopes), None)
    if caller is None or role is None:
        return None
    tenant = caller.permits.tenant
    return Person(name=f"key {caller.name}", role=role, tenants=(tenant,) if tenant else None)
