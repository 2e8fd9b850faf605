from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from bench.rag.questions import N_FIT, PassageIndex, data_folder, interleave, read_passages, read_questions
from bench.rag.record import record_set
from bench.rag.rounds import N_PASSAGES, N_ROUNDS, run_rounds

from suffice.replay.traces.read import survey
from suffice.replay.traces.rows import RunLog
from tests.rag.made_up import WORDS, ScriptedModel, write_folder


def test_a_folder_that_is_missing_ends_the_program_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUFFICE_RAG", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        data_folder()
    assert ended.value.code == 2


def test_a_partial_recording_has_as_many_questions_to_fit_as_to_judge(tmp_path: Path) -> None:
    questions = interleave(read_questions(write_folder(tmp_path, 2 * N_FIT), "2wiki"))
    assert sorted(one.position for one in questions) == list(range(1, 2 * N_FIT + 1))
    for n in (1, 7, 250, 999):
        judged = sum(one.position > N_FIT for one in questions[:n])
        assert n - 1 <= 2 * judged <= n


def test_search_finds_the_rarest_words_and_nothing_twice() -> None:
    index = PassageIndex([f"{word}: built by a mason" for word in WORDS])
    assert index.search("the mason of cedar", 1) == [WORDS.index("cedar")]
    assert WORDS.index("cedar") not in index.search("the mason of cedar", 9, without=[WORDS.index("cedar")])
    assert index.search("nothing of that", 3) == []


def test_what_a_round_reads_again_is_what_the_one_before_began_with(tmp_path: Path) -> None:
    passages = read_passages(write_folder(tmp_path), "2wiki")
    model, index = ScriptedModel(), PassageIndex(passages)
    rounds = run_rounds(model, "Who built cedar?", lambda q, read: index.search(q, N_PASSAGES, read), passages)
    request = model.answer_prompts
    assert len(rounds) == len(request) == N_ROUNDS
    for (before, now), one in zip(pairwise(request), rounds[1:], strict=True):
        assert len(now) == one.prompt_read + one.prompt_new
        assert before[: one.prompt_read] == now[: one.prompt_read]
        assert one.prompt_read > len(before) // 2
    displayed = [line for line in model.prompts[-1].splitlines() if "was built by" in line]
    assert len(displayed) == len(set(displayed)) == N_ROUNDS * N_PASSAGES


def test_a_run_goes_on_when_the_model_says_that_it_is_done(tmp_path: Path) -> None:
    passages = read_passages(write_folder(tmp_path), "2wiki")
    index = PassageIndex(passages)
    rounds = run_rounds(
        ScriptedModel(), "Who built cedar?", lambda q, read: index.search(q, N_PASSAGES, read), passages
    )
    assert [one.is_done for one in rounds] == [False, False, True, True, True]
    assert all(one.query for one in rounds[:-1])
    assert not rounds[-1].query
    assert all(one.done_tokens < one.tokens for one in rounds[:-1])
    assert rounds[-1].done_tokens == rounds[-1].tokens


def test_an_interrupted_recording_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)

    def record(path: Path, limit: int) -> None:
        with RunLog(path) as log:
            list(record_set([ScriptedModel(), ScriptedModel()], folder, "2wiki", limit, log))

    record(tmp_path / "whole.jsonl", 8)
    record(tmp_path / "parts.jsonl", 3)
    with (tmp_path / "parts.jsonl").open("ab") as file:
        file.write(b'{"dataset":"2wi')  # killed while it wrote
    record(tmp_path / "parts.jsonl", 8)
    parts, whole = (sorted((tmp_path / name).read_bytes().splitlines()) for name in ("parts.jsonl", "whole.jsonl"))
    assert parts == whole
    (data,) = survey([tmp_path / "whole.jsonl"])
    assert (data.kind, data.n_runs, data.n_steps) == ("rounds", 8, 8 * N_ROUNDS)


def test_a_recording_holds_no_text_of_the_data_set(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    with RunLog(tmp_path / "runs.jsonl") as log:
        list(record_set([ScriptedModel(), ScriptedModel()], folder, "musique", 8, log))
    written = (tmp_path / "runs.jsonl").read_text("utf-8")
    assert "built" not in written
    gold = {question.id: question.gold for question in read_questions(folder, "musique")}
    rows = [json.loads(line) for line in written.splitlines()]
    assert {row["question_id"] for row in rows} == gold.keys()
    for row in rows:
        assert not row.keys() & {"question", "gold"}
        assert row["full_em"] == (gold[row["question_id"]] == f"mason {N_ROUNDS * N_PASSAGES}")
