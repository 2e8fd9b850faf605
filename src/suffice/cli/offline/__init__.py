"""Commands that measure on recorded runs and logs before anything is served, and the options that they share."""

from __future__ import annotations

import click

from suffice.cli.shell import FILE, option

FILES = click.argument("files", nargs=-1, required=True, type=FILE)
WHERE = option("--where", metavar="CONDITIONS", help="Take only some runs: 'task=mmlu_pro,model!=gpt*'.")
MIN_RUN_EM = option(
    "--min-run-em",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="EM",
    help="Leave out a model's run whose full EM over the set is not above this.",
)
MAX_EM_DROP = option(
    "--max-em-drop",
    type=click.FloatRange(0, 1),
    default=0.01,
    metavar="E",
    help="The target: a fraction, 0.01 is one point.",
)
PROBE_TOKENS = option(
    "--probe-tokens",
    type=click.IntRange(0, 100_000),
    metavar="T",
    help="Charged for each probe. [default: as recorded, else 15 for reasoning and 0 elsewhere]",
)


def split_names(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",")) if names else ()
