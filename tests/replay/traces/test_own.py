"""The traces in the box keep what is promised of them: counts, columns, probes, references, and nothing twice."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from bench.trace_questions import TRACED, traced

from suffice.episode import vote
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import FILES, own_traces, read_traces
from suffice.scoring.base import build_scorer
from suffice.types import Kind

# kind → task → (runs, EM): as `python bench/own_estimate.py` prints them.
RECORDED: dict[Kind, dict[str, tuple[int, float]]] = {
    "reasoning": {
        "stories": (75, 0.76),
        "chains": (75, 0.64),
        "largest": (75, 0.76),
        "series": (75, 0.187),
    },
    "samples": {
        "largest": (50, 0.7),
        "series": (50, 0.44),
    },
}
MOST_BYTES = 3 * 2**20
NUMBER = build_scorer("number")
KINDS: tuple[Kind, ...] = ("reasoning", "samples")


def batch_of(kind: Kind) -> Batch:
    (batch,) = read_traces([own_traces(kind)])
    return batch


def test_the_files_are_small_enough_for_a_wheel() -> None:
    assert sum(own_traces(kind).stat().st_size for kind in FILES) < MOST_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_has_its_runs_and_its_recorded_exact_match(kind: Kind) -> None:
    batch = batch_of(kind)
    assert batch.kind == kind
    result = {
        task: (n, round(float(np.mean([em for em, t in zip(batch.full_em, batch.task, strict=True) if t == task])), 3))
        for task, n in Counter(batch.task).items()
    }
    assert result == RECORDED[kind]
    assert set(result) == set(TRACED[kind])


def test_there_are_three_hundred_questions_over_four_tasks_and_a_hundred_votes_of_sixteen() -> None:
    chains, votes = batch_of("reasoning"), batch_of("samples")
    assert len(set(chains.question_id)) >= 300
    assert len(set(votes.question_id)) >= 100
    assert set(votes.question_id) <= set(chains.question_id)
    assert (np.diff(votes.offset) == 16).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_question_stands_twice_and_each_is_what_its_seed_draws(kind: Kind) -> None:
    batch = batch_of(kind)
    assert len(set(batch.question_id)) == len(batch)
    drawn = {q.id: q for q in traced(kind, 75)}
    for name, question, gold in zip(batch.question_id, batch.question, batch.gold, strict=True):
        assert (question, gold) == (drawn[name].messages[-1]["content"], drawn[name].gold)


@pytest.mark.parametrize("kind", KINDS)
def test_all_runs_were_recorded_with_one_set_of_settings_and_counted_by_the_server(kind: Kind) -> None:
    batch = batch_of(kind)
    assert len({json.dumps(json.loads(meta or "")["recorded_with"]) for meta in batch.meta}) == 1
    assert len(set(batch.run)) == len(set(batch.model)) == 1
    assert set(batch.token_source) == {"provider"}
    assert all(json.loads(meta or "")["prompt_tokens"] > 0 for meta in batch.meta)


@pytest.mark.parametrize("kind", KINDS)
def test_the_labels_are_what_the_scorer_says_today(kind: Kind) -> None:
    batch = batch_of(kind)
    for i in range(len(batch)):
        gold = batch.gold[i] or ""
        assert batch.full_em[i] == NUMBER.match(batch.full_answer[i], gold), batch.question_id[i]
        for t in range(int(batch.offset[i]), int(batch.offset[i + 1])):
            assert (batch.correct[t] > 0) == NUMBER.match(batch.answer[t], gold), batch.question_id[i]


def test_every_step_of_a_chain_was_probed_with_log_probabilities() -> None:
    batch, n_silent, n_probed = batch_of("reasoning"), 0, 0
    for i in range(len(batch)):
        *probed, last = batch.steps(i)
        unclosed = json.loads(batch.meta[i] or "")["unclosed"]
        assert last.answer == batch.full_answer[i]
        for step in [*probed, last] if unclosed else probed:
            n_probed += 1
            assert step.probe_tokens > 0
            if not step.logprobs:  # the model ended its answer before it had begun
                assert step.answer is None
                n_silent += 1
                continue
            assert max(step.logprobs) <= 1e-3
            assert step.entropy is not None
            assert step.closed_entropy == step.entropy
            assert step.margin is None or 0 <= step.margin <= 1
        assert all(step.logprob is not None for step in probed)
    assert n_silent < 0.02 * n_probed
    assert not batch.differs.any()


def test_the_text_of_a_chain_is_there_from_its_first_word_to_its_answer() -> None:
    batch = batch_of("reasoning")
    for i in range(len(batch)):
        steps = batch.steps(i)
        assert all(step.text for step in steps)
        if not json.loads(batch.meta[i] or "")["unclosed"]:
            assert NUMBER.extract(steps[-1].text) == batch.full_answer[i]


def test_a_vote_is_the_vote_of_its_samples() -> None:
    batch = batch_of("samples")
    for i in range(len(batch)):
        steps = batch.steps(i)
        assert vote.count_votes([s.answer for s in steps]).answer == batch.full_answer[i]
        assert all(s.tokens > 0 for s in steps)


def test_another_kind_was_not_recorded() -> None:
    with pytest.raises(ValueError, match="got kind 'rounds'; recorded: reasoning, samples"):
        own_traces("rounds")
