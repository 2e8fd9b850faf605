"""Who may call: a list of keys, compared in constant time. No list, no check.

A header that is malformed is treated as absent, and an absent one is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from suffice.errors import BadRequest

HEADER_LIMIT_CHARS = 4096


def check(headers: list[tuple[str, str]], keys: Sequence[str]) -> None:
    """Raises BadRequest 401 unless the request carries one of `keys`; passes when there are none."""
    given = [v for k, v in headers if k == "authorization"]
    if not keys:
        return
    if len(given) == 1 and len(given[0]) <= HEADER_LIMIT_CHARS:
        kind, _, key = given[0].partition(" ")
        if kind.lower() == "bearer" and key and " " not in key and _known(key, keys):
            return
    message = "authorization: needs 'Bearer KEY' with a key of this gateway"
    raise BadRequest(message, status=401, code="invalid_api_key")


def _known(key: str, keys: Sequence[str]) -> bool:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    found = False
    for one in keys:  # all of them, so that time tells nothing about which
        found |= hmac.compare_digest(digest, hashlib.sha256(one.encode()).digest())
    return found
