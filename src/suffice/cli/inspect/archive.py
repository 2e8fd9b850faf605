"""`suffice archive`: closed days of the log as Parquet, in a folder or an object store."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from suffice.cli.shell import CONFIG, JSON_LINES, Command, option
from suffice.errors import ConfigError
from suffice.replay.archive.days import verify_day
from suffice.replay.archive.layout import Archive, Manifest
from suffice.settings import Settings
from suffice.wiring.audit import user_name
from suffice.wiring.files import load_deployment
from suffice.wiring.worker import cache_folder, open_decisions, write_closed_days


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


def _write(settings: Settings, opened: Archive, *, again: bool, as_json: bool) -> None:
    author, n_days = user_name() or "unknown", 0
    with open_decisions(settings, create=False) as decisions:
        for day in write_closed_days(settings, opened, decisions, author=author, now_s=time.time(), again=again):
            if isinstance(day, Manifest):
                _show(day, as_json=as_json)
                n_days += 1
            elif not as_json:
                click.echo(day)
                return
    if not n_days and not as_json:
        click.echo("the log has no requests that are not archived")


def _show(manifest: Manifest, *, as_json: bool) -> None:
    n_bytes, parts = sum(part.n_bytes for part in manifest.parts), len(manifest.parts)
    if as_json:
        plain = {"day": manifest.day, "n_requests": manifest.n_requests, "n_bytes": n_bytes, "digest": manifest.digest}
        click.echo(json.dumps(plain))
    else:
        click.echo(f"{manifest.day}: {manifest.n_requests:,} requests in {parts} files, {n_bytes / 1e6:,.1f} MB")
