"""`suffice demo`: a real model behind the real gateway, questions with known answers, and the results."""

from __future__ import annotations

from typing import Any

import click

from suffice.cli.shell import Command, option


@click.command(cls=Command)
@option("--small", is_flag=True, help="Only the small model (98 MB), no reasoning route; --online: shorter.")
@option("--online", is_flag=True, help="Let a route certify itself, live; then swap the model. 10 to 15 minutes.")
@option(
    "--agent", "as_agent", is_flag=True, help="Watch the agent while traffic changes; a few minutes, without a model."
)
@option("--console", "as_console", is_flag=True, help="Serve the console on a demo's log, or on a made-up month.")
@option("--port", type=int, default=8400, help="Port of the console.")
@option("--full", is_flag=True, help="300 questions a route and 16 samples: takes about an hour.")
@option("--model", default="qwen0.5b", help="Reasoning route: qwen0.5b or qwen1.5b.")
@option("--upstream", help="Use a running server instead, e.g. http://127.0.0.1:8080.")
@option("--upstream-model", default="", help="Model name to ask that server for.")
@option(
    "--driver",
    type=click.Choice(["llama.cpp", "vllm", "openai"]),
    default="llama.cpp",
    help="What that server can do beyond the plain protocol.",
)
@option("--questions", type=click.IntRange(4, 300), help="Questions a route. [default: 120 and 40]")
@option("--samples", type=click.IntRange(2, 64), help="Samples in a full run. [default: 8]")
@option("--out", default="demo-out", metavar="FOLDER", help="Folder for the report, the picture and the logs.")
def demo(small: bool, online: bool, as_agent: bool, as_console: bool, port: int, out: str, **given: Any) -> None:
    """Run a real local model through the gateway and show what stopping saves.

    SUFFICE_MODEL=/path/x.gguf selects your own model file for the reasoning route.
    """
    from suffice_demo import program  # not at the top: `suffice --help` reads this file

    others = any(given[name] for name in ("full", "upstream", "upstream_model", "questions", "samples"))
    if online and others:
        raise click.UsageError("--online swaps a model of its own and goes with --small and --out only")
    if as_console and (online or others):
        raise click.UsageError("--console goes with --small, --port and --out only")
    if as_agent:
        if small or online or as_console or others:
            raise click.UsageError("--agent goes with --out only")
        program.run_agent(out)
        return
    program.run_demo(small=small, online=online, as_console=as_console, port=port, out=out, **given)
