"""Shared parts of commands: options, errors, output, opening the log, and waiting for gateways to confirm.

Imports only click and the standard library, because `--help` waits for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from suffice.operations.operation import OperationServices
    from suffice.settings import Route, Settings, Upstream
    from suffice.store.database.decisions import Decisions
    from suffice.store.database.presence import Presence


F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
FILE = click.Path(path_type=Path)
WIDTH: Final = 100  # of wrapped sentences


def option(*names: str, **more: Any) -> Callable[[F], F]:
    shows = more.get("default") not in (None, "", False)
    return click.option(*names, **({"show_default": shows} | more))


def stacked(*declarations: Callable[[Any], Any]) -> Callable[[F], F]:
    """Combine several options and arguments into one decorator; help lists them in this order."""

    def declare(command: Any) -> Any:
        for add in reversed(declarations):
            command = add(command)
        return command

    return declare


SETTINGS_FILES: Final = ("suffice.toml", "suffice.yaml", "suffice.yml")


def settings_file() -> Path:
    """The settings file of this folder, else that of the data directory; suffice.toml if there is none."""
    import os

    from suffice.wiring.files import data_folder

    folders = [Path()]
    with suppress(RuntimeError):  # this process has no home directory
        folders.append(data_folder(os.environ))
    files = (folder / name for folder in folders for name in SETTINGS_FILES)
    return next((file for file in files if file.exists()), Path(SETTINGS_FILES[0]))


_DATA_DIR: Final = "suffice.data_dir"  # of a command's context


def given_data_dir() -> str:
    """The `--data-dir` of the command that runs, which the next one needs as well; "": none was given."""
    context = click.get_current_context(silent=True)
    return "" if context is None else str(context.meta.get(_DATA_DIR, ""))


def _name_data_dir(context: click.Context, _: click.Parameter, folder: Path | None) -> None:
    """Put the directory into the environment while the command runs: there, all that reads settings finds it."""
    import os

    if folder is not None:
        before = os.environ.get("SUFFICE_DATA_DIR")
        os.environ["SUFFICE_DATA_DIR"] = context.meta[_DATA_DIR] = str(folder)
        restore = partial(os.environ.pop, "SUFFICE_DATA_DIR", None)
        context.call_on_close(restore if before is None else partial(os.environ.update, SUFFICE_DATA_DIR=before))


DATA_DIR = option(
    "--data-dir",
    type=FILE,
    metavar="DIR",
    expose_value=False,
    callback=_name_data_dir,
    help="Where written files are, and suffice.toml if this folder has none; also SUFFICE_DATA_DIR."
    " [default: the settings file's folder]",
)
CONFIG = stacked(
    option(
        "--config",
        "path",
        type=FILE,
        default=settings_file,
        show_default=False,
        metavar="FILE",
        help="Settings, TOML or YAML. [default: suffice.toml, here or in the data directory]",
    ),
    DATA_DIR,
)
INSECURE_OPEN = option("--insecure-open", is_flag=True, help="Serve other machines even though no keys are required.")
JSON = option("--json", "as_json", is_flag=True, help="Print JSON.")
JSON_LINES = option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
JSON_OBJECT = option("--json", "as_json", is_flag=True, help="Print one JSON object.")
REASON = option("--reason", required=True, help="Why; it stays in the log.")
AUTHOR = option("--author", help="Who decides. [default: the user of this computer]")
ROUTE = option("--route", help="Only this route.")


def _write_example(context: click.Context, formatter: click.HelpFormatter, *inner: str) -> None:
    from suffice.cli.examples import example_of

    with formatter.section("Example"):
        formatter.write(f"  {example_of(' '.join((*context.command_path.split()[1:], *inner)))}\n")


class Command(click.Command):
    """A command that exits with 2 and one sentence when the settings, the log or a file cannot be used."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_example(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        from suffice.errors import SufficeError

        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of the output has exited; click ends quietly
            raise
        except (SufficeError, OSError) as error:
            fail(error)


# Commands that packages in contrib/ add, "NAME" or "GROUP NAME" → the package, and the line of --help without it.
CONTRIB: Final = {
    "demo": ("suffice-demo", "Run a real local model and show what early stopping saves."),
    "export finetune": ("suffice-finetune", "Write training lines for a language model from runs cut at their stop."),
    "export label-studio": ("suffice-label-studio", "Write runs that somebody should judge as tasks of Label Studio."),
    "feedback label-studio": ("suffice-label-studio", "Read the annotations of a Label Studio project."),
}


