"""A first look at files: what is counted is what is read later, and a set too long for memory loses whole questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from suffice.errors import TraceError
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import survey
from suffice.types import Kind
from suffice_testing.traces import Synthetic


def made(
    folder: Path, name: str, kind: Kind = "samples", n_runs: int = 600, seed: int = 1, dataset: str = "made"
) -> Path:
    path = folder / name
    Synthetic(kind=kind, n_runs=n_runs, seed=seed, n_questions=50, name=dataset).write(path)
    return path


def ids(batches: list[Batch]) -> list[tuple[str, str, str]]:
    return [(b.model[i], b.run[i], b.question_id[i]) for b in batches for i in range(len(b))]


def test_what_is_counted_is_what_is_read(tmp_path: Path) -> None:
    path = made(tmp_path, "a.parquet", "reasoning")
    (result,) = survey([path])
    batches = list(result.batches())
    assert (result.set, result.kind, result.share) == ("a", "reasoning", 1.0)
    assert result.n_runs == len(ids(batches)) == 600
    assert result.n_steps == sum(len(b.tokens) for b in batches)
    assert result.longest == max(int(np.diff(b.offset).max()) for b in batches)


def test_files_of_one_name_are_one_set_in_the_order_in_which_they_come(tmp_path: Path) -> None:
    first, second = made(tmp_path, "b.dev.parquet"), made(tmp_path, "a.parquet")
    more = made(tmp_path, "b.heldout.parquet", n_runs=30, dataset="others")
    result = survey([first, second, more])
    assert [(one.set, one.files, one.n_runs) for one in result] == [("b", (first, more), 630), ("a", (second,), 600)]
    assert len(ids(list(result[0].batches()))) == 630


def test_a_run_that_stands_twice_in_a_set_is_refused(tmp_path: Path) -> None:
    files = [made(tmp_path, name, n_runs=30) for name in ("b.dev.parquet", "b.heldout.parquet")]
    with pytest.raises(TraceError, match="the run of an earlier row"):
        survey(files)


def test_conditions_and_the_least_em_of_a_run_leave_runs_out(tmp_path: Path) -> None:
    path = made(tmp_path, "a.parquet")
    (everything,) = survey([path])
    em: dict[tuple[str, str], list[bool]] = {}
    for batch in everything.batches():
        for i in range(len(batch)):
            em.setdefault((batch.model[i], batch.run[i]), []).append(bool(batch.full_em[i]))
    level = float(np.median([np.mean(oks) for oks in em.values()]))
    good = {pair for pair, oks in em.items() if np.mean(oks) > level}
    assert 0 < len(good) < len(em)
    (kept,) = survey([path], min_run_em=level)
    left = ids(list(kept.batches()))
    assert {(model, run) for model, run, _ in left} == good
    assert kept.n_runs == len(left)
    (some,) = survey([path], where="model=model-1")
    assert {model for model, _, _ in ids(list(some.batches()))} == {"model-1"}
    assert some.n_runs == 200


def test_what_does_not_fit_is_thinned_to_whole_questions_and_more_memory_only_adds_some(tmp_path: Path) -> None:
    path = made(tmp_path, "a.parquet")
    (small,) = survey([path], most_steps=1_600)
    (larger,) = survey([path], most_steps=3_200)
    assert small.share == pytest.approx(1_600 / small.n_steps)
    everything, few, more = (
        ids(list(small.batches())),
        ids(list(small.batches(share=small.share))),
        ids(list(larger.batches(share=larger.share))),
    )
    questions = {q for *_, q in few}
    assert 5 < len(questions) < 30
    assert few == [run for run in everything if run[2] in questions]
    assert questions < {q for *_, q in more}


def test_a_set_of_two_kinds_is_refused_and_so_is_one_without_a_run(tmp_path: Path) -> None:
    one = made(tmp_path, "a.dev.parquet", "samples", n_runs=20)
    two = made(tmp_path, "a.heldout.parquet", "rounds", n_runs=20, dataset="others")
    with pytest.raises(TraceError, match=r"contains rounds, samples; all runs of a set must be of one kind"):
        survey([one, two])
    with pytest.raises(TraceError, match=r"no run has an EM above 0\.99"):
        survey([one], min_run_em=0.99)
    with pytest.raises(TraceError, match=r"model=none"):
        survey([one], where="model=none")
