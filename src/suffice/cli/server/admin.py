"""`suffice config`, `admin` and `key`: settings files, and access to the console, the control API and the gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import click
import msgspec

from suffice.cli import shell
from suffice.cli.operations import command_of
from suffice.console.auth import ROLES, Role
from suffice.errors import ConfigError, SufficeError
from suffice.formatting import format_iso
from suffice.operations.keys import office_of, revoke_key, rotate_key
from suffice.plugins import load_plugins
from suffice.settings import KeyScope, Settings
from suffice.settings.limits import NAME
from suffice.store.database.location import log_location
from suffice.store.people.keys import KEY_KINDS, NewKey, valid_keys
from suffice.wiring.audit import with_addresses
from suffice.wiring.files import load_deployment, load_settings, read_settings
from suffice.wiring.keys import permits_of
from suffice.wiring.people import People, access_changed
from suffice.wiring.routes import check_routes, evidence_warnings, read_evidence, route_notes
from suffice.wiring.startup import preflight
from suffice.wiring.worker import open_decisions

T = TypeVar("T")
DAY_S: Final = 86_400.0


@click.group(cls=shell.CommandGroup)
def config() -> None:
    """Check a settings file, or print it with all defaults."""


_SETTINGS_FILE = shell.stacked(
    click.argument("path", metavar="[FILE]", default=shell.settings_file),
    shell.option("--config", "named", metavar="FILE", help="The same, as other commands name it."),
    shell.DATA_DIR,
)


@config.command("check")
@_SETTINGS_FILE
@shell.option("--host", help="Address to listen on, as `serve` takes it.")
@shell.INSECURE_OPEN
def check(path: str, named: str | None, host: str | None, insecure_open: bool) -> None:
    """Build everything that FILE describes (default: suffice.toml), without opening a socket.

    Also checks the environment and the log. Exits with 2 and the place of the error when `serve` would refuse.
    """
    path = named or path
    settings = load_settings(path)
    try:
        if settings.upstreams:
            host = settings.server.host if host is None else host
            port = settings.server.port
            warnings = [*preflight(settings, host=host, port=port, insecure_open=insecure_open).warnings]
        else:  # they may be for the library alone
            warnings = check_routes(settings)
    except SufficeError as error:
        shell.fail(f"{path}: {error}")
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
@shell.option("--sources", is_flag=True, help="Print one line for each setting, with where its value comes from.")
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
        shell.print_line(f"{place} = {msgspec.json.encode(value).decode()}  # {source}")


def _sourced(plain: Any, written: Any, variables: Mapping[str, str], path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting's path, value, and what set it: the default, the file, or an environment variable."""
    if isinstance(plain, Mapping) and plain:
        for name, inner in plain.items():
            known = written.get(name, ...) if isinstance(written, Mapping) else written
            yield from _sourced(inner, known, variables, f"{path}.{name}" if path else name)
        return
    setters = [one for at, one in variables.items() if f"{path}.".startswith(f"{at}.")]
    yield path, plain, setters[-1] if setters else "default" if written is ... else "file"


@click.group(cls=shell.CommandGroup)
def admin() -> None:
    """Manage who may use the console and the control API."""


@admin.command("reset-secret")
@click.argument("name", default="admin")
@shell.CONFIG
def reset_secret(name: str, path: Path) -> None:
    """Give NAME [default: admin] a new secret; the old one and its sessions end."""
    _print_secret(name, _change(path, name, "reset", lambda people: people.reset(name)))


@admin.command("add")
@click.argument("name")
@shell.option("--role", type=click.Choice(ROLES), default="reviewer", help="What they may do.")
@shell.option("--tenant", "tenants", multiple=True, help="See only runs of this tenant; repeat it for several.")
@shell.CONFIG
def add(name: str, role: Role, tenants: tuple[str, ...], path: Path) -> None:
    """Add NAME and print their secret once."""
    _print_secret(name, _change(path, name, "added", lambda people: people.add(name, role, tenants or None)))


@admin.command("remove")
@click.argument("name")
@shell.CONFIG
def remove(name: str, path: Path) -> None:
    """Remove NAME and end their sessions."""
    _change(path, name, "removed", lambda people: people.remove(name))
    click.echo(f"{name}: may not come in any more")


