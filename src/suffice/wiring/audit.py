"""Records the settings of each process in the audit log, without secrets, and keeps the key of its signatures."""

from __future__ import annotations

import getpass
import re
import secrets
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from suffice.errors import ConfigError
from suffice.model.artefact import load_model
from suffice.settings import Settings
from suffice.store.audit.chain import signing_key
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation
from suffice.store.database.views import newest_event
from suffice.store.rows.events import ConfigChange, Export, SettingChange
from suffice.wiring.keys import deployment_salt, has_secret

MOST_TEXT: Final = 2_000  # characters of a value that are recorded; of a longer one, a digest
HIDDEN: Final = '"(hidden)"'
_SECRET: Final = re.compile(r"(secret|password|passwd|token|api_key|credential|webhook)s?$")
_ADDRESS: Final = re.compile(r"^([a-z][a-z0-9+.-]*://)([^/@\s]*@)?([^?#\s]*)([?#].*)?$", re.DOTALL)


def user_name() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def audit_key(settings: Settings) -> bytes | None:
    """The key that signs exported heads; None: its secret does not exist yet. Raises ConfigError."""
    return signing_key(deployment_salt(settings)) if has_secret(settings) else None


def config_change(
    settings: Settings, path: LogLocation, *, process: str, author: str | None = None, reason: str | None = None
) -> ConfigChange | None:
    """Compare the settings with those recorded last; None: no difference. Raises StoreError.

    author  who reloaded them; None: the process was started with them
    """
    current = loggable_settings(settings)
    before = newest_event(path, ConfigChange)
    known = None if before is None else before.settings
    if known == current:
        return None
    changes = () if known is None else differences(known, current)
    user = user_name()
    if reason is None or known is None:
        first = "the first settings that were recorded"
        reason = first if known is None else f"{process} started with other settings"
    return ConfigChange(
        number=1 if before is None else before.number + 1,
        author=author or (f"{process}, {user}" if user else "file"),
        reason=reason,
        changes=changes,
        settings=current,
    )


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[SettingChange, ...]:
    return tuple(
        SettingChange(path=path, before=before.get(path), after=after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    )


def note_export(writer: Decisions, *, what: str, where: str, n_rows: int, author: str | None, reason: str) -> None:
    """Record that data left the log; the default author is this computer's user. Raises StoreError."""
    name, author = f"ex_{secrets.token_hex(8)}", author or user_name() or "unknown"
    writer.write_new(Export(export_id=name, author=author, reason=reason, what=what, where=where, n_rows=n_rows))


def loggable_settings(settings: Settings) -> dict[str, str]:
    """All settings in loggable form, path to JSON. Settings hold no secrets; what looks like one is masked."""
    return dict(_collected(with_addresses(msgspec.to_builtins(settings)), ""))


def _collected(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _collected(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, _loggable(path, value)


def _loggable(path: str, value: Any) -> str:
    if isinstance(value, str) and value and _SECRET.search(path):
        return HIDDEN
    text = msgspec.json.encode(_masked(value)).decode()
    return text if len(text) <= MOST_TEXT else f'"sha256 {sha256(text.encode()).hexdigest()}, {len(text)} characters"'


def _masked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_masked(one) for one in value]
    if isinstance(value, dict):
        return {key: _masked(one) for key, one in value.items()}
    match = _ADDRESS.match(value) if isinstance(value, str) else None
    if match is None:
        return value
    scheme, user, place, query = match.groups()
    return f"{scheme}{'***@' if user else ''}{place}{'?***' if query else ''}"


def with_addresses(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("policy") == "learned" and isinstance(value.get("model"), dict):
            return {**value, "model": _address(value["model"])}
        return {key: with_addresses(inner) for key, inner in value.items()}
    return [with_addresses(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _address(model: Any) -> str:
    try:
        return load_model(model).address
    except ConfigError:
        return f"sha256 {sha256(msgspec.json.encode(model)).hexdigest()}"  # invalid: refused elsewhere, with the reason