class CommandGroup(click.Group):
    """A group whose help lists commands in the order of definition, each with its whole sentence.

    Packages add commands by entry points of `suffice.commands`, NAME or GROUP.NAME; a group's own are never replaced.
    """

    command_class = Command

    @property
    def place(self) -> str:
        return self.name or ""

    @property
    def own(self) -> Iterable[str]:
        return self.commands

    def added(self) -> dict[str, EntryPoint]:
        named = [(point.name.rpartition("."), point) for point in _entry_points(tuple(sys.path))]
        return {name: point for (place, _, name), point in named if place == self.place and name not in self.own}

    def not_installed(self) -> dict[str, tuple[str, str]]:
        """The commands that packages in contrib/ would add, each with its package and its line of --help."""
        named = [(words.rpartition(" "), one) for words, one in CONTRIB.items()]
        return {name: one for (place, _, name), one in named if place == self.place and name not in self.added()}

    def added_lines(self) -> list[tuple[str, str]]:
        lines = [(name, _load(point).get_short_help_str(1_000)) for name, point in self.added().items()]
        for name, (package, line) in self.not_installed().items():
            lines.append((name, f"{line} Needs, from a clone: pip install ./contrib/{package}"))
        return lines

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click passes it
        return [*self.own, *self.added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        point = self.added().get(cmd_name)
        return super().get_command(ctx, cmd_name) if point is None else _load(point)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        package, _ = self.not_installed().get(args[0], ("", ""))
        if package:
            name = f"{self.place} {args[0]}".strip()
            ctx.fail(f"{name} is a package of its own; in a clone of the repository: pip install ./contrib/{package}")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_example(ctx, formatter, next(iter(self.own)))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        lines = [(name, one.get_short_help_str(1_000)) for name, one in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*lines, *self.added_lines()])


@cache
def _entry_points(path: tuple[str, ...]) -> Sequence[EntryPoint]:  # noqa: ARG001 - what is installed depends on it
    from importlib.metadata import entry_points

    return sorted(entry_points(group="suffice.commands"), key=lambda point: point.name)


def _load(point: EntryPoint) -> click.Command:
    command = point.load()
    if not isinstance(command, click.Command):
        raise click.ClickException(f"plug-in {point.value}: need a click command, got {type(command).__name__}")
    return command


# --------------------------------------------------------------------------- output


def warn(sentence: object) -> None:
    """Print a sentence on standard error, after the command's name."""
    context, names = click.get_current_context(silent=True), list[str]()
    while context is not None and (context.parent is not None or not names):
        names.insert(0, context.info_name or "")
        context = context.parent
    click.echo(f"suffice {' '.join(names)}: {sentence}", err=True)


def fail(why: object, status: int = 2) -> NoReturn:
    """Exit with a sentence on standard error.

    status  2: it cannot be done; 1: it was done and the answer is no
    """
    for_operator = getattr(why, "for_operator", None)  # of an error of an upstream
    warn(why if for_operator is None else for_operator())
    raise SystemExit(status)


def accepted(result: T | str, about: str = "") -> T:
    """Return what was done; or end with 1 and why it was refused, behind what that is `about`."""
    return fail(about + result, 1) if isinstance(result, str) else result


def print_line(text: str) -> None:
    from suffice.sanitize import printable

    click.echo(printable(text))


def print_json(result: Any) -> None:
    import msgspec

    click.echo(msgspec.json.encode(result).decode())


@dataclass(frozen=True, slots=True)
class CommandReply:
    result: Any  # what --json prints; a list: one object a line
    text: str | Iterable[str]  # what a person reads; lines may hold the text of strangers


def print_reply(reply: CommandReply, *, as_json: bool) -> None:
    if as_json:
        for one in reply.result if isinstance(reply.result, list) else [reply.result]:
            print_json(one)
    elif isinstance(reply.text, str):
        click.echo(reply.text)
    else:
        for line in reply.text:
            print_line(line)


def report(
    json_option: Callable[[Callable[..., None]], Callable[..., None]] = JSON,
) -> Callable[[Callable[..., CommandReply]], Callable[..., None]]:
    """Turn a function of a deployment's settings into a command that prints its reply."""

    def declare(read: Callable[..., CommandReply]) -> Callable[..., None]:
        @CONFIG
        @json_option
        @wraps(read)
        def command(*, path: Path, as_json: bool, **arguments: Any) -> None:
            from suffice.wiring.files import load_deployment

            print_reply(read(load_deployment(path), **arguments), as_json=as_json)

        return command

    return declare


