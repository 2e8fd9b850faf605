"""What handlers work with: the log, the context of views, and the kinds of endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, get_type_hints

import msgspec

from suffice.console.auth import NOBODY, ConsoleAuth, Needs, Principal, Role
from suffice.console.exchange import JSON, ConsoleRequest, ConsoleResponse
from suffice.console.scope import ScopePart, TimeRange, ViewScope, parse_scope
from suffice.episode.stream_relay import LiveRunView
from suffice.errors import BadRequest, StoreError
from suffice.review.items import ReviewItem
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.power import Power
from suffice.rollout.results import ExperimentResult
from suffice.rollout.stages import RolloutState
from suffice.settings import Settings
from suffice.settings.reloading import Reload
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation
from suffice.store.database.views import LogReader, open_reader
from suffice.store.people.alerts import AlertLog
from suffice.store.people.deciding import NO_REVIEWS, Reviews
from suffice.store.routes.experiments import ExperimentRun
from suffice.store.routes.rollouts import RolloutRun

if TYPE_CHECKING:
    from suffice.console.oidc import OidcLogin

T = TypeVar("T")
# Applies changed settings, by an author for a reason; without an author it says what would change.
ReloadNow: TypeAlias = Callable[[str | None, str], Reload]

LOOK_S: Final = 0.15  # the longest search for rows of a rare filter; the page tells where it stopped
DAY_S: Final = 86_400


class ViewRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a page, and of the API response as JSON."""


class ScopeChoices(ViewRecord, frozen=True):
    """What the bar offers to choose from."""

    routes: tuple[str, ...]
    classes: tuple[str, ...]
    versions: tuple[str, ...]


@dataclass(slots=True)
class ViewCache:
    """What views continue from, so that no row of the log is read twice."""

    alerts: AlertLog | None = None
    reviews: Reviews = NO_REVIEWS
    live: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # by scope: mark of the first page, and its HTML
    choices: dict[str | None, tuple[float, ScopeChoices]] = field(default_factory=dict)  # by route, with their end


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequests:
    runs: Callable[[], Sequence[LiveRunView]]
    ask: Callable[[str, str, str], str | None]  # id, wish, author; returns why it cannot be done


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessChange:
    what: Literal["added", "reset", "removed"]
    name: str
    role: Role = "reviewer"
    tenants: tuple[str, ...] | None = None  # None: all
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleServices:
    decisions: Callable[[], Decisions]  # a writer of the log, opened on first use
    notify: Callable[[], None]  # tells the gateway that something was decided
    reload: ReloadNow | None  # None: the settings cannot be reloaded
    live: LiveRequests | None  # None: no gateway runs in this process
    killed: Callable[[], bool]  # whether the kill switch is on
    switch: Callable[[bool, str, str], None]  # pull or release the kill switch: reason, author; raises OSError
    warnings: Callable[[], Sequence[str]]  # sentences at the top of every page; reads files and the log
    setup_of: Callable[[str], str]  # a route's present setup, for comparison with its evidence
    effect_of: Callable[[str], str]  # effect of an item's verdicts so far, in a sentence
    check_experiment: Callable[[Settings, str], None]  # raises ConfigError if it cannot run with these settings
    rehearsing: Callable[[Decisions], ConsoleServices]  # the same on a writer that writes nothing
    change_access: Callable[[AccessChange], str]  # returns a new secret; "": none. Raises ConfigError
    send_test: Callable[[str], Mapping[str, str | None]]  # a sentence, to each sink; why it was not accepted
    propose: Callable[[str, str, str, str], RolloutRun | str]  # route, address, reason, author: roll out a proposal
    take_back: Callable[[str, str, str], RolloutRun | str]  # route, reason, author: undo the last rollout
    note_export: Callable[[str, int, str], None]  # name, rows, author
    question_of: Callable[[ReviewItem], str | None]  # its text in the route's question file; None: not there
    analyse: Callable[[ExperimentRun], ExperimentResult]  # the present result of a run; slow
    power_of: Callable[[RunningExperiment], Power]  # what an experiment can find; reads recent runs
    assess: Callable[[str, RolloutRun], RolloutState]  # assess a route's rollout; slow


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    connection: LogReader  # reads only
    settings: Settings
    path: LogLocation  # of the log
    now_s: float  # Unix time
    monotonic_s: Callable[[], float]
    begun_s: float = 0.0  # Unix time at which the console started
    killed: bool = False  # whether the kill switch is on


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewContext(LogView):
    visit: ConsoleVisit

    @property
    def query(self) -> Mapping[str, str]:
        return self.visit.request.query

    @property
    def tenants(self) -> tuple[str, ...] | None:
        """The tenants whose runs may be shown; None: all."""
        return self.visit.principal.tenants

    @property
    def services(self) -> ConsoleServices:
        return self.visit.context.services

    @property
    def scope(self) -> ViewScope:
        """What the figures are to cover. Raises BadRequest for what is not offered."""
        return parse_scope(self.query, self.now_s)

    @property
    def window(self) -> TimeRange:
        return self.scope.range


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


