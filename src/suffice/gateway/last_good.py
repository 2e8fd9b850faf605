"""The last-good file: what a gateway served last, signed together with its time, for when the log cannot be read.

Nothing is parsed before its signature is checked. The file holds no address, prompt or question, of keys only hashes,
and neither experiments nor rollout stages, because nobody can watch them without a log.
"""

from __future__ import annotations

import contextlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from suffice.errors import ConfigError
from suffice.files import whole_file
from suffice.review.holds import Override
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import KeyIssue, KillSwitchState
from suffice.telemetry import LOG
from suffice.types import Findings

MOST_BYTES: Final = 64 * 2**20
MOST_AHEAD_S: Final = 60.0  # how far the file's time may lie ahead of this clock
_MARK: Final = b"suffice-last-good/1"
_FIRST_LINE: Final = re.compile(rb"suffice-last-good/1 ([0-9a-f]{64}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodRoute:
    held: RouteDeployment  # with the publication actually served
    overrides: tuple[Override, ...] = ()  # not ended by a person; each expires at its own time
    standing: Mapping[str, Any] | None = None  # policy of the latest complete rollout; None: none
    active_policy: str = ""  # address of that policy
    instead_of: str = ""  # address of the policy in the settings, which it replaces
    refused: str | None = None  # why the route must not be enforced; None: it may
    n_requests: int = 0

    @property
    def matters(self) -> bool:
        return self.held.level > 0 or self.held.pause is not None or bool(self.overrides) or self.standing is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LastGood:
    at_s: float  # Unix time at which the log was last read
    seq: int  # place in the log of its newest decision
    killed: KillSwitchState | None = None  # the newest order for all replicas
    routes: Mapping[str, GoodRoute] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)  # by address, as `learn.version` writes them
    findings: Mapping[str, Findings] = field(default_factory=dict)  # of upstreams, by name
    keys: tuple[KeyIssue, ...] = ()  # hashes of the clients' keys that the log had

    @property
    def matters(self) -> bool:
        return any(one.matters for one in self.routes.values()) or (self.killed is not None and self.killed.on)


def seal_last_good(good: LastGood, *, secret: str) -> bytes:
    """Return the content, signed by HMAC-SHA256. Raise ConfigError without a secret, ValueError for no JSON."""
    content = msgspec.json.encode(good, order="deterministic")
    return b"%b %b %b\n%b" % (_MARK, sha256(content).hexdigest().encode(), _signature(content, secret), content)


def open_sealed(source: bytes, *, secret: str, now_s: float, most_s: float) -> LastGood:
    """Raise ConfigError with one sentence why a file is not served: not genuine, unreadable, or `most_s` old."""
    if len(source) > MOST_BYTES:
        raise ConfigError(f"got {len(source):,} bytes; at most {MOST_BYTES:,}")
    line, _, content = source.partition(b"\n")
    match = _FIRST_LINE.fullmatch(line)
    if match is None:
        raise ConfigError("is not a last-good file: its first line is broken")
    if not hmac.compare_digest(sha256(content).hexdigest().encode(), match[1]):
        raise ConfigError("its content is not what was written: changed, or cut off")
    if not hmac.compare_digest(_signature(content, secret), match[2]):
        raise ConfigError("its signature was not made with this deployment's secret")
    try:
        good = msgspec.json.decode(content, type=LastGood)
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise ConfigError(f"was written by another version of Suffice ({error})") from None
    age_s = now_s - good.at_s
    if age_s < -MOST_AHEAD_S:
        raise ConfigError(f"its time lies {-age_s:,.0f} s ahead of this computer's clock")
    if age_s >= most_s:
        raise ConfigError(f"is {age_s:,.0f} s old, and may be served for {most_s:,.0f} s (store.last_good_s)")
    return good


def read_last_good(file: Path, *, secret: str, now_s: float, most_s: float) -> LastGood | None:
    """Return None without a file. Raise ConfigError with its name and why it cannot be served."""
    try:
        with file.open("rb") as handle:
            source = handle.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        return open_sealed(source, secret=secret, now_s=now_s, most_s=most_s)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def write_last_good(file: Path, good: LastGood, *, secret: str) -> None:
    """Replace the file atomically. Raise OSError, ConfigError or ValueError, and then keep the old one."""
    content = seal_last_good(good, secret=secret)
    with whole_file(file) as part:
        part.write_bytes(content)


class LastGoodWriter:
    """Writes one gateway's last-good file after each change, and every `every_s` to renew its time.

    A change that cannot be written deletes the file: no file is safer than one that misses a rollback.
    """

    def __init__(self, file: Path, *, secret: str, monotonic_s: Callable[[], float], every_s: float) -> None:
        self.file = file
        self._secret = secret
        self._monotonic_s = monotonic_s
        self._every_s = every_s
        self._kept_s: float | None = None
        self._warned = ""

    def is_due(self, *, changed: bool) -> bool:
        return changed or self._kept_s is None or self._monotonic_s() - self._kept_s >= self._every_s

    def keep(self, made: Callable[[], LastGood], *, changed: bool) -> bool:
        """Return whether the file is up to date. Never raises."""
        now_s = self._monotonic_s()
        if not self.is_due(changed=changed):
            return True
        try:
            write_last_good(self.file, made(), secret=self._secret)
        except (OSError, ConfigError, ValueError, TypeError) as error:
            why = (error.strerror or "the system refuses it") if isinstance(error, OSError) else str(error)
            if changed:
                with contextlib.suppress(OSError):
                    self.file.unlink(missing_ok=True)
            if why != self._warned:
                self._warned = why
                effect = "a gateway that starts without its log runs in full"
                LOG.error("last-good file %s: cannot be written (%s); %s", self.file, why, effect)
            return False
        self._kept_s, self._warned = now_s, ""
        return True


def _signature(content: bytes, secret: str) -> bytes:
    if not secret:
        raise ConfigError("there is no secret to sign with; the deployment's own, not empty")
    key = secret.encode("utf-8", "surrogatepass")
    return hmac.new(key, _MARK + content, sha256).hexdigest().encode()
