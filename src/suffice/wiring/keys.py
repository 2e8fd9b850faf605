"""Secrets from the environment, the files beside the log, and fresh ids."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from suffice.errors import ConfigError
from suffice.rollout.assign import sender_key
from suffice.settings import Settings, Upstream
from suffice.store.database.sqlite import database_path

if TYPE_CHECKING:  # commands need secrets and no gateway
    from suffice.gateway.auth import Caller, KeyRing


def create_id(prefix: str) -> str:
    """Return a fresh id; ids sort by their time."""
    return f"{prefix}_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}"


def api_key(name: str, upstream: Upstream) -> str | None:
    return secret(f"upstreams.{name}.api_key_env", upstream.api_key_env)


def secret(where: str, variable: str) -> str | None:
    """Read a secret from an environment variable; None: none is named. Raises ConfigError if it is missing."""
    if not variable:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"{where}: the environment has no {variable}")
    return key


def key_ring(settings: Settings, salt: str) -> KeyRing:
    """The keys of clients; without any, everybody has access. Raises ConfigError for missing or shared keys."""
    from suffice.gateway.auth import Caller, KeyRing

    server, callers, places = settings.server, dict[str, Caller](), dict[str, str]()
    variables = {"server.api_keys_env": server.api_keys_env, "server.feedback_keys_env": server.feedback_keys_env}
    variables |= {f"keys.{name}.key_env": key.key_env for name, key in settings.keys.items()}
    for where, variable in variables.items():
        keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
        if variable and not keys:
            raise ConfigError(f"{where}: the environment has no keys in {variable}")
        for key in keys:
            if places.setdefault(key, where) != where:
                raise ConfigError(f"{where}: a key in {variable} is also a key of {places[key]}; keys cannot be shared")
            callers[key] = _caller(settings, where, key, salt)
    return KeyRing(callers)


def _caller(settings: Settings, where: str, key: str, salt: str) -> Caller:
    """The holder of a key. Several keys of one name are one caller, so that keys can be rotated."""
    from suffice.gateway.auth import Caller

    if where.startswith("server."):
        name = sender_key(f"Bearer {key}", salt=salt)
        return Caller(id=name, namespace=name, only_feedback=where == "server.feedback_keys_env")
    named = where.removeprefix("keys.").removesuffix(".key_env")
    name = sender_key(f"key {named}", salt=salt)
    return Caller(id=name, namespace=name, name=named, permits=settings.keys[named])


def deployment_salt(settings: Settings) -> str:
    given = os.environ.get("SUFFICE_SALT")
    if given:
        return given
    file = salt_file(settings)
    if not file.exists():
        _write_salt(file)
    salt = file.read_text(encoding="utf-8").strip()
    if not salt:
        raise ConfigError(f"{file}: is empty; it must hold this log's secret: restore it or delete it")
    return salt


def has_secret(settings: Settings) -> bool:
    return bool(os.environ.get("SUFFICE_SALT")) or salt_file(settings).exists()


def salt_file(settings: Settings) -> Path:
    return database_path(settings.store.url).with_suffix(".salt")


def kill_file(settings: Settings) -> Path:
    named = settings.server.kill_file
    return Path(named) if named else database_path(settings.store.url).with_suffix(".kill")


def presence_files(settings: Settings) -> tuple[Path, ...]:
    return tuple(dict.fromkeys((kill_file(settings), database_path(settings.store.url).with_suffix(".kill"))))


def good_file(settings: Settings) -> Path:
    path = database_path(settings.store.url)
    return Path(settings.store.last_good_file) if settings.store.last_good_file else path.with_name(f"{path.name}.good")


def _write_salt(file: Path) -> None:
    """Create the file atomically; if several processes do so at once, the first one's salt stays."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(secrets.token_hex(16))
            handle.flush()
            os.fsync(handle.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink(missing_ok=True)