@admin.command("list")
@shell.CONFIG
def people(path: Path) -> None:
    """List who has access. Secrets are stored as hashes and cannot be shown."""
    known = People.of(load_deployment(path)).listed()
    for one in known:
        of = "" if one.tenants is None else f"  of {', '.join(one.tenants)}"
        shell.print_line(f"{one.name:<24} {one.role:<9} secret made {format_iso(one.since_s, ' ')}{of}")
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
        shell.warn(f"the change was made, but the audit log does not record it: {error}")
    return result


# ---- keys of clients, which live in the log as hashes


@click.group(cls=shell.CommandGroup)
def key() -> None:
    """Create, list, rotate and revoke keys of clients, without a restart."""


@key.command("create")
@click.argument("name")
@shell.option(
    "--scope", "scopes", multiple=True, type=click.Choice(get_args(KeyScope)), help="What it may do; repeat it."
)
@shell.option("--tenant", help="Whose requests it sends and whose it may see.")
@shell.option("--route", "routes", multiple=True, help="Only this route; repeat it for several.")
@shell.option("--source", "sources", multiple=True, help="Source of feedback that it may send; repeat it for several.")
@shell.option("--all-objects", is_flag=True, default=None, help="It may use, list and rate objects of other keys.")
@shell.option("--requests-per-minute", type=int, metavar="N", help="At most.")
@shell.option("--concurrency", type=int, metavar="N", help="Requests at once, at most.")
@shell.option("--tokens-per-day", type=int, metavar="N", help="Prompt and answer, of a UTC day.")
@shell.option("--usd-per-day", type=float, metavar="USD", help="At the upstreams' prices, of a UTC day.")
@shell.option("--usd-per-month", type=float, metavar="USD", help="Likewise, of a calendar month.")
@shell.option("--days", type=float, metavar="D", help="After which it ends by itself.  [default: never]")
@shell.decision()
def create_key(by: shell.PendingDecision, name: str, days: float | None, **given: Any) -> shell.CommandReply:
    """Create a key called NAME, and print it once. The log keeps its hash only."""
    if (problem := NAME.problem(name)) is not None:
        raise ConfigError(f"name: {problem}")
    if name in by.settings.keys:
        raise ConfigError(f"name: {name!r} is a key of the settings, [keys.{name}]")
    if not by.settings.server.require_keys:
        raise ConfigError("server.require_keys: is false, so no key of the log is accepted; set it to true first")
    table = {field: value for field, value in given.items() if value not in (None, ())}
    permits_of(table, by.settings)
    until_s = None if days is None else by.now_s + days * DAY_S
    return _made(name, office_of(by).issue(name, table, until_s=until_s))


key.add_command(command_of(rotate_key))
key.add_command(command_of(revoke_key, waits_for=KEY_KINDS))


@key.command("list")
@shell.report(shell.JSON_LINES)
def list_keys(settings: Settings) -> shell.CommandReply:
    """List the keys of the log. They are kept as hashes and cannot be shown."""
    known = valid_keys(log_location(settings.store))
    now_s = time.time()
    lines = list[str]()
    for one in known:
        ended = one.until_s is not None and one.until_s <= now_s
        until = "" if one.until_s is None else f"{'ended' if ended else 'ends'} {format_iso(one.until_s, ' ')}"
        permits = ", ".join(f"{field} {msgspec.json.encode(value).decode()}" for field, value in one.permits.items())
        lines.append(f"{one.name:<24} {one.key_id}  {permits or 'as a key without a table'}  {until}".rstrip())
    plain = [{**msgspec.to_builtins(one), "digest": None} for one in known]
    return shell.CommandReply(plain, lines or ["none yet: suffice key create"])


def _made(name: str, made: NewKey | str) -> shell.CommandReply:
    new = shell.accepted(made, f"key {name} ")
    click.echo(f"{name}: this key is shown once and kept as a hash only", err=True)
    return shell.CommandReply({"name": name, "key_id": new.issue.key_id, "key": new.key}, new.key)
