"""What handlers work with: the log, the context of views, live updates, and the kinds of endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlencode

import msgspec

from suffice.console.auth import ConsoleAuth, Needs, Person, Principal, Role
from suffice.console.exchange import JSON, ConsoleRequest, ConsoleResponse
from suffice.errors import BadRequest, StoreError
from suffice.review.items import ReviewItem
from suffice.rollout.results import ExperimentResult
from suffice.rollout.stages import RolloutState
from suffice.settings import Route, Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, open_reader
from suffice.store.people.alerts import AlertLog
from suffice.store.people.deciding import NO_REVIEWS, Reviews
from suffice.store.routes.experiments import ExperimentRun
from suffice.store.routes.rollouts import RolloutRun
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S
from suffice.telemetry import LOG

if TYPE_CHECKING:
    from suffice.console.actions import ActionForm

T = TypeVar("T")

LOOK_S: Final = 0.3  # the longest search for rows of a rare filter; the page tells where it stopped
DAY_S: Final = 86_400
WINDOWS: Final[Mapping[str, int]] = {"1": 1, "7": 7, "30": 30, "90": 90, "all": 0}  # days of the totals; 0: all
USUAL_WINDOW: Final = "30"


class ViewRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a page, and of the API response as JSON."""


@dataclass(slots=True)
class ViewCache:
    """Folds that views continue, so that no row of the log is read twice."""

    alerts: AlertLog | None = None
    reviews: Reviews = NO_REVIEWS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleServices:
    decisions: Callable[[], Decisions]  # a writer of the log, opened on first use
    notify: Callable[[], None]  # tells the gateway that something was decided
    closing: Callable[[], bool]  # whether the process is ending
    killed: Callable[[], bool]  # whether the kill switch is on
    warnings: Callable[[], Sequence[str]]  # sentences at the top of every page; reads files and the log
    setup_of: Callable[[str], str]  # a route's present setup, for comparison with its evidence
    effect_of: Callable[[str], str]  # effect of an item's verdicts so far, in a sentence
    check_experiment: Callable[[str], None]  # raises ConfigError if it cannot run with the present settings
    propose: Callable[[str, str, str, str], RolloutRun | str]  # route, address, reason, author: roll out a proposal
    take_back: Callable[[str, str, str], RolloutRun | str]  # route, reason, author: undo the last rollout
    note_export: Callable[[str, int, str], None]  # name, rows, author
    question_of: Callable[[ReviewItem], str | None]  # its text in the route's question file; None: not there
    analyse: Callable[[ExperimentRun], ExperimentResult]  # the present result of a run; slow
    assess: Callable[[str, RolloutRun], RolloutState]  # assess a route's rollout; slow


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    connection: LogReader  # reads only
    settings: Settings
    path: Path  # of the log
    now_s: float  # Unix time
    monotonic_s: Callable[[], float]
    begun_s: float = 0.0  # Unix time at which the console started
    killed: bool = False  # whether the kill switch is on

    def route(self, name: str) -> Route | None:
        """A route's settings; None: only the log has it."""
        return self.settings.routes.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewContext(LogView):
    services: ConsoleServices
    people: Callable[[], Sequence[Person]]  # with access
    cache: ViewCache
    request: ConsoleRequest
    principal: Principal

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query

    @property
    def window(self) -> TimeRange:
        """The requested time range. Raises BadRequest for an unknown one."""
        return parse_window(self.query, self.now_s)


class TimeRange(ViewRecord, frozen=True):
    name: str  # a key of WINDOWS
    days: int  # 0: all of it
    since_hour: int  # since 1970, UTC

    @property
    def label(self) -> str:
        return {0: "since the beginning", 1: "last 24 hours"}.get(self.days, f"last {self.days} days")


def page_of(
    view: LogView, entries: Iterable[tuple[int, T | None]], limit: int
) -> tuple[tuple[T, ...], int | None, bool]:
    """Return up to `limit` matching entries, the next position (None: the end), and whether time ran out."""
    lines, older, end_s = list[T](), 0, view.monotonic_s() + LOOK_S
    for place, line in entries:
        older = place
        if line is not None:
            lines.append(line)
        if len(lines) == limit:
            return tuple(lines), older, False
        if view.monotonic_s() > end_s:
            return tuple(lines), older, True
    return tuple(lines), None, False


class UnknownNameError(BadRequest):
    def __init__(self, message: str) -> None:
        super().__init__(message, status=404, code="not_found")


