"""Jobs that fold the log once for all routes: a row is read once, and decoded and fed only where it counts."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Generic, Protocol, TypeVar

import msgspec

from suffice.control.evidence.run_join import remember
from suffice.control.jobs.base import JobPass, JobReport, RouteJob, rows_since
from suffice.control.jobs.fold_states import FoldStates
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, LogRow

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
class FoldJob(RouteJob, Generic[F]):
    """A job that folds the log once for all routes."""

    reads_senders: ClassVar[bool] = False  # see `RowRouter`
    _folds: dict[str, F] = field(init=False, default_factory=dict)
    _states: FoldStates = field(init=False)
    _router: RowRouter | None = field(init=False, default=None)  # None: a fold begins earlier than the rows it has seen
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

    @abstractmethod
    def resume(self, name: str, fold: F, here: JobPass) -> bool:
        """Bring a fold that was made from its state up to what the log has decided; False: it does not fit."""

    def feed(self, fold: F, stored: StoredEvent, here: JobPass) -> None:  # noqa: ARG002 - most folds decide nothing
        fold.feed(stored)

    @abstractmethod
    def conclude(self, name: str, fold: F, here: JobPass) -> None:
        """Decide a route when every row has been read."""

    def prepare(self) -> None:
        """Prepare what depends on all routes, when every row has been read."""

    def add_sentence(self, name: str, sentence: str) -> None:
        self._sentences[name].append(sentence)

    def forget(self) -> None:
        super().forget()
        self._folds.clear()

    def drop(self, name: str) -> None:
        self._folds.pop(name, None)

    def leave(self, name: str, why: str) -> None:
        self.drop(name)
        super().leave(name, why)

    def work(self, names: Sequence[str], here: JobPass) -> Sequence[JobReport]:
        self._sentences.clear()
        self.begin(here.log)
        for name in names:
            if name not in self._folds:
                self._router = None
                fold = self.attempt(name, here, self._open_fold, name, here)
                if fold is not None:
                    self._folds[name] = fold
        last = self._read(here)
        self.prepare()
        for name, fold in list(self._folds.items()):
            self.attempt(name, here, self.conclude, name, fold, here)
        for name, fold in list(self._folds.items()):
            self.attempt(name, here, self._save, name, fold, here)
        n = {name: fold.n for name, fold in self._folds.items()}
        return [self.report(name, *self._sentences[name], read_to_seq=last, at=n.get(name, 0)) for name in names]

    def _read(self, here: JobPass) -> int:
        """Feed the rows since the last pass; return the place of the last one."""
        last = min((fold.seq for fold in self._folds.values()), default=0)
        if self._router is None:
            self._router = RowRouter(self._folds, reads_senders=self.reads_senders)
        for row in rows_since(here.log, last, here.writer):
            last = row.seq
            folds = [(name, self._folds[name]) for name in self._router.routes_of(row) if name in self._folds]
            if not folds:
                continue
            stored = row.stored()
            for name, fold in folds:
                self.attempt(name, here, self.feed, fold, stored, here)
        for fold in self._folds.values():
            fold.seq = max(fold.seq, last)
        return last

    def _open_fold(self, name: str, here: JobPass) -> F:
        fold: F | None = self._states.load(here.log, name, self.given(name, None))
        return fold if fold is not None and self.resume(name, fold, here) else self.build(name, here)

    def _save(self, name: str, fold: F, here: JobPass) -> None:
        if self._states.is_due(name, fold.seq, len(self._folds)):
            self._states.save(here.writer.keep, name, fold.seq, fold, self.given(name, fold))
