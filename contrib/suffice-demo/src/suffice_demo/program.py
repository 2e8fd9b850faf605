"""The demonstration from weights to report, shown as it goes in the terminal."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from suffice.cli.shell import fail
from suffice.files import make_folder
from suffice.server import run_server
from suffice.settings import Settings
from suffice.store.routes.deployments import phase_of
from suffice.wiring.files import load_settings
from suffice.wiring.keys import deployment_salt
from suffice.wiring.people import People
from suffice.wiring.worker import open_worker
from suffice_demo import show, story
from suffice_demo.local import tasks, weights
from suffice_demo.local.server import LocalServer, ServerSpec
from suffice_demo.month import DAY_S, DAYS, WEBHOOK, live, month, settings_for, webhook

PLAIN: Final[dict[str, Any]] = {"highlight": False, "markup": False}  # for untrusted text
ONE_LINE: Final[dict[str, Any]] = {**PLAIN, "soft_wrap": True}
INTRODUCTION: Final = """\
A small model votes on questions with known answers, behind Suffice, in four
parts and 2 to 6 minutes: observe (what stopping would save), prove (until a
certificate), act (what it saves), and a swap of the model.
"""


def run_demo(*, small: bool, as_console: bool, port: int, out: str) -> None:
    """Run what `suffice demo` is asked for; exits with 1 if a request failed."""
    console = Console()
    folder = Path(out).resolve()
    make_folder(folder)
    if as_console:
        try:
            _run_console(console, folder, small=small, port=port)
        except OSError as error:
            fail(f"cannot listen: {error.strerror or error}")
        return
    for old in folder.glob("demo.db*"):
        old.unlink()
    raise SystemExit(_run_story(console, folder))


def run_agent(out: str) -> None:
    from suffice_demo.agent import show_agent

    folder = Path(out).resolve()
    make_folder(folder)
    raise SystemExit(asyncio.run(show_agent(Console(), folder)))


MODEL: Final = "smol"  # the only one: 98 MB


def _fetch(console: Console) -> Path:
    """Return the weights; fetching them is shown on a terminal as a bar, and in a log as a line for each quarter."""
    columns = (TextColumn("{task.description:<26}"), BarColumn(28), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task, quarters = bars.add_task(f"weights: {MODEL}", total=None), list[int]()

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)
            quarter = 4 * done // max(1, total)
            if not console.is_terminal and quarter not in quarters:
                quarters.append(quarter)
                console.print(f"weights: {MODEL}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", **ONE_LINE)

        return weights.fetch(MODEL, progress=progress)


# --------------------------------------------------------------------------- the console

SEED = 7
N_REQUESTS, N_SMALL = 2_400, 900  # on the governed route
REVIEWER = "rita"


def _run_console(console: Console, folder: Path, *, small: bool, port: int) -> None:
    settings = _demonstrated(console, folder) or made_up_month(console, folder, small=small)
    people = People.of(settings)
    admins = people.reset("admin")
    known = {one.name for one in people.listed()}
    reviewers = people.reset(REVIEWER) if REVIEWER in known else people.add(REVIEWER, "reviewer")
    console.print(f"\nadmin's secret      {admins}", **ONE_LINE)
    console.print(f"reviewer's secret   {reviewers}", **ONE_LINE)
    console.print("\nCtrl-C ends it; `make demo-console` again goes on with the same log.\n", highlight=False)

    def listening(_: str, url: str) -> None:
        console.print(f"open {url}/console", highlight=False)

    with webhook(lambda text: console.print(f"alert   {text}", **PLAIN)) as url:
        os.environ[WEBHOOK] = url  # read by the demo's settings
        run_server(settings, listening=listening, port=port)


def _demonstrated(console: Console, folder: Path) -> Settings | None:
    file, database = folder / "demo.toml", folder / "demo.db"
    if not file.is_file() or not database.is_file():
        return None
    console.print(f"the log of make demo: {database}", **ONE_LINE)
    settings = load_settings(file)
    with open_worker(settings) as here:
        for job in ("monitor", "rollup"):
            here.once(job)
    return settings


def made_up_month(console: Console, folder: Path, *, small: bool = False) -> Settings:
    """Draw a month into the folder's `console.db`, unless it is there; return its settings."""
    database = folder / "console.db"
    settings = settings_for(database)
    if database.is_file():
        console.print(f"the month that was drawn before: {database}", **ONE_LINE)
        return settings
    n, now_s = N_SMALL if small else N_REQUESTS, time.time()
    console.print(
        f"a month of {n:,} made-up requests on one route, and some on two others; the real control loop decides",
        highlight=False,
    )
    begin_s, secret = now_s - DAYS * DAY_S, deployment_salt(settings)
    with (
        console.status("drawing"),
        month(settings, database, begin_s=begin_s, seed=SEED, secret=secret, monotonic_s=time.monotonic) as made,
    ):
        live(made, n=n, until_s=now_s)
    return settings


# --------------------------------------------------------------------------- a route that certifies itself

