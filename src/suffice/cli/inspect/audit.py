"""`suffice audit` and `suffice alerts`."""

from __future__ import annotations

import contextlib
import csv
import logging
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import IO, Any, Literal

import click
import msgspec

from suffice.cli import shell
from suffice.control.jobs.notify import notice_headline
from suffice.errors import StoreError, SufficeError
from suffice.files import whole_file
from suffice.formatting import format_iso
from suffice.sanitize import format_cell, printable
from suffice.settings import Settings, Store
from suffice.store.audit.chain import read_heads
from suffice.store.audit.verify import BadRow, ChainCheck, verify_chain
from suffice.store.database.location import database_at, log_location
from suffice.store.database.views import open_reader
from suffice.store.people.alerts import sent_notices
from suffice.store.people.audit_view import AuditEntry, entries, read_latest_rows
from suffice.wiring.audit import audit_key, note_export
from suffice.wiring.evidence import write_bundle
from suffice.wiring.files import load_deployment, load_settings
from suffice.wiring.startup import send_test
from suffice.wiring.worker import open_decisions

COLUMNS = ("place", "seq", "at", "kind", "route", "episode_id", "who", "before", "after", "why", "link", "event")
_TIMES = "a time such as 2026-11-26 or 2026-11-26T09:00:00+01:00"


@click.group(cls=shell.CommandGroup)
def alerts() -> None:
    """Test alert sinks and list the alerts that were sent."""


@alerts.command()
@shell.CONFIG
def test(path: Path) -> None:
    """Send a test alert to every sink and print the result.

    Exits with 1 when a sink did not accept it, and with 2 when none is configured.
    """
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s")
    problems = send_test(load_settings(path).alerts, "this is a test; nothing is wrong")
    for name, problem in problems.items():
        click.echo(f"{name}: {'accepted' if problem is None else f'FAILED: {problem}'}")
    raise SystemExit(1 if any(problem is not None for problem in problems.values()) else 0)


@alerts.command("list")
@shell.option("-n", "n", type=click.IntRange(1, 10_000), default=20, help="How many.")
@shell.report(shell.JSON_LINES)
def list_sent(settings: Settings, n: int) -> shell.CommandReply:
    """List the latest alerts that were sent, oldest first."""
    sent = list(sent_notices(log_location(settings.store), n))
    lines = [f"{format_iso(one.at_s)}  {one.sink:7}  {notice_headline(one.notice)}" for one in sent]
    return shell.CommandReply(sent, lines or "no alerts were sent yet")


