"""`suffice kill` and `suffice unkill`: the switch that works without the database and the worker."""

from __future__ import annotations

import time
from pathlib import Path

import click

from suffice.cli.shell import AUTHOR, CONFIG, REASON, WAIT, Command, author_name, confirm, fail, option, warn

_FILE = option("--file", "named", default="", help="The switch's file; the settings are then not read.")


@click.command(cls=Command)
@CONFIG
@_FILE
@REASON
@AUTHOR
@WAIT
def kill(path: Path, named: str, reason: str, author: str | None, wait_s: float) -> None:
    """Disable early stopping on all routes immediately (works without the database or the worker).

    Reasoning passes through untouched, all samples are drawn, and loops continue; running requests are no longer
    stopped either. It lasts until `suffice unkill`. Waits until every running gateway has confirmed, and exits with 3
    when one has not, or none is running.
    """
    from suffice.gateway.kill import VARIABLE, set_switch
    from suffice.store.database.presence import read_switch

    file, others = _files(path, named)
    try:
        order = None if named else time.time_ns()
        changed = set_switch(file, reason, author_name(author), order=order)
        stamp = read_switch(file).stamp
    except OSError as error:
        way_out = f"make this file by other means, or start the gateway with {VARIABLE}=1"
        fail(f"{file}: cannot be written ({error.strerror}); {way_out}")
    click.echo(f"{file}: {'the kill switch is pulled' if changed else 'was pulled already; the reason is new'}")
    if not named:
        _order(path, on=True, reason=f"{reason} ({author_name(author)})", stamp=stamp)
    confirm("kill", others, lambda one: one.killed and (one.kill_stamp or 0) >= stamp, wait_s=wait_s)


@click.command(cls=Command)
@CONFIG
@_FILE
@option("--reason", help="Why, for the audit log.", default="", metavar="TEXT")
@AUTHOR
@WAIT
def unkill(path: Path, named: str, reason: str, author: str | None, wait_s: float) -> None:
    """Release the kill switch: the active deployment of each route acts again.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """
    from suffice.gateway.kill import clear_switch

    file, others = _files(path, named)
    try:
        changed = clear_switch(file)
    except OSError as error:
        fail(f"{file}: cannot be taken away ({error.strerror})")
    why = f"{reason or 'released'} ({author_name(author)})"
    changed = (not named and _order(path, on=False, reason=why, stamp=time.time_ns())) or changed
    click.echo(f"{file}: {'the kill switch is released' if changed else 'the kill switch was not pulled'}")
    if not changed:
        raise SystemExit(1)
    confirm("unkill", others, lambda one: not one.killed, wait_s=wait_s)


def _order(path: Path, *, on: bool, reason: str, stamp: int) -> bool:
    """Give the order to all replicas, through the log; return False if that changes nothing."""
    from suffice.errors import SufficeError
    from suffice.store.routes.deployments import read_kill_order, stamp_after
    from suffice.store.rows.events import KillSwitchState
    from suffice.wiring.files import load_settings
    from suffice.wiring.worker import open_decisions

    try:
        with open_decisions(load_settings(path), create=False) as writer:
            before = read_kill_order(writer.path)
            if (before is None and not on) or (before is not None and not (before.on or on)):
                return False
            given = KillSwitchState(on=on, reason=reason, stamp=stamp_after(before, stamp), ordered=True)
            return writer.write_new(given)
    except SufficeError as error:
        warn(f"replicas on other machines did not get the order: {error}")
        return False


def _files(path: Path, named: str) -> tuple[Path, tuple[Path, ...]]:
    """Return the switch's file, and the files beside which gateways announce themselves.

    Exits with 2 when the settings cannot be read, or neither a log nor a gateway's file shows a deployment.
    """
    if named:
        return Path(named), (Path(named),)
    from suffice.errors import SufficeError
    from suffice.store.database.presence import read_presences
    from suffice.wiring.files import load_settings, require_log
    from suffice.wiring.keys import good_file, kill_file, presence_files

    try:
        settings = load_settings(path)
        file, others = kill_file(settings), presence_files(settings)
        if not (file.exists() or good_file(settings).exists() or read_presences(others)):
            require_log(settings, path)
    except SufficeError as error:
        fail(f"{error}; or name the switch's file with --file")
    return file, others
