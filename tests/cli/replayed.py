"""Files to replay and what a program reads of them, for `suffice replay` with and without `--online`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import Result

from suffice.types import Kind
from suffice_testing.traces import Synthetic


def made(folder: Path, name: str = "votes.dev.parquet", kind: Kind = "samples", n_runs: int = 300) -> Path:
    """A file of made-up runs of 60 questions."""
    path = folder / name
    Synthetic(kind=kind, n_runs=n_runs, seed=6, n_questions=60, name="made").write(path)
    return path


def lines(result: Result) -> list[dict[str, Any]]:
    """The objects that a command printed, one a line."""
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]
