"""A set that memory does not hold is judged in shards: whatever runs them, the report has the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice.errors import TraceError
from suffice.executor import Executor, PoolExecutor, RayExecutor, SerialExecutor
from suffice.replay.report.text import dump_lines
from suffice.replay.study.scores import SCORES
from suffice.replay.study.sets import replay_set
from suffice.replay.study.study import ReplayOptions
from suffice.replay.traces.read import read_traces, survey
from suffice_testing.traces import Synthetic


def report(file: Path, executor: Executor, **options: object) -> str:
    (data,) = survey([file], most_steps=1_500, executor=executor)
    assert data.share < 1
    assert len(data.shards) > 2
    request = ReplayOptions(max_em_drop=0.05, n_draws=50, **options)  # type: ignore[arg-type]  # fields of the question
    whole = replay_set(data, request, executor=executor)
    return f"{dump_lines([whole])}{whole.by_class}{whole.by_step}{whole.notes}"


def write(folder: Path, n_runs: int) -> Path:
    file = folder / "made.parquet"
    Synthetic(kind="samples", n_runs=n_runs, seed=5, n_questions=n_runs // 4, n_steps=10).write(
        file, batch_rows=n_runs // 6
    )
    return file


def test_two_workers_give_the_bytes_of_this_process(tmp_path: Path) -> None:
    file = write(tmp_path, 300)
    request = {"families": ("beta", "esc")}
    assert report(file, PoolExecutor(2), **request) == report(file, SerialExecutor(), **request)


@pytest.mark.slow
def test_with_learned_scores_and_on_ray_too(tmp_path: Path) -> None:
    file = write(tmp_path, 1_200)
    alone = report(file, SerialExecutor(), scores=SCORES[:1])
    for executor in (PoolExecutor(3), RayExecutor(2)):
        assert report(file, executor, scores=SCORES[:1]) == alone


def test_above_5120_questions_shards_sum_by_random_groups_as_one_pass_does(tmp_path: Path) -> None:
    file = tmp_path / "many.parquet"
    Synthetic(kind="samples", n_runs=6_000, seed=5, n_questions=6_000, n_steps=3).write(file, batch_rows=1_500)
    reports = list[object]()
    for most_steps in (9_000, 10**9):
        (data,) = survey([file], most_steps=most_steps)
        request = ReplayOptions(max_em_drop=0.05, n_draws=20, families=("esc",), policies={"own": {"policy": "never"}})
        (line,) = [one for one in replay_set(data, request).lines if one.policy == "own"]
        reports.append(line)
    assert reports[0] == reports[1]


def test_a_run_that_two_shards_have_is_refused_with_its_row(tmp_path: Path) -> None:
    made = Synthetic(kind="samples", n_runs=40, seed=5, n_steps=4)
    made.write(tmp_path / "a.dev.parquet")
    made.write(tmp_path / "a.heldout.parquet")
    with pytest.raises(TraceError, match=r"a.heldout.parquet, row 1: repeats the run of an earlier row"):
        survey([tmp_path / "a.dev.parquet", tmp_path / "a.heldout.parquet"], executor=PoolExecutor(2))


def test_conditions_that_match_in_one_shard_only_are_enough(tmp_path: Path) -> None:
    file = write(tmp_path, 60)
    first = next(read_traces([file])).question_id[0]
    (data,) = survey([file], where=f"question_id={first}", executor=PoolExecutor(2))
    assert 1 <= data.n_runs < 60
    with pytest.raises(TraceError, match="no run matches 'task=none'"):
        survey([file], where="task=none")
