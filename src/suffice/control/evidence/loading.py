"""What was in force on a route at a place of the log, and learned versions by their address, each read once.

Knows rows and artefacts; refuses to know what is replayed with them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from suffice.control.evidence.fitting import ServedVersion, read_back
from suffice.errors import ConfigError
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader
from suffice.store.routes.windows import read_publications
from suffice.types import Publication


def published_on(connection: LogReader, route: str) -> Callable[[int], Publication | None]:
    """What was in force on a route at a place of the log. Raises StoreError."""
    rows = read_publications(connection, route)
    places, made = [seq for seq, _ in rows], [publication for _, publication in rows]

    def at(seq: int) -> Publication | None:
        before = bisect_right(places, seq)
        return made[before - 1] if before else None

    return at


def loader(
    connection: LogReader, known: dict[str, ServedVersion | None] | None = None
) -> Callable[[str], ServedVersion | None]:
    """Versions by their address; None: it is gone, or cannot be read.

    known  those that were read before; new ones are added
    """
    known = {} if known is None else known

    def load(address: str) -> ServedVersion | None:
        if address not in known:
            try:
                known[address] = read_back(address, read_artefact(connection, address))
            except ConfigError:
                known[address] = None
        return known[address]

    return load
