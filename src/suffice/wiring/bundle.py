"""Seals a bundle of evidence: its digest goes into the audit log, and the log's head after that row into the bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from suffice.control.jobs.bundle import evidence_of
from suffice.edge.math import open_match
from suffice.errors import ConfigError
from suffice.settings import Settings
from suffice.store.audit.chain import append_line, extract, line_of, signing_key
from suffice.store.database.sqlite import database_path
from suffice.store.database.views import open_reader
from suffice.wiring.audit import note_export
from suffice.wiring.keys import deployment_salt
from suffice.wiring.worker import open_decisions


def write_bundle(
    settings: Settings, route: str, number: int | None, *, where: str, author: str | None, reason: str
) -> Sequence[bytes]:
    """Export a bundle as lines, and append the log's head to `audit.file`. Raises ConfigError and StoreError."""
    if route not in settings.routes:
        raise ConfigError(f"route {route!r} is not in the settings; there are {', '.join(sorted(settings.routes))}")
    path = database_path(settings.store.url)
    with open_match(settings.routes[route]) as match, open_reader(path) as connection:
        evidence = evidence_of(connection, route, settings, match, number)
    lines, seal = list[bytes](), bytes(32)
    for line in (evidence.header, *evidence.requests):
        lines.append(msgspec.json.encode(line) + b"\n")
        seal = sha256(seal + lines[-1]).digest()
    made = evidence.header["publication"]
    what = f"evidence of publication {made} of route {route}, sealed {seal.hex()}"
    with open_decisions(settings, create=False) as writer:
        note_export(writer, what=what, where=where, n_rows=len(evidence.requests), author=author, reason=reason)
    with open_reader(path) as connection:
        end, tail = extract(connection, evidence.rows, exported=what)
    signed = line_of(
        end,
        at=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        key=signing_key(deployment_salt(settings)),
    )
    if settings.audit.file:
        append_line(Path(settings.audit.file), signed)
    tail.append({"type": "head", "head": msgspec.json.decode(signed)})
    return [*lines, *(msgspec.json.encode(line) + b"\n" for line in tail)]
