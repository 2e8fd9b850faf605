"""Commands that measure on recorded runs and logs before anything is served."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from suffice.cli.shell import option, stacked

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

TRACES = stacked(
    click.argument("files", nargs=-1, required=True, type=str),
    option("--where", metavar="CONDITIONS", help="Take only some runs: 'task=mmlu_pro,model!=gpt*'."),
    option(
        "--min-run-em",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="EM",
        help="Leave out a model's run whose full EM over the set is not above this.",
    ),
    option(
        "--max-em-drop",
        type=click.FloatRange(0, 1),
        default=0.01,
        metavar="E",
        help="The target: a fraction, 0.01 is one point.",
    ),
    option(
        "--probe-tokens",
        type=click.IntRange(0, 100_000),
        metavar="T",
        help="Charged for each probe. [default: as recorded, else 15 for reasoning and 0 elsewhere]",
    ),
)


def study_options(*, policies: str, margin: str) -> Callable[[Any], Any]:
    """The options that narrow a study; each text is the part of the help that differs between commands."""
    from suffice.replay.study.sums import MARGIN

    learned = "comma-separated; 'learned' stands for the learned scores"
    return stacked(
        option("--policies", metavar="NAMES", help=f"{policies}, {learned}."),
        option(
            "--margin",
            type=click.FloatRange(0, 10),
            metavar="Z",
            default=MARGIN,
            show_default=False,
            help=f"Standard errors that {margin}. [default: {MARGIN:g}]",
        ),
    )


WORKERS = stacked(
    option("--workers", type=click.IntRange(1, 10_000), metavar="N", help="Processes. [default: one a processor]"),
    option(
        "--ray",
        metavar="ADDRESS",
        help="Run on this Ray cluster, --workers tasks at a time; local: on a Ray of this machine. Same results.",
    ),
)


def trace_files(sources: Sequence[str]) -> list[Path]:
    """The files among the sources, and those of the archives among them, at a folder or an address."""
    from suffice.replay.archive.days import expand_archives

    return expand_archives(sources, cache=Path.home() / ".cache" / "suffice" / "archive")


def split_names(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",")) if names else ()


def command_line() -> str:
    return shlex.join(["suffice", *sys.argv[1:]])


def trace_progress(*columns: ProgressColumn, quiet: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    between = (TextColumn("{task.description}"), BarColumn(), *columns, TimeElapsedColumn())
    return Progress(*between, console=console, disable=quiet or not console.is_terminal)
