"""`suffice erase`: permanently erases user-written text from the log."""

from __future__ import annotations

import re
import secrets
import time
from itertools import chain
from pathlib import Path

import click

from suffice.cli.shell import AUTHOR, CONFIG, REASON, Command, option, parse_time
from suffice.errors import ConfigError
from suffice.formatting import format_iso
from suffice.rollout.assign import conversation_key
from suffice.settings import Settings
from suffice.store.audit.personal import PARTS
from suffice.store.database import erasing
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, last_place, open_reader
from suffice.wiring.audit import user_name
from suffice.wiring.files import load_deployment
from suffice.wiring.keys import deployment_salt
from suffice.wiring.worker import open_decisions

_PARTS = ("answers", "comments", "questions", "metadata", "steps")
_WORDS = _PARTS[:-1]
_DAY_S = 86_400.0


@click.command(cls=Command)
@CONFIG
@option("--episode", "episodes", multiple=True, metavar="ID", help="This episode; repeatable.")
@option(
    "--unit",
    "units",
    multiple=True,
    metavar="UNIT",
    help="All of this conversation: its id as clients send it, or its name in the log; repeatable.",
)
@option("--older-than", metavar="TIME", help="Everything that is older: 90d, 12h, 2026-01-31.")
@option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(_PARTS),
    help="What goes; repeatable. [default: all words; steps only where they are named]",
)
@REASON
@AUTHOR
@option("--dry-run", is_flag=True, help="Print how many rows would be looked at, and change nothing.")
def erase(
    path: Path,
    episodes: tuple[str, ...],
    units: tuple[str, ...],
    older_than: str | None,
    parts: tuple[str, ...],
    reason: str,
    author: str | None,
    dry_run: bool,
) -> None:
    """Permanently erase user-written text from the log: from its rows, its file and its write-ahead log.

    Ids, counts, tokens, verdicts and digests stay, and the audit log still verifies: it records what was erased, by
    whom and why. Can run beside a serving gateway, which delays its writes while the file is rewritten. Exits with 1
    when the log has no such text, and with 2 when it cannot be erased.
    """
    if bool(episodes or units) == bool(older_than):
        raise ConfigError("needs --episode or --unit, or else --older-than")
    settings = load_deployment(path)
    limit_s = None if older_than is None else _limit_s(older_than)
    wanted = tuple(part for part in PARTS if part in (parts or _WORDS))
    with open_decisions(settings, create=False) as writer:
        units = tuple(_name(settings, writer, one) for one in units)
        named = [*(f"episode {one}" for one in episodes), *(f"unit {one}" for one in units)]
        with open_reader(writer.path) as connection:
            if limit_s is None:
                runs = [*episodes, *chain(*(erasing.find_episodes(connection, unit) for unit in units))]
                rows = sorted({seq for name in runs for seq in erasing.select_word_rows(connection, name)})
            else:
                rows = _rows_before(connection, limit_s)
        if dry_run or not rows:
            click.echo(f"{len(rows):,} rows may hold {', '.join(wanted)}; nothing was changed")
            raise SystemExit(0 if rows else 1)
        order = erasing.ErasureOrder(
            erasure_id=f"er_{secrets.token_hex(8)}",
            what=", ".join(named) or f"older than {older_than}",
            parts=wanted,
            author=author or user_name() or "unknown",
            reason=reason,
        )
        _erase(writer, order, rows)


def _limit_s(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([dh])", text)
    if match is not None:
        return time.time() - float(match[1]) * (_DAY_S if match[2] == "d" else 3_600.0)
    return parse_time("--older-than", text, "90d, 12h, or a date such as 2026-01-31")


def _rows_before(connection: LogReader, limit_s: float) -> list[int]:
    matching = set[int]()
    after = 0
    last = last_place(connection)
    while True:
        after, rows = erasing.select_expired_rows(connection, limit_s, after_seq=after, until_seq=last, labels=True)
        if not rows:
            break
        matching.update(rows)
    return sorted(matching)


def _name(settings: Settings, writer: Decisions, unit: str) -> str:
    """Return the log's name of a conversation: the given one, or the keyed hash of the given id and its sender.

    Raises ConfigError where several senders used the id: these are different conversations.
    """
    if re.fullmatch(r"[0-9a-f]{16}", unit):
        return unit
    salt = deployment_salt(settings)
    with open_reader(writer.path) as connection:
        names = {
            sender: conversation_key(sender, unit, salt=salt) for sender in erasing.conversation_senders(connection)
        }
        entries = {sender: name for sender, name in names.items() if erasing.find_episodes(connection, name)}
    if len(entries) > 1:
        text = ", ".join(f"{name} of sender {sender or 'without a key'}" for sender, name in sorted(entries.items()))
        raise ConfigError(f"--unit: {unit[:80]!r} names conversations of {len(entries)} senders; name one of {text}")
    return next(iter(entries.values()), conversation_key("", unit, salt=salt))


def _erase(writer: Decisions, order: erasing.ErasureOrder, rows: list[int]) -> None:
    n_rows = erasing.erase_words(writer, order, rows)
    is_gone = erasing.purge(writer.path)
    click.echo(f"{order.what}: {', '.join(order.parts)} erased in {n_rows:,} of {len(rows):,} rows")
    with open_reader(writer.path) as connection:
        for at_s, where in erasing.exports_since(connection, rows[0]):
            click.echo(f"exported on {format_iso(at_s)[:10]} to {where}: this copy was not reached")
    if not is_gone:
        why = "another process was reading, so that the write-ahead log still holds the words"
        click.echo(f"not gone yet: {why}; erase again", err=True)
        raise SystemExit(1)
    click.echo("gone from the file and its write-ahead log; backups, snapshots and copies of yours hold what they held")
