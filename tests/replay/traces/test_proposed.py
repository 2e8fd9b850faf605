"""Chains replayed behind a proposer: what was not proposed is joined, and nothing else changes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from suffice.episode.checkpoints import Proposer
from suffice.errors import TraceError
from suffice.policy.base import build_policy
from suffice.replay.study.runs import read_runs
from suffice.replay.traces.read import join_unproposed, own_traces, survey
from tests.replay.made import batch_of

PATTERN = {"policy": "text-rule", "pattern": "answer"}


def test_each_joined_step_ends_at_a_proposed_checkpoint_with_what_was_probed_there() -> None:
    (plain,), (proposed,) = (
        survey([own_traces("reasoning")], proposer=build)
        for build in (None, partial(Proposer, build_policy(PATTERN), every=0))
    )
    (before,), (after,) = (list(data.batches()) for data in (plain, proposed))
    assert after.question_id == before.question_id
    for run in range(len(before)):
        whole, joined = before.steps(run), after.steps(run)
        ends = [at for at, step in enumerate(whole, 1) if "answer" in step.text or at == len(whole)]
        assert [step.tokens for step in joined] == [
            sum(step.tokens for step in whole[a:b]) for a, b in zip([0, *ends], ends, strict=False)
        ]
        assert "".join(step.text for step in joined) == "".join(step.text for step in whole)
        for step, end in zip(joined, ends, strict=True):
            ended = whole[end - 1]
            assert (step.answer, step.logprobs, step.probe_tokens) == (ended.answer, ended.logprobs, ended.probe_tokens)


def test_a_proposed_checkpoint_costs_its_own_probe_alone() -> None:
    rare = partial(Proposer, build_policy({}), every=3)
    (plain,), (third,) = (survey([own_traces("reasoning")], proposer=build) for build in (None, rare))
    every, some = (read_runs(data, ("stability",), probe_tokens=None, longest=data.longest) for data in (plain, third))
    assert np.array_equal(every.full_tokens, some.full_tokens)
    assert np.array_equal(every.cost[every.last], some.cost[some.last])
    share = some.probes[some.last].sum() / every.probes[every.last].sum()
    assert 0.2 < share < 0.4


def test_only_chains_are_probed() -> None:
    with pytest.raises(TraceError, match="in chains only"):
        join_unproposed(batch_of("samples", 3), partial(Proposer, build_policy({}), every=2))
