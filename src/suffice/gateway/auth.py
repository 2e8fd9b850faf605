"""Who may call: a list of keys, compared in constant time. No list, no check.

A header that is malformed is treated as absent, and an absent one is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from suffice.errors import BadRequest
from suffice.upstream.client import KEY_HEADERS

HEADER_LIMIT_CHARS = 4096


def check(headers: list[tuple[str, str]], keys: Sequence[str], *, x_api_key: bool = False) -> None:
    """Raises BadRequest 401 unless the request carries one of `keys`; passes when there are none.

    x_api_key  the header `x-api-key: KEY` is as good as `authorization: Bearer KEY`
    """
    if not keys or holds(headers, keys, x_api_key=x_api_key):
        return
    message = "authorization: needs 'Bearer KEY' with a key of this gateway"
    raise BadRequest(message, status=401, code="invalid_api_key")


def holds(headers: list[tuple[str, str]], keys: Sequence[str], *, x_api_key: bool = False) -> bool:
    """Does the request carry one of `keys`? Never where there are none."""
    given = [_bearer(v) for v in _once(headers, "authorization")]
    given += _once(headers, "x-api-key") if x_api_key else []
    return any(_known(key, keys) for key in given if key and " " not in key)


def without_keys(headers: list[tuple[str, str]], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Headers fit to be sent upstream: where the gateway has keys of its own, no header with a key is."""
    return [(k, v) for k, v in headers if k not in KEY_HEADERS] if keys else headers


def _once(headers: list[tuple[str, str]], name: str) -> list[str]:
    given = [v for k, v in headers if k == name]
    return given if len(given) == 1 and len(given[0]) <= HEADER_LIMIT_CHARS else []


def _bearer(value: str) -> str:
    kind, _, key = value.partition(" ")
    return key if kind.lower() == "bearer" else ""


def _known(key: str, keys: Sequence[str]) -> bool:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    found = False
    for one in keys:  # all of them, so that time tells nothing about which
        found |= hmac.compare_digest(digest, hashlib.sha256(one.encode()).digest())
    return found
