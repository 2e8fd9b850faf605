"""One set from files to report: figures that agree with each other, in memory and streamed, on folds and frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.nested import nest, open_study

from suffice.errors import ConfigError
from suffice.replay.study.policies import build_ladders
from suffice.replay.study.scores import Score
from suffice.replay.study.sets import FAMILIES, PolicyResult, SetReport, family_of, pools_of, replay_set
from suffice.replay.study.study import ReplayOptions
from suffice.replay.traces.read import survey
from suffice.types import Kind
from suffice_testing.trace_files import write_traces_parquet
from suffice_testing.traces import Synthetic

SCORES = (Score(name="as-good", target="as-good", parts="linear"), Score(name="value", target="value"))
GIVEN = {"stable 3": {"policy": "stable-answer", "streak": 3}, "no more": {"policy": "never"}}


def made(folder: Path, kind: Kind = "reasoning", n_runs: int = 400, seed: int = 3, name: str = "made") -> Path:
    path = folder / f"{name}.parquet"
    Synthetic(kind=kind, n_runs=n_runs, seed=seed, n_questions=100, name=name).write(path)
    return path


def few_options(**changes: Any) -> ReplayOptions:
    few: dict[str, Any] = {"max_em_drop": 0.03, "scores": SCORES, "policies": GIVEN, "n_draws": 100}
    return ReplayOptions(**(few | changes))


def by_name(report: SetReport) -> dict[str, PolicyResult]:
    return {line.policy: line for line in report.lines}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def report(file: Path) -> SetReport:
    (data,) = survey([file])
    return replay_set(data, few_options())


@pytest.mark.slow
def test_every_line_agrees_with_itself(report: SetReport) -> None:
    for line in report.lines:
        assert line.n_episodes == 400
        assert line.n_questions == 100
        assert line.em_drop == pytest.approx(line.lost - line.gained)
        assert line.em == pytest.approx(line.full_em - line.em_drop)
        assert line.token_reduction == pytest.approx(1 - line.tokens / line.full_tokens, abs=1e-6)
        assert line.token_reduction_without_probes >= line.token_reduction
        if line.token_reduction_without_cache is not None:
            assert line.token_reduction_without_cache <= line.token_reduction
        assert 0 <= line.hopeless <= line.stopped <= 1
        if line.family == "full":
            assert line.em_drop_interval is None
        else:
            assert line.em_drop_interval is not None
            assert line.em_drop_interval.low <= line.em_drop + 1e-9
            assert line.em_drop_interval.high >= line.em_drop - 1e-9


def test_the_lines_that_a_replay_promises_are_there_in_their_order(report: SetReport) -> None:
    names = [line.policy for line in report.lines]
    rules = list(dict.fromkeys(family_of(ladder.name) for ladder in build_ladders("reasoning", longest=8)))
    assert names == [
        "full",
        "ours",
        "published",
        *rules,
        "ours_hindsight",
        "hindsight",
        *GIVEN,
        "oracle_agree",
        "oracle_correct",
    ]
    for line in report.lines:
        if line.policy in FAMILIES:
            assert (line.family, line.choice) == FAMILIES[line.policy]
        elif line.policy in GIVEN:
            assert (line.family, line.choice, line.spec) == ("given", "fixed", GIVEN[line.policy])
        else:
            assert (line.family, line.choice) == ("published", "frozen")


def test_oracles_lose_nothing_and_hindsight_keeps_its_target(report: SetReport) -> None:
    lines = by_name(report)
    assert lines["oracle_agree"].em_drop == 0
    assert lines["oracle_agree"].lost == 0
    assert lines["oracle_correct"].lost == 0
    assert lines["oracle_correct"].gained > 0
    for name in ("hindsight", "ours_hindsight"):
        assert lines[name].em_drop <= 0.03 + 1e-9
    assert lines["hindsight"].token_reduction <= lines["ours_hindsight"].token_reduction + 0.02
    assert lines["no more"].tokens == lines["full"].tokens == lines["full"].full_tokens


def test_probes_are_charged_where_answers_are_asked_for_and_only_there(report: SetReport) -> None:
    lines = by_name(report)
    stable = lines["stable 3"]
    assert stable.token_reduction_without_probes > stable.token_reduction
    rounds = lines["fixed-rounds"]
    once = rounds.token_reduction_without_probes - rounds.token_reduction
    assert once == pytest.approx(15 * rounds.stopped * 400 / rounds.full_tokens)
    assert report.probe_tokens == 15


@pytest.mark.slow
def test_many_targets_from_one_laying_say_what_the_report_says(file: Path, report: SetReport) -> None:
    """`nested` adds sums up; the report judged run by run with frozen models."""
    (data,) = survey([file])
    study = open_study(data, scores=SCORES)
    nested = nest(study)
    lines = by_name(report)
    for pool in pools_of(study.ladders, SCORES):
        sums = nested.frozen(pool, 0.03)
        assert lines[pool.name].tokens == pytest.approx(sums.of("tokens").sum(), abs=1)
        assert lines[pool.name].lost * 400 == pytest.approx(sums.of("lost").sum())
        assert lines[pool.name].gained * 400 == pytest.approx(sums.of("gained").sum())
        if pool.name in ("ours", "published"):
            late = lines["ours_hindsight" if pool.name == "ours" else "hindsight"]
            assert late.tokens == pytest.approx(nested.hindsight(pool, 0.03)[1].of("tokens").sum(), abs=1)
        assert lines[pool.name].miss_share == nested.miss_share(pool, 0.03)


@pytest.mark.slow
def test_a_set_too_long_for_memory_is_judged_in_full(file: Path, report: SetReport) -> None:
    """Models and points come from a part of the questions; what was not picked from them is the same to the token."""
    (data,) = survey([file], most_steps=600)
    assert data.share < 0.5
    streamed, whole = by_name(replay_set(data, few_options())), by_name(report)
    assert list(streamed) == list(whole)
    for name in ("full", "oracle_agree", "oracle_correct", *GIVEN):
        a, b = streamed[name], whole[name]
        assert (a.tokens, a.lost, a.gained, a.stopped, a.n_questions) == (
            b.tokens,
            b.lost,
            b.gained,
            b.stopped,
            b.n_questions,
        )
    for line in streamed.values():
        assert line.n_episodes == 400
        assert line.full_tokens == whole["full"].full_tokens


@pytest.mark.slow
def test_streamed_says_so_and_what_is_too_small_too(file: Path, report: SetReport) -> None:
    (data,) = survey([file], most_steps=600)
    assert any(
        "of the questions, chosen by hash; all runs are judged" in n for n in replay_set(data, few_options()).notes
    )
    assert any(note.startswith("too small to certify: 400 runs of 100 questions") for note in report.notes)
    assert any("planned length" in note for note in report.notes)
    assert not any("turn-cap" in note for note in report.notes)


def labels_turned_round(path: Path, folder: Path) -> Path:
    """The same file with every label wrong: what the full run gave, and what was right."""
    (data,) = survey([path])
    other = folder / path.name

    def batches() -> Any:
        for batch in data.batches():
            correct = np.where(batch.correct >= 0, 1 - batch.correct, batch.correct).astype(np.int8)
            yield replace(batch, correct=correct, full_em=~batch.full_em)

    write_traces_parquet(other, batches())
    return other


@pytest.mark.slow
def test_fit_files_freeze_models_and_points(tmp_path: Path) -> None:
    """Nothing that is known of the judged runs' ends moves a halt: with all of their labels wrong, the same tokens."""
    train = survey([made(tmp_path, seed=8, name="train")])
    judged = made(tmp_path, n_runs=300)
    (tmp_path / "other").mkdir()
    (a,), (b,) = survey([judged]), survey([labels_turned_round(judged, tmp_path / "other")])
    first, second = (replay_set(one, few_options(), fit=train) for one in (a, b))
    assert first.fitted_on == ("train.parquet",)
    ones, others = by_name(first), by_name(second)
    for pool in pools_of(build_ladders("reasoning", longest=8), SCORES):
        x, y = ones[pool.name], others[pool.name]
        assert (x.tokens, x.stopped, x.hopeless, x.note, x.spec) == (y.tokens, y.stopped, y.hopeless, y.note, y.spec)
        assert x.em_drop != y.em_drop or not x.stopped
    assert ones["ours"].stopped > 0.1


