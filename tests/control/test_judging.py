"""A judge's labels: none before it was measured against people, none that counts where it is too often wrong."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice import Governor
from suffice.assurance.labels import judge_error_bound
from suffice.assurance.runs import current_label
from suffice.cli.main import main
from suffice.control.evidence.audits import Audit, verdicts
from suffice.control.evidence.judging import JudgingResult, judge_labels
from suffice.edge.judge import JudgeModel
from suffice.rollout.assign import question_key
from suffice.scoring.base import build_scorer
from suffice.settings import parse_settings
from suffice.store.database.views import EpisodeWithLabels, StoredLabel, read_episodes
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from suffice_testing import FakeRequest, FakeUpstream, Reply
from suffice_testing.prompt import cut
from tests.edge.threaded import threaded
from tests.governor.loops import local

SALT = "salt"
SCORER = build_scorer("text")


def grader(seen: FakeRequest) -> Reply:
    """Answers that hold "good" are right to it, and those that hold "tricky"."""
    answer = re.search(r"<answer>(.*?)</answer>", str(seen.body["messages"]), re.DOTALL)
    right = answer is not None and bool(re.search("good|tricky", answer[1]))
    return Reply(answer=cut(f"Grade: {1 if right else -1}"))


def observed(folder: Path, runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Observed loops, each with the answer at which its policy would stop and the one at its end; their ids."""
    monkeypatch.setenv("SUFFICE_SALT", SALT)
    with local(folder, mode="observe") as gov:
        return [_loop(gov, f"question {n}", *answers) for n, answers in enumerate(runs)]


def _loop(gov: Governor, question: str, early: str, late: str) -> str:
    with gov.episode(question) as ep:
        for answer in (early, early, late):
            ep.step(answer=answer, tokens=5)
    return ep.id


def write_feedback(folder: Path, *given: Feedback) -> None:
    async def append() -> None:
        for one in given:
            await log.append_durable(FeedbackEvent(one))

    log = LogWriter(parse_settings({"store": {"url": f"sqlite:///{folder}/log.db"}}).store, now=lambda: 0.0)
    asyncio.run(append())
    log.close()


def person(episode: str, **word: Any) -> Feedback:
    return Feedback(feedback_id=f"p-{episode}", episode_id=episode, source="reviewer", **word)


def judged(folder: Path, n: int, *, most_calls: int = 10_000, max_em_drop: float = 0.5) -> tuple[JudgingResult, int]:
    """One go over the log, and how many calls it took."""
    questions = {question_key(f"question {i}", salt=SALT): f"question {i}" for i in range(n)}

    async def go() -> tuple[JudgingResult, int]:
        log = LogWriter(parse_settings({"store": {"url": f"sqlite:///{folder}/log.db"}}).store, now=lambda: 0.0)
        try:
            async with FakeUpstream(grader) as server, JudgeModel(server.url, "grader") as judge:
                reports = await judge_labels(
                    list(read_episodes(folder / "log.db")),
                    judge,
                    lambda one: log.append_durable(FeedbackEvent(one)),
                    questions=questions,
                    match=SCORER.match,
                    max_em_drop=max_em_drop,
                    confidence=0.975,
                    most_calls=most_calls,
                )
                return reports, len(server.completions)
        finally:
            log.close()

    return asyncio.run(go())


def telling(item: EpisodeWithLabels) -> Feedback | None:
    return current_label(item.labels)


def test_without_a_persons_word_nothing_is_asked_and_nothing_labelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed(tmp_path, [("bad", "good")] * 5, monkeypatch)
    reports, n_calls = judged(tmp_path, 5)
    assert (reports.n_differing, reports.n_graded, reports.n_labelled, reports.error, reports.may_count) == (
        5,
        0,
        0,
        None,
        False,
    )
    assert n_calls == 0
    assert "do not count" in reports.reason
    assert all(not item.labels for item in read_episodes(tmp_path / "log.db"))


def test_a_measured_judge_labels_the_rest_and_its_error_stands_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    differing = [("bad", "good"), ("good", "bad"), ("bad", "worse"), ("good", "good too")]
    ids = observed(tmp_path, differing * 12 + [("good", "good")] * 60, monkeypatch)
    n_people = 40  # gold says of both answers what they are
    write_feedback(tmp_path, *(person(ids[n], gold="good") for n in range(n_people) if n % 4 != 3))
    reports, n_calls = judged(tmp_path, len(ids))
    pairs = [(1.0, True)] * 60
    assert (reports.n_full, reports.n_differing, reports.n_unknown) == (108, 48, 0)
    assert reports.error == judge_error_bound(pairs, confidence=0.975, disagreement=reports.disagreement)
    assert 48 / 108 < reports.disagreement < 0.6
    assert reports.may_count
    assert reports.n_labelled == 48 - 30
    assert n_calls <= 2 * 48
    by_id = {item.episode.request.episode_id: item for item in read_episodes(tmp_path / "log.db")}
    for n, (early, late) in enumerate(differing * 12):
        label = telling(by_id[ids[n]])
        assert label is not None
        if n < n_people and n % 4 != 3:
            assert label.source == "reviewer"
        elif late.startswith("good"):
            assert (label.source, label.correct, label.gold) == ("judge", True, None)
        elif early == "good":
            assert (label.source, label.correct, label.gold) == ("judge", None, "good")
        else:
            assert (label.source, label.correct, label.gold) == ("judge", False, None)
    again, n_calls = judged(tmp_path, len(ids))
    assert (n_calls, again.n_graded, again.error) == (0, 0, reports.error)


