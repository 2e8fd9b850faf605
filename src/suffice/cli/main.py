"""The table of all commands, and `suffice completion`. Imports little, so that `suffice --help` is instant."""

from __future__ import annotations

import difflib
import importlib

import click

from suffice import __version__
from suffice.cli.shell import Command, CommandGroup

# Section of --help → name → (module of this package that has it, the line that --help shows).
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Set up and serve": {
        "init": ("server.init", "Examine a model server and write settings that observe it."),
        "config": ("server.admin", "Check a settings file, or print it with all defaults."),
        "doctor": ("server.doctor", "Examine a model server or a route before you rely on it."),
        "serve": ("server.serve", "Serve the OpenAI-compatible gateway."),
        "reload": ("server.serve", "Let running gateways apply the changes in their settings file."),
        "worker": ("server.serve", "Run the control loop that certifies and watches the routes of a log."),
        "store": ("operate.store", "Check, upgrade and move the database of the log."),
        "completion": ("main", "Print what makes a shell complete commands and options."),
        "admin": ("server.admin", "Manage who may use the console and the control API."),
        "key": ("server.admin", "Create, list, rotate and revoke keys of clients, without a restart."),
    },
    "See what happens": {
        "status": ("inspect.status", "Show EM, tokens and savings per route."),
        "alerts": ("inspect.audit", "Test alert sinks and list the alerts that were sent."),
        "archive": ("inspect.archive", "Write closed days of the log as Parquet, for replay, DuckDB and others."),
        "audit": ("inspect.audit", "Verify, show and export the audit log."),
    },
    "Change it": {
        "policy": ("operate.policy", "Roll a policy out in steps, on evidence, and roll it back."),
        "experiment": ("operate.experiment", "Compare ways to serve the same requests."),
        "pause": ("operate.hold", "Pause early stopping on a route until somebody resumes it."),
        "resume": ("operate.hold", "Resume early stopping on a paused route."),
        "incident": ("operate.hold", "List and decide incidents, or open one by hand."),
        "override": ("operate.hold", "Limit early stopping on a route or a class of questions until a date."),
        "kill": ("operate.kill", "Disable early stopping on all routes immediately."),
        "unkill": ("operate.kill", "Release the kill switch."),
    },
    "Hear from people": {
        "review": ("labels.review", "Review the most informative runs and say which answers are right."),
        "feedback": ("labels.feedback", "Import labels, list unmatched feedback, or have a judge model label."),
        "export": ("labels.feedback", "Write training lines, tasks to judge, or feedback to files."),
        "erase": ("labels.erase", "Permanently erase user-written text from the log."),
    },
    "Measure before you act": {
        "estimate": ("offline.estimate", "Predict from logs what stopping would save; makes no calls."),
        "record": ("offline.record", "Record full runs of questions at a live model server."),
        "replay": ("offline.replay", "Replay stopping policies on recorded runs; write a table and a report."),
        "tune": ("offline.tune", "Search for a policy on recorded runs and estimate its true performance."),
    },
}
COMMANDS = {name: command for section in SECTIONS.values() for name, command in section.items()}


class LazyGroup(CommandGroup):
    place = ""
    own = COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(f"suffice.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, names = args[0], self.list_commands(ctx)
        if name not in (*names, *self.not_installed()) and not name.startswith("-"):
            near = difflib.get_close_matches(name, names, n=1)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in COMMANDS)
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", line) for name, (_, line) in section.items()])
        with formatter.section("Of other packages"):
            formatter.write_dl(self.added_lines())


@click.group("suffice", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="suffice")
def main() -> None:
    """Stop a language-model run when the answer suffices, and know what that costs."""


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options.

    In ~/.bashrc: eval "$(suffice completion bash)". In ~/.zshrc, behind compinit: eval "$(suffice completion zsh)". In
    ~/.config/fish/config.fish: suffice completion fish | source.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "click completes all of these shells"
    click.echo(made(context.find_root().command, {}, "suffice", "_SUFFICE_COMPLETE").source())
