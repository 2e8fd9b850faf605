"""The demonstration's arithmetic, on runs made by hand and on a whole pass against the fake upstream."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from suffice_demo import rows, run, show
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.rows import DemoAnswer, question_seed
from suffice_testing import FakeUpstream, Questions, Reply, Samples, ScriptedThought

QUESTIONS = tuple(
    TaskQuestion(
        id=f"q{i}",
        task="t",
        messages=({"role": "user", "content": f"question {i:02d} please"},),
        gold="4",
        scorer="number",
        max_tokens=50,
        temperature=0.5,
    )
    for i in range(8)
)
THOUGHT = ScriptedThought(
    [
        ("two and two are what we have to add up here so let us add them\n", "4", 0.99),
        ("that makes four I say and I am as sure of it as one can be\n", "4", 0.99),
        ("but no it is five after all since five is the number that I like\n", "5", 0.5),
    ],
    "5",
    reply=Reply(delay_s=0.002),
)


def silent(title: str, total: int) -> object:
    assert title
    assert total == len(QUESTIONS)
    return lambda answered: None


def stage(kind: str, url: str, folder: Path) -> run.Stage:
    return run.Stage(
        kind=kind,
        model="fake",
        upstream=url,
        driver="llama.cpp",
        slots=8,
        n_samples=8,
        questions=QUESTIONS,
        folder=folder,
        n_at_once=4,
    )


async def test_a_samples_stage_saves_what_the_vote_did_not_need(tmp_path: Path) -> None:
    """Eight equal answers: the vote is settled after the first wave, live as in replay."""
    says = Questions({}, otherwise=Samples(["4"]))
    async with FakeUpstream(says) as fake:
        result = await run.run_samples_stage(stage("samples", fake.url, tmp_path), silent)  # type: ignore[arg-type]
    assert result.errors == []
    by = {row.title: row.comparison for row in result.rows}
    assert by["full vote of 8, live"].em == by["beta 0.95, replay"].em == 1.0
    assert by["beta 0.95, replay"].token_reduction == pytest.approx(0.5)
    assert by["full vote of 8, live"].token_reduction == pytest.approx(0.5), "four of eight decide it"
    assert by["one sample, replay"].token_reduction == pytest.approx(7 / 8)
    assert "8 of 8 requests" in result.facts[0]
    assert "same answer in" in result.facts[-1]


@pytest.mark.slow
async def test_a_reasoning_stage_tells_when_stopping_is_better_than_thinking_on(tmp_path: Path) -> None:
    """The chain forgets its right answer at the end: a confident stop gains every question."""
    async with FakeUpstream(THOUGHT) as fake:
        result = await run.run_reasoning_stage(stage("reasoning", fake.url, tmp_path), silent)  # type: ignore[arg-type]
    assert result.errors == []
    by = {row.title: row.comparison for row in result.rows}
    assert by["full thought, live"].em == 0.0
    assert (by["confidence 0.95, replay"].em, by["confidence 0.95, replay"].n_gained) == (1.0, 8)
    assert result.stops
    page = Console(record=True, width=80, file=io.StringIO())
    show.print_demo(page, [result])
    show.picture([result], tmp_path / "p.png")
    run.write_demo_report([result], tmp_path / "r.json")
    text = page.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "confidence 0.95, live" in text
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


async def test_reasoning_that_does_not_pay_claims_no_saving(tmp_path: Path) -> None:
    """Without thinking the fake answers as well: the verdict says so instead of quoting a saving."""
    async with FakeUpstream(ScriptedThought([("well\n", "4", 0.5), ("yes\n", "4", 0.5)], "4")) as fake:
        result = await run.run_reasoning_stage(stage("reasoning", fake.url, tmp_path), silent)  # type: ignore[arg-type]
    assert not result.pays
    assert "does not pay" in show.stage_verdict(result)


async def test_a_failing_upstream_is_reported_and_never_counted_as_an_answer(tmp_path: Path) -> None:
    """A question without an answer leaves the table, and the failure is shown."""
    from suffice_testing import Fault

    broken = Questions({"question 03": lambda seen: Reply(faults=(Fault(status=500),))}, otherwise=Samples(["4"]))
    async with FakeUpstream(broken) as fake:
        result = await run.run_samples_stage(stage("samples", fake.url, tmp_path), silent)  # type: ignore[arg-type]
    assert result.rows[0].comparison.n == 7
    assert any("500" in error for error in result.errors)


def test_a_seed_belongs_to_its_question() -> None:
    """The same in every pass, another for every question."""
    seeds = {question_seed(q.id) for q in QUESTIONS}
    assert len(seeds) == len(QUESTIONS)
    assert question_seed("q1") == question_seed("q1")


def test_a_wrong_answer_is_wrong_and_no_answer_too() -> None:
    """Scored by the scorer, with the gold as it is written."""
    from suffice.scoring.base import build_scorer

    base = DemoAnswer(
        question=dataclasses.replace(QUESTIONS[0], gold="4.0"),
        episode_id="e",
        text="so 4",
        completion_tokens=1,
        stopped=False,
    )
    scorer = build_scorer("number")
    assert rows.correct(base, scorer)
    assert not rows.correct(dataclasses.replace(base, text="so 5"), scorer)
    assert not rows.correct(dataclasses.replace(base, text="no idea"), scorer)
