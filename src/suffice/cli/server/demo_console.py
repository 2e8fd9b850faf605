"""`suffice demo --console`: the console on the demonstration's log, or on a month that is made up in seconds."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from suffice.demo.console.hook import webhook
from suffice.demo.console.month import DAY_S, DAYS, WEBHOOK, live, month, settings_for
from suffice.server import run_server
from suffice.settings import Settings
from suffice.wiring import deployment_salt, load_settings, open_worker
from suffice.wiring.people import People

SEED = 7
N_REQUESTS, N_SMALL = 2_400, 900  # on the governed route
REVIEWER = "rita"


def run_console(console: Console, folder: Path, *, small: bool, port: int) -> None:
    """Serve the console until told to end. Raises SufficeError, and OSError when the address cannot be had."""
    settings = demonstrated(console, folder) or made_up(console, folder, small=small)
    people = People.of(settings)
    secret = people.reset("admin")
    known = {one.name for one in people.listed()}
    reviewers = people.reset(REVIEWER) if REVIEWER in known else people.add(REVIEWER, "reviewer")
    console.print(f"\nadmin's secret      {secret}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"reviewer's secret   {reviewers}", highlight=False, markup=False, soft_wrap=True)
    console.print("\nCtrl-C ends it; `make demo-console` again goes on with the same log.\n", highlight=False)

    def listening(_: str, url: str) -> None:
        console.print(f"open {url}/console", highlight=False)

    with webhook(lambda text: console.print(f"alert   {text}", highlight=False, markup=False)) as url:
        os.environ[WEBHOOK] = url  # where the settings of the month look for it
        run_server(settings, listening=listening, port=port)


def demonstrated(console: Console, folder: Path) -> Settings | None:
    """The settings of a log that `make demo-online` has left; None: there is none."""
    file, database = folder / "online.toml", folder / "online.db"
    if not file.is_file() or not database.is_file():
        return None
    console.print(f"the log of make demo-online: {database}", highlight=False, markup=False, soft_wrap=True)
    settings = load_settings(file)
    with open_worker(settings) as here:
        for job in ("monitor", "rollup"):
            here.once(job)
    return settings


def made_up(console: Console, folder: Path, *, small: bool) -> Settings:
    database = folder / "console.db"
    settings = settings_for(database)
    if database.is_file():
        console.print(f"the month that was drawn before: {database}", highlight=False, markup=False, soft_wrap=True)
        return settings
    n = N_SMALL if small else N_REQUESTS
    console.print(
        f"a month of {n:,} made-up requests on one route, and some on two others; the real control loop decides",
        highlight=False,
    )
    now_s = time.time()
    with (
        console.status("drawing"),
        month(
            settings,
            database,
            begin_s=now_s - DAYS * DAY_S,
            seed=SEED,
            secret=deployment_salt(settings),
            monotonic_s=time.monotonic,
        ) as made,
    ):
        live(made, n=n, until_s=now_s)
    return settings
