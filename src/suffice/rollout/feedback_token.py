"""Signs the token that comes with an answer: its holder may rate that one answer, and no other.

    episode, end of its time, salt ──▶ sign ──▶ token ──▶ read ──▶ the episode, or why not

HMAC-SHA-256 under a key made of the deployment's salt, cut to 128 bits. It opens nothing else: whoever may read an
answer may rate it, so the token may go to a browser, where a key must not.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from suffice.errors import BadRequest

HEADER = "x-suffice-feedback-token"
VERSION = "v1"
MOST_CHARS = 400  # a longer one is none of ours
_MAC_CHARS = 32  # hexadecimal digits that are kept


def sign(episode_id: str, *, until_s: int, salt: str) -> str:
    """The token of one answer.

    until_s  Unix time behind which it opens nothing any more
    salt     secret of the deployment
    """
    told = f"{VERSION}.{episode_id}.{until_s:x}"
    return f"{told}.{_mac(told, salt)}"


def header(token: str) -> list[tuple[str, str]]:
    """The header of a reply that carries a token; "": none."""
    return [(HEADER, token)] if token else []


def read_token(token: str, *, now_s: float, salt: str) -> str:
    """The episode that a token is for. Raises BadRequest 401 for one that is forged, damaged or too old."""
    told, _, mac = token.rpartition(".")
    genuine = hmac.compare_digest(_mac(told, salt).encode(), mac.encode("utf-8", "surrogatepass"))
    if len(token) > MOST_CHARS or not genuine:
        message = "feedback token: is none of this gateway's; send the one that came with the answer, as it came"
        raise BadRequest(message, status=401, param="token", code="invalid_feedback_token")
    head, _, until = told.rpartition(".")
    if now_s > int(until, 16):
        message = "feedback token: its time is over; feedback on this answer now needs a key"
        raise BadRequest(message, status=401, param="token", code="expired_feedback_token")
    return head.partition(".")[2]


def _mac(told: str, salt: str) -> str:
    return hmac.digest(_key_of(salt), told.encode("utf-8", "surrogatepass"), "sha256").hex()[:_MAC_CHARS]


@lru_cache(maxsize=8)
def _key_of(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), person=b"feedback-token").digest()
