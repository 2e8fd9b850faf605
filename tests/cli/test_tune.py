"""`suffice tune` as a person and a program use it: what is printed, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.cli.offline.tune import _show
from suffice.model.artefact import load_model
from suffice.replay.study.scores import build_proposal
from suffice.replay.study.search import TuneOptions, make_bench, tune_runs
from suffice.replay.traces.read import survey
from suffice.wiring.files import load_settings
from suffice.wiring.routes import build_route
from suffice_testing.traces import Synthetic

QUICK = ("--trials", 15, "--policies", "learned,beta", "--max-em-drop", 0.03)


def tune(*options: object) -> Result:
    return CliRunner().invoke(main, ["tune", *map(str, options)])


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("traces") / "votes.parquet"
    Synthetic(kind="samples", n_runs=240, n_questions=120, seed=0).write(file)
    return file


@pytest.mark.slow
def test_a_person_reads_what_to_expect_and_gets_what_a_route_needs(votes: Path, tmp_path: Path) -> None:
    result = tune(votes, *QUICK, "--policies", "learned", "--out", tmp_path, "--route", "quiz")
    assert result.exit_code == 0, result.output
    assert "votes, samples: 240 runs of 120 questions, full EM" in result.stdout
    assert "target: EM drop at most 3 points, kept by 1 × its standard error; 90 trials in 6 searches" in result.stdout
    for word in ("in search", "unseen", "optimism", "winners: ", "5 folds)", "proposal, searched on all questions"):
        assert word in result.stdout
    upstream = '[upstreams.up]\nurl = "http://127.0.0.1:1"\n'
    settings = tmp_path / "suffice.toml"
    settings.write_text(upstream + (tmp_path / "policy.toml").read_text("utf-8") + 'upstream = "up"\n', "utf-8")
    route = load_settings(settings).routes["quiz"]
    assert (route.kind, route.samples, route.policy["policy"]) == ("samples", 8, "learned")
    built = build_route("quiz", route)
    assert load_model((tmp_path / "stop-model.json").read_bytes()) == getattr(built.serving.policy, "model", None)
    checked = CliRunner().invoke(main, ["config", "check", str(settings)])
    assert checked.exit_code == 0, checked.output


@pytest.mark.slow
def test_a_program_reads_the_same_as_json_and_twice_the_same(votes: Path, tmp_path: Path) -> None:
    first, second = (tune(votes, *QUICK, "--policies", "beta,esc", "--json") for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    results: dict[str, Any] = json.loads(first.stdout)
    assert results["set"] == "votes"
    assert results["max_em_drop"] == 0.03
    assert len(results["folds"]) == 5
    assert sum(results["winners"].values()) == 5
    seen, unseen = (results["optimism"][f"token_reduction_{where}"]["value"] for where in ("in_search", "unseen"))
    assert results["optimism"]["token_reduction"]["value"] == pytest.approx(seen - unseen)
    low, high = results["optimism"]["em_drop"]["interval"]
    assert low <= results["optimism"]["em_drop"]["value"] <= high
    assert results["policy"] == results["proposal"]
    assert results["written"] == []
    written = json.loads(tune(votes, *QUICK, "--policies", "beta", "--json", "--out", tmp_path / "new").stdout)
    assert written["written"] == [str(tmp_path / "new" / "policy.toml")]


def test_a_set_that_was_not_searched_whole_is_called_so(votes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = make_bench(survey([votes], most_steps=960)[0], TuneOptions(trials=2, policies=("beta",)))
    tuned = tune_runs(bench, clock=lambda: 0.0)
    _show(tuned, build_proposal(tuned.proposal, bench.scores), [])
    assert "searched on 50.0 % of its questions, chosen by hash" in capsys.readouterr().out


def test_what_cannot_be_tuned_is_said_in_one_line_with_exit_code_2(votes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    Synthetic(kind="rounds", n_runs=6, n_questions=2, seed=0).write(other)
    for options, reported in (
        ((tmp_path / "none.parquet",), "none.parquet"),
        ((votes, other), "the files hold 2 sets (votes, other); a policy is tuned for one at a time"),
        ((votes, "--policies", "deer"), "policies: got 'deer'; for samples: learned, fixed-budget"),
        ((votes, "--where", "task=nothing"), "no run"),
        ((votes, *QUICK, "--policies", "beta", "--out", other / "below"), "other.parquet"),
    ):
        result = tune(*options)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("suffice tune: ")
        assert reported in result.stderr
        assert result.stderr.count("\n") == 1
    for option, value in (("--trials", 0), ("--max-em-drop", 2), ("--seed", -1), ("--time-limit", 0)):
        assert tune(votes, option, value).exit_code == 2
