"""`bench/online.py` prints ours beside the reference on the same streams, and a sentence where traces are missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bench import online

from suffice_testing.traces import Synthetic
from tests.learn.runs_made import audits
from tests.replay.online.made import traffic_of


def test_without_traces_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("SUFFICE_TRACES", raising=False)
    assert online.main([]) == 2
    assert "set SUFFICE_TRACES" in capsys.readouterr().err
    monkeypatch.setenv("SUFFICE_TRACES", str(tmp_path))
    assert online.main([]) == 2


@pytest.mark.slow
def test_a_row_and_an_object_for_each_set_and_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SUFFICE_TRACES", str(tmp_path))
    for name in ("votes", "others"):
        Synthetic(kind="samples", n_runs=60, n_questions=20, seed=1).write(tmp_path / f"{name}.dev.parquet")
    assert online.main(["--seeds", "1", "--only", "votes"]) == 0
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| votes (too small)"] * 2
    assert {text.count("|") for text in (head, line, *rows)} == {12}
    assert online.main(["--seeds", "1", "--only", "votes", "--reference", "--json"]) == 0
    objects = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [one["max_em_drop"] for one in objects] == [0.01, 0.02]
    assert objects[0]["reference"]["violations"] == 0


def test_the_reference_stops_where_nothing_is_lost_and_never_where_all_is() -> None:
    n = 1_200
    safe = traffic_of(audits([[0.9, 0.9]] * n))
    harmful = traffic_of(audits([[0.9, 0.9]] * n, z=[[1, 0]] * n))
    every = np.ones(n, dtype=bool)
    half = online.reference_stream(safe, every, np.random.default_rng(0), 0.02)
    assert half.saved_without_probes == pytest.approx(0.5 * 0.95, abs=0.02), "all but the audits stop at half"
    assert half.saved == pytest.approx(half.saved_without_probes - 5 / 200)
    assert half.drop == 0
    never = online.reference_stream(harmful, every, np.random.default_rng(0), 0.02)
    assert (never.saved_without_probes, never.drop) == (0, 0)
    assert never.saved == pytest.approx(-5 / 200)
