"""What a version of a policy is called on a page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader, query_rows
from suffice.types import Publication

MOST_NAME_CHARS: Final = 80


def name_version(log: LogReader, version: str) -> str:
    """A fixed policy by its name and parameters; what was learned by its day and, after an @, its level."""
    address, _, level = version.partition("@")
    if address.startswith("pv-") and (kept := read_artefact(log, address)) is not None:
        body = msgspec.json.decode(kept.partition("\n")[2]).get("body", {})
        if "policy" in body:
            return name_policy(body)
    elif not address.startswith(("v-", "pv-")):
        return version
    rows = query_rows(log, "SELECT at_s FROM artefacts WHERE address = ?", (address,))
    learned = [datetime.fromtimestamp(at_s, UTC) for (at_s,) in rows]
    days = "".join(f" of {one.day} {one:%B}" for one in learned)
    return f"learned version{days}{f', level {level}' if level else ''}"


def name_policy(table: Mapping[str, Any]) -> str:
    """A fixed policy by its name and parameters, such as `stable-answer, streak 3`."""
    parts = [str(value) if key == "policy" else f"{key} {value}" for key, value in table.items()]
    return ", ".join(parts)[:MOST_NAME_CHARS]


def name_publication(log: LogReader, made: Publication) -> str:
    """The version of a publication without its level, which stands beside it; "": nothing was learned."""
    return name_version(log, made.fit or made.version.partition("@")[0])