def print_facts(
    title: str, sections: Iterable[Sequence[tuple[str, str]]], *, loud: tuple[str, ...], width: int = 20
) -> None:
    """Print names and values: a table at a terminal, plain lines elsewhere.

    loud   prefixes of values that are highlighted
    width  minimum width of the names in plain lines
    """
    import sys

    if not sys.stdout.isatty():
        click.echo(title)
        for what, value in (line for section in sections for line in section):
            click.echo(f"  {what:<{width}} {value}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section in sections:
        for what, value in section:
            # Text, not str: a model's name or a reason may look like markup.
            table.add_row(what, Text(value, style="bold red" if value.startswith(loud) else ""))
        table.add_section()
    Console().print(table)


def loud(text: str, *, err: bool = False) -> str:
    """Bold red at a terminal, unless NO_COLOR is set (https://no-color.org)."""
    import os
    import sys

    shows = (sys.stderr if err else sys.stdout).isatty() and not os.environ.get("NO_COLOR")
    return click.style(text, bold=True, fg="red") if shows else text


def terminal_width() -> int:
    """Columns of the terminal, 120 at most and where there is none."""
    import shutil

    return min(120, shutil.get_terminal_size((120, 24)).columns)


def wrapped(text: str, first: str = "", later: str | None = None, *, width: int | None = None) -> str:
    """Wrap a sentence to `width`, or to the terminal's up to 120, with prefixes for the first and the other lines."""
    import textwrap

    width = width or terminal_width()
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=first if later is None else later)


# --------------------------------------------------------------------------- settings and the log


def load_optional_settings(path: Path | None) -> Settings | None:
    """Read the named settings file, or this folder's, or the environment alone; None: neither. Raises ConfigError."""
    import os

    from suffice.wiring.files import load_settings, sets_anything

    default = settings_file()
    is_there = path is not None or default.is_file() or sets_anything(os.environ)
    return load_settings(path or default) if is_there else None


def find_settings(settings: Settings, name: str, *, option: str = "") -> Route:
    """Return a route's settings; `option` names the source of the name in the ConfigError for an unknown one."""
    from suffice.errors import ConfigError
    from suffice.settings.checks import known_names

    if name not in settings.routes:
        raise ConfigError(f"{option}{': ' if option else ''}unknown route {name!r}; {known_names(settings.routes)}")
    return settings.routes[name]


def route_names(settings: Settings, route: str | None) -> list[str]:
    """Return the name of a route, or of all. Raises ConfigError for an unknown one."""
    if route is None:
        return list(settings.routes)
    find_settings(settings, route)
    return [route]


def find_upstream(settings: Settings | None, target: str, *, api_key_env: str) -> tuple[str, Upstream]:
    """Find an upstream by name, or by address (name "", key in `api_key_env`). Raises ConfigError."""
    from suffice.errors import ConfigError
    from suffice.settings import Upstream

    known = {} if settings is None else settings.upstreams
    if target in known:
        return target, known[target]
    if target.startswith(("http://", "https://")):
        return "", Upstream(url=target, api_key_env=api_key_env)
    names = ", ".join(sorted(known)) or "none is configured"
    raise ConfigError(
        f"--upstream: got {target!r}; need http://host[:port] or a name from the settings:"
        f" {'there are none here (--config)' if settings is None else names}"
    )


def read_policy(text: str) -> dict[str, Any]:
    """Parse a policy given as a name or as a JSON object. Raises ConfigError."""
    import json

    from suffice.errors import ConfigError

    if not text.lstrip().startswith("{"):
        return {"policy": text.strip()}
    try:
        spec: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--policy: is not JSON ({error}); write a name or a JSON object") from None
    return spec


def parse_time(option: str, text: str, allowed: str) -> float:
    """Parse an ISO 8601 date or time, in UTC without a zone, to Unix time. Raises ConfigError."""
    from datetime import UTC, datetime

    from suffice.errors import ConfigError

    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"{option}: got {text[:80]!r}; need {allowed}") from None


def author_name(author: str | None) -> str:
    import getpass

    return author or getpass.getuser()


