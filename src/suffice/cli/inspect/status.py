"""`suffice status`; its help imports only click."""

from __future__ import annotations

from pathlib import Path

import click

from suffice.cli.shell import DATA_DIR, FILE, JSON_LINES, Command, option


@click.command(cls=Command)
@option("--config", type=FILE, metavar="FILE", help="Settings, TOML or YAML. [default: suffice.toml]")
@DATA_DIR
@option("--db", type=FILE, metavar="FILE", help="Read this log; without --config answers are compared as strings.")
@option("--route", help="Show only this route.")
@JSON_LINES
def status(config: Path | None, db: Path | None, route: str | None, as_json: bool) -> None:
    """Show Exact Match, tokens, saving and governed share of every route."""
    from suffice.cli.inspect.route_status import show_statuses

    show_statuses(config, db, route, as_json=as_json)
