"""Jobs that fold the log once for all routes: a row is read once, and decoded and fed only where it counts."""

from __future__ import annotations

import hashlib
import hmac
import platform
import zlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeAlias, TypeVar

import msgspec

from suffice.control.evidence.run_join import remember
from suffice.control.jobs.base import JobPass, JobReport, RouteJob, rows_since
from suffice.control.jobs.snapshot import UnstorableState, restore_snapshot, take_snapshot
from suffice.settings import Settings
from suffice.store.database.decisions import read_fold_state, write_fold_state
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, LogRow, last_place
from suffice.store.routes.deployments import NOTHING_DECIDED, DeploymentState, read_decided
from suffice.telemetry import LOG

MOST_KNOWN: Final = 20_000  # latest runs whose routes are known; a later label of an older one reaches all folds


class RouteFold(Protocol):
    seq: int  # position of the last row read

    @property
    def n(self) -> int:
        """Requests of the route so far; 0 where they are not counted."""
        ...

    def feed(self, stored: StoredEvent) -> object:
        """Read the next row; a row that was read before changes nothing."""
        ...


F = TypeVar("F", bound=RouteFold)


class _Sender(msgspec.Struct):
    sender: str = ""


class _SentRequest(msgspec.Struct):
    request: _Sender


_SENT: Final = msgspec.json.Decoder(_SentRequest)


class RowRouter:
    """Finds the routes that a row concerns; where that is unknown, all of them.

    reads_senders  whether every route has to know who sends requests to any route
    """

    def __init__(self, routes: Collection[str], *, reads_senders: bool) -> None:
        self._all, self._reads_senders = tuple(routes), reads_senders
        self._own: dict[str | None, tuple[str, ...]] = {name: (name,) for name in routes}
        self._of_run: dict[str, tuple[str, ...]] = {}  # by episode
        self._senders = {""}

    def routes_of(self, row: LogRow) -> tuple[str, ...]:
        if row.kind == "request":
            own = self._own.get(row.route, ())
            remember(self._of_run, row.key, own, MOST_KNOWN)
            return self._all if self._reads_senders and self._is_new_sender(row.body) else own
        if row.kind in ("outcome", "feedback"):
            return self._of_run.get(row.episode_id or "", self._all)
        counts_senders = row.kind == "requests_counted" and self._reads_senders
        return self._all if row.route is None or counts_senders else self._own.get(row.route, ())

    def _is_new_sender(self, body: str) -> bool:
        sender = _SENT.decode(body).request.sender
        is_new = sender not in self._senders
        self._senders.add(sender)
        return is_new


@dataclass(kw_only=True)
class FoldJob(RouteJob[F]):
    """A job that folds the log once for all routes."""

    reads_senders: ClassVar[bool] = False  # see `RowRouter`
    _states: FoldStates = field(init=False)
    _router: RowRouter | None = field(init=False, default=None)  # None: a fold begins earlier than the rows it has seen
    _decided: DeploymentState = field(init=False, default=NOTHING_DECIDED)  # when the pass began
    _sentences: defaultdict[str, list[str]] = field(init=False, default_factory=lambda: defaultdict(list))  # by route

    def __post_init__(self) -> None:
        self._states = FoldStates(job=self.name, settings=self.settings, secret=self.secret)

    def begin(self, log: LogReader) -> None:
        """Read what the pass needs beside the rows. Raises StoreError."""

    @abstractmethod
    def build(self, name: str, here: JobPass) -> F:
        """Build the fold of a route that is not in memory and has no state in the log."""

    @abstractmethod
    def given(self, name: str, fold: F | None) -> Mapping[str, object]:
        """Return what is not part of a fold's state but comes from this process, by name; None: it is to be made."""

    def resume(self, name: str, fold: F, here: JobPass) -> bool:  # noqa: ARG002 - most folds follow from rows alone
        """Bring a fold that was made from its state up to what the log has decided; False: it does not fit."""
        return True

    def feed(self, fold: F, stored: StoredEvent, here: JobPass) -> None:  # noqa: ARG002 - most folds decide nothing
        fold.feed(stored)

    @abstractmethod
    def conclude(self, name: str, fold: F, here: JobPass) -> None:
        """Decide a route when every row has been read."""

    def prepare(self) -> None:
        """Prepare what depends on all routes, when every row has been read."""

    def has_looked(self, name: str) -> bool:
        return name in self._memory

    def add_sentence(self, name: str, sentence: str) -> None:
        self._sentences[name].append(sentence)

    def forget(self) -> None:
        super().forget()
        self._decided = NOTHING_DECIDED

    def leave(self, name: str, why: str) -> None:
        self.drop(name)
        super().leave(name, why)

    def work(self, names: Sequence[str], here: JobPass) -> Sequence[JobReport]:
        self._sentences.clear()
        self._decided = read_decided(here.log, self._decided)
        self.begin(here.log)
        for name in names:
            if name not in self._memory:
                self._router = None
                fold = self.attempt(name, here, self._open_fold, name, here)
                if fold is not None:
                    self._memory[name] = fold
        last = self._read(here)
        self.prepare()
        for name, fold in list(self._memory.items()):
            self.attempt(name, here, self.conclude, name, fold, here)
        for name, fold in list(self._memory.items()):
            self.attempt(name, here, self._save, name, fold, here)
        n = {name: fold.n for name, fold in self._memory.items()}
        return [self.report(name, *self._sentences[name], read_to_seq=last, at=n.get(name, 0)) for name in names]

    def _read(self, here: JobPass) -> int:
        """Feed the rows since the last pass; return the place of the last one."""
        last = min((fold.seq for fold in self._memory.values()), default=0)
        if self._router is None:
            self._router = RowRouter(self._memory, reads_senders=self.reads_senders)
        for row in rows_since(here.log, last, here.writer):
            last = row.seq
            folds = [(name, self._memory[name]) for name in self._router.routes_of(row) if name in self._memory]
            if not folds:
                continue
            stored = row.stored()
            for name, fold in folds:
                self.attempt(name, here, self.feed, fold, stored, here)
        for fold in self._memory.values():
            fold.seq = max(fold.seq, last)
        return last

    def _open_fold(self, name: str, here: JobPass) -> F:
        fold: F | None = self._states.load(here.log, name, self.given(name, None))
        return fold if fold is not None and self.resume(name, fold, here) else self.build(name, here)

    def _save(self, name: str, fold: F, here: JobPass) -> None:
        if self._states.is_due(name, fold.seq, len(self._memory)):
            self._states.save(here.writer.keep, name, fold.seq, fold, self.given(name, fold))


# ---- what a job has folded of each route is kept, so that its next worker reads only the rows after that
#
# A state is used only by the code, the packages, the settings and the secret that wrote it: a digest over all of them
# comes before it. Any other state is ignored, and the route is folded from its rows again.

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