@contextmanager
def deployment_log(
    path: Path, route: str | None = None, *, waits: bool = False, retry_hint: str | None = None
) -> Iterator[tuple[Settings, Decisions]]:
    """Open the settings and their log for a person's decisions. Raises ConfigError and StoreError.

    route       must be in the settings; None: any
    waits       the caller waits for gateways itself; otherwise a decision that no running gateway applies is reported
    retry_hint  the block writes all or nothing, and a StoreError says so, with this advice for a working log
    """
    from suffice.errors import StoreError
    from suffice.store.database.presence import read_presences
    from suffice.wiring.files import load_deployment
    from suffice.wiring.keys import presence_files
    from suffice.wiring.worker import open_decisions

    try:
        settings = load_deployment(path)
        with open_decisions(settings, create=False) as writer:
            if route is not None:
                find_settings(settings, route)
            yield settings, writer
    except StoreError as error:
        if retry_hint is None:
            raise
        raise StoreError(f"{error}\nNothing was written. {retry_hint}".rstrip()) from None
    if writer.n_new and not waits and not read_presences(presence_files(settings)):
        click.echo("no gateway is running on this deployment; one that starts will act on this", err=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingDecision:
    settings: Settings
    writer: Decisions
    author: str
    reason: str
    now_s: float  # Unix time

    @property
    def signed(self) -> dict[str, Any]:
        return {"author": self.author, "reason": self.reason}

    def rules(self, route: str) -> Route:
        return find_settings(self.settings, route)

    @property
    def services(self) -> OperationServices:
        from suffice.wiring.console import services_of

        return services_of(self.settings, self.writer.path, writer=lambda: self.writer)


def decision(retry_hint: str | None = None) -> Callable[[Callable[..., CommandReply]], Callable[..., None]]:
    """Turn a function into a command that writes a decision with its author to a deployment's log.

    The function gets a PendingDecision before its own arguments and options, and returns its reply.
    `retry_hint` as in `deployment_log`.
    """

    def declare(decide: Callable[..., CommandReply]) -> Callable[..., None]:
        @CONFIG
        @REASON
        @AUTHOR
        @JSON
        @wraps(decide)
        def command(*, path: Path, reason: str, author: str | None, as_json: bool, **arguments: Any) -> None:
            with deployment_log(path, retry_hint=retry_hint) as (settings, writer):
                pending = PendingDecision(
                    settings=settings, writer=writer, author=author_name(author), reason=reason, now_s=time.time()
                )
                reply = decide(pending, **arguments)
            print_reply(reply, as_json=as_json)

        return command

    return declare


# --------------------------------------------------------------------------- running gateways


UNCONFIRMED: Final = 3  # exit status: the decision is recorded, and a running gateway has not confirmed it
MOST_WAIT_S: Final = 3_600
_POLL_S: Final = 0.02  # between two reads of the gateways' announcements


def _seconds(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not 0 <= value <= MOST_WAIT_S:  # click's range accepts "nan"
        raise click.BadParameter(f"got {value:g}; 0 to {MOST_WAIT_S:,} seconds")
    return value


WAIT = option(
    "--wait",
    "wait_s",
    type=float,
    callback=_seconds,
    default=5.0,
    metavar="SECONDS",
    help="How long running gateways have to confirm; 0 asks for no confirmation.",
)


def wait_for_gateways(
    switches: Sequence[Path], is_late: Callable[[Presence], bool], *, wait_s: float
) -> tuple[list[Presence], list[Presence], float]:
    """Wait until no gateway is late; return who is there, the gateways that are late, and the seconds that it took.

    switches  kill switch files beside which gateways announce themselves
    wait_s    at most
    """
    from suffice.store.database.presence import read_presences

    began_s = time.monotonic()
    while True:
        there, waited_s = list(read_presences(switches)), time.monotonic() - began_s
        late = [one for one in there if one.process == "serve" and is_late(one)]
        if not late or waited_s >= wait_s:
            return there, late, waited_s
        time.sleep(_POLL_S)


def confirm(command: str, switches: Sequence[Path], has_applied: Callable[[Presence], bool], *, wait_s: float) -> None:
    """Wait until every running gateway has applied a change and report; exit with `UNCONFIRMED` if one has not.

    has_applied  whether an announcement shows the change
    wait_s       at most; 0: do not wait

    Callers' own loops (`Governor`) read the state before each decision: they are named, not waited for.
    """
    if not wait_s:
        return
    there, late, waited_s = wait_for_gateways(switches, lambda one: not has_applied(one), wait_s=wait_s)
    for one in there:
        if one in late:
            why = "; its environment holds the switch" if command == "unkill" and one.kill_stamp is None else ""
            warn(f"{one.name} has not confirmed within {waited_s:.1f} s{why}")
        elif one.process == "serve":
            click.echo(f"confirmed by {one.name} after {waited_s:.1f} s")
        else:
            click.echo(f"{one.name}: a caller's own loop, which looks whenever it decides")
    if all(one.process != "serve" for one in there):
        where = " or ".join(dict.fromkeys(str(one.parent.absolute()) for one in switches))
        warn(
            f"no gateway confirmed: none is running that announces itself in {where};"
            " one that starts on this deployment will act on it"
        )
    if late or not there:
        raise SystemExit(UNCONFIRMED)
