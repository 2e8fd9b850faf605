"""Label Studio's annotations are read as what a reviewer meant, whichever answer stood where."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import BadRequest
from suffice.gateway.feedback_form import read_feedback
from suffice.review.imported_feedback import NO_ANSWER, VERDICTS, full_is_a, read_event, read_export
from suffice_label_studio.tasks import LABEL_CONFIG, ToJudge, parse_task_episodes, task
from tests.drawn import examples

SHAPES = Path(__file__).parent / "shapes"
CREATED: dict[str, Any] = json.loads((SHAPES / "label_studio_annotation_created.json").read_text())
PROPERTY = settings(max_examples=examples(100))


def run(episode: str = "ep_1", answer: str | None = "4", would: str | None = "5") -> ToJudge:
    return ToJudge(episode_id=episode, route="r", question="2+2?", answer=answer, would_answer=would, why="it differs")


def annotated(judged: ToJudge, verdict: str | None, **fields: Any) -> Any:
    """What is read of one annotation of that run's task."""
    event = copy.deepcopy(CREATED)
    event["task"]["data"] = task(judged)["data"]
    controls: dict[str, Any] = {"verdict": None if verdict is None else {"choices": [verdict]}}
    controls |= {name: {"rating": v} if isinstance(v, int) else {"text": [v]} for name, v in fields.items()}
    event["annotation"]["result"] = [
        {"from_name": name, "to_name": "question", "type": "x", "value": value}
        for name, value in controls.items()
        if value is not None
    ]
    return read_event(event)


def verdict_for(episode: str, right: str) -> str:
    """The choice that says that the full run (or the other answer) is right."""
    return "A is right" if (right == "full") == full_is_a(episode) else "B is right"


@PROPERTY
@given(number=st.integers(0, 10_000), right=st.sampled_from(["full", "other", "both", "neither"]))
def test_whatever_the_order_the_verdict_is_of_the_answer_that_it_names(number: int, right: str) -> None:
    judged = run(f"ep_{number}")
    words = {"both": "Both are right", "neither": "Neither is right"}
    (row,) = annotated(judged, words.get(right) or verdict_for(judged.episode_id, right)).rows
    assert row["correct"] is (right in ("full", "both"))
    assert row.get("gold") == {"full": "4", "other": "5", "both": "5", "neither": None}[right]
    assert row["episode_id"] == judged.episode_id
    assert read_feedback(row).source == "reviewer"


def test_about_half_of_all_runs_show_the_full_answer_first() -> None:
    assert 400 < sum(full_is_a(f"ep_{n}") for n in range(1_000)) < 600


def test_a_task_tells_nothing_of_which_is_which() -> None:
    data = task(run())["data"]
    assert {data["answer_a"], data["answer_b"]} == {"4", "5"}
    assert set(data) == {"suffice_episode", "route", "question", "answer_a", "answer_b", "why"}
    bare = task(ToJudge(episode_id="e", route="r", question=None, answer=None, would_answer=None, why="w"))["data"]
    assert bare["answer_a"] == bare["answer_b"] == NO_ANSWER
    assert "--questions" not in bare["question"]
    assert "file of questions" in bare["question"]


def test_the_interface_shows_what_a_task_has_and_asks_what_is_read() -> None:
    view = Xml.fromstring(LABEL_CONFIG)
    displayed = {one.get("value", "")[1:] for one in view.iter("Text")}
    assert displayed <= set(task(run())["data"])
    assert [one.get("value") for one in view.iter("Choice")] == list(VERDICTS)
    names = {one.get("name") for kind in ("Choices", "TextArea", "Rating") for one in view.iter(kind)}
    assert names == {"verdict", "gold", "comment", "rating_a", "rating_b"}


def test_the_documented_event_becomes_feedback() -> None:
    report = read_event(CREATED)
    (row,) = report.rows
    data, full_a = CREATED["task"]["data"], full_is_a("ep_known")
    assert report.n_ignored == 0
    assert row == {
        "feedback_id": "label-studio:2:17:2026-01-02T13:52:48.536370Z",
        "episode_id": "ep_known",
        "source": "reviewer",
        "user": "label-studio:1",
        "comment": "checked by hand",
        "reason": "Label Studio: A is right",
        "correct": full_a,
        "gold": data["answer_a"],
        **({"rating": 4} if full_a else {}),
    }


