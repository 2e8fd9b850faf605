"""A handful of recorded runs gives an answer or one sentence, and never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.types import Kind
from suffice_testing.traces import Synthetic

PLAIN = ("replay", "--policies", "fixed-rounds,stable-answer", "--policy", "never", "--no-report")
WORDS = {
    "replay": ("replay", "--no-report"),
    "replay with a report": (*PLAIN[:-1], "--out", "report"),
    "replay of plain rules": PLAIN,
    "replay of learned rules": ("replay", "--policies", "learned", "--no-report"),
    "replay with files to fit": ("replay", "--fit", "few.parquet", "--no-report"),
    "replay online": ("replay", "--online", "--seeds", "2", "--no-report"),
    "replay online on halves": ("replay", "--online", "--seeds", "2", "--disjoint", "--no-report"),
    "tune": ("tune", "--trials", "6", "--out", "tuned"),
}
LEARNS_NOTHING = ("replay with a report", "replay of plain rules", "replay online", "replay online on halves")


@pytest.mark.slow(keep=4)
@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize("n_runs", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_few_runs(kind: Kind, n_runs: int, words: str, elsewhere: Path) -> None:
    Synthetic(kind=kind, n_runs=n_runs, seed=1, n_questions=max(1, n_runs), name="few").write(elsewhere / "few.parquet")
    done = CliRunner().invoke(main, [*WORDS[words], "few.parquet"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    if n_runs and words in LEARNS_NOTHING:
        assert done.exit_code == 0, done.stderr
    if done.exit_code:
        assert done.exit_code == 2
        assert done.stderr.startswith(f"suffice {WORDS[words][0]}: ")
        assert "few" in done.stderr
