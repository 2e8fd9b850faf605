"""`suffice admin`: who may use the console and the control API."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TypeVar

import click

from suffice import wiring
from suffice.cli.shell import CONFIG, CommandGroup, fail
from suffice.errors import SufficeError
from suffice.wiring.people import People, access_changed

T = TypeVar("T")


@click.group(cls=CommandGroup)
def admin() -> None:
    """Who may use the console and the control API."""


@admin.command("reset-secret")
@click.argument("name", default="admin")
@CONFIG
def reset_secret(name: str, path: str) -> None:
    """Give NAME [default: admin] a new secret; the old one and its sessions end."""
    _show("admin reset-secret", path, lambda people: people.reset(name), name, "reset")


@admin.command("add")
@click.argument("name")
@click.option(
    "--role", type=click.Choice(["reviewer", "admin"]), default="reviewer", show_default=True, help="What they may do."
)
@CONFIG
def add(name: str, role: str, path: str) -> None:
    """Let NAME in; their secret is printed once."""
    kind: Literal["admin", "reviewer"] = "admin" if role == "admin" else "reviewer"
    _show("admin add", path, lambda people: people.add(name, kind), name, "added")


@admin.command("remove")
@click.argument("name")
@CONFIG
def remove(name: str, path: str) -> None:
    """Let NAME in no more; their sessions end."""

    def go(people: People) -> None:
        people.remove(name)

    _done("admin remove", path, go)
    _noted("admin remove", path, name, "removed")
    click.echo(f"{name}: may not come in any more")


@admin.command("list")
@CONFIG
def people(path: str) -> None:
    """Show who may come in. Secrets are kept as hashes and cannot be shown."""
    found = _done("admin list", path, lambda people: people.listed())
    for one in found:
        since = datetime.fromtimestamp(one.since_s, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
        click.echo(f"{one.name:<24} {one.role:<9} secret made {since}")
    if not found:
        click.echo("nobody yet: suffice admin reset-secret makes an admin")


def _show(command: str, path: str, make: Callable[[People], str], name: str, what: Literal["added", "reset"]) -> None:
    secret = _done(command, path, make)
    _noted(command, path, name, what)
    click.echo(f"{name}: this secret is shown once and kept as a hash only", err=True)
    click.echo(secret)


def _noted(command: str, path: str, name: str, what: Literal["added", "reset", "removed"]) -> None:
    settings = wiring.load_settings(path)
    try:
        with wiring.open_decisions(settings, create=False) as writer:
            writer.write(None, [access_changed(People.of(settings), name, what)])
    except SufficeError as error:
        click.echo(f"suffice {command}: it holds, but the audit log does not say so: {error}", err=True)


def _done(command: str, path: str, do: Callable[[People], T]) -> T:
    try:
        return do(People.of(wiring.load_deployment(path)))
    except SufficeError as error:
        fail(command, error)
