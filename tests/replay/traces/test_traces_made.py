"""Synthetic runs have the truth that they claim: calibrated or over-confident, easier for better models, seeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import read_traces
from suffice.types import Kind
from suffice_testing.traces import Synthetic

KINDS: tuple[Kind, ...] = ("samples", "reasoning", "rounds")


def whole(made: Synthetic) -> Batch:
    """All runs in one batch."""
    (batch,) = made.batches(batch_rows=made.n_runs)
    return batch


def surplus(batch: Batch) -> tuple[float, float]:
    """(mean of confidence minus being right, its standard error) over steps with an answer, a run counted once."""
    run = np.repeat(np.arange(len(batch)), np.diff(batch.offset))
    report = batch.answer_code >= 0
    gap = np.where(report, batch.confidence - batch.correct, 0.0)
    sums, counts = np.bincount(run, gap), np.bincount(run, report)
    mean = float(sums.sum() / counts.sum())
    return mean, float(np.std(sums - mean * counts) * np.sqrt(len(batch)) / counts.sum())


def test_confidence_is_calibrated_unless_asked_otherwise() -> None:
    """Within four standard errors, also among the confident and among the doubtful steps."""
    made = Synthetic(kind="reasoning", n_runs=20_000, seed=11, n_questions=2_000)
    mean, error = surplus(whole(made))
    assert error < 0.01
    assert abs(mean) < 4 * error
    boasting, error = surplus(whole(replace(made, overconfidence=2.0)))
    assert boasting > 0.1 + 4 * error


@pytest.mark.parametrize("kind", KINDS)
def test_better_models_do_better_and_nobody_is_perfect(kind: Kind) -> None:
    batch = whole(Synthetic(kind=kind, n_runs=6_000, seed=5))
    models = np.array(batch.model)
    em = [float(batch.full_em[models == name].mean()) for name in sorted(set(batch.model))]
    assert em == sorted(em)
    assert 0.2 < em[0] < em[-1] - 0.05 < 0.95


def test_some_votes_are_lost_and_some_won_with_more_samples() -> None:
    batch = whole(Synthetic(kind="samples", n_runs=5_000, seed=2))
    first = batch.correct[batch.offset[:-1]] == 1
    assert (first & ~batch.full_em).mean() > 0.01
    assert (~first & batch.full_em).mean() > 0.01


def test_revision_says_that_it_is_sure_whether_or_not_it_is() -> None:
    batch = whole(Synthetic(kind="rounds", n_runs=5_000, seed=2))
    assert batch.stated
    right, wrong = (batch.confidence[batch.correct == flag].mean() for flag in (1, 0))
    assert abs(right - wrong) < 0.01
    assert batch.steps(0)[0].confidence is None
    assert batch.steps(0)[0].stated_confidence is not None
    assert (batch.ctx_tokens > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind: Kind, tmp_path: Path) -> None:
    made = Synthetic(kind=kind, n_runs=300, seed=4, n_questions=30, name="a")
    for name, one in (("a", made), ("b", made), ("c", replace(made, seed=5))):
        one.write(tmp_path / f"{name}.parquet", batch_rows=100)
    same, again, other = ((tmp_path / f"{name}.parquet").read_bytes() for name in "abc")
    assert same == again
    assert same != other


@pytest.mark.parametrize("seed", [1, 2])
def test_ids_are_unique_and_questions_repeat(seed: int) -> None:
    batches = list(Synthetic(kind="samples", n_runs=1_000, seed=seed, n_questions=70).batches(batch_rows=300))
    ids = [run for b in batches for run in zip(b.model, b.run, b.question_id, strict=True)]
    assert len(set(ids)) == len(ids) == 1_000
    gold: dict[str, str | None] = {}
    for batch in batches:
        for question, right in zip(batch.question_id, batch.gold, strict=True):
            assert gold.setdefault(question, right) == right
    assert len(gold) == 70


def test_a_long_file_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    """The first batch is there before the rest of the file is looked at: a fault far behind it does not matter yet."""
    path = tmp_path / "long.parquet"
    Synthetic(kind="samples", n_runs=40_000, seed=1, n_questions=500).write(path, batch_rows=2_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4_000] = b"\xff" * 4_000
    path.write_bytes(content)
    batches = read_traces([path], batch_rows=2_000)
    assert len(next(batches)) == 2_000
    with pytest.raises(ValueError, match=r"long\.parquet"):
        list(batches)
