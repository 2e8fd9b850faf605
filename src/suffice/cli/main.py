"""The table of all commands. It imports click and the standard library alone, so that `suffice --help` is instant."""

from __future__ import annotations

import importlib

import click

from suffice import __version__
from suffice.cli.shell import find_plugin_commands, load_plugin_command

# Section of --help → name → (module of this package, attribute, the line that --help shows).
SECTIONS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Set up and serve": {
        "demo": ("server.demo", "demo", "Run a real local model and show what early stopping saves."),
        "config": ("server.admin", "config", "Check a settings file, or print it with all defaults."),
        "doctor": ("server.doctor", "doctor", "Examine a model server or a route before you rely on it."),
        "serve": ("server.serve", "serve", "Serve the OpenAI-compatible gateway."),
        "worker": ("server.serve", "worker", "Run the control loop that certifies and watches the routes of a log."),
        "admin": ("server.admin", "admin", "Manage who may use the console and the control API."),
    },
    "See what happens": {
        "status": ("inspect.status", "status", "Show EM, tokens and savings per route."),
        "alerts": ("inspect.audit", "alerts", "Test alert sinks and list the alerts that were sent."),
        "audit": ("inspect.audit", "audit", "Verify, show and export the audit log."),
    },
    "Change it": {
        "policy": ("operate.policy", "policy", "Roll a policy out in steps, on evidence, and roll it back."),
        "experiment": ("operate.experiment", "experiment", "Compare ways to serve the same requests."),
        "pause": ("operate.hold", "pause", "Pause early stopping on a route until somebody resumes it."),
        "resume": ("operate.hold", "resume", "Resume early stopping on a paused route."),
        "incident": ("operate.hold", "incident", "List and decide incidents, or open one by hand."),
        "override": (
            "operate.hold",
            "override",
            "Limit early stopping on a route or a class of questions until a date.",
        ),
        "kill": ("operate.kill", "kill", "Disable early stopping on all routes immediately."),
        "unkill": ("operate.kill", "unkill", "Release the kill switch."),
    },
    "Hear from people": {
        "review": ("labels.review", "review", "Look at the runs that tell most, and say what is right."),
        "feedback": (
            "labels.feedback",
            "feedback",
            "Import labels, list unmatched feedback, or have a judge model label.",
        ),
        "export": ("labels.feedback", "export", "Write training lines, tasks to judge, or feedback to files."),
        "erase": ("labels.erase", "erase", "Permanently erase user-written text from the log."),
    },
    "Measure before you act": {
        "estimate": ("offline.estimate", "estimate", "Predict from logs what stopping would save; makes no calls."),
        "record": ("offline.record", "record", "Record full runs of questions at a live model server."),
        "replay": (
            "offline.replay",
            "replay",
            "Replay stopping policies on recorded runs; write a table and a report.",
        ),
        "tune": ("offline.tune", "tune", "Search for a policy on recorded runs and estimate its true performance."),
    },
}
COMMANDS = {name: found for section in SECTIONS.values() for name, found in section.items()}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table; then those of other packages (`suffice.commands`)."""
        return list(dict.fromkeys([*COMMANDS, *find_plugin_commands()]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            point = find_plugin_commands().get(cmd_name)
            return None if point is None else load_plugin_command(point)
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"suffice.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (
            args[0] not in COMMANDS
            and not args[0].startswith("-")
            and args[0] not in (names := self.list_commands(ctx))
        ):
            import difflib

            near = difflib.get_close_matches(args[0], names, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in COMMANDS)
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", line) for name, (_, _, line) in section.items()])
        if added := [name for name in find_plugin_commands() if name not in COMMANDS]:
            with formatter.section("Of other packages"):
                commands = {name: self.get_command(ctx, name) for name in added}
                formatter.write_dl([(name, one.get_short_help_str(1_000)) for name, one in commands.items() if one])


@click.group("suffice", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="suffice")
def main() -> None:
    """Stop a language-model run when the answer suffices, and know what that costs."""
