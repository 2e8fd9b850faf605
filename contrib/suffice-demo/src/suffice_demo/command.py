"""`suffice demo`: a real model behind the real gateway, questions with known answers, and the results."""

from __future__ import annotations

from typing import Any

import click

from suffice.cli.shell import Command, option


@click.command(cls=Command)
@option(
    "--agent", "as_agent", is_flag=True, help="Watch the agent while traffic changes; a few minutes, without a model."
)
@option("--console", "as_console", is_flag=True, help="Serve the console on a demo's log, or on a made-up month.")
@option("--small", is_flag=True, help="--console: a shorter month.")
@option("--port", type=int, default=8400, help="Port of the console.")
@option("--out", default="demo-out", metavar="FOLDER", help="Folder for the settings, the log and the report.")
def demo(as_agent: bool, out: str, **given: Any) -> None:
    """Observe a real local model, certify a policy on its live traffic, save with it, and swap the model (6 minutes).

    The first run fetches the model's weights, 98 MB.
    """
    from suffice_demo import program  # not at the top: `suffice --help` reads this file

    if as_agent:
        if given["small"] or given["as_console"]:
            raise click.UsageError("--agent goes with --out only")
        program.run_agent(out)
        return
    program.run_demo(out=out, **given)
