"""The figures of README's headline are those that the command below them prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from suffice.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_headline_is_what_its_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    (claim,) = re.findall(
        r"On (\d+) recorded chains.* saves ([\d.]+) % of the tokens at a drop of ([\d.]+) points;"
        r" the best published rule.* saves ([\d.]+) % at a drop of ([\d.]+)\.",
        page,
    )
    (command,) = re.findall(r"^suffice (replay .*?)\s+#", page, re.MULTILINE)
    words = [str(ROOT / word) if word.startswith("src/") else word for word in shlex.split(command)]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    reported = " ".join(done.output.split())
    (n_runs,) = re.findall(r"too small to certify: (\d+) runs", reported)
    (ours,) = re.findall(r"ours saves ([\d.]+) % of the tokens; Exact Match falls by ([\d.]+) points?", reported)
    (published,) = re.findall(r"in the same way saves ([\d.]+) %; Exact Match falls by ([\d.]+) points?", reported)
    assert [float(one) for one in claim] == [float(one) for one in (n_runs, *ours, *published)]
    assert "So few runs certify nothing" in page
    (online,) = re.findall(r"would have spent \[([\d.]+) % more\]", page)
    benchmarks = (ROOT / "docs" / "reference" / "benchmarks.md").read_text("utf-8")
    assert re.search(rf"^\| \[own_reasoning\].*\*\*-{re.escape(online)}\s%\*\*", benchmarks, re.MULTILINE)
