"""A server's certificate of our own making, signed by itself: nothing is fetched, and no key lies in the repository.

ECDSA on P-256 with the plainest arithmetic there is: right for a test, and neither fast nor safe enough for more.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = tuple[int, int] | None  # None: infinity


def certified(folder: Path, *names: str) -> tuple[Path, Path]:
    """Files with a certificate for these names and addresses, and the same with its key behind it."""
    private = secrets.randbelow(N - 1) + 1
    public = times(private, G)
    assert public is not None
    point = b"\x04" + public[0].to_bytes(32, "big") + public[1].to_bytes(32, "big")
    body = unsigned(point, names)
    certificate = pem("CERTIFICATE", sequence(body, ECDSA_SHA256, bits(signature(private, body))))
    key = pem("EC PRIVATE KEY", sequence(whole(1), tagged(0x04, private.to_bytes(32, "big")), tagged(0xA0, CURVE)))
    alone, both = folder / "certificate.pem", folder / "with-key.pem"
    alone.write_text(certificate)
    both.write_text(certificate + key)
    return alone, both


# ---- the curve -------------------------------------------------------------------------------------


def plus(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return b if a is None else a
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    rise, run = (3 * a[0] * a[0] - 3, 2 * a[1]) if a == b else (b[1] - a[1], b[0] - a[0])
    slope = rise * pow(run, -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def times(k: int, point: Point) -> Point:
    result: Point = None
    while k:
        if k & 1:
            result = plus(result, point)
        point, k = plus(point, point), k >> 1
    return result


def signature(private: int, body: bytes) -> bytes:
    digest = int.from_bytes(hashlib.sha256(body).digest(), "big")
    nonce = secrets.randbelow(N - 1) + 1
    point = times(nonce, G)
    assert point is not None
    r = point[0] % N
    return sequence(whole(r), whole(pow(nonce, -1, N) * (digest + r * private) % N))


# ---- DER -------------------------------------------------------------------------------------------


def tagged(tag: int, content: bytes) -> bytes:
    n = len(content)
    size = bytes([n]) if n < 128 else bytes([0x80 + (n.bit_length() + 7) // 8]) + n.to_bytes((n.bit_length() + 7) // 8)
    return bytes([tag]) + size + content


def sequence(*parts: bytes) -> bytes:
    return tagged(0x30, b"".join(parts))


def whole(number: int) -> bytes:
    return tagged(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def bits(content: bytes, unused: int = 0) -> bytes:
    return tagged(0x03, bytes([unused]) + content)


def named(*arcs: int) -> bytes:
    """An object identifier."""
    result = bytes([40 * arcs[0] + arcs[1]])
    for arc in arcs[2:]:
        part = [arc & 0x7F]
        while arc := arc >> 7:
            part.insert(0, 0x80 | (arc & 0x7F))
        result += bytes(part)
    return tagged(0x06, result)


CURVE = named(1, 2, 840, 10045, 3, 1, 7)
ECDSA_SHA256 = sequence(named(1, 2, 840, 10045, 4, 3, 2))


def unsigned(point: bytes, names: tuple[str, ...]) -> bytes:
    """What is signed: a certificate for an hour, of an authority that is itself the server."""
    who = sequence(tagged(0x31, sequence(named(2, 5, 4, 3), tagged(0x0C, b"a server of ours"))))
    now = datetime.now(UTC)
    hour = [tagged(0x17, (now + timedelta(hours=h)).strftime("%y%m%d%H%M%SZ").encode()) for h in (-1, 1)]
    extensions = (
        extension(19, sequence(tagged(0x01, b"\xff")), critical=True),  # an authority …
        extension(15, bits(b"\x84", unused=2), critical=True),  # … that signs, also for itself
        extension(14, tagged(0x04, hashlib.sha256(point).digest()[:20])),  # name of its key
        extension(17, sequence(*(alternative(name) for name in names))),  # whom it is for
    )
    return sequence(
        tagged(0xA0, whole(2)),
        whole(secrets.randbits(63)),
        ECDSA_SHA256,
        who,
        sequence(*hour),
        who,
        sequence(sequence(named(1, 2, 840, 10045, 2, 1), CURVE), bits(point)),
        tagged(0xA3, sequence(*extensions)),
    )


def extension(arc: int, content: bytes, *, critical: bool = False) -> bytes:
    return sequence(named(2, 5, 29, arc), tagged(0x01, b"\xff") if critical else b"", tagged(0x04, content))


def alternative(name: str) -> bytes:
    try:
        return tagged(0x87, ipaddress.ip_address(name).packed)
    except ValueError:
        return tagged(0x82, name.encode())


def pem(kind: str, content: bytes) -> str:
    text = base64.b64encode(content).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""])
