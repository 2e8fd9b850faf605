"""Assigns requests to audits by a keyed hash of the request.

The gateway names the request (`gateway.context`); this file turns the name, the share and the salt into a draw.
It knows no clock and no random generator. The odds are written to the log with the draw, because nobody can
reconstruct them afterwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from suffice.settings.tables import LATER_SHARE

FIRST_REQUESTS = 20_000
FIRST_SHARE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAssignment:
    audit: bool  # run in full, every checkpoint recorded
    propensity: float  # P(this value of `audit`), in (0, 1]
    point: float  # where the unit fell, in [0, 1); an audit is a point below the share
    unit: str = ""  # a name for the unit, 16 hexadecimal digits, meaningless without the salt
    delivery: int = 1  # n: the n-th delivery of the same request; all deliveries share the draw of the first


UNASSIGNED = AuditAssignment(audit=False, propensity=1.0, point=0.0)  # of a request that nothing governs


def assign_audit(unit: str, *, share: float, salt: str) -> AuditAssignment:
    """Draw whether a unit is audited. A unit that is drawn at one share is drawn at every larger share too.

    unit   what is drawn for, such as one request with its retries
    share  probability of an audit, in [0, 1]; 0 never and 1 always, exactly
    salt   secret of the deployment and name of the lottery; draws under another salt are independent

    Raises ValueError for a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"assign_audit: share must be in [0, 1], got {share}")
    point = point_of(unit, salt=salt, purpose=b"audit-lot")
    audit = point < share
    name = keyed(unit, salt=salt, purpose=b"lot-unit", n_bytes=8).hex()
    return AuditAssignment(audit=audit, propensity=share if audit else 1.0 - share, point=point, unit=name)


def audit_share(n_requests_so_far: int, configured: float | None) -> float:
    """The share of a route's requests to audit now: what its owner wrote, else 10 %, later 5 %.

    n_requests_so_far  of this route, the present one not counted; the first 20,000 draw at 0.10
    configured         fraction from the settings; None: not written

    Raises ValueError for a negative count or a fraction outside [0, 1].
    """
    if n_requests_so_far < 0:
        raise ValueError(f"audit_share: n_requests_so_far must be at least 0, got {n_requests_so_far}")
    if configured is None:
        return FIRST_SHARE if n_requests_so_far < FIRST_REQUESTS else LATER_SHARE
    if not 0.0 <= configured <= 1.0:
        raise ValueError(f"audit_share: configured must be in [0, 1], got {configured}")
    return configured


def question_key(text: str, *, salt: str) -> str:
    """A name for a prompt that groups its repeats: 16 hexadecimal digits, meaningless without the salt.

    text  the prompt, to the letter: another space is another question
    """
    return keyed(text, salt=salt, purpose=b"question-key", n_bytes=8).hex()


def conversation_key(sender: str, conversation: str, *, salt: str) -> str:
    """A name for one sender's conversation: 16 hexadecimal digits, meaningless without the salt.

    sender  of `sender_key`, or "": the same id under two API keys names two conversations
    """
    return keyed(joined(sender, conversation), salt=salt, purpose=b"conversation", n_bytes=8).hex()


def joined(*parts: str | None) -> str:
    """Join parts into one text, so that different parts never give the same text. None differs from ""."""
    return "".join("-" if part is None else f"{len(part)}:{part}" for part in parts)


def sender_key(key: str, *, salt: str) -> str:
    """A name for whoever holds an API key: 16 hexadecimal digits, meaningless without the salt; "" without a key."""
    return keyed(key, salt=salt, purpose=b"sender", n_bytes=8).hex() if key else ""


def point_of(unit: str, *, salt: str, purpose: bytes) -> float:
    """Where a unit falls in [0, 1): the same everywhere and always; another salt or purpose is another lottery."""
    number = int.from_bytes(keyed(unit, salt=salt, purpose=purpose, n_bytes=8), "big")
    return (number >> 11) / 2**53  # a float holds 53 bits


def keyed(text: str, *, salt: str, purpose: bytes, n_bytes: int) -> bytes:
    """A keyed hash. `purpose`, of at most 16 bytes, keeps the lot and the key of one text apart."""
    # Broken Unicode must draw a lot like anything else. A key holds 64 bytes at most: hash the salt first.
    key = _key_of(salt)
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, key=key, person=purpose, digest_size=n_bytes).digest()


@lru_cache(maxsize=64)
def _key_of(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass")).digest()
