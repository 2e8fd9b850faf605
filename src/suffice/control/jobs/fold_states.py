"""Keeps what a job has folded of each route, so that its next worker reads only the rows after that.

A state is used only by the code, the packages, the settings and the secret that wrote it: a digest over all of them
comes before it. Any other state is ignored, and the route is folded from its rows again.
"""

from __future__ import annotations

import hashlib
import hmac
import platform
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from suffice.control.jobs.snapshot import UnstorableState, restore_snapshot, take_snapshot
from suffice.settings import Settings
from suffice.store.database.decisions import read_fold_state, write_fold_state
from suffice.store.database.views import last_place
from suffice.store.sql import LogReader
from suffice.telemetry import LOG

SAVE_ROWS: Final = 50_000  # after so many rows of the log a state is written again …
ROW_BYTES: Final = 1_000  # … or later, so that the states of a job, not compressed, take no more than this of each row
Write: TypeAlias = Callable[[LogReader], bool]
_DIGEST_BYTES: Final = 32
_LEVEL: Final = 1  # of compression: the rest is hardly smaller, and takes long


@cache
def code_digest() -> str:
    """Digest of this package's code and of the versions of all others: two that differ may fold differently."""
    digest = hashlib.sha256(platform.python_version().encode())
    for one in sorted(f"{one.name} {one.version}" for one in metadata.distributions()):
        digest.update(one.encode())
    folder = Path(__file__).parents[2]  # of the package
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(slots=True, kw_only=True)
class FoldStates:
    job: str
    settings: Settings
    secret: str = field(repr=False)
    _written: dict[str, tuple[int, int]] = field(init=False, default_factory=dict)  # by route: place, and plain bytes
    _built_at: dict[str, int] = field(init=False, default_factory=dict)  # by route: end of the log; none: not written

    def load(self, log: LogReader, route: str, given: Mapping[str, object]) -> Any | None:
        """Return a route's fold as it was written; None: there is none that may be used. Raise StoreError."""
        end = self._built_at[route] = last_place(log)
        self._written.pop(route, None)
        row = read_fold_state(log, self.job, route)
        if row is None or row[0] > end:
            return None
        seq, body = row
        if not hmac.compare_digest(body[:_DIGEST_BYTES], self._digest(route, seq, body[_DIGEST_BYTES:])):
            return None
        try:
            plain = zlib.decompress(body[_DIGEST_BYTES:])
            fold = restore_snapshot(plain, given)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a state, the rows are folded instead
            LOG.warning("job %s: the state of route %s cannot be read: %s", self.job, route, type(error).__name__)
            return None
        self._written[route] = seq, len(plain)
        return fold

    def is_due(self, route: str, seq: int, n_routes: int) -> bool:
        """Whether enough rows were read since the state was written last; `n_routes` share the bytes of a row."""
        if route not in self._built_at:
            return False
        before, n_bytes = self._written.get(route, (0, 0))
        return seq - before >= max(SAVE_ROWS, n_bytes * n_routes // ROW_BYTES)

    def save(
        self, keep: Callable[[Write], bool], route: str, seq: int, fold: object, given: Mapping[str, object]
    ) -> None:
        """Write a fold that has read the log up to `seq` by `keep`. Raise LeaseLost and StoreError."""
        try:
            plain = take_snapshot(fold, given)
        except UnstorableState as error:
            LOG.info("job %s: route %s is folded from its rows at each start: %s", self.job, route, error)
            del self._built_at[route]
            return
        body, built_at = zlib.compress(plain, _LEVEL), self._built_at[route]
        row = self.job, route, seq, self._digest(route, seq, body) + body
        if keep(lambda log: write_fold_state(log, *row, built_at_seq=built_at)):
            self._written[route] = seq, len(plain)
        else:
            del self._built_at[route]

    def _digest(self, route: str, seq: int, body: bytes) -> bytes:
        tables = self.settings
        of_route = tables.routes[route], tables.control, tables.metrics, tables.feedback, tables.review
        head = msgspec.msgpack.encode((self.job, route, seq, code_digest(), of_route))
        return hmac.digest(self.secret.encode(), hashlib.sha256(head).digest() + body, "sha256")
