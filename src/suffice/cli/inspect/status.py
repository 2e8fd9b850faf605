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
@option("--all", "shows_all", is_flag=True, help="Show everything that is known of each route.")
@option("--watch", is_flag=True, help="Show it again whenever it changes, until Ctrl-C.")
@JSON_LINES
def status(
    config: Path | None, db: Path | None, route: str | None, shows_all: bool, watch: bool, as_json: bool
) -> None:
    """Show what each route does now, what it saved at what cost in EM, and what to do next.

    Example: suffice status --watch
    """
    from suffice.cli.inspect.status_output import show_statuses, watch_statuses

    show = watch_statuses if watch else show_statuses
    show(config, db, route, as_json=as_json, shows_all=shows_all)