def test_fitted_and_judged_on_the_same_file_hindsight_and_frozen_see_the_same_runs(tmp_path: Path) -> None:
    """With the training files as the judged ones and no margin, nothing is held out: the drop stays in the target."""
    data = survey([made(tmp_path, "rounds")])
    report = replay_set(data[0], few_options(margin=0.0, families=("beta", "esc"), policies={}), fit=data)
    lines = by_name(report)
    assert [line.policy for line in report.lines][:2] == ["full", "published"]
    assert lines["published"].em_drop <= 0.03 + 1e-9
    assert lines["hindsight"].token_reduction >= lines["published"].token_reduction - 1e-9
    assert "ours" not in lines
    (batch,) = data[0].batches()
    turns = sorted(np.diff(batch.offset).tolist())
    (cap,) = (int(note.split("at most ")[1].split()[0]) for note in report.notes if "turn-cap" in note)
    assert sum(n <= cap for n in turns) >= 0.75 * len(turns) > sum(n < cap for n in turns)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("kind", ["samples", "rounds"])
def test_twice_is_the_same(kind: Kind, tmp_path: Path) -> None:
    (data,) = survey([made(tmp_path, kind, n_runs=200)])
    few = few_options(families=("learned", "beta"))
    assert replay_set(data, few) == replay_set(data, few)


def test_rules_that_nobody_knows_are_named_with_those_that_are(file: Path) -> None:
    (data,) = survey([file])
    with pytest.raises(ConfigError, match=r"unknown rule 'betta' for reasoning; known: .*beta.*learned"):
        replay_set(data, few_options(families=("betta",)))
    with pytest.raises(ConfigError, match=r"no-such"):
        replay_set(data, few_options(policies={"mine": {"policy": "no-such"}}))


def test_runs_of_a_single_step_have_nothing_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "short.parquet"
    Synthetic(kind="rounds", n_runs=60, seed=1, n_questions=30, n_steps=1, name="short").write(path)
    (data,) = survey([path])
    report = replay_set(data, few_options(scores=()))
    assert {line.token_reduction for line in report.lines} == {0.0}
    assert {line.em_drop for line in report.lines} == {0.0}
