"""`suffice kill` and `suffice unkill`: the switch that needs neither database nor worker."""

from __future__ import annotations

from pathlib import Path

import click

_CONFIG = click.option("--config", "path", default="suffice.toml", show_default=True, help="Settings, TOML or YAML.")
_FILE = click.option("--file", "named", default="", help="The switch's file; the settings are then not read.")
_AUTHOR = click.option("--author", default=None, help="Who decides. [default: the user of this computer]")


@click.command()
@_CONFIG
@_FILE
@click.option("--reason", required=True, help="Why; it stays in the log.")
@_AUTHOR
def kill(path: str, named: str, reason: str, author: str | None) -> None:
    """Stop stopping, on every route, within a second; nothing but a file is needed.

    Chains of thought pass through untouched, samples are all drawn, loops go on. Runs that are under way are not
    stopped any more either. It lasts until `suffice unkill`.
    """
    import getpass

    from suffice.gateway.kill import VARIABLE, pull

    file = _file(path, named)
    try:
        changed = pull(file, reason, author or getpass.getuser())
    except OSError as error:
        click.echo(
            f"kill: {file}: cannot be written ({error.strerror}); make this file by other means, or start the gateway"
            f" with {VARIABLE}=1", err=True,
        )  # fmt: skip
        raise SystemExit(2) from None
    click.echo(f"{file}: {'the kill switch is pulled' if changed else 'was pulled already; the reason is new'}")


@click.command()
@_CONFIG
@_FILE
def unkill(path: str, named: str) -> None:
    """Release the kill switch: what is in force on each route acts again."""
    from suffice.gateway.kill import release

    file = _file(path, named)
    try:
        changed = release(file)
    except OSError as error:
        click.echo(f"unkill: {file}: cannot be taken away ({error.strerror})", err=True)
        raise SystemExit(2) from None
    click.echo(f"{file}: {'the kill switch is released' if changed else 'the kill switch was not pulled'}")
    raise SystemExit(0 if changed else 1)


def _file(path: str, named: str) -> Path:
    """Where the switch's file is; exits with 2 when the settings cannot be read."""
    if named:
        return Path(named)
    from suffice import wiring
    from suffice.errors import SufficeError

    try:
        return wiring.kill_file(wiring.load_settings(path))
    except SufficeError as error:
        click.echo(f"kill: {error}; name the switch's file with --file", err=True)
        raise SystemExit(2) from None