def _of_log(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command read the log of the settings, or the file that --db names; it gets the settings of that log."""

    @shell.CONFIG
    @shell.option("--db", type=shell.FILE, metavar="FILE", help="This log instead of the settings'.")
    @wraps(command)
    def run(*, path: Path, db: Path | None, **arguments: Any) -> None:
        named = None if db is None else Settings(store=Store(url=f"sqlite:///{db.resolve()}"))
        command(named or load_deployment(path), **arguments)

    return run


_EXPORT = shell.stacked(
    shell.option(
        "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write here. [default: standard output]"
    ),
    shell.option("--author", help="Who takes it. [default: the user of this computer]"),
    shell.option("--reason", default="", help="What for; it stays in the log."),
)


@click.group(cls=shell.CommandGroup)
def audit() -> None:
    """The audit log: who changed what, when and why, in a chain that shows tampering."""


@audit.command()
@_of_log
@shell.option(
    "--head",
    "heads",
    multiple=True,
    type=shell.FILE,
    metavar="FILE",
    help="Heads that were exported; repeatable. [default: the settings' audit.file, if it is there]",
)
@shell.JSON_OBJECT
def verify(settings: Settings, heads: tuple[Path, ...], as_json: bool) -> None:
    """Verify the whole chain and report the first row that was changed.

    First checks the pages of the file and its indexes. Only exported heads reveal a cut-off end or a rebuilt chain.
    Exits with 1 when something is wrong, and with 2 when the log cannot be read.
    """
    own = Path(settings.audit.file)
    key = audit_key(settings)
    log = log_location(settings.store)
    files = heads or ((own,) if settings.audit.file and own.exists() else ())
    kept = [(file, one) for file in files for one in read_heads(file, key=key)]
    checked, damage = database_at(log).find_damage(thorough=True), ""
    try:
        with open_reader(log) as connection:
            damage = checked or ""
            if checked is None:
                raise StoreError(f"store {log}: its pages could not be read through; try again")
            verdict = verify_chain(connection, [one.head for _, one in kept if one.signed is not False])
    except SufficeError as error:
        if not damage:
            raise
        shell.fail(f"LOG DAMAGED: {damage}: {error}", 1)
    forged = [(file, one) for file, one in kept if one.signed is False]
    ok = verdict.ok and not forged and not damage
    bad_heads = [{"file": str(file), "line": one.line} for file, one in forged]
    checks = {"damage": damage, "signatures_checked": key is not None, "bad_heads": bad_heads}
    lines = [f"LOG DAMAGED: {log}: {damage}; restore a backup"] if damage else []
    lines += [f"BAD HEAD: {file}, line {one.line}: is not signed with this deployment's secret" for file, one in forged]
    lines += _verdict_lines(verdict, signatures=key is not None, compared=bool(files))
    shell.print_reply(shell.CommandReply({"ok": ok, **msgspec.to_builtins(verdict), **checks}, lines), as_json=as_json)
    raise SystemExit(0 if ok else 1)


def _verdict_lines(verdict: ChainCheck, *, signatures: bool, compared: bool) -> Iterator[str]:
    if verdict.bad is not None:
        yield f"BAD: {_place(verdict.bad)}: {verdict.bad.what}"
    beginning, head = verdict.beginning, verdict.head
    if beginning is not None and beginning.n_before:
        until = f"{beginning.n_before:,} rows up to row {beginning.after_seq:,} of the log"
        yield f"{until} were written before there was a chain; nothing vouches for them"
    sentence = "checked" if not verdict.ok else "are what was written"
    erased = f"; the text of {verdict.n_erased:,} of their parts was erased, as the chain records"
    yield f"{verdict.n_rows:,} rows of the chain {sentence}{erased if verdict.n_erased else ''}"
    if head is not None:
        yield f"head: place {head.place:,}, row {head.seq:,} of the log, {head.link}"
    if not compared:
        yield "no exported head to compare with: a cut end or a chain that was written anew would not be seen"
        return
    unsigned = "" if signatures else "; their signatures were not checked: the deployment's secret is not here"
    yield f"compared with {verdict.n_heads:,} exported heads{unsigned}"


def _place(bad: BadRow) -> str:
    parts = [f"place {bad.place:,} of the chain"] if bad.place is not None else []
    if bad.seq is not None:
        parts.append(f"row {bad.seq:,} of the log" + (f" ({bad.kind})" if bad.kind else ""))
    return ", ".join(parts)


@audit.command()
@_of_log
@shell.option("-n", "n", type=click.IntRange(1, 100_000), default=20, help="Rows, the latest.")
@shell.option("--route", help="Only of this route.")
@shell.option("--kind", help="Only of this kind of event, such as policy_published.")
@shell.JSON_LINES
def show(settings: Settings, n: int, route: str | None, kind: str | None, as_json: bool) -> None:
    """Print the latest rows, oldest first: when, who, what, before and after, and why."""
    rows = list(read_latest_rows(log_location(settings.store), n, route=route, kind=kind))
    lines = [line for row in rows for line in _entry_lines(row)]
    reply = shell.CommandReply([_plain_entry(row) for row in rows], lines or "no such row in the audit log")
    shell.print_reply(reply, as_json=as_json)


def _entry_lines(entry: AuditEntry) -> Iterator[str]:
    about = " ".join(part for part in (entry.kind, entry.route or "", entry.episode_id or "") if part)
    yield f"{format_iso(entry.at_s, ' ')}  #{entry.place}  {about}  by {entry.who or 'nobody named'}"
    change = f"{entry.before} → {entry.after}" if entry.before else entry.after
    for text in (change, f"because: {entry.why}" if entry.why else ""):
        if text:
            yield from shell.wrapped(printable(text), "    ", "      ", width=shell.WIDTH).splitlines()


def _plain_entry(entry: AuditEntry) -> dict[str, Any]:
    plain = {**msgspec.to_builtins(entry), "at": format_iso(entry.at_s, " "), "event": msgspec.Raw(entry.body.encode())}
    return {name: plain[name] for name in COLUMNS}


@audit.command()
@_of_log
@shell.option("--since", metavar="TIME", help="Only rows from then on: 2026-11-26, or 2026-11-26T09:00:00+01:00.")
@shell.option("--route", help="Only of this route.")
@shell.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", help="JSON lines, or a table.")
@_EXPORT
def export(
    settings: Settings,
    since: str | None,
    route: str | None,
    form: Literal["jsonl", "csv"],
    out: Path | None,
    author: str | None,
    reason: str,
) -> None:
    """Export the rows of the audit log. The export itself is recorded in the audit log."""
    since_s = None if since is None else shell.parse_time("--since", since, _TIMES)
    rows = entries(log_location(settings.store), since_s=since_s, route=route)
    n_rows = 0
    with _opened(out) as target:
        table = csv.writer(target)
        if form == "csv":
            table.writerow(COLUMNS)
        for n_rows, entry in enumerate(rows, 1):  # noqa: B007 - counted for the log entry
            row = _plain_entry(entry)
            if form == "csv":
                table.writerow(map(format_cell, (row | {"event": entry.body}).values()))
            else:
                target.write(msgspec.json.encode(row).decode() + "\n")
    where = str(out) if out is not None else "standard output"
    with open_decisions(settings, create=False) as writer:
        note_export(writer, what="audit log", where=where, n_rows=n_rows, author=author, reason=reason)
    if out is not None:
        click.echo(f"{n_rows:,} rows written to {out}")


@contextlib.contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    with whole_file(out) as draft, draft.open("w", encoding="utf-8", newline="") as handle:
        yield handle


@audit.command()
@click.argument("route")
@shell.CONFIG
@shell.option("--publication", "number", type=click.IntRange(1), metavar="N", help="Which one. [default: the latest]")
@_EXPORT
def bundle(route: str, path: Path, number: int | None, out: Path | None, author: str | None, reason: str) -> None:
    """Export all evidence of a certificate, for independent verification.

    Check the file with tools/verify_bundle.py. The export is recorded in the audit log, and the head after it is
    exported too.
    """
    settings = load_deployment(path)
    where = str(out) if out is not None else "standard output"
    lines = write_bundle(settings, route, number, where=where, author=author, reason=reason)
    with _opened(out) as target:
        target.write(b"".join(lines).decode())
    if out is not None:
        click.echo(f"{len(lines):,} lines written to {out}")
