"""`suffice`: one command, its groups loaded only when they are used.

This module imports click and the standard library, so that `--help` is instant; everything else is
imported by the command that needs it.
"""

from __future__ import annotations

import importlib

import click

from suffice import __version__

# name → (module, attribute, the line that --help shows)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("suffice.cli.demo", "demo", "Run a real local model through the gateway and show what stopping saves."),
    "serve": ("suffice.cli.serve", "serve", "Serve the OpenAI-compatible gateway."),
    "worker": ("suffice.cli.worker", "worker", "Certify, watch and brake the routes of a log."),
    "pause": ("suffice.cli.hold", "pause", "Let a route run in full until somebody resumes it."),
    "resume": ("suffice.cli.hold", "resume", "End a pause: what is certified on a route acts again."),
    "review": ("suffice.cli.review", "review", "Look at the runs that tell most, and say what is right."),
    "incident": ("suffice.cli.incident", "incident", "Decide what waits for a person, and open an incident by hand."),
    "override": ("suffice.cli.override", "override", "Hold a route or a class of questions back until a date."),
    "kill": ("suffice.cli.kill", "kill", "Stop stopping, on every route, at once; needs nothing but a file."),
    "unkill": ("suffice.cli.kill", "unkill", "Release the kill switch."),
    "admin": ("suffice.cli.admin", "admin", "Say who may use the console and the control API."),
    "status": ("suffice.cli.status", "status", "Show EM, tokens and saving per route."),
    "doctor": ("suffice.cli.doctor", "doctor", "Examine a model server, or a route, before you rely on it."),
    "record": ("suffice.cli.record", "record", "Record full traces of questions at a live model server."),
    "replay": ("suffice.cli.replay", "replay", "Replay stopping policies over recorded runs: frontier, plots, report."),
    "tune": ("suffice.cli.tune", "tune", "Search for a policy on recorded runs, and say how far to trust the find."),
    "estimate": ("suffice.cli.estimate", "estimate", "Predict from logs what stopping would save; makes no calls."),
    "export": ("suffice.cli.export", "export", "Write training pairs, tasks to judge, or feedback to files."),
    "policy": ("suffice.cli.policy", "policy", "Bring a policy into traffic in steps, on evidence, and back."),
    "experiment": ("suffice.cli.experiment", "experiment", "Compare ways to serve the same requests."),
    "feedback": ("suffice.cli.feedback", "feedback", "Import labels, list what waits, have a judge model label."),
    "alerts": ("suffice.cli.alerts", "alerts", "Tell people when something goes wrong: try it, and see what was told."),
    "audit": ("suffice.cli.audit", "audit", "Verify, show and export the audit log."),
    "erase": ("suffice.cli.erase", "erase", "Take words of people out of the log, for good."),
    "config": ("suffice.cli.config", "config", "Check a settings file, or show it with all defaults."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and loads one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command; None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="suffice")
def main() -> None:
    """Stop a language-model run when the answer suffices, and know what that costs."""
