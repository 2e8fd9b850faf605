"""A command that cannot be carried out says so behind its own name and ends with 2; lists of commands are whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from suffice.cli.main import main

WITHOUT_FILES = {"demo", "completion"}  # reads no settings file and no file of the caller's


def leaves(group: click.Group = main, *before: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its whole name behind `suffice`."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from leaves(command, *before, name)
            else:
                yield " ".join((*before, name)), command


def value(parameter: click.Parameter) -> str:
    """Something that is of the parameter's type, and names nothing that exists."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return str(kind.choices[0])
    return "2" if isinstance(kind, click.types.IntParamType | click.types.FloatParamType) else "missing.jsonl"


def call(name: str, command: click.Command) -> list[str]:
    """The command as somebody would write it who has none of the files."""
    written = name.split()
    for parameter in command.params:
        if parameter.name in ("path", "config") and isinstance(parameter, click.Option):
            written += ["--config", "missing.toml"]
        elif parameter.required:
            written += [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
            written.append(value(parameter))
    return written


@pytest.mark.parametrize(("name", "command"), [one for one in leaves() if one[0] not in WITHOUT_FILES])
def test_a_command_that_cannot_be_carried_out_names_itself_and_ends_with_two(
    name: str, command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, call(name, command))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"suffice {name}: ") or "\nError: " in done.stderr, done.output
    assert not done.stdout
    assert not list(tmp_path.iterdir()), "nothing was left behind"


def test_lists_of_commands_cut_no_sentence_off() -> None:
    groups = sorted({name.rpartition(" ")[0] for name, _ in leaves()})
    assert len(groups) > 5
    for group in groups:
        displayed = CliRunner().invoke(main, [*group.split(), "--help"]).output
        assert "..." not in displayed.replace("[ARGS]...", ""), displayed


def test_an_unknown_command_is_told_with_the_nearest() -> None:
    done = CliRunner().invoke(main, ["statsu"])
    assert (done.exit_code, "Did you mean 'status'?" in done.stderr) == (2, True)
