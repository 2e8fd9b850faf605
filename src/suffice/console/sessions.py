"""What a browser carries after a login, and what it must show before a change: signed, short-lived, revocable.

    login ──▶ session (in a cookie) ──▶ who asks      csrf token (in the page) ──▶ the page was ours

A session names its person by the public part of the secret, so a reset of the secret ends it. A token belongs to one
session. Pure: key, time and randomness come in as arguments.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from dataclasses import dataclass

_SESSION = re.compile(r"([0-9a-f]{12})\.(\d{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    person_id: str  # public part of the secret that it was made with
    expires_s: int  # Unix time
    nonce: str  # tells two logins of one person apart


def write_session(session: Session, key: str) -> str:
    told = f"{session.person_id}.{session.expires_s}.{session.nonce}"
    return f"{told}.{signed(told, key, purpose='session')}"


def read_session(cookie: str, key: str, *, now_s: float) -> Session | None:
    """The session in a cookie; None: there is none that we signed, or it has expired."""
    found = _SESSION.fullmatch(cookie)
    if found is None:
        return None
    told, _, given = cookie.rpartition(".")
    session = Session(person_id=found.group(1), expires_s=int(found.group(2)), nonce=found.group(3))
    right = hmac.compare_digest(given, signed(told, key, purpose="session"))
    return session if right and now_s < session.expires_s else None


def token(what: str, key: str) -> str:
    return signed(what, key, purpose="csrf")


def is_token(given: str, what: str, key: str) -> bool:
    """Is this the token of that session? Takes as long either way."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token(what, key).encode())


def signed(text: str, key: str, *, purpose: str) -> str:
    """A keyed hash. `purpose` keeps what is signed for one use from being shown for another."""
    return hmac.new(bytes.fromhex(key), f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


class Attempts:
    """How often an address has tried in vain: a few tries at once, then one after the other.

    There is no bucket for everybody together: it would let a stranger lock all others out, and a secret of 256 random
    bits needs none.

    burst     tries that may follow each other at once
    refill_s  after which one more is allowed
    """

    def __init__(self, *, burst: int = 5, refill_s: float = 12.0, most_addresses: int = 10_000) -> None:
        self._burst, self._refill_s, self._most = burst, refill_s, most_addresses
        self._spent: dict[str, tuple[float, float]] = {}  # by address: tries that count, as of when (monotonic)

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
