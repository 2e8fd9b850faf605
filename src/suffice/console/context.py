"""What the console's handlers have at hand: the log to read, a way to change something, doors, and who watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from suffice.console.auth import ConsoleAuth, Principal
from suffice.console.live import Live
from suffice.console.view_context import ViewContext
from suffice.errors import StoreError
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader
from suffice.store.routes.rollouts import RolloutRun

T = TypeVar("T")
READERS: Final = 2  # threads that read for pages, whatever else the process does
LONGEST_READ_S: Final = 10.0
MOST_TOLD: Final = 1_000  # sessions for which a sentence is kept until the next page


@dataclass(slots=True, kw_only=True)
class ConsoleContext:
    """Everything that handlers need, made by `wiring`.

    decisions  a writer of the log, opened when it is first needed and closed by whoever made this
    told       tells the gateway that something was decided
    setup_of   what a route's evidence rests on as its settings stand
    effect_of  what a reviewer's verdict on an item has changed, in a sentence
    note_export  says in the log that so many rows left it: name, rows, who
    check_experiment  raises ConfigError for one that cannot run as the settings have it
    propose    begins a rollout of what a refit has proposed: route, address, reason, who; a sentence where it may not
    take_back  goes back from what the last rollout brought: route, reason, who; a sentence where it cannot be
    closing    is the process ending?
    killed     is the kill switch on?
    first      sentences that every page begins with, such as that the kill switch is pulled; reads files and the log
    """

    settings: Settings
    path: Path
    doors: ConsoleAuth
    decisions: Callable[[], Decisions]
    told: Callable[[], None]
    setup_of: Callable[[str], str]
    effect_of: Callable[[str], str]
    check_experiment: Callable[[str], None]
    propose: Callable[[str, str, str, str], RolloutRun | str]
    take_back: Callable[[str, str, str], RolloutRun | str]
    note_export: Callable[[str, int, str], None]
    closing: Callable[[], bool]
    killed: Callable[[], bool]
    first: Callable[[], Sequence[str]]
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    live: Live = field(init=False)
    _begun_s: float = field(init=False)  # Unix time
    _threads: ThreadPoolExecutor = field(init=False)
    _told: dict[str, str] = field(default_factory=dict)  # by session: a sentence for its next page

    def __post_init__(self) -> None:
        """Have threads of our own: a page must not wait for what else runs in this process, nor the other way round."""
        self._begun_s = self.now()
        self._threads = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="suffice-console")

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read(self, view: Callable[[ViewContext], T]) -> T:
        """Look at the log in a thread, for a while at most. Raises what the view raises, and StoreError."""
        return await self.off_loop(lambda: self._read(view))

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Do something in one of our threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _read(self, view: Callable[[ViewContext], T]) -> T:
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
                        killed=self.killed(),
                    )
                )
        except StoreError:
            if self.monotonic_s() <= end_s:
                raise
            raise StoreError(f"store {self.path}: the page took longer than {LONGEST_READ_S:g} s") from None

    def tell(self, visitor: Principal, sentence: str) -> None:
        """Keep a sentence for the next page of this session."""
        if visitor.session is None:
            return
        self._told.pop(visitor.session.nonce, None)
        self._told[visitor.session.nonce] = sentence
        while len(self._told) > MOST_TOLD:
            del self._told[next(iter(self._told))]

    def told_to(self, visitor: Principal) -> str:
        """The sentence for this session's next page, once; "": there is none."""
        return "" if visitor.session is None else self._told.pop(visitor.session.nonce, "")
