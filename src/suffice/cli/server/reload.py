"""`suffice reload`: running gateways apply the changes in their settings file."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

import click

from suffice.cli.shell import CONFIG, UNCONFIRMED, WAIT, Command, fail, print_line, warn
from suffice.store.database.presence import Presence, read_presences
from suffice.wiring.files import load_deployment
from suffice.wiring.keys import presence_files
from suffice.wiring.routes import check_routes

POLL_S: Final = 0.05


@click.command(cls=Command)
@CONFIG
@WAIT
def reload(path: Path, wait_s: float) -> None:
    """Let the gateways on this computer apply the changes in their settings file.

    Each applies all that can change while it runs, or nothing, and says which settings need a restart.
    """
    settings = load_deployment(path)
    check_routes(settings)
    switches, hangup = presence_files(settings), getattr(signal, "SIGHUP", None)
    if hangup is None:
        fail("this system has no SIGHUP; use POST /v1/admin/reload or the console")
    before = {one.pid: one for one in _gateways(switches)}
    if not before:
        fail("no gateway is running on this deployment; one that starts reads the file", 1)
    for pid in before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, hangup)
    end_s = time.monotonic() + wait_s
    while True:
        late = [one for one in _gateways(switches) if one.pid in before and one.n_reloads == before[one.pid].n_reloads]
        if not late or time.monotonic() >= end_s:
            break
        time.sleep(POLL_S)
    results = [one for one in _gateways(switches) if one.pid in before and one not in late]
    for one in results:
        print_line(f"{one.name}: {one.reloaded}")
    for one in late:
        warn(f"{one.name} has not confirmed within {wait_s:g} s")
    if late:
        raise SystemExit(UNCONFIRMED)


def _gateways(switches: tuple[Path, ...]) -> list[Presence]:
    return [one for one in read_presences(switches) if one.process == "serve"]
