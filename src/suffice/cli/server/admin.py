"""`suffice config` and `suffice admin`: settings files, and access to the console and the control API."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec

from suffice.cli.shell import (
    CONFIG,
    DATA_DIR,
    INSECURE_OPEN,
    CommandGroup,
    fail,
    option,
    print_line,
    settings_file,
    stacked,
    warn,
)
from suffice.console.auth import ROLES, Role
from suffice.errors import SufficeError
from suffice.formatting import format_iso
from suffice.plugins import load_plugins
from suffice.wiring.audit import with_addresses
from suffice.wiring.files import load_deployment, load_settings, read_settings
from suffice.wiring.people import People, access_changed
from suffice.wiring.routes import check_routes, evidence_warnings, read_evidence, route_notes
from suffice.wiring.startup import preflight
from suffice.wiring.worker import open_decisions

T = TypeVar("T")


@click.group(cls=CommandGroup)
def config() -> None:
    """Check a settings file, or print it with all defaults."""


_SETTINGS_FILE = stacked(
    click.argument("path", metavar="[FILE]", default=settings_file),
    option("--config", "named", metavar="FILE", help="The same, as other commands name it."),
    DATA_DIR,
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
    evidence = read_evidence(settings)
    warnings += evidence_warnings(settings, evidence)
    for plugin in load_plugins():
        if plugin.problem is None:
            click.echo(f"plug-in: {plugin.group} {plugin.name} from {plugin.package}")
    for warning in warnings:
        click.echo(f"warning: {warning}")
    for note in route_notes(settings, evidence):
        click.echo(f"note: {note}")
    click.echo(f"{path}: ok")


@config.command("show")
@_SETTINGS_FILE
@option("--sources", is_flag=True, help="Print one line for each setting, with where its value comes from.")
def show(path: str, named: str | None, sources: bool) -> None:
    """Print all settings of FILE (default: suffice.toml) as JSON, with defaults and the environment's overrides.

    Secrets are left out. A learned model is printed as its address.
    """
    read = read_settings(named or path, os.environ)
    plain = with_addresses(msgspec.to_builtins(read.settings))
    if not sources:
        click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())
        return
    for place, value, source in _sourced(plain, read.written, read.variables):
        print_line(f"{place} = {msgspec.json.encode(value).decode()}  # {source}")


def _sourced(plain: Any, written: Any, variables: Mapping[str, str], path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting's path, value, and what set it: the default, the file, or an environment variable."""
    if isinstance(plain, Mapping) and plain:
        for name, inner in plain.items():
            known = written.get(name, ...) if isinstance(written, Mapping) else written
            yield from _sourced(inner, known, variables, f"{path}.{name}" if path else name)
        return
    setters = [one for at, one in variables.items() if f"{path}.".startswith(f"{at}.")]
    yield path, plain, setters[-1] if setters else "default" if written is ... else "file"


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
@option("--role", type=click.Choice(ROLES), default="reviewer", help="What they may do.")
@option("--tenant", "tenants", multiple=True, help="See only runs of this tenant; repeat it for several.")
@CONFIG
def add(name: str, role: Role, tenants: tuple[str, ...], path: Path) -> None:
    """Add NAME and print their secret once."""
    _print_secret(name, _change(path, name, "added", lambda people: people.add(name, role, tenants or None)))


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
        of = "" if one.tenants is None else f"  of {', '.join(one.tenants)}"
        print_line(f"{one.name:<24} {one.role:<9} secret made {format_iso(one.since_s, ' ')}{of}")
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
