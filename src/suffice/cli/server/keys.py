"""`suffice key`: keys of clients that live in the log as hashes, and change without a restart."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Final, get_args

import click
import msgspec

from suffice.cli import shell
from suffice.errors import ConfigError
from suffice.formatting import format_iso
from suffice.settings import KeyScope
from suffice.settings.limits import NAME
from suffice.store.database.location import log_location
from suffice.store.database.views import newest_of
from suffice.store.people.keys import KEY_KINDS, KeyOffice, NewKey, valid_keys
from suffice.wiring.files import load_deployment
from suffice.wiring.keys import permits_of, presence_files

SCOPES: Final = get_args(KeyScope)
DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0


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
    return _made(name, _office(by).issue(name, table, until_s=until_s))


@key.command("rotate")
@click.argument("name")
@shell.option("--overlap-hours", type=float, default=24.0, metavar="H", help="How long the old key stays valid.")
@shell.decision()
def rotate_key(by: shell.PendingDecision, name: str, overlap_hours: float) -> shell.CommandReply:
    """Give the holder of NAME a new key with the same permissions; the old one ends after the overlap."""
    if not 0 <= overlap_hours <= 24 * 366:
        raise ConfigError(f"--overlap-hours: got {overlap_hours:g}; 0 to {24 * 366}")
    return _made(name, _office(by).rotate(name, overlap_s=overlap_hours * HOUR_S))


@key.command("revoke")
@click.argument("name")
@shell.WAIT
@shell.decision()
def revoke_key(by: shell.PendingDecision, name: str, wait_s: float) -> shell.CommandReply:
    """End all keys of NAME now, or the one key with this id."""
    n = shell.accepted(_office(by).revoke(name), f"key {name} ")
    seq = newest_of(by.writer.path, KEY_KINDS)
    shell.confirm("revoke", presence_files(by.settings), lambda one: one.decided >= seq, wait_s=wait_s)
    return shell.CommandReply({"name": name, "n_ended": n}, f"{name}: {n} ended")


@key.command("list")
@shell.CONFIG
@shell.JSON_LINES
def list_keys(path: Path, as_json: bool) -> None:
    """List the keys of the log. They are kept as hashes and cannot be shown."""
    import time

    settings = load_deployment(path)
    known, now_s, lines = valid_keys(log_location(settings.store)), time.time(), list[str]()
    for one in known:
        ended = one.until_s is not None and one.until_s <= now_s
        until = "" if one.until_s is None else f"{'ended' if ended else 'ends'} {format_iso(one.until_s, ' ')}"
        permits = ", ".join(f"{field} {msgspec.json.encode(value).decode()}" for field, value in one.permits.items())
        lines.append(f"{one.name:<24} {one.key_id}  {permits or 'as a key without a table'}  {until}".rstrip())
    plain = [{**msgspec.to_builtins(one), "digest": None} for one in known]
    shell.print_reply(shell.CommandReply(plain, lines or ["none yet: suffice key create"]), as_json=as_json)


def _office(by: shell.PendingDecision) -> KeyOffice:
    return KeyOffice(
        writer=by.writer, author=by.author, reason=by.reason, now_s=by.now_s, random_bytes=secrets.token_bytes
    )


def _made(name: str, made: NewKey | str) -> shell.CommandReply:
    new = shell.accepted(made, f"key {name} ")
    click.echo(f"{name}: this key is shown once and kept as a hash only", err=True)
    return shell.CommandReply({"name": name, "key_id": new.issue.key_id, "key": new.key}, new.key)