READERS: Final = 2  # threads that read for pages
LONGEST_READ_S: Final = 10.0
MOST_MESSAGES: Final = 1_000  # sessions with a message for their next page


@dataclass(slots=True, kw_only=True)
class ConsoleContext:
    settings: Settings
    path: LogLocation
    auth: ConsoleAuth
    services: ConsoleServices
    oidc: OidcLogin | None  # None: people log in with secrets only
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
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

    async def read(self, visit: ConsoleVisit, view: Callable[[ViewContext], T]) -> T:
        """Read the log in a thread, with a time-out. Raises what the view raises, and StoreError."""
        return await self.in_thread(lambda: self.read_now(visit, view))

    def read_now(self, visit: ConsoleVisit, view: Callable[[ViewContext], T]) -> T:
        end_s = self.monotonic_s() + LONGEST_READ_S
        try:
            with open_reader(self.path, is_over=lambda: self.monotonic_s() > end_s) as connection:
                look = ViewContext(
                    connection=connection,
                    settings=self.settings,
                    path=self.path,
                    now_s=self.now(),
                    monotonic_s=self.monotonic_s,
                    begun_s=self._begun_s,
                    killed=self.services.killed(),
                    visit=visit,
                )
                return view(look)
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


@dataclass(frozen=True, slots=True)
class ConsoleVisit:
    """One request with its sender."""

    context: ConsoleContext
    request: ConsoleRequest
    principal: Principal = NOBODY


Handler: TypeAlias = Callable[[ConsoleVisit], Awaitable[ConsoleResponse]]


@dataclass(frozen=True, slots=True)
class ConsoleEndpoint:
    method: Literal["GET", "POST"]
    path: str  # `{id}` stands for an id
    needs: Needs
    run: Handler
    summary: str
    gives: str = JSON
    by_tenant: bool = False  # shows and changes only what belongs to the visitor's tenants; else only for all of them
    record: type | None = None  # the API's response; None: see `gives`
    fields: Mapping[str, str] = field(default_factory=dict)  # of the query, or of the body, with their meaning


@dataclass(frozen=True, slots=True)
class View:
    path: str  # below /console and below /api
    title: str
    read: Callable[[ViewContext], Any]
    fields: Mapping[str, str] = field(default_factory=dict)
    place: str = ""  # in the navigation; "": the title
    template: str = ""  # "": named after the path
    api_path: str | None = None  # below /api, if different
    needs: Role = "viewer"
    by_tenant: bool = False  # as of `ConsoleEndpoint`
    tab: str = ""  # its name within the place; "": it has no tab
    follows: tuple[ScopePart, ...] = ()  # parts of the bar that its figures follow; (): it has no bar

    @property
    def record(self) -> type:
        record: type = get_type_hints(self.read)["return"]
        return record
