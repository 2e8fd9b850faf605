"""`suffice kill` and `suffice unkill`: the switch that needs neither database nor worker."""

from __future__ import annotations

from pathlib import Path

import click

from suffice.cli.deciding import AUTHOR, CONFIG, REASON, who
from suffice.cli.shell import fail

_FILE = click.option("--file", "named", default="", help="The switch's file; the settings are then not read.")


@click.command()
@CONFIG
@_FILE
@REASON
@AUTHOR
def kill(path: str, named: str, reason: str, author: str | None) -> None:
    """Stop stopping, on every route, within a second; nothing but a file is needed.

    Chains of thought pass through untouched, samples are all drawn, loops go on. Runs that are under way are not
    stopped any more either. It lasts until `suffice unkill`.
    """
    from suffice.gateway.kill import VARIABLE, pull

    file = _file("kill", path, named)
    try:
        changed = pull(file, reason, who(author))
    except OSError as error:
        way_out = f"make this file by other means, or start the gateway with {VARIABLE}=1"
        fail("kill", f"{file}: cannot be written ({error.strerror}); {way_out}")
    click.echo(f"{file}: {'the kill switch is pulled' if changed else 'was pulled already; the reason is new'}")


@click.command()
@CONFIG
@_FILE
def unkill(path: str, named: str) -> None:
    """Release the kill switch: what is in force on each route acts again."""
    from suffice.gateway.kill import release

    file = _file("unkill", path, named)
    try:
        changed = release(file)
    except OSError as error:
        fail("unkill", f"{file}: cannot be taken away ({error.strerror})")
    click.echo(f"{file}: {'the kill switch is released' if changed else 'the kill switch was not pulled'}")
    raise SystemExit(0 if changed else 1)


def _file(command: str, path: str, named: str) -> Path:
    """Where the switch's file is; exits with 2 when the settings cannot be read."""
    if named:
        return Path(named)
    from suffice import wiring
    from suffice.errors import SufficeError

    try:
        return wiring.kill_file(wiring.load_settings(path))
    except SufficeError as error:
        fail(command, f"{error}; name the switch's file with --file")