SLOTS: Final = 2  # of the model server
N_QUESTIONS: Final = 300  # in the pool
POOL_SEED: Final = tasks.SEED + 1  # other questions than those on which the policy's threshold was chosen
PRINT_EACH: Final = 10  # requests between two lines without a terminal
ALIASES: Final = ("smol-a", "smol-b")  # the server's model names before and after the swap


def _run_story(console: Console, folder: Path) -> int:
    plan, pool = story.DemoPlan(), tasks.questions("samples", N_QUESTIONS, seed=POOL_SEED)
    console.print(INTRODUCTION, **PLAIN)
    with demo_servers(console, folder) as servers, followed(console) as screen:
        report = asyncio.run(story.run_story(plan, servers, folder, pool, screen))
    figures = show.print_story(console, report)
    show.write_story_report(report, figures, folder / "demo.json")
    near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(f"\nsettings, log and report: {near}/demo.toml, demo.db, demo.json", **ONE_LINE)
    console.print(show.NEXT, **PLAIN)
    return 1 if report.errors else 0


@contextmanager
def demo_servers(console: Console, folder: Path) -> Iterator[story.DemoServer]:
    """Run the small model on a server of its own.

    The swap restarts it at the same address under another model name. The weights stay the same, which is invisible
    from outside: a gateway detects a swap by the names in responses.
    """
    spec = ServerSpec(model_path=_fetch(console), alias=ALIASES[0], n_parallel=SLOTS, ctx_tokens_per_slot=1024)
    running = [LocalServer(spec, log_path=folder / f"{ALIASES[0]}-server.log").__enter__()]

    def swap() -> None:
        port = urlsplit(running[0].url).port or 0
        running.pop().stop()
        other = replace(spec, alias=ALIASES[1], port=port)
        running.append(LocalServer(other, log_path=folder / f"{ALIASES[1]}-server.log").__enter__())

    try:
        behind = f"a server that calls itself {ALIASES[1]!r} (of the same weights, which nobody can see from outside)"
        yield story.DemoServer(url=running[0].url, driver="llama.cpp", slots=SLOTS, swap=swap, behind=behind)
    finally:
        for server in running:
            server.stop()


@contextmanager
def followed(console: Console) -> Iterator[story.Screen]:
    if not console.is_terminal:
        yield LineScreen(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveScreen(console, live)


class LineScreen:
    def __init__(self, console: Console) -> None:
        self._console, self._n_next, self._last = console, 0, ""

    def say(self, sentence: str) -> None:
        self._console.print(f"** {sentence}", **ONE_LINE)

    def look(self, now: story.Snapshot) -> None:
        if now.n_requests < self._n_next and not now.ends:
            return
        self._n_next = now.n_requests + PRINT_EACH
        text = "; ".join(f"{what} {value}" for what, value in lines(now))
        if text != self._last:
            self._last = text
            self._console.print(text, **ONE_LINE)


class LiveScreen:
    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live

    def say(self, sentence: str) -> None:
        self._console.print(f"• {sentence}", **PLAIN)

    def look(self, now: story.Snapshot) -> None:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for what, value in lines(now):
            table.add_row(what, Text(value))
        self._live.update(table, refresh=True)


def lines(now: story.Snapshot) -> list[tuple[str, str]]:
    phase, figures = phase_of(now.held), story.all_figures(now.runs)
    level = "the policy of the settings" if phase.level else "nothing yet"
    e_value = "" if phase.e_value is None else f", e-value {phase.e_value:.3g} (20 is enough)"
    n_audits = sum(run.episode.request.audit for run in now.runs)
    return [
        ("time", f"{now.elapsed_s:.0f} s"),
        ("request", f"{now.n_requests} of {now.n_until} at most"),
        ("phase", "observing" if all(run.period == "observed" for run in now.runs) else phase.phase),
        ("audits", f"{n_audits}" + (f", {phase.n_audits} behind the certificate" if phase.n_audits else "")),
        ("certified", level + e_value),
        ("tokens", _tokens(figures)),
        ("EM", _em(now, figures)),
    ]


def _tokens(figures: Mapping[story.Period, story.Figures]) -> str:
    names = {"observed": "observed", "proving": "full", "certified": "certified", "swapped": "after the swap"}
    sentences = [
        f"{one.tokens:.1f} {names[period]}" + (f" (saved {one.saved * 100:.0f} %)" if one.saved is not None else "")
        for period, one in figures.items()
    ]
    return ", ".join(sentences) or "–"


def _em(now: story.Snapshot, figures: Mapping[story.Period, story.Figures]) -> str:
    full = [run.correct for run in now.runs if not run.episode.outcome.stopped]
    stopped = [run.correct for run in now.runs if run.episode.outcome.stopped]
    sentences = [
        f"{sum(part) / len(part):.3f} {name} ({len(part)})"
        for part, name in ((full, "full runs"), (stopped, "stopped runs"))
        if part
    ]
    one = figures.get("certified")
    return ", ".join(sentences + ([f"{one.em:.3f} all under the certificate"] if one is not None else [])) or "–"
