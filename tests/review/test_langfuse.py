"""Langfuse's scores in each documented shape, and its signature."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import BadRequest
from suffice.gateway.feedback_form import read_feedback
from suffice.review.imported_feedback import check_signature, read_score, read_scores
from suffice.settings import parse_settings

SHAPES = Path(__file__).parent / "shapes"
PAGE: dict[str, Any] = json.loads((SHAPES / "langfuse_scores_v3.json").read_text())
EXPORT = [json.loads(line) for line in (SHAPES / "langfuse_scores_export.jsonl").read_text().splitlines()]
FIELDS = {"helpful": "thumbs"}
METRICS = {"tone": {"type": "category", "values": ["warm", "cold"]}, "ok": {"type": "boolean"}}
DECLARED = parse_settings({"metrics": METRICS}).metrics


def rows(payload: Any) -> list[Any]:
    return list(read_scores(payload, FIELDS, DECLARED).rows)


def test_a_page_of_the_api_becomes_feedback_row_by_row() -> None:
    thumb, stars, right, tone, unknown = rows(PAGE)
    assert thumb == {
        "feedback_id": "langfuse:s-1:2026-01-02T03:04:05.000Z",
        "source": "user",
        "episode_id": "ep_known",
        "thumbs": "up",
        "comment": "nice",
    }
    assert stars == {
        "feedback_id": "langfuse:s-2:2026-01-02T03:05:05.000Z",
        "source": "reviewer",
        "response_id": "chatcmpl-1",
        "rating": 4,
        "user": "langfuse:u-7",
    }
    assert (right["answer"], right["episode_id"], right["source"]) == ("408", "ep_known", "reviewer")
    assert (tone["metrics"], tone["source"], tone["comment"]) == ({"tone": "warm"}, "judge", "because")
    assert isinstance(unknown, BadRequest)
    assert "map it in feedback.langfuse.scores, or declare metrics.toxicity" in str(unknown)
    for row in (thumb, stars, right, tone):
        read_feedback(row, DECLARED)


def test_rows_of_an_export_say_the_same() -> None:
    thumb, tone, stars = (read_score(one, FIELDS, DECLARED) for one in EXPORT)
    assert isinstance(thumb, dict)
    assert isinstance(tone, dict)
    assert isinstance(stars, dict)
    assert (thumb["thumbs"], tone["metrics"], tone["comment"], stars["rating"]) == ("down", {"tone": "cold"}, "brr", 5)
    assert {thumb["episode_id"], tone["episode_id"], stars["episode_id"]} == {"ep_known"}


def test_the_second_version_of_the_api_is_read_too() -> None:
    flat = {"id": "a", "traceId": "ep_1", "source": "ANNOTATION", "updatedAt": "t"}
    flag = {**flat, "name": "correct", "value": 1, "stringValue": "True", "dataType": "BOOLEAN"}
    word = {**flat, "name": "tone", "value": 0, "stringValue": "warm", "dataType": "CATEGORICAL"}
    fixed = {**flat, "name": "x", "value": 0, "stringValue": "42", "dataType": "CORRECTION"}
    read: list[Any] = [read_score(one, {}, DECLARED) for one in (flag, word, fixed)]
    assert (read[0]["correct"], read[1]["metrics"], read[2]["answer"]) == (True, {"tone": "warm"}, "42")


@pytest.mark.parametrize("payload", [EXPORT[2], {"score": EXPORT[2]}, {"type": "score", "score": EXPORT[2]}])
def test_one_score_may_come_by_itself_or_in_an_event(payload: Any) -> None:
    assert rows(payload)[0]["rating"] == 5


def test_events_of_other_kinds_are_ignored() -> None:
    report = read_scores(json.loads((SHAPES / "langfuse_prompt_version.json").read_text()), {}, {})
    assert (report.rows, report.n_ignored) == ((), 1)


def test_what_is_none_of_langfuses_is_refused() -> None:
    with pytest.raises(BadRequest, match="must be a score"):
        read_scores({"hello": 1}, {}, {})


GOOD: dict[str, Any] = {"id": "a", "name": "rating", "value": 4, "traceId": "ep_1"}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"id": None}, "id"),
        ({"name": ""}, "name"),
        ({"traceId": None}, "traceId"),
        ({"traceId": 7}, "traceId"),
        ({"source": "ORACLE"}, "source"),
        ({"value": "many"}, "value"),
        ({"name": "correct", "value": 0.5}, "value"),
        ({"name": "ok", "value": "maybe", "dataType": "BOOLEAN"}, "value"),
    ],
)
def test_a_score_that_cannot_be_read_says_why(changes: dict[str, Any], param: str) -> None:
    row = read_score(GOOD | changes, {}, DECLARED)
    assert isinstance(row, BadRequest)
    assert row.param == param
    assert isinstance(read_score([], {}, {}), BadRequest)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"suffice_episode_id": "ep_9"}, {"episode_id": "ep_9"}),
        ('{"suffice_response_id": "r-9"}', {"response_id": "r-9"}),
        ("no json", {"episode_id": "ep_1"}),
        ({}, {"episode_id": "ep_1"}),
        (["x"], {"episode_id": "ep_1"}),
    ],
)
def test_the_request_is_named_by_the_metadata_else_by_the_trace(metadata: Any, names: dict[str, str]) -> None:
    row = read_score(GOOD | {"metadata": metadata}, {}, {})
    assert isinstance(row, dict)
    assert {k: v for k, v in row.items() if k in ("episode_id", "response_id")} == names


def test_cells_of_a_csv_export_are_read_by_their_type() -> None:
    cells = {"id": "a", "name": "helpful", "value": "1", "trace_id": "ep_1", "data_type": "BOOLEAN", "comment": ""}
    row = read_score(cells, FIELDS, {})
    assert isinstance(row, dict)
    assert (row["thumbs"], "comment" in row) == ("up", False)
    number = read_score(cells | {"name": "rating", "value": "4", "data_type": "NUMERIC"}, {}, {})
    assert isinstance(number, dict)
    assert number["rating"] == 4


def signed(raw: bytes, secret: str = "lf-secret", at: str = "1720701136") -> str:
    report = hmac.new(secret.encode(), f"{at}.".encode() + raw, hashlib.sha256).hexdigest()
    return f"t={at},v1={report}"


def test_its_signature_is_checked_over_the_bytes_as_they_came() -> None:
    raw = b'{"type":"prompt-version"}'
    good = signed(raw)
    check_signature(raw, good, "lf-secret")
    check_signature(raw, good.replace("v1=", "s="), "lf-secret")  # as the documentation's example writes it
    check_signature(raw, good.replace(",", ", "), "lf-secret")
    for header in ("", "t=1", "v1=" + good.partition("v1=")[2], good[:-1] + "0", signed(raw, "other"), "t=,v1=ü", "x"):
        with pytest.raises(BadRequest) as refused:
            check_signature(raw, header if header != good else "", "lf-secret")
        assert (refused.value.status, refused.value.code) == (401, "invalid_signature")
    with pytest.raises(BadRequest):
        check_signature(raw + b" ", good, "lf-secret")
