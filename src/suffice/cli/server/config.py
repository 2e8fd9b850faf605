"""`suffice config`: check a settings file before it is used, and see what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from suffice import wiring
from suffice.cli.shell import INSECURE_OPEN, CommandGroup, fail
from suffice.errors import SufficeError
from suffice.plugins import load_plugins
from suffice.wiring import load_settings
from suffice.wiring.audit import with_addresses

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=CommandGroup)
def config() -> None:
    """Check a settings file, or show it with all defaults."""


def _settings_file(command: F) -> F:
    named = click.option("--config", "named", metavar="FILE", help="The same, as other commands name it.")
    return click.argument("path", metavar="[FILE]", default="suffice.toml")(named(command))


@config.command("check")
@_settings_file
@click.option("--host", default=None, help="Address to listen on, as `serve` takes it.")
@INSECURE_OPEN
def check(path: str, named: str | None, host: str | None, insecure_open: bool) -> None:
    """Build everything that FILE describes (suffice.toml where none is named), without opening a socket.

    Looks at the environment and at what the log says, too. Exits with 2, and says where, when `serve` would refuse.
    """
    path = named or path
    try:
        settings = wiring.load_settings(path)
        try:
            if settings.upstreams:
                host = settings.server.host if host is None else host
                warnings = [*wiring.preflight(settings, host=host, insecure_open=insecure_open).warnings]
            else:  # they may be for the library alone
                warnings = wiring.check_routes(settings)
        except SufficeError as error:
            fail("config check", f"{path}: {error}")
        warnings += wiring.evidence_warnings(settings, wiring.read_evidence(settings))
    except SufficeError as error:
        fail("config check", error)
    for plugin in load_plugins():
        if plugin.problem is None:
            click.echo(f"plug-in: {plugin.group} {plugin.name} from {plugin.package}")
    for warning in warnings:
        click.echo(f"warning: {warning}")
    click.echo(f"{path}: ok")


@config.command("show")
@_settings_file
def show(path: str, named: str | None) -> None:
    """Print all settings of FILE (suffice.toml where none is named) as JSON, defaults filled in.

    Secrets are never in them. A learned model is its address.
    """
    try:
        settings = load_settings(named or path)
    except SufficeError as error:
        fail("config show", error)
    plain = with_addresses(msgspec.to_builtins(settings))
    click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())
