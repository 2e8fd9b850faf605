"""From replay to live: what is proposed decides, step by step, as the replay said it would."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.errors import ConfigError
from suffice.model.artefact import load_model
from suffice.policy.columns import CODES, stops_of
from suffice.policy.learned import LearnedPolicy
from suffice.replay.study.runs import Halts, Runs, find_first_stops, select_runs
from suffice.replay.study.scores import (
    MODEL_FILE,
    POLICY_FILE,
    PolicyProposal,
    ScoreTable,
    build_proposal,
    build_scored,
    find_model_name,
    format_toml,
    risk_column,
    write_proposal,
)
from suffice.replay.study.search import Bench, TuneOptions, make_bench
from suffice.replay.study.sums import folds_of
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import read_traces, survey
from suffice.signals.observe import Observer
from suffice.types import Kind
from suffice.wiring.files import load_settings
from suffice.wiring.routes import build_route
from suffice_testing.traces import Synthetic

HELD_OUT = 0
KINDS: tuple[Kind, ...] = ("reasoning", "samples", "rounds")


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Kind, tuple[Bench, list[Batch]]]:
    """Some runs of each kind, as replay reads them and as they are recorded."""
    result: dict[Kind, tuple[Bench, list[Batch]]] = {}
    for kind in KINDS:
        file = tmp_path_factory.mktemp("traces") / f"{kind}.parquet"
        Synthetic(kind=kind, n_runs=300, n_questions=100, seed=3, p_no_answer=0.2).write(file)
        result[kind] = (make_bench(survey([file])[0], TuneOptions()), list(read_traces([file])))
    return result


def spec_of(bench: Bench, model: str, share: float) -> dict[str, Any]:
    """A learned policy that stops at about that share of the steps."""
    threshold = 0.5 if "at price" in model else bench.level(model, share, HELD_OUT)
    return {"policy": "learned", "model": model, "threshold": threshold, "on_hopeless": "stop"}


def frozen_halts(bench: Bench, spec: Mapping[str, Any]) -> tuple[Runs, Halts, Any]:
    """Where replay ends the runs of the fold that neither the model nor the level has seen; and their risks."""
    assert bench.scores is not None
    name = find_model_name(spec)
    assert name is not None
    held_out = folds_of(bench.runs) == HELD_OUT
    runs = select_runs(bench.runs, held_out)
    columns = bench.runs.readable()
    columns.update(bench.scores.columns(name, HELD_OUT))
    codes = stops_of(build_scored(spec, bench.scores.names), columns)
    rows = held_out[bench.runs.run_of_row]
    return runs, find_first_stops(codes[rows], runs), columns[risk_column(name)][rows]


def live_halts(
    proposal: PolicyProposal, kind: Kind, runs: Runs, batches: list[Batch]
) -> tuple[Halts, list[float | None]]:
    """The same, one run after the other through the observer, and the score that each decision names."""
    policy = proposal.policy()
    planned = int(max(np.diff(batch.offset).max() for batch in batches))
    wanted = set(runs.question)
    codes, scores, n_steps = list[int](), list[float | None](), iter(runs.n_steps.tolist())
    for batch in batches:
        for i in range(len(batch)):
            if batch.question_id[i] not in wanted:
                continue
            query = batch.query(i)
            if query.planned_steps is None:
                query = replace(query, planned_steps=planned)
            observer = Observer(policy.needs, kind, query=query)
            for step in batch.steps(i)[: next(n_steps)]:  # a decided vote shows no more
                decision = policy.decide(observer.observe(step))
                codes.append(CODES[decision.stop_reason])
                scores.append(decision.score)
    return find_first_stops(np.array(codes, dtype=np.int8), runs), scores


@pytest.mark.slow(keep=6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("model", "share"),
    [("as-good", 0.3), ("as-good, by cost", 0.1), ("value at price 0.316", 0), ("value at price 3.16", 0)],
)
def test_the_live_policy_ends_unseen_runs_where_the_replay_did(
    benches: Mapping[Kind, tuple[Bench, list[Batch]]], kind: Kind, model: str, share: float
) -> None:
    bench, batches = benches[kind]
    spec = spec_of(bench, model, share)
    runs, expected, risk = frozen_halts(bench, spec)
    proposal = build_proposal(spec, bench.scores, left_out=(HELD_OUT,))
    result, scores = live_halts(proposal, kind, runs, batches)
    assert len(runs) > 30
    assert result.row.tolist() == expected.row.tolist()
    assert result.code.tolist() == expected.code.tolist()
    report = {at: score for at, score in enumerate(scores) if score is not None}
    assert report
    np.testing.assert_allclose(list(report.values()), risk[list(report)], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_compositions_with_a_learned_part_are_carried_over_whole(
    benches: Mapping[Kind, tuple[Bench, list[Batch]]], kind: Kind
) -> None:
    bench, batches = benches[kind]
    learned = {**spec_of(bench, "as-good", 0.5), "on_hopeless": "continue"}
    stable = {"policy": "stable-answer", "streak": 3}
    for spec in (
        {"policy": "all-of", "policies": [learned, stable]},
        {"policy": "any-of", "policies": [stable, learned]},
        {"policy": "guarded", "inner": learned, "min_steps": 3, "max_tokens": 1_200},
    ):
        runs, expected, _ = frozen_halts(bench, spec)
        result, _ = live_halts(build_proposal(spec, bench.scores, left_out=(HELD_OUT,)), kind, runs, batches)
        assert (expected.row < runs.last).any()
        assert result.row.tolist() == expected.row.tolist()
        assert result.code.tolist() == expected.code.tolist()


def scored(benches: Mapping[Kind, tuple[Bench, list[Batch]]]) -> tuple[Bench, ScoreTable]:
    bench = benches["samples"][0]
    assert bench.scores is not None
    return bench, bench.scores


def test_a_proposal_passes_through_a_settings_file_and_its_check(
    benches: Mapping[Kind, tuple[Bench, list[Batch]]], tmp_path: Path
) -> None:
    bench, scores = scored(benches)
    inner = spec_of(bench, "as-good, by cost", 0.2)
    spec = {"policy": "any-of", "policies": [inner, {"policy": "fixed-rounds", "max_steps": 7}]}
    proposal = build_proposal(spec, scores)
    written = write_proposal(
        proposal, tmp_path / "here", route="my route", settings={"kind": "samples", "samples": 8}, head="Tuned.\nTwice."
    )
    assert [path.name for path in written] == [MODEL_FILE, POLICY_FILE]
    fragment = written[1].read_text("utf-8")
    assert fragment.startswith("# Tuned.\n# Twice.\n")
    file = tmp_path / "here" / "suffice.toml"
    upstream = '[upstreams.up]\nurl = "http://127.0.0.1:1"\n'
    file.write_text(upstream + fragment + 'upstream = "up"\n', "utf-8")
    route = load_settings(file).routes["my route"]
    assert build_route("my route", route).serving.policy == proposal.policy()
    checked = CliRunner().invoke(main, ["config", "check", str(file)])
    assert checked.exit_code == 0, checked.output
    (tmp_path / "here" / MODEL_FILE).write_text("{}", "utf-8")
    checked = CliRunner().invoke(main, ["config", "check", str(file)])
    assert checked.exit_code == 2
    where = f"{file}: routes.my route.policy.any-of.policies[0].learned.model: {tmp_path / 'here' / MODEL_FILE}"
    assert where in checked.output


def test_a_model_says_what_it_came_from(benches: Mapping[Kind, tuple[Bench, list[Batch]]], tmp_path: Path) -> None:
    bench, scores = scored(benches)
    spec = spec_of(bench, "as-good", 0.2)
    everything, without_a_fold = (
        build_proposal(spec, scores).model,
        build_proposal(spec, scores, left_out=(HELD_OUT,)).model,
    )
    assert everything is not None
    assert without_a_fold is not None
    assert everything.trained.n_episodes == len(bench.runs) > without_a_fold.trained.n_episodes
    assert everything.trained.n_questions == len(bench.fold) > without_a_fold.trained.n_questions
    assert everything.trained.digest.startswith("samples ")
    assert (everything.trained.target, everything.trained.seed) == ("as-good", 0)
    assert {"suffice", "numpy", "scikit-learn"} <= dict(everything.trained.versions).keys()
    written = write_proposal(build_proposal(spec, scores), tmp_path, route="r", settings={}, head="")
    assert load_model(written[0].read_bytes()) == everything


def test_nothing_learned_needs_no_model_and_never_is_a_policy_too(tmp_path: Path) -> None:
    assert build_proposal(None, None).spec == {"policy": "never"}
    spec = {"policy": "beta", "threshold": 0.97}
    written = write_proposal(build_proposal(spec, None), tmp_path, route="r", settings={}, head="")
    assert [path.name for path in written] == [POLICY_FILE]
    assert tomllib.loads(written[0].read_text("utf-8"))["routes"]["r"]["policy"] == spec


def test_a_value_is_read_back_from_toml_as_it_was_written() -> None:
    value = {"a b": [1, 2.5, True, False, 'quo"te\\n', {"x": 1e-7, "y": []}], "c": 1_000_000}
    assert tomllib.loads(f"v = {format_toml(value)}")["v"] == value
    with pytest.raises(ValueError, match="got NoneType"):
        format_toml(None)


def test_a_word_that_is_no_score_is_refused(benches: Mapping[Kind, tuple[Bench, list[Batch]]]) -> None:
    _, scores = scored(benches)
    with pytest.raises(ConfigError, match=r"policy\.learned\.model: got 'as-god'; known: as-good, "):
        build_scored({"policy": "learned", "model": "as-god", "threshold": 0.5}, scores.names)
    assert LearnedPolicy.name == "learned"  # the word that specs are searched for
