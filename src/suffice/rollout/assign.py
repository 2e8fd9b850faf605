"""Assigns requests to audits by a keyed hash of the request.

The hash needs no random generator. The odds are logged with the assignment, because they cannot be reconstructed
afterwards. Each UTC day has a salt of its own, which is published when the day is over, so that anybody can draw again.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from suffice.records import frozen_struct
from suffice.settings.limits import LATER_SHARE

FIRST_REQUESTS = 20_000
FIRST_SHARE = 0.10
DAY_S: Final = 86_400.0
LAST_DAY: Final = 2**15  # since 1970, in 2059: the salts of all days are derived from this day's, backwards
REPEAT_SHARE = 0.1  # of second calls in audits: full runs, which measure how often the model differs from itself


@frozen_struct
class AuditAssignment:
    audit: bool  # run in full, every checkpoint recorded
    propensity: float  # P(this value of `audit`), in (0, 1]
    unit: str = ""  # a name for the unit, 16 hexadecimal digits, meaningless without the salt
    delivery: int = 1  # n: the n-th delivery of the same request; all deliveries share the draw of the first


UNASSIGNED = AuditAssignment(audit=False, propensity=1.0)  # of an ungoverned request


def assign_audit(unit: str, *, share: float, salt: str, at_s: float) -> AuditAssignment:
    """Assign a unit to an audit or not. A unit audited at one share is audited at every larger share too, that day.

    share  probability of an audit, in [0, 1]; exact at 0 and 1
    salt   secret of the deployment and name of the assignment; assignments with different salts are independent
    at_s   Unix time

    """
    name = unit_name(unit, salt=salt)
    audit = point_of(name, salt=day_salt(int(at_s // DAY_S), salt=salt), purpose=b"audit-lot") < share
    return AuditAssignment(audit=audit, propensity=share if audit else 1.0 - share, unit=name)


@lru_cache(maxsize=16)
def day_salt(day: int, *, salt: str) -> str:
    """Return the salt of a day's draws, 64 hexadecimal digits. Its SHA-256 is the salt of the day before.

    So a salt that is published gives those of all earlier days, none of a later one, and binds whoever published it to
    all later ones. It takes 5 ms, once a day.
    """
    digest = keyed("", salt=salt, purpose=b"salts-of-days", n_bytes=32)
    for _ in range(LAST_DAY - day):
        digest = hashlib.sha256(digest).digest()
    return digest.hex()


def unit_name(unit: str, *, salt: str) -> str:
    return keyed(unit, salt=salt, purpose=b"lot-unit", n_bytes=8).hex()


def audit_share(n_requests_so_far: int, configured: float | None) -> float:
    """Return the share of a route's requests to audit now: as configured, else 0.10 for the first 20,000, then 0.05."""
    if configured is not None:
        return configured
    return FIRST_SHARE if n_requests_so_far < FIRST_REQUESTS else LATER_SHARE


def question_key(text: str, *, salt: str) -> str:
    """Return a key that groups exact repeats of a prompt: 16 hexadecimal digits, meaningless without the salt."""
    return keyed(text, salt=salt, purpose=b"question-key", n_bytes=8).hex()


def conversation_key(sender: str, conversation: str, *, salt: str) -> str:
    """Return a key for one conversation of one sender (`sender_key`, or ""), as `question_key` does."""
    return keyed(joined(sender, conversation), salt=salt, purpose=b"conversation", n_bytes=8).hex()


def joined(*parts: str | None) -> str:
    """Join parts into one text, injectively. None differs from ""."""
    return "".join("-" if part is None else f"{len(part)}:{part}" for part in parts)


def sender_key(key: str, *, salt: str) -> str:
    """Return a key for an API key's holder: 16 hexadecimal digits, meaningless without the salt; "" without a key."""
    return keyed(key, salt=salt, purpose=b"sender", n_bytes=8).hex() if key else ""


def point_of(unit: str, *, salt: str, purpose: bytes) -> float:
    """Return the unit's point in [0, 1), a pure function; another salt or purpose gives an independent point."""
    number = int.from_bytes(keyed(unit, salt=salt, purpose=purpose, n_bytes=8), "big")
    return (number >> 11) / 2**53  # a float holds 53 bits


def keyed(text: str, *, salt: str, purpose: bytes, n_bytes: int) -> bytes:
    """Return a keyed hash. `purpose`, of at most 16 bytes, separates the point and the key of one text."""
    # Accept broken Unicode too. A BLAKE2 key holds 64 bytes at most: hash the salt first.
    key = _key_of(salt)
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, key=key, person=purpose, digest_size=n_bytes).digest()


@lru_cache(maxsize=64)
def _key_of(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass")).digest()
