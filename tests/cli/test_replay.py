"""`suffice replay` as a person and a program use it: a table, JSON lines, a report, and sentences where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.cli.replayed import lines, made

from suffice.cli.main import main

FEW = ("--policies", "beta,fixed-rounds")
TYPES: dict[str, type | tuple[type, ...]] = {
    "set": str,
    "policy": str,
    "n_episodes": int,
    "n_questions": int,
    "full_em": float,
    "em": float,
    "em_drop": float,
    "lost": float,
    "gained": float,
    "full_tokens": int,
    "tokens": int,
    "token_reduction": float,
    "token_reduction_without_probes": float,
    "em_drop_interval": (list, type(None)),
    "frozen": bool,
}
pytestmark = pytest.mark.usefixtures("elsewhere")  # the report goes into the current folder


def replay(*options: object) -> Result:
    return CliRunner().invoke(main, ["replay", *map(str, options)])


@pytest.mark.slow
def test_a_person_reads_a_table_with_its_target_and_gets_a_report(tmp_path: Path) -> None:
    result = replay(made(tmp_path), "--max-em-drop", 0.02, *FEW)
    assert result.exit_code == 0, result.output
    assert "votes, samples: 300 runs of 60 questions" in result.stdout
    assert "At most 2 points" in result.stdout
    for word in ("Published rules, frozen", "Published rules, hindsight", "Oracles", "oracle_agree", "beta", "full"):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "report: " in result.stdout
    written = sorted(path.name for path in (tmp_path / "replay-report").iterdir())
    assert any(name.endswith(".html") for name in written)
    assert any(name.endswith(".png") for name in written)
    assert any(name.endswith(".svg") for name in written)


def test_a_program_reads_one_object_for_each_set_and_policy_and_nothing_else(tmp_path: Path) -> None:
    result = replay(made(tmp_path), made(tmp_path, "loops.parquet", "rounds"), "--json", *FEW)
    results = lines(result)
    assert {line["set"] for line in results} == {"votes", "loops"}
    for line in results:
        assert list(line)[: len(TYPES)] == list(TYPES)
        for key, kind in TYPES.items():
            assert isinstance(line[key], kind), key
        assert type(line["n_episodes"]) is int
    names = [line["policy"] for line in results if line["set"] == "votes"]
    assert names == ["full", "published", "fixed-rounds", "beta", "hindsight", "oracle_agree", "oracle_correct"]
    frozen = {line["policy"]: line["frozen"] for line in results}
    assert frozen["published"] is True
    assert frozen["hindsight"] is False
    assert not (tmp_path / "replay-report").exists()


def test_twice_is_the_same_and_a_seed_moves_intervals_alone(tmp_path: Path) -> None:
    file = made(tmp_path)
    first, again, other = (replay(file, "--json", *FEW, "--seed", seed) for seed in (0, 0, 1))
    assert first.stdout == again.stdout
    a, b = lines(first), lines(other)
    assert [line["tokens"] for line in a] == [line["tokens"] for line in b]
    assert [line["em_drop_interval"] for line in a] != [line["em_drop_interval"] for line in b]


def test_a_policy_of_yours_stands_beside_them(tmp_path: Path) -> None:
    spec = json.dumps({"policy": "beta", "threshold": 0.97})
    results = lines(replay(made(tmp_path), "--json", *FEW, "--policy", spec, "--policy", "never"))
    given = {line["policy"]: line for line in results if line["family"] == "given"}
    assert given["beta threshold=0.97"]["spec"] == {"policy": "beta", "threshold": 0.97}
    full = next(line for line in results if line["family"] == "full")
    assert given["never"]["token_reduction"] == full["token_reduction"] > 0, "decided votes end under every policy"


def test_fit_files_are_named_and_nothing_of_the_judged_ones_is_used(tmp_path: Path) -> None:
    made(tmp_path, "votes.parquet", n_runs=240)
    results = lines(replay(made(tmp_path), "--fit", tmp_path / "votes.parquet", "--json", *FEW))
    assert {line["n_episodes"] for line in results} == {300}
    text = replay(made(tmp_path), "--fit", tmp_path / "votes.parquet", "--no-report", *FEW).stdout
    assert "Fitted on votes.parquet" in text.replace("\n", " ")


def test_some_runs_alone(tmp_path: Path) -> None:
    file = made(tmp_path)
    (model, *_) = lines(replay(file, "--json", *FEW, "--where", "model=model-2"))
    assert model["n_episodes"] == 60
    (good, *_) = lines(replay(file, "--json", *FEW, "--min-run-em", 0.6))
    (everything, *_) = lines(replay(file, "--json", *FEW))
    assert 0 < good["n_episodes"] < everything["n_episodes"]
    assert good["full_em"] > everything["full_em"]


def test_probes_cost_what_is_asked(tmp_path: Path) -> None:
    file = made(tmp_path, "chains.parquet", "reasoning")
    costs = []
    for tokens in (0, 50):
        results = lines(replay(file, "--json", "--policies", "stable-answer", "--probe-tokens", tokens))
        (line,) = (line for line in results if line["policy"] == "oracle_agree")
        costs.append(line["token_reduction_without_probes"] - line["token_reduction"])
    assert costs[0] == 0
    assert costs[1] > 0


@pytest.mark.slow
def test_learned_scores_are_left_out_or_asked_for_by_name(tmp_path: Path) -> None:
    results = lines(replay(made(tmp_path, n_runs=120), "--json", "--policies", "learned,beta"))
    assert [line["policy"] for line in results][:3] == ["full", "ours", "published"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policies", "betta"), "unknown rule 'betta' for samples; known:"),
        (("--policy", "no-such-rule"), "unknown name 'no-such-rule'"),
        (("--policy", '{"policy": "beta", "treshold": 1}'), "treshold"),
        (("--policy", '{"policy": '), "--policy: is not JSON"),
        (("--policy", '["beta"]'), "'[\"beta\"]'"),
        (("--where", "colour=red"), "colour"),
        (("--where", "model=nobody"), "model=nobody"),
        (("--min-run-em", "0.99"), "no run has an EM above 0.99"),
        (("--fit", "missing.parquet"), "missing.parquet"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_a_sentence_and_nothing_is_written(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = replay(made(tmp_path), *options, *(FEW if "--policies" not in options else ()))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("suffice replay: ")
    assert "Traceback" not in result.output
    assert not result.stdout
    assert not (tmp_path / "replay-report").exists()


def test_a_broken_file_is_named_with_its_row_and_column(tmp_path: Path) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_text('{"dataset": "d", "setting": "samples"}\n', "utf-8")
    result = replay(file, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "broken.jsonl, row 1" in result.stderr
    assert not (tmp_path / "out").exists()


def test_files_to_fit_on_must_hold_the_same_kind_of_run(tmp_path: Path) -> None:
    other = made(tmp_path, "chains.parquet", "reasoning")
    result = replay(made(tmp_path), "--fit", other, *FEW)
    assert result.exit_code == 2
    assert "need the same kind of run" in result.stderr
    assert not (tmp_path / "replay-report").exists()


@pytest.mark.parametrize("options", [("--max-em-drop", "2"), ("--min-run-em", "1"), ("--margin", "-1"), ()])
def test_options_out_of_range_and_no_file_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    result = replay(*([made(tmp_path)] if options else []), *options)
    assert result.exit_code == 2
    assert "Error" in result.stderr
