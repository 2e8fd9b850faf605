"""What is recorded is what the gateway would have seen and delivered, counted to the token."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.episode import vote
from suffice.errors import ConfigError
from suffice.replay.record import read_recorded_questions
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import read_traces
from suffice.replay.traces.rows import RunRow, StepRow
from suffice.settings import Probe
from suffice.types import StepRecord
from suffice_testing import FakeUpstream, Fault, Questions, Reply, Samples, ScriptedThought, ServerBehaviour
from tests.fake_models import FirstFails
from tests.gateway.served import chat, served
from tests.replay.record.recording import CHAIN, Report, recipe, recorded, request_of

ROUTE: dict[str, Any] = {
    "kind": "reasoning",
    "scorer": "number",
    "steps": {"min_tokens": 2, "growth": 1.0},
    "probe": {"max_tokens": 6, "verified_by": "owner"},
    "max_extra_calls": 60,
}


def only(path: Path) -> Batch:
    (batch,) = read_traces([path])
    return batch


def rows(path: Path) -> list[RunRow]:
    return [msgspec.json.decode(line, type=RunRow) for line in path.read_bytes().splitlines()]


async def test_a_chain_is_cut_and_probed_as_a_live_audit_is(tmp_path: Path) -> None:
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(1), recipe())
    (run,) = rows(tmp_path / "t.jsonl")
    live_route = ROUTE | {"mode": "observe", "audit_share": 1.0}
    async with served(tmp_path, CHAIN, fake={"slots": 8}, upstream={"slots": 8}, route=live_route) as s:
        await s.ask(chat(stream=True))
        outcome = await s.outcome()

    def facts(step: StepRecord | StepRow) -> tuple[object, ...]:
        sure = [round(x, 5) for x in (*step.logprobs, step.entropy or -1, step.margin or -1, step.closed_entropy or -1)]
        return step.tokens, step.answer, step.probe_tokens, sure, step.hedges

    live = [facts(step) for step in outcome.steps]
    ours = [facts(step) for step in run.steps[:-1]]
    assert len(live) == 4
    assert ours == live
    assert run.steps[-1].answer == run.full_answer == outcome.answer
    assert outcome.usage is not None
    assert run.full_tokens == outcome.usage.completion_tokens == sum(s.tokens for s in run.steps)


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_trial_answer_is_what_a_stop_there_delivers(step: int, tmp_path: Path) -> None:
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(1), recipe())
    (run,) = rows(tmp_path / "t.jsonl")
    slow = dataclasses.replace(CHAIN, reply=Reply(delay_s=0.004))
    budget = sum(s.tokens for s in run.steps[:step])
    acts = ROUTE | {
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "policy": {"policy": "fixed-budget", "max_tokens": budget},
    }
    how = {"slots": 8, "finish": ["raw"]}
    async with served(tmp_path, slow, fake={"slots": 8}, upstream=how, route=acts) as s:
        answer = await s.ask(chat(stream=True, suffice={}))
        assert answer.report["stopped"]
    assert answer.text == run.steps[step - 1].answer


async def test_margin_and_entropy_come_from_the_rivals_that_the_server_lists(tmp_path: Path) -> None:
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(1), recipe())
        probes = [c.request.body for c in fake.calls if c.request.is_raw]
    assert {body["logprobs"] for body in probes} == {5}
    steps = only(tmp_path / "t.jsonl").steps(0)
    assert [s.margin is not None and 0 <= s.margin <= 1 for s in steps] == [True] * 4 + [False]
    assert [s.entropy for s in steps[:4]] == [s.closed_entropy for s in steps[:4]]
    sure, unsure = steps[3], steps[0]
    assert sure.entropy is not None
    assert unsure.entropy is not None
    assert sure.entropy < unsure.entropy
    assert all(s.logprob is not None and s.logprob <= 0 for s in steps)


async def test_behind_words_of_ours_the_entropy_of_the_closed_thought_is_unknown(tmp_path: Path) -> None:
    how = recipe(probe=Probe(max_tokens=6, answer_prefix="The answer is"))
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(1), how)
    steps = only(tmp_path / "t.jsonl").steps(0)
    assert all(s.closed_entropy is None and s.entropy is not None for s in steps[:4])


async def test_a_chain_that_its_cap_cuts_is_closed_as_a_stop_would_close_it(tmp_path: Path) -> None:
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(1), recipe(max_tokens=8))
    (run,) = rows(tmp_path / "t.jsonl")
    assert json.loads(run.meta or "")["unclosed"] is True
    assert run.full_tokens == 8
    assert run.full_answer == run.steps[-1].answer == "4"
    assert run.steps[-1].probe_tokens == 1


async def test_samples_stand_in_launch_order_and_the_vote_is_the_full_answer(tmp_path: Path) -> None:
    first = Samples(["7", "4", "4", "nothing", "7"])
    model = Questions({"question 0": first, "question 1": Samples(["none"])}, otherwise=Samples(["4"]))
    async with FakeUpstream(model, ServerBehaviour(slots=1)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(3), recipe("samples"), concurrency=1)
        total = fake.total_completion_tokens
    runs = {r.question_id: r for r in rows(tmp_path / "t.jsonl")}
    assert [s.answer for s in runs["q0"].steps] == ["7", "4", "4", None, "7"]
    assert runs["q0"].full_answer == vote.count_votes([s.answer for s in runs["q0"].steps]).answer == "7"
    assert [s.correct for s in runs["q0"].steps] == [False, True, True, False, False]
    assert (runs["q1"].full_answer, runs["q1"].full_em) == (None, False)
    assert (runs["q2"].full_answer, runs["q2"].full_em) == ("4", True)
    assert sum(r.full_tokens for r in runs.values()) == total
    batch = only(tmp_path / "t.jsonl")
    assert batch.kind == "samples"
    assert not batch.differs.any()


async def test_every_token_that_the_server_counted_is_in_the_traces(tmp_path: Path) -> None:
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        progress = await recorded(fake, tmp_path / "t.jsonl", request_of(6), recipe())
        total = fake.total_completion_tokens
    runs = rows(tmp_path / "t.jsonl")
    spent = sum(r.full_tokens + sum(s.probe_tokens or 0 for s in r.steps) for r in runs)
    assert spent == total == progress.run_tokens + progress.probe_tokens
    assert {r.token_source for r in runs} == {"provider"}
    assert {r.run for r in runs} == {recipe().hash}


async def test_a_stumbling_server_is_asked_again_and_no_run_counts_twice(tmp_path: Path) -> None:
    report = Report()
    async with FakeUpstream(FirstFails(CHAIN, (Fault(status=503),), n_calls=2), ServerBehaviour(slots=8)) as fake:
        progress = await recorded(fake, tmp_path / "t.jsonl", request_of(2), recipe(), report=report, concurrency=1)
    assert (progress.n_recorded, progress.failed) == (2, {})
    assert report.pauses_s == [0.0, 1.0]
    assert sorted(r.question_id for r in rows(tmp_path / "t.jsonl")) == ["q0", "q1"]


async def test_a_sample_that_breaks_off_is_drawn_again_alone_and_seeds_are_the_gateways(tmp_path: Path) -> None:
    model = FirstFails(Samples(["4"]), (Fault(status=503),), n_calls=1)
    async with FakeUpstream(model, ServerBehaviour(slots=8)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(1), recipe("samples"), concurrency=1)
        seeds = [c.request.body["seed"] for c in fake.calls]
    assert len(seeds) == 6  # five samples, and the first one twice
    assert seeds[1:] == [seeds[0] + k for k in range(5)]


async def test_a_question_that_the_server_refuses_is_left_and_the_others_are_recorded(tmp_path: Path) -> None:
    model = Questions({"question 1?": lambda _: failing(400)}, otherwise=CHAIN)
    report = Report()
    async with FakeUpstream(model, ServerBehaviour(slots=8)) as fake:
        progress = await recorded(fake, tmp_path / "t.jsonl", request_of(3), recipe(), report=report)
    assert progress.n_recorded == 2
    assert progress.n_left == 1
    assert progress.failed == {"q1": "the upstream answered 400"}
    assert report.pauses_s == []  # what is refused for what it says is not asked again
    assert report.n_calls == 3
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        progress = await recorded(fake, tmp_path / "t.jsonl", request_of(3), recipe())
        assert {c.request.text.strip() for c in fake.calls if not c.request.is_raw} >= {"question 1?"}
    assert (progress.n_before, progress.n_recorded, progress.n_left) == (2, 1, 0)
    assert sorted(r.question_id for r in rows(tmp_path / "t.jsonl")) == ["q0", "q1", "q2"]


async def test_a_server_that_is_gone_is_not_asked_for_every_question(tmp_path: Path) -> None:
    async with FakeUpstream(failing(500), ServerBehaviour(slots=8)) as fake:
        progress = await recorded(fake, tmp_path / "t.jsonl", request_of(100), recipe(), concurrency=2)
    assert progress.n_recorded == 0
    assert progress.n_left == 100
    assert 8 <= len(progress.failed) <= 9
    assert progress.n_not_tried == 100 - len(progress.failed)
    assert nothing_in(tmp_path)  # nothing recorded, nothing left behind


def nothing_in(folder: Path) -> bool:
    return not list(folder.iterdir())


def failing(code: int) -> Reply:
    return Reply(faults=(Fault(status=code),))


async def test_a_model_without_thought_gives_one_step(tmp_path: Path) -> None:
    async with FakeUpstream(Reply(answer=("it", " is", " 4")), ServerBehaviour(slots=8)) as fake:
        await recorded(fake, tmp_path / "t.jsonl", request_of(1), recipe())
    (run,) = rows(tmp_path / "t.jsonl")
    assert [(s.tokens, s.answer, s.text) for s in run.steps] == [(3, "4", "it is 4")]


async def test_a_thought_between_tags_gives_the_same_steps(tmp_path: Path) -> None:
    result = {}
    for name in ("reasoning_content", "inline"):
        model = ScriptedThought(CHAIN.steps, "4", reply=Reply(reasoning_field=name))
        async with FakeUpstream(model, ServerBehaviour(slots=8)) as fake:
            await recorded(fake, tmp_path / f"{name}.jsonl", request_of(1), recipe())
        (run,) = rows(tmp_path / f"{name}.jsonl")
        result[name] = [(s.answer, s.text) for s in run.steps]
    assert result["inline"][:-1] == result["reasoning_content"][:-1]


def test_questions_keep_what_their_lines_say() -> None:
    lines = [
        '{"question": "2 + 2?", "gold": 4, "task": "sums", "max_tokens": 7, "other": 1}',
        "",
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "gold": "x", "id": "a"}',
    ]
    one, two = read_recorded_questions(lines, "q")
    assert (one.task, one.gold, one.question) == ("sums", "4", "2 + 2?")
    assert one.body == {"messages": [{"role": "user", "content": "2 + 2?"}], "max_tokens": 7}
    assert (two.id, two.task, two.question) == ("a", "", "u")
    assert one.id == read_recorded_questions(lines, "elsewhere")[0].id
    body = recipe(max_tokens=9, temperature=0.5).body(one)
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (9, 0.5, True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "q: contains no questions"),
        (["{"], "q:1: is not JSON"),
        (["[]"], "q:1: is not an object, got list"),
        (['{"question": "a"}'], "q:1: has no gold"),
        (['{"gold": "a"}'], "q:1: has no question"),
        (['{"messages": [], "gold": "a"}'], "q:1: has no question"),
        (['{"messages": [{"content": "a"}], "gold": "a"}'], "q:1: has no question"),
        (['{"question": "a", "gold": ["a"]}'], "q:1: gold: must be text, got list"),
        (
            ['{"question": "a", "gold": "b"}', '{"question": "a", "gold": "b"}'],
            "q:2: id '.*' is already used",
        ),
    ],
)
def test_a_question_file_that_cannot_be_used_names_its_line(lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recorded_questions(lines, "q")
