"""`suffice config` and `suffice admin`: settings files, and access to the console and the control API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import click
import msgspec

from suffice.cli.shell import CONFIG, INSECURE_OPEN, CommandGroup, fail, option, print_line, stacked, warn
from suffice.errors import SufficeError
from suffice.formatting import format_iso
from suffice.plugins import load_plugins
from suffice.wiring.audit import with_addresses
from suffice.wiring.files import load_deployment, load_settings
from suffice.wiring.people import People, access_changed
from suffice.wiring.routes import check_routes, evidence_warnings, read_evidence
from suffice.wiring.startup import preflight
from suffice.wiring.worker import open_decisions

T = TypeVar("T")


@click.group(cls=CommandGroup)
def config() -> None:
    """Check a settings file, or print it with all defaults."""


_SETTINGS_FILE = stacked(
    click.argument("path", metavar="[FILE]", default="suffice.toml"),
    option("--config", "named", metavar="FILE", help="The same, as other commands name it."),
)


@config.command("check")
@_SETTINGS_FILE
@option("--host", help="Address to listen on, as `serve` takes it.")
@INSECURE_OPEN
def check(path: str, named: str | None, host: str | None, insecure_open: bool) -> None:
    """Build everything that FILE describes (default: suffice.toml), without opening a socket.

    Also checks the environment and the log. Exits with 2 and the place of the error when `serve` would refuse.
    """
    path = named or path
    settings = load_settings(path)
    try:
        if settings.upstreams:
            host = settings.server.host if host is None else host
            warnings = [*preflight(settings, host=host, insecure_open=insecure_open).warnings]
        else:  # they may be for the library alone
            warnings = check_routes(settings)
    except SufficeError as error:
        fail(f"{path}: {error}")
    warnings += evidence_warnings(settings, read_evidence(settings))
    for plugin in load_plugins():
        if plugin.problem is None:
            click.echo(f"plug-in: {plugin.group} {plugin.name} from {plugin.package}")
    for warning in warnings:
        click.echo(f"warning: {warning}")
    click.echo(f"{path}: ok")


@config.command("show")
@_SETTINGS_FILE
def show(path: str, named: str | None) -> None:
    """Print all settings of FILE (default: suffice.toml) as JSON, with defaults.

    Secrets are left out. A learned model is printed as its address.
    """
    settings = load_settings(named or path)
    plain = with_addresses(msgspec.to_builtins(settings))
    click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())


@click.group(cls=CommandGroup)
def admin() -> None:
    """Manage who may use the console and the control API."""


@admin.command("reset-secret")
@click.argument("name", default="admin")
@CONFIG
def reset_secret(name: str, path: Path) -> None:
    """Give NAME [default: admin] a new secret; the old one and its sessions end."""
    _print_secret(name, _change(path, name, "reset", lambda people: people.reset(name)))


@admin.command("add")
@click.argument("name")
@option("--role", type=click.Choice(["reviewer", "admin"]), default="reviewer", help="What they may do.")
@CONFIG
def add(name: str, role: Literal["reviewer", "admin"], path: Path) -> None:
    """Add NAME and print their secret once."""
    _print_secret(name, _change(path, name, "added", lambda people: people.add(name, role)))


@admin.command("remove")
@click.argument("name")
@CONFIG
def remove(name: str, path: Path) -> None:
    """Remove NAME and end their sessions."""
    _change(path, name, "removed", lambda people: people.remove(name))
    click.echo(f"{name}: may not come in any more")


@admin.command("list")
@CONFIG
def people(path: Path) -> None:
    """List who has access. Secrets are stored as hashes and cannot be shown."""
    known = People.of(load_deployment(path)).listed()
    for one in known:
        print_line(f"{one.name:<24} {one.role:<9} secret made {format_iso(one.since_s, ' ')}")
    if not known:
        click.echo("nobody yet: suffice admin reset-secret makes an admin")


def _print_secret(name: str, secret: str) -> None:
    click.echo(f"{name}: this secret is shown once and kept as a hash only", err=True)
    click.echo(secret)


def _change(path: Path, name: str, what: Literal["added", "reset", "removed"], change: Callable[[People], T]) -> T:
    """Change who has access, and record it in the audit log."""
    settings = load_deployment(path)
    people = People.of(settings)
    result = change(people)
    try:
        with open_decisions(settings, create=False) as writer:
            writer.write(None, [access_changed(people, name, what)])
    except SufficeError as error:
        warn(f"the change was made, but the audit log does not record it: {error}")
    return result
