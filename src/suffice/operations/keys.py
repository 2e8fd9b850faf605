"""What people do with the keys of clients."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Final

from suffice.operations.fields import FormInput
from suffice.operations.operation import OperationContext, OperationResult, operation, raise_if_refused
from suffice.store.people.keys import KeyOffice, live_keys, valid_keys

HOUR_S: Final = 3_600.0
_SETTINGS: Final = "/console/settings"


def office_of(by: OperationContext) -> KeyOffice:
    return KeyOffice(writer=by.writer, **by.signed, now_s=by.now_s, random_bytes=secrets.token_bytes)


def _holders(view: Any) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((one.name, one.name) for one in live_keys(valid_keys(view.connection), view.now_s))


@operation(
    "/keys/rotate",
    "give the holder of a key another one",
    {
        "name": FormInput("of its holder", "choice", _holders, required=True),
        "overlap_hours": FormInput(
            "how long the old key stays valid", "number", default="24", range=(0, 24 * 366), metavar="H"
        ),
    },
    title="Rotate a key",
    commands=("key rotate",),
    goes_to=_SETTINGS,
    needs="admin",
)
def rotate_key(by: OperationContext, name: str, overlap_hours: float | None) -> OperationResult:
    """Give the holder of NAME a new key with the same permissions; the old one ends after the overlap."""
    hours = 24.0 if overlap_hours is None else overlap_hours
    rotated = office_of(by).rotate(name, overlap_s=hours * HOUR_S)
    made = raise_if_refused(rotated, f"key {name} ", fields={"": "name"})
    return OperationResult(
        f"{name} has another key, not shown again; the old one ends in {hours:g} h.",
        {"name": name, "key_id": made.issue.key_id, "key": made.key},
        secret=made.key,
    )


@operation(
    "/keys/revoke",
    "end a key now",
    {"name": FormInput("of its holder, or an id", "choice", _holders, required=True)},
    title="Revoke a key",
    commands=("key revoke",),
    goes_to=_SETTINGS,
    needs="admin",
)
def revoke_key(by: OperationContext, name: str) -> OperationResult:
    """End all keys of NAME now, or the one key with this id."""
    n = raise_if_refused(office_of(by).revoke(name), f"key {name} ", fields={"": "name"})
    return OperationResult(f"{n} of {name} ended.", {"name": name, "n_ended": n})
