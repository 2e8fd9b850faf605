"""Parts of a set: each run lies in one class and halts at one step, and all parts together are the set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suffice.learn.audits import find_first_passages
from suffice.replay.study.runs import Halts, Runs, select_runs
from suffice.replay.study.sets import MOST_CLASSES, Parts, class_names
from suffice.replay.study.sums import columns_of
from suffice.types import Kind
from tests.replay.made import KINDS, batch_of, halts_at_rows, runs_of


def halted(runs: Runs) -> dict[str, Halts]:
    """Two made-up policies: one stops by lot, one never."""
    row = find_first_passages(np.random.default_rng(1).random(len(runs.cost)), runs.starts, np.array([0.2]))[0]
    code = (row < runs.last).astype(np.int8)
    full = halts_at_rows(runs.last, np.zeros_like(code), asks=False)
    return {"some": halts_at_rows(row, code), "full": full}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_together_are_the_set(kind: Kind) -> None:
    runs = runs_of(batch_of(kind, 300))
    judged = halted(runs)
    lost, gained, tokens, *_ = columns_of(runs, judged["some"])
    parts = Parts(["some", "full"])
    parts.add(runs, judged)
    for result in (parts.by_class()["some"], parts.by_step()["some"]):
        n = np.array([part.n_episodes for part in result])
        assert n.sum() == len(runs)
        assert sum(part.em_drop * part.n_episodes for part in result) == pytest.approx((lost - gained).sum())
        assert sum(part.lost * part.n_episodes for part in result) == pytest.approx(lost.sum())
        assert sum(part.full_em * part.n_episodes for part in result) == pytest.approx(runs.full_ok.sum())
    (only,) = parts.by_step()["full"]
    assert (only.name, only.n_episodes, only.em_drop) == ("to the end", len(runs), 0)
    assert only.token_reduction == pytest.approx(1 - runs.cost[runs.last].sum() / runs.full_tokens.sum())
    assert (only.token_reduction > 0) == (kind == "samples"), "a decided vote saves under every policy"
    early = [part for part in parts.by_step()["some"] if part.name != "to the end"]
    assert all(part.token_reduction > 0 for part in early)
    assert tokens.sum() < runs.full_tokens.sum()


def test_in_batches_is_as_at_once() -> None:
    runs = runs_of(batch_of("rounds", 120))
    once, often = Parts(["some"]), Parts(["some"])
    once.add(runs, halted(runs))
    halts = halted(runs)["some"]
    for part in range(4):
        keep = np.arange(len(runs)) % 4 == part
        those = select_runs(runs, keep)
        row = halts.row[keep] - runs.starts[:-1][keep] + those.starts[:-1]
        often.add(those, {"some": halts_at_rows(row, halts.code[keep])})
    assert once.by_step() == often.by_step()
    assert {part.name: part for part in once.by_class()["some"]} == {p.name: p for p in often.by_class()["some"]}


def test_steps_stand_in_their_order_and_name_the_step_that_was_last() -> None:
    runs = runs_of(batch_of("rounds", 9, n_steps=40, n_questions=9))
    row = runs.starts[:-1] + np.array([0, 1, 2, 3, 4, 8, 16, 32, 39])
    parts = Parts(["some"])
    parts.add(runs, {"some": halts_at_rows(row, np.ones(9, dtype=np.int8))})
    assert [(part.name, part.n_episodes) for part in parts.by_step()["some"]] == [
        ("step 1", 1),
        ("step 2", 1),
        ("steps 3–4", 2),
        ("steps 5–8", 1),
        ("steps 9–16", 1),
        ("steps 17–32", 1),
        ("steps 33–64", 1),
        ("to the end", 1),
    ]


def test_a_class_is_task_and_model_and_one_class_alone_is_not_shown() -> None:
    runs = runs_of(batch_of("samples", 120))
    names = class_names(runs)
    assert set(names) == {f"{task} · model-{m}" for task in ("arithmetic", "reading") for m in range(3)}
    one = select_runs(runs, names == "reading · model-1")
    parts = Parts(["some"])
    parts.add(one, halted(one))
    assert parts.by_class() == {}
    assert parts.by_step()["some"]


def test_of_many_classes_the_largest_are_shown() -> None:
    runs = runs_of(batch_of("samples", 600))
    sizes = np.repeat(np.arange(40), np.arange(40) + 1)[: len(runs)]
    queries = tuple(replace(q, query_class=f"class {sizes[i % len(sizes)]}") for i, q in enumerate(runs.queries))
    parts = Parts(["full"])
    runs = replace(runs, queries=queries)
    parts.add(runs, halted(runs))
    displayed = parts.by_class()["full"]
    assert len(displayed) == MOST_CLASSES
    assert [part.n_episodes for part in displayed] == sorted((part.n_episodes for part in displayed), reverse=True)
    assert all(1 <= part.n_questions <= part.n_episodes for part in displayed)
