"""`suffice archive`: closed days of the log as Parquet, in a folder or an object store."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from suffice.cli.shell import CONFIG, JSON_LINES, Command, option
from suffice.edge.math import open_match
from suffice.errors import ConfigError
from suffice.replay.archive.layout import Archive, Manifest
from suffice.replay.archive.reading import verify_day
from suffice.replay.archive.writing import DayWriter, closed_days
from suffice.settings import Settings
from suffice.store.database.archiving import DAY_S
from suffice.store.database.views import open_reader
from suffice.store.rows.events import DayArchive
from suffice.wiring.audit import user_name
from suffice.wiring.files import load_deployment
from suffice.wiring.worker import open_decisions


@click.command(cls=Command)
@CONFIG
@option("--to", "address", metavar="URL", help="A folder, or s3://bucket/folder. [default: archive.address]")
@option("--again", is_flag=True, help="Write days again that the archive has, such as for labels that came later.")
@option("--verify", is_flag=True, help="Write nothing; check every day of the archive against its manifest.")
@JSON_LINES
def archive(path: Path, address: str | None, *, again: bool, verify: bool, as_json: bool) -> None:
    """Write the closed days of the log as Parquet, for replay, tune, DuckDB, Polars and others.

    A day is closed archive.after_days after its end, when every request of it has its outcome. Writing again changes
    nothing. No text of a person or a model is archived. Exits with 2 when the log or the archive cannot be used.
    """
    settings = load_deployment(path)
    address = address or settings.archive.address
    if not address:
        raise ConfigError("names no archive; set address under [archive], or use --to")
    opened = Archive.open(address, cache=cache_folder(), create=not verify)
    if verify:
        for manifest in opened.manifests():
            verify_day(opened, manifest)
            _show(manifest, as_json=as_json)
        return
    _write(settings, opened, again=again, as_json=as_json)


def cache_folder() -> Path:
    return Path.home() / ".cache" / "suffice" / "archive"


def _write(settings: Settings, opened: Archive, *, again: bool, as_json: bool) -> None:
    writer = DayWriter(archive=opened, routes=settings.routes, matches=open_match)
    after_s, n_days = settings.archive.after_days * DAY_S, 0
    with open_decisions(settings, create=False) as decisions, open_reader(decisions.path) as log:
        for day in closed_days(log, opened.address, now_s=time.time(), after_s=after_s, again=again):
            if isinstance(day, str):
                if not as_json:
                    click.echo(day)
                return
            manifest = writer.write(log, day, again=again)
            event = DayArchive(
                day=day.day,
                archive=opened.address,
                since_seq=manifest.since_seq,
                until_seq=manifest.until_seq,
                n_requests=manifest.n_requests,
                digest=manifest.digest,
                author=user_name() or "unknown",
            )
            decisions.write(None, [event])
            _show(manifest, as_json=as_json)
            n_days += 1
    if not n_days and not as_json:
        click.echo("the log has no requests that are not archived")


def _show(manifest: Manifest, *, as_json: bool) -> None:
    n_bytes, parts = sum(part.n_bytes for part in manifest.parts), len(manifest.parts)
    if as_json:
        plain = {"day": manifest.day, "n_requests": manifest.n_requests, "n_bytes": n_bytes, "digest": manifest.digest}
        click.echo(json.dumps(plain))
    else:
        click.echo(f"{manifest.day}: {manifest.n_requests:,} requests in {parts} files, {n_bytes / 1e6:,.1f} MB")