def test_an_update_is_another_word_and_the_same_event_again_is_not() -> None:
    changed = {
        **CREATED,
        "action": "ANNOTATION_UPDATED",
        "annotation": {**CREATED["annotation"], "updated_at": "2026-01-03T00:00:00Z"},
    }
    ids = [read_event(event).rows[0]["feedback_id"] for event in (CREATED, CREATED, changed)]  # type: ignore[index]
    assert ids[0] == ids[1] != ids[2]


def test_a_typed_answer_is_the_right_one_and_a_rating_is_of_what_was_delivered() -> None:
    judged = run()
    delivered = "rating_a" if full_is_a(judged.episode_id) else "rating_b"
    other = "rating_b" if full_is_a(judged.episode_id) else "rating_a"
    (row,) = annotated(judged, "Neither is right", gold="6", **{delivered: 2, other: 5}).rows
    assert (row["correct"], row["gold"], row["rating"]) == (False, "6", 2)


def test_no_answer_is_never_a_right_one() -> None:
    judged = run(would=None)
    (row,) = annotated(judged, "Both are right").rows
    assert (row["correct"], row.get("gold")) == (True, None)


def test_who_cannot_tell_says_so_and_who_says_nothing_is_ignored() -> None:
    (row,) = annotated(run(), "I cannot tell").rows
    assert (row["comment"], "correct" in row, "gold" in row) == ("I cannot tell", False, False)
    assert annotated(run(), None).n_ignored == 1
    skipped = {**CREATED, "annotation": {**CREATED["annotation"], "was_cancelled": True}}
    assert (read_event(skipped).rows, read_event(skipped).n_ignored) == ((), 1)


@pytest.mark.parametrize("action", ["TASK_CREATED", "TASKS_DELETED", "ANNOTATIONS_DELETED", "PROJECT_UPDATED", "X"])
def test_other_events_are_ignored(action: str) -> None:
    report = read_event({"action": action, "annotations": [{"id": 17}]})
    assert (report.rows, report.n_ignored) == ((), 1)


def test_many_at_once_are_read_one_by_one() -> None:
    event = {
        **CREATED,
        "action": "ANNOTATIONS_CREATED",
        "annotation": [CREATED["annotation"]] * 2,
        "task": [CREATED["task"], {"id": 3, "data": {"text": "no run of ours"}}],
    }
    good, bad = read_event(event).rows
    assert isinstance(good, dict)
    assert isinstance(bad, BadRequest)
    assert str(bad).startswith("task.data.suffice_episode: is needed")


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({}, "action"),
        ({"action": 1}, "action"),
        ({"action": "ANNOTATION_CREATED"}, "annotation"),
        ({"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}, "task"),
    ],
)
def test_what_is_no_event_is_refused(event: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_event(event)
    assert refused.value.param == param


def test_a_strange_form_is_named_and_not_guessed() -> None:
    (row,) = annotated(run(), "Maybe A").rows
    assert isinstance(row, BadRequest)
    assert "got 'Maybe A'; allowed: A is right" in str(row)
    event = {**CREATED, "annotation": {**CREATED["annotation"], "id": None}}
    assert isinstance(read_event(event).rows[0], BadRequest)


def test_an_export_holds_all_annotations_and_the_event_of_one_says_the_same() -> None:
    skipped = {**CREATED["annotation"], "was_cancelled": True}
    whole = {**CREATED["task"], "annotations": [CREATED["annotation"], skipped]}
    report = read_export([whole, {**CREATED["task"], "annotations": []}])
    assert report.rows == read_event(CREATED).rows
    assert report.n_ignored == 1
    assert parse_task_episodes([whole, {"data": {}}, "x"]) == {"ep_known"}
    assert parse_task_episodes({"detail": "no"}) == set()


@pytest.mark.parametrize("export", [{}, ["x"], [{"question": "?", "verdict": "A is right"}], None])
def test_another_format_is_refused(export: Any) -> None:
    with pytest.raises(BadRequest, match="format JSON"):
        read_export(export)


def test_an_annotator_may_be_told_in_either_way() -> None:
    for who in (7, {"id": 7, "email": "a@b.c"}):
        event = {**CREATED, "annotation": {**CREATED["annotation"], "completed_by": who}}
        assert read_event(event).rows[0]["user"] == "label-studio:7"  # type: ignore[index]