def parse_window(query: Mapping[str, str], now_s: float) -> TimeRange:
    """Parse the time range of a query string. Raises BadRequest for an unknown one."""
    name = query.get("days") or USUAL_WINDOW
    if name not in WINDOWS:
        raise BadRequest(f"days: got {name[:40]!r}; allowed: {', '.join(WINDOWS)}", param="days")
    days = WINDOWS[name]
    if days == 1:
        return TimeRange(name=name, days=days, since_hour=int((now_s - DAY_S) // HOUR_S))
    first_day = int(now_s // DAY_S) - days + 1  # whole days, including today
    return TimeRange(name=name, days=days, since_hour=DAY_HOURS * first_day if days else 0)


def route_url(name: str) -> str:
    """The URL of a route's page. The name is in the query, because it may contain a slash."""
    return f"/console/route?{urlencode({'name': name})}"


MOST_WATCHERS: Final = 50
CLOSING_S: Final = 0.5  # delay until watchers notice that the gateway is ending
PING: Final = b": here\n\n"
PING_S: Final = 15.0


class Live:
    """The watchers of the overview page; `look` returns a mark that changes with a window's content."""

    def __init__(
        self,
        *,
        look: Callable[[str], Awaitable[object]],
        part: Callable[[str], Awaitable[bytes]],
        every_s: float,
        closing: Callable[[], bool],
    ) -> None:
        self._look, self._part, self._every_s, self._closing = look, part, every_s, closing
        self._watchers: dict[asyncio.Queue[bytes | None], str] = {}
        self._marks: dict[str, object] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._watchers) >= MOST_WATCHERS

    async def watch(self, window: str, holds: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Yield events for one watcher, until the gateway ends or `holds` reports that their access has ended."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._watchers[queue] = window
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield b"retry: 5000\n\n"
            while holds():
                try:
                    async with asyncio.timeout(PING_S):
                        event = await queue.get()
                except TimeoutError:
                    yield PING
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._watchers.pop(queue, None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time() + self._every_s
        while self._watchers:
            await asyncio.sleep(min(CLOSING_S, self._every_s))
            if self._closing():
                self._put(list(self._watchers), None)
                return
            if loop.time() >= next_s:
                for window in sorted(set(self._watchers.values())):
                    await self._update(window)
                next_s = loop.time() + self._every_s
        self._marks.clear()

    async def _update(self, window: str) -> None:
        try:
            mark = await self._look(window)
            if self._marks.get(window) == mark:
                return
            is_first = window not in self._marks
            self._marks[window] = mark
            if is_first:
                return  # this state is on the watcher's page already
            part = await self._part(window)
        except Exception as error:  # noqa: BLE001 - the page keeps its last state
            LOG.warning("console: the overview page could not be updated (%s)", type(error).__name__)
            return
        lines = b"".join(b"data: " + line + b"\n" for line in part.splitlines() if line.strip())
        watchers = [queue for queue, wanted in self._watchers.items() if wanted == window]
        self._put(watchers, b"event: overview\n" + lines + b"\n")

    @staticmethod
    def _put(queues: Iterable[asyncio.Queue[bytes | None]], event: bytes | None) -> None:
        for queue in queues:
            with contextlib.suppress(asyncio.QueueEmpty):
                queue.get_nowait()
            queue.put_nowait(event)


READERS: Final = 2  # threads that read for pages
LONGEST_READ_S: Final = 10.0
MOST_MESSAGES: Final = 1_000  # sessions with a message for their next page


@dataclass(slots=True, kw_only=True)
class ConsoleContext:
    settings: Settings
    path: Path
    auth: ConsoleAuth
    services: ConsoleServices
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    live: Live = field(init=False)
    cache: ViewCache = field(default_factory=ViewCache)
    _begun_s: float = field(init=False)  # Unix time
    _threads: ThreadPoolExecutor = field(init=False)
    _messages: dict[str, str] = field(default_factory=dict)  # by session, for its next page

    def __post_init__(self) -> None:
        self._begun_s = self.now()
        # Own threads, so that pages and the rest of the process do not wait for each other.
        self._threads = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="suffice-console")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def read(self, request: ConsoleRequest, principal: Principal, view: Callable[[ViewContext], T]) -> T:
        """Read the log in a thread, with a time-out. Raises what the view raises, and StoreError."""
        return await self.in_thread(lambda: self._read(request, principal, view))

    def _read(self, request: ConsoleRequest, principal: Principal, view: Callable[[ViewContext], T]) -> T:
        end_s = self.monotonic_s() + LONGEST_READ_S
        try:
            with open_reader(self.path, is_over=lambda: self.monotonic_s() > end_s) as connection:
                return view(
                    ViewContext(
                        connection=connection,
                        settings=self.settings,
                        path=self.path,
                        now_s=self.now(),
                        monotonic_s=self.monotonic_s,
                        begun_s=self._begun_s,
                        killed=self.services.killed(),
                        services=self.services,
                        people=self.auth.people,
                        cache=self.cache,
                        request=request,
                        principal=principal,
                    )
                )
        except StoreError:
            if self.monotonic_s() <= end_s:
                raise
            raise StoreError(f"store {self.path}: the page took longer than {LONGEST_READ_S:g} s") from None

    def leave_message(self, principal: Principal, sentence: str) -> None:
        if principal.session is None:
            return
        self._messages.pop(principal.session.nonce, None)
        self._messages[principal.session.nonce] = sentence
        while len(self._messages) > MOST_MESSAGES:
            del self._messages[next(iter(self._messages))]

    def take_message(self, principal: Principal) -> str:
        """Take the sentence for this session's next page; "": there is none."""
        return "" if principal.session is None else self._messages.pop(principal.session.nonce, "")


Handler: TypeAlias = Callable[[ConsoleContext, ConsoleRequest, Principal], Awaitable[ConsoleResponse]]


@dataclass(frozen=True, slots=True)
class ConsoleEndpoint:
    method: Literal["GET", "POST"]
    path: str  # `{id}` stands for an id
    needs: Needs
    run: Handler
    summary: str
    gives: str = JSON
    record: type | None = None  # the API's response; None: see `gives`
    fields: Mapping[str, str] = field(default_factory=dict)  # of the query, or of the body, with their meaning


@dataclass(frozen=True, slots=True)
class View:
    path: str  # below /console and below /api
    title: str
    read: Callable[[ViewContext], Any]
    record: type
    fields: Mapping[str, str] = field(default_factory=dict)
    place: str = ""  # in the navigation; "": the title
    template: str = ""  # "": named after the path
    api_path: str | None = None  # below /api, if different
    needs: Role = "reviewer"


@dataclass(frozen=True, slots=True)
class ActionResult:
    message: str  # one sentence
    goes_to: str = ""  # the next page; "": the previous one


@dataclass(frozen=True, slots=True)
class Action:
    """An endpoint that changes something. `run` runs in a thread; it raises BadRequest for an invalid request."""

    path: str  # below /console and below /api
    needs: Role
    run: Callable[[ActionForm], ActionResult]
    summary: str
    fields: Mapping[str, str]
