"""`suffice demo --online`: the control loop at work on a real model, as a screen that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from suffice.cli.server.weights import fetched
from suffice.demo.online import show, story
from suffice.demo.online.course import Figures, Period, all_figures
from suffice.demo.online.plan import SMALL, DemoPlan, story_settings
from suffice.demo.online.story import DemoReport, DemoWorld, Snapshot
from suffice.local import tasks
from suffice.local.server import LocalServer, ServerSpec
from suffice.store.routes.phases import phase_of

SLOTS = 2  # of the model server: each reads a prompt once
N_QUESTIONS = 300  # in the pool
PRINT_EACH = 20  # requests between two lines where nobody sees a screen
ALIASES = ("smol-a", "smol-b")  # as the model server calls itself before and behind the swap


def run_online(console: Console, folder: Path, *, small: bool) -> int:
    """Run it and print what came of it; the exit code. Raises SufficeError."""
    plan = SMALL if small else DemoPlan()
    with local_world(console, folder) as world:
        settings = story_settings(
            plan, upstream=world.url, driver=world.driver, slots=world.slots, database=folder / "online.db"
        )
        console.print("the settings, as an owner would write them:\n", highlight=False)
        console.print(settings, highlight=False, markup=False, soft_wrap=True)
        with followed(console) as screen:
            report = asyncio.run(story.run_story(plan, world, folder, tasks.questions("samples", N_QUESTIONS), screen))
    figures = show.print_story(console, report)
    show.write_story_report(report, figures, folder / "online.json")
    console.print(f"\nsettings, log and report: {folder}/online.*", highlight=False, markup=False, soft_wrap=True)
    return _exit_code(report)


def _exit_code(report: DemoReport) -> int:
    return 1 if report.errors else 0


@contextmanager
def local_world(console: Console, folder: Path) -> Iterator[DemoWorld]:
    """The small model behind a server of its own.

    The swap restarts it at the same address under another name of its own. The weights stay the same, which nobody
    can see from outside: a gateway goes by the names in the replies, as it would with another model.
    """
    spec = ServerSpec(model_path=fetched(console, "smol"), alias=ALIASES[0], n_parallel=SLOTS, ctx_tokens_per_slot=1024)
    running = [LocalServer(spec, log_path=folder / f"{ALIASES[0]}-server.log").__enter__()]

    def swap() -> None:
        port = urlsplit(running[0].url).port or 0
        running.pop().stop()
        other = replace(spec, alias=ALIASES[1], port=port)
        running.append(LocalServer(other, log_path=folder / f"{ALIASES[1]}-server.log").__enter__())

    try:
        behind = f"a server that calls itself {ALIASES[1]!r} (of the same weights, which nobody can see from outside)"
        yield DemoWorld(url=running[0].url, driver="llama.cpp", slots=SLOTS, swap=swap, behind=behind)
    finally:
        for server in running:
            server.stop()


class _Screen(Protocol):
    def say(self, sentence: str) -> None: ...

    def look(self, now: Snapshot) -> None: ...


@contextmanager
def followed(console: Console) -> Iterator[_Screen]:
    if not console.is_terminal:
        yield LineScreen(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveScreen(console, live)


class LineScreen:
    def __init__(self, console: Console) -> None:
        self._console, self._n_next, self._last = console, 0, ""

    def say(self, sentence: str) -> None:
        self._console.print(f"** {sentence}", highlight=False, markup=False, soft_wrap=True)

    def look(self, now: Snapshot) -> None:
        """Print one line, every so many requests."""
        if now.n_asked < self._n_next and not now.ends:
            return
        self._n_next = now.n_asked + PRINT_EACH
        said = "; ".join(f"{what} {value}" for what, value in lines(now))
        if said == self._last:
            return
        self._last = said
        self._console.print(said, highlight=False, markup=False, soft_wrap=True)


class LiveScreen:
    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live

    def say(self, sentence: str) -> None:
        self._console.print(f"• {sentence}", highlight=False, markup=False)

    def look(self, now: Snapshot) -> None:
        shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        shown.add_column(style="bold", no_wrap=True)
        shown.add_column(overflow="fold")
        for what, value in lines(now):
            shown.add_row(what, Text(value))
        self._live.update(shown, refresh=True)


def lines(now: Snapshot) -> list[tuple[str, str]]:
    phase, figures = phase_of(now.held), all_figures(now.runs)
    level = f"level {phase.level} of {phase.n_levels}" if phase.level else "none"
    e_value = "" if phase.e_value is None else f", e-value {phase.e_value:.3g}"
    n_audits = sum(run.episode.request.audit for run in now.runs)
    return [
        ("request", f"{now.n_asked} of {now.n_until} at most"),
        ("phase", phase.phase),
        ("audits", f"{n_audits}" + (f", {phase.n_audits} behind the certificate" if phase.n_audits else "")),
        ("certified", level + e_value),
        ("tokens", _tokens(figures)),
        ("EM", _em(now, figures)),
    ]


def _tokens(figures: Mapping[Period, Figures]) -> str:
    names = {"before": "full", "certified": "certified", "swapped": "after the swap"}
    said = [
        f"{one.tokens:.1f} {names[period]}" + (f" (saved {one.saved * 100:.0f} %)" if one.saved is not None else "")
        for period, one in figures.items()
    ]
    return ", ".join(said) or "–"


def _em(now: Snapshot, figures: Mapping[Period, Figures]) -> str:
    full = [run.correct for run in now.runs if not run.episode.outcome.stopped]
    stopped = [run.correct for run in now.runs if run.episode.outcome.stopped]
    said = [
        f"{sum(part) / len(part):.3f} {name} ({len(part)})"
        for part, name in ((full, "full runs"), (stopped, "stopped runs"))
        if part
    ]
    one = figures.get("certified")
    return ", ".join(said + ([f"{one.em:.3f} all under the certificate"] if one is not None else [])) or "–"
