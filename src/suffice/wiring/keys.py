"""What stands in the environment and beside the log: keys, the salt, the kill switch; and fresh ids."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from suffice.errors import ConfigError
from suffice.settings import Settings, Upstream
from suffice.store.database.sqlite import database_path

if TYPE_CHECKING:
    pass




def api_key(name: str, upstream: Upstream) -> str | None:
    """An upstream's key from the environment; None: it has none. Raises ConfigError where it is missing."""
    return secret(f"upstreams.{name}.api_key_env", upstream.api_key_env)


def secret(where: str, variable: str) -> str | None:
    """What an environment variable holds; None: none was named. Raises ConfigError where it is missing."""
    if not variable:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"{where}: the environment has no {variable}")
    return key


def client_keys(settings: Settings) -> tuple[str, ...]:
    """The keys that clients may come with; none: everybody may. Raises ConfigError where they are missing."""
    name = settings.server.api_keys_env
    if not name:
        return ()
    keys = split_keys(os.environ.get(name, ""))
    if not keys:
        raise ConfigError(f"server.api_keys_env: the environment has no keys in {name}")
    return keys


def feedback_keys(settings: Settings) -> tuple[str, ...]:
    """The keys that are for feedback alone; none: there are none. Raises ConfigError."""
    name = settings.server.feedback_keys_env
    if not name:
        return ()
    keys = split_keys(os.environ.get(name, ""))
    if not keys:
        raise ConfigError(f"server.feedback_keys_env: the environment has no keys in {name}")
    if set(keys) & set(client_keys(settings)):
        message = f"a key in {name} stands in {settings.server.api_keys_env} as well; it must be for one of the two"
        raise ConfigError(f"server.feedback_keys_env: {message}")
    return keys


def split_keys(keys: str) -> tuple[str, ...]:
    """Keys as an environment variable holds them, separated by commas."""
    return tuple(k.strip() for k in keys.split(",") if k.strip())


def deployment_salt(settings: Settings) -> str:
    """The secret that keys lots and question keys: SUFFICE_SALT, else one kept beside the database."""
    given = os.environ.get("SUFFICE_SALT")
    if given:
        return given
    file = _salt_file(settings)
    if not file.exists():
        _write_salt(file)
    salt = file.read_text(encoding="utf-8").strip()
    if not salt:
        raise ConfigError(f"{file}: is empty; it must hold the secret of this log: restore it or delete it")
    return salt


def has_secret(settings: Settings) -> bool:
    """Has the deployment a secret already? To ask makes none."""
    return bool(os.environ.get("SUFFICE_SALT")) or _salt_file(settings).exists()


def _salt_file(settings: Settings) -> Path:
    return database_path(settings.store.url).with_suffix(".salt")


def kill_file(settings: Settings) -> Path:
    """The file that pulls the kill switch: the one that the settings name, else one beside the database."""
    named = settings.server.kill_file
    return Path(named) if named else database_path(settings.store.url).with_suffix(".kill")


def presence_files(settings: Settings) -> tuple[Path, ...]:
    """Beside which of these files running gateways announce themselves: the kill switch's, else the log's default."""
    return tuple(dict.fromkeys((kill_file(settings), database_path(settings.store.url).with_suffix(".kill"))))


def good_file(settings: Settings) -> Path:
    """The last-good file: the one that the settings name, else one beside the database."""
    path = database_path(settings.store.url)
    return Path(settings.store.last_good_file) if settings.store.last_good_file else path.with_name(f"{path.name}.good")


def _write_salt(file: Path) -> None:
    """Make the file whole or not at all; of several processes at once, the first one's salt stays."""
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


class Randomness:
    """Random bytes of the system, taken from it in blocks: asking costs more than the few that an id needs."""

    def __init__(self, block_bytes: int = 4_096) -> None:
        self._size = block_bytes
        self._block, self._at = b"", 0

    def take(self, n_bytes: int) -> bytes:
        """The next bytes; none is given twice. `n_bytes` is at most the size of a block."""
        if self._at + n_bytes > len(self._block):
            self._block, self._at = os.urandom(self._size), 0
        self._at += n_bytes
        return self._block[self._at - n_bytes : self._at]


_RANDOM = Randomness()


def new_id() -> str:
    """A fresh episode id: sortable by time, unguessable."""
    return f"ep_{int(time.time() * 1e3):011x}{_RANDOM.take(8).hex()}"
