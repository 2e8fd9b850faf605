"""Reads evidence as a deployment's settings say: of a rollout, of a verdict's effect, and of a certificate, sealed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from suffice.control.compare.assessment import Assessment, standing_of
from suffice.control.evidence.cold_start import window_size
from suffice.control.evidence.label_effects import verdict_effect
from suffice.control.jobs.bundle import evidence_of
from suffice.edge.math import open_match
from suffice.errors import ConfigError
from suffice.formatting import format_iso
from suffice.review.agreement import VerdictEffect
from suffice.settings import Settings
from suffice.store.audit.chain import append_line, extract, line_of, signing_key
from suffice.store.database.location import log_location
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import read_reviews
from suffice.store.routes.rollouts import RolloutRun
from suffice.wiring.audit import note_export
from suffice.wiring.keys import deployment_salt
from suffice.wiring.worker import open_decisions


def read_assessment(settings: Settings, held: RolloutRun) -> Assessment:
    """Raises ConfigError for a version that cannot be read, and StoreError."""
    secret, now_s = deployment_salt(settings), time.time()
    with open_reader(log_location(settings.store)) as connection:
        return standing_of(connection, held, settings, open_match, secret=secret, now_s=now_s)


def read_verdict_effect(settings: Settings, item: str) -> VerdictEffect | None:
    """Return the effect of an item's verdicts so far; None: it was never queued, or its route is in no settings."""
    path = log_location(settings.store)
    place = read_reviews(path).queue.places.get(item)
    route = settings.routes.get(place.item.route) if place is not None else None
    if route is None:
        return None
    with open_match(route) as match:
        return verdict_effect(path, item, route, match, window=window_size(settings.control, route.max_em_drop))


def write_bundle(
    settings: Settings, route: str, number: int | None, *, where: str, author: str | None, reason: str
) -> Sequence[bytes]:
    """Export a bundle of evidence as lines, and append the log's head to `audit.file`.

    Its digest goes into the audit log, and the head after that row into the bundle. Raises ConfigError and StoreError.
    """
    if route not in settings.routes:
        raise ConfigError(f"route {route!r} is not in the settings; there are {', '.join(sorted(settings.routes))}")
    path = log_location(settings.store)
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
    signed = line_of(end, at=format_iso(time.time()), key=signing_key(deployment_salt(settings)))
    if settings.audit.file:
        append_line(Path(settings.audit.file), signed)
    tail.append({"type": "head", "head": msgspec.json.decode(signed)})
    return [*lines, *(msgspec.json.encode(line) + b"\n" for line in tail)]
