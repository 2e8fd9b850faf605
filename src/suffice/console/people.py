"""Who may come in: people with a role and a hashed secret, and the key that signs their sessions.

    new secret ──▶ shown once ──▶ Person (salted SHA-256) ──▶ known(roster, secret)

A secret is `sfc_ID_RANDOM`: the id finds the one person whose hash is compared, so that a guess costs one hash however
many people there are, and a guess at nobody costs the same one. The random part has 256 bits, which no guess finds
however cheap the hash is; and a cheap hash lets the right secret in at once, however many wrong ones come. Pure:
randomness and time come in as arguments. Refuses to know files, cookies and pages.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

Role: TypeAlias = Literal["reviewer", "admin"]
ROLES: Final[tuple[Role, ...]] = ("reviewer", "admin")  # a later one may do all that an earlier one may

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SECRET = re.compile(r"sfc_([0-9a-f]{12})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    name: str  # written into every change that they make
    role: Role
    id: str  # public part of the secret; another one after each reset, which ends old sessions
    salt: str  # hexadecimal
    hash: str  # of the secret, hexadecimal
    since_s: float  # Unix time at which the secret was made; informative


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    key: str  # hexadecimal; whoever knows it may be anybody
    people: tuple[Person, ...] = ()

    def by_id(self, given: str) -> Person | None:
        """Whose secret has this public part; None: nobody's."""
        return next((one for one in self.people if one.id == given), None)

    def by_name(self, name: str) -> Person | None:
        """The person of that name; None: there is none."""
        return next((one for one in self.people if one.name == name), None)

    def with_person(self, person: Person) -> Roster:
        return replace(self, people=(*(one for one in self.people if one.name != person.name), person))

    def without(self, name: str) -> Roster:
        return replace(self, people=tuple(one for one in self.people if one.name != name))


def may(role: Role, needs: Role) -> bool:
    return ROLES.index(role) >= ROLES.index(needs)


def problem_of(name: str) -> str | None:
    """What is wrong with a name; None: nothing."""
    if _NAME.fullmatch(name):
        return None
    return f"got {name[:80]!r}; 1 to 64 letters, digits and . _ @ -, the first a letter or a digit"


def invite(name: str, role: Role, *, random_bytes: Callable[[int], bytes], now_s: float) -> tuple[Person, str]:
    public, salt = random_bytes(6).hex(), random_bytes(16).hex()
    secret = f"sfc_{public}_{random_bytes(32).hex()}"
    return Person(name=name, role=role, id=public, salt=salt, hash=_hashed(secret, salt), since_s=now_s), secret


def authenticate(roster: Roster, secret: str) -> Person | None:
    """Whose secret this is; None: nobody's. Takes as long either way."""
    found = _SECRET.fullmatch(secret)
    person = roster.by_id(found.group(1)) if found is not None else None
    given = _hashed(secret, person.salt if person is not None else "00" * 16)
    right = hmac.compare_digest(given, person.hash if person is not None else "00" * 32)
    return person if right and person is not None else None


def _hashed(secret: str, salt: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode("utf-8", "surrogatepass")[:1024]).hexdigest()
