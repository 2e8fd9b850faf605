"""Secrets from the environment, the files beside the log, and fresh ids."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from suffice.errors import ConfigError
from suffice.files import file_mark, read_start
from suffice.rollout.assign import sender_key
from suffice.settings import Key, Settings, Upstream
from suffice.settings.checks import check_limits, key_problems
from suffice.store.database.location import local_path
from suffice.telemetry import LOG

if TYPE_CHECKING:  # commands need secrets and no gateway
    from suffice.gateway.auth import Caller, HashedKey, KeyRing
    from suffice.store.rows.events import KeyIssue
    from suffice.upstream.client import UpstreamClient

MOST_SECRET_BYTES: Final = 4_096


def create_id(prefix: str) -> str:
    """Return a fresh id; ids sort by their time."""
    return f"{prefix}_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}"


def api_key(name: str, upstream: Upstream) -> str | None:
    if upstream.api_key_file:
        return read_secret(f"upstreams.{name}.api_key_file", Path(upstream.api_key_file))
    return secret(f"upstreams.{name}.api_key_env", upstream.api_key_env)


def read_secret(where: str, file: Path) -> str:
    """Read a secret from a file of one line. Raises ConfigError, which never quotes it."""
    try:
        text = read_start(file, MOST_SECRET_BYTES).decode().strip()
    except OSError as error:
        raise ConfigError(f"{where}: {file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {file}: is not UTF-8") from None
    if not text or len(text) == MOST_SECRET_BYTES or not text.isprintable():
        raise ConfigError(f"{where}: {file}: needs one line with the secret and nothing else")
    return text


class SecretFiles:
    """Gives upstreams their keys anew when the files with them change, as a mounted secret does."""

    def __init__(self, upstreams: Mapping[str, UpstreamClient]) -> None:
        self._upstreams = upstreams  # as they are at each look
        self._marks: dict[str, tuple[object, ...]] = {}

    def refresh(self) -> None:
        for name, client in list(self._upstreams.items()):
            named = client.settings.api_key_file
            if not named:
                continue
            mark = client, file_mark(Path(named))
            if self._marks.get(name) == mark:
                continue
            self._marks[name] = mark
            try:
                client.api_key = read_secret(f"upstreams.{name}.api_key_file", Path(named))
            except ConfigError as error:
                LOG.error("%s; the key before it stays in use", error)


def secret(where: str, variable: str) -> str | None:
    """Read a secret from an environment variable; None: none is named. Raises ConfigError if it is missing."""
    if not variable:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"{where}: the environment has no {variable}")
    return key


def key_ring(settings: Settings, salt: str, issued: Sequence[KeyIssue] = ()) -> KeyRing:
    """The keys of clients; without any, everybody has access. Raises ConfigError for missing or shared keys.

    issued  from the log; they count only where `server.require_keys` is set, so that no row opens or closes a gateway
    """
    from suffice.gateway.auth import Caller, KeyRing

    server = settings.server
    callers = dict[str, Caller]()
    places = dict[str, str]()
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
    hashed = [one for each in issued if (one := _hashed_key(settings, each, salt)) is not None]
    return KeyRing(callers, hashed=hashed if server.require_keys else (), needed=server.require_keys)


def _caller(settings: Settings, where: str, key: str, salt: str) -> Caller:
    """The holder of a key. Several keys of one name are one caller, so that keys can be rotated."""
    from suffice.gateway.auth import Caller

    if where.startswith("server."):
        name = sender_key(f"Bearer {key}", salt=salt)
        return Caller(id=name, namespace=name, only_feedback=where == "server.feedback_keys_env")
    named = where.removeprefix("keys.").removesuffix(".key_env")
    return _named_caller(named, settings.keys[named], salt)


def _named_caller(name: str, permits: Key, salt: str) -> Caller:
    from suffice.gateway.auth import Caller

    sender = sender_key(f"key {name}", salt=salt)
    return Caller(id=sender, namespace=sender, name=name, permits=permits)


def _hashed_key(settings: Settings, issue: KeyIssue, salt: str) -> HashedKey | None:
    """A key of the log; None, with a warning, where these settings or this version cannot tell what it may do."""
    from suffice.gateway.auth import HashedKey

    try:
        permits = permits_of(issue.permits, settings)
        if issue.name in settings.keys:
            raise ConfigError(f"[keys.{issue.name}] of the settings has its name")
        return HashedKey(bytes.fromhex(issue.digest), _named_caller(issue.name, permits, salt), issue.until_s)
    except (ConfigError, ValueError) as error:
        LOG.warning("key %s of %s is not accepted: %s", issue.key_id, issue.name, error)
        return None


def permits_of(table: Mapping[str, Any], settings: Settings) -> Key:
    """Check what a key of the log may do as a table of the settings. Raises ConfigError."""
    try:
        permits = msgspec.convert({"key_env": "", **table}, Key)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    check_limits("key", permits)
    for field, problem in key_problems(permits, settings):
        raise ConfigError(f"{field}: {problem}")
    return permits


def deployment_salt(settings: Settings) -> str:
    given = os.environ.get("SUFFICE_SALT")
    if given:
        return given
    file = salt_file(settings)
    if not file.exists():
        _write_salt(file)
    return read_secret("the deployment's secret", file)


def has_secret(settings: Settings) -> bool:
    return bool(os.environ.get("SUFFICE_SALT")) or salt_file(settings).exists()


def salt_file(settings: Settings) -> Path:
    return local_path(settings.store).with_suffix(".salt")


def kill_file(settings: Settings) -> Path:
    named = settings.server.kill_file
    return Path(named) if named else local_path(settings.store).with_suffix(".kill")


def presence_files(settings: Settings) -> tuple[Path, ...]:
    return tuple(dict.fromkeys((kill_file(settings), local_path(settings.store).with_suffix(".kill"))))


def good_file(settings: Settings) -> Path:
    path = local_path(settings.store)
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
