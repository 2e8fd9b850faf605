"""Makes the commands of what `suffice.operations` declares."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from suffice.cli import shell
from suffice.errors import BadRequest
from suffice.operations.fields import FormInput
from suffice.operations.operation import OperationSpec
from suffice.store.database.views import newest_of
from suffice.wiring.keys import presence_files

_DECIDES = shell.stacked(shell.CONFIG, shell.REASON, shell.AUTHOR)


def command_of(
    operation: OperationSpec,
    *,
    needs: Sequence[str] = (),
    retry_hint: str | None = None,
    waits_for: tuple[str, ...] = (),
    prints_json: bool = True,
    help_text: str = "",
) -> click.Command:
    """Make the command of an action.

    needs       fields that have a default elsewhere, and none here
    retry_hint  as in `shell.deployment_log`
    waits_for   kinds of rows that running gateways are to confirm; (): it does not wait
    """
    name = operation.commands[0].split()[-1]

    def run(
        path: Path, reason: str, author: str | None, *, as_json: bool = False, wait_s: float = 0.0, **given: Any
    ) -> None:
        with shell.deployment_log(path, waits=bool(waits_for), retry_hint=retry_hint) as (settings, writer):
            pending = shell.PendingDecision(
                settings=settings, writer=writer, author=shell.author_name(author), reason=reason, now_s=time.time()
            )
            if "route" in given:
                pending.rules(given["route"])  # refuses an unknown one
            try:
                done = operation.do(pending, **given)
            except BadRequest as error:
                shell.fail(error, 1 if error.status == 409 else 2)
            seq = newest_of(writer.path, waits_for) if waits_for else 0
        if done.warning:
            shell.warn(done.warning)
        if done.secret:
            click.echo(done.message, err=True)
        shell.print_reply(shell.CommandReply(done.result, done.secret or done.message), as_json=as_json)
        if waits_for:
            shell.confirm(name, presence_files(settings), lambda one: one.decided >= seq, wait_s=wait_s)

    fields = [
        _parameter(field, one, one.required or field in needs)
        for field, one in operation.fields.items()
        if field != "reason"
    ]
    more = [_DECIDES, *([shell.WAIT] if waits_for else []), *([shell.JSON] if prints_json else [])]
    declare = shell.stacked(*fields, *more)
    return click.command(name, cls=shell.Command, help=help_text or operation.do.__doc__)(declare(run))


def _within(field: FormInput) -> Callable[[click.Context, click.Parameter, Any], Any]:
    low, high = field.range

    def check(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            raise click.BadParameter(f"got {value:g}; {low:g} to {high:g}")
        return value

    return check


def _parameter(name: str, field: FormInput, needed: bool) -> Any:
    argument, flag = field.argument or name, field.option or f"--{name.replace('_', '-')}"
    sentence, _, absent = field.summary.removeprefix("true: ").partition("; empty: ")
    sentence = sentence if field.of else sentence[0].upper() + sentence[1:]
    about = f"{sentence}{'; may be given more than once' if field.many else ''}."
    about = f"{about}  [default: {absent}]" if absent else about
    kind: Any = str
    if field.allowed:
        kind = click.Choice(field.allowed)
    elif field.kind == "number":
        kind = float if field.least is None else int if field.required else click.IntRange(field.least)
    if field.required:
        return click.argument(argument, type=kind)
    if field.kind == "flag":
        return shell.option(flag, argument, is_flag=True, help=about)
    default: dict[str, Any] = (
        {"required": True} if needed else {"default": kind(field.default)} if field.default else {}
    )
    if math.isfinite(field.range[1]):
        default["callback"] = _within(field)
    metavar = field.metavar or ("TEXT" if kind is str else "N")
    return shell.option(flag, argument, type=kind, multiple=field.many, metavar=metavar, help=about, **default)