def test_a_judge_that_is_wrong_too_often_writes_no_label_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = observed(tmp_path, [("bad", "tricky"), ("bad", "good")] * 20, monkeypatch)
    write_feedback(tmp_path, *(person(episode, correct=n % 2 == 1) for n, episode in enumerate(ids[:30])))
    reports, _ = judged(tmp_path, len(ids))
    assert reports.error is not None
    assert (reports.error.n, reports.error.n_wrong, reports.n_labelled, reports.may_count) == (30, 15, 0, False)
    for item in read_episodes(tmp_path / "log.db"):
        assert (telling(item) is None) == (item.episode.request.episode_id not in ids[:30])
        rows = [label.feedback for label in item.labels if label.feedback.source == "judge"]
        assert all(row.correct is None and row.gold is None for row in rows)


def test_no_more_is_asked_than_allowed_and_the_next_go_takes_up_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = observed(tmp_path, [("bad", "good"), ("worse", "good")] * 15, monkeypatch)
    write_feedback(tmp_path, *(person(episode, gold="good") for episode in ids[:20]))
    graded = [judged(tmp_path, len(ids), most_calls=17, max_em_drop=1.0)[0].n_graded for _ in range(5)]
    assert graded == [8, 8, 8, 6, 0]


def test_a_judges_word_never_stands_over_a_persons() -> None:
    word = Feedback(feedback_id="1", episode_id="e", correct=False, source="reviewer")
    late = Feedback(feedback_id="2", episode_id="e", correct=True, source="judge")
    labels = [StoredLabel(seq=1, feedback=word), StoredLabel(seq=2, feedback=late)]
    assert current_label(labels) == word
    assert current_label(labels[1:]) == late


def test_a_certificate_counts_no_word_of_a_judge_whose_charge_it_does_not_take_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = observed(tmp_path, [("bad", "good")] * 2, monkeypatch)
    judge = Feedback(feedback_id="j", episode_id=ids[0], source="judge", correct=True)
    write_feedback(tmp_path, judge, person(ids[1], correct=True))
    audits = [
        Audit(
            seq=item.seq,
            at=n,
            ended_at_s=0.0,
            episode=item.episode,
            labels=item.labels,
        )
        for n, item in enumerate(read_episodes(tmp_path / "log.db"))
    ]
    assert all(audit.labels for audit in audits)
    counts = verdicts(audits, SCORER.match)
    assert list(counts) == [ids[1]]


def test_the_command_reads_questions_from_a_file_and_says_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = observed(tmp_path, [("bad", "good")] * 30 + [("good", "good")] * 400, monkeypatch)
    write_feedback(tmp_path, *(person(episode, gold="good") for episode in ids[:25]))
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(28)), "utf-8"
    )

    def run(settings: str, *options: str) -> Any:
        (tmp_path / "suffice.toml").write_text(settings, "utf-8")
        return CliRunner().invoke(
            main, ["feedback", "judge", "--route", "loop", "--config", str(tmp_path / "suffice.toml"), *options]
        )

    base = f'[store]\nurl = "sqlite:///{tmp_path}/log.db"\n[routes.loop]\nkind = "rounds"\nmax_em_drop = 0.05\n'
    missing = run(base)
    assert (missing.exit_code, "routes.loop.judge: is missing" in missing.output) == (2, True)
    with threaded(grading) as url:
        table = f'[routes.loop.judge]\nurl = "{url}"\nmodel = "grader"\n'
        assert "names no file" in run(base + table).output
        output = run(base + table + 'questions = "questions.jsonl"\n')
    assert output.exit_code == 0, output.output
    assert "430 full runs, 30 in which the stop would have answered otherwise" in output.output
    assert "2 of these have no question in the file" in output.output
    assert "28 runs graded, 0 without a grade, 3 labelled" in output.output
    assert "The judge: 0 of 50 grades differ from people's" in output.output


@asynccontextmanager
async def grading() -> AsyncIterator[str]:
    """The grader on a socket."""
    async with FakeUpstream(grader) as server:
        yield server.url
