"""The help of each command has an example that fits a terminal and is understood; shells complete commands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from suffice.cli.examples import EXAMPLES, example_of
from suffice.cli.main import main
from suffice.cli.shell import CONTRIB


def walk(group: click.Group = main, *before: str) -> Iterator[tuple[str, click.Command]]:
    """Every group and command with its whole name behind `suffice`."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield " ".join((*before, name)), command
            if isinstance(command, click.Group):
                yield from walk(command, *before, name)


COMMANDS = dict(walk())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_fits_a_terminal(name: str) -> None:
    done = CliRunner().invoke(main, [*name.split(), "--help"])
    head, _, example = done.output.partition("\nExample:\n")
    assert head
    assert example.startswith(f"  suffice {name}")
    assert len(example.splitlines()) == 1
    assert len(example.rstrip()) <= 80


@pytest.mark.parametrize("name", [name for name, one in COMMANDS.items() if not isinstance(one, click.Group)])
def test_an_example_is_understood(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suffice.db").touch()  # `store copy` takes none that is missing
    words = shlex.split(example_of(name))[1 + len(name.split()) :]
    with COMMANDS[name].make_context(name, words):  # raises for an unknown option, or a value that is not allowed
        pass


def test_there_is_no_example_of_a_command_that_does_not_exist() -> None:
    assert set(EXAMPLES) <= set(COMMANDS) | set(CONTRIB)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0, done.output
    assert "_SUFFICE_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("words", "offered"), [(["po"], {"policy"}), (["policy", "ro"], {"rollback"}), (["serve", "--up"], {"--upstream"})]
)
def test_commands_and_options_are_completed(words: list[str], offered: set[str]) -> None:
    complete = ShellComplete(main, {}, "suffice", "_SUFFICE_COMPLETE")
    assert {one.value for one in complete.get_completions(words[:-1], words[-1])} == offered


def test_bash_gets_completions_from_the_command_itself() -> None:
    environ = os.environ | {"_SUFFICE_COMPLETE": "bash_complete", "COMP_WORDS": "suffice aud", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['suffice']; from suffice.cli.main import main; main()"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == "plain,audit\n", done.stderr
