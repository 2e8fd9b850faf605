"""What a chat request's question tells before its first token reaches the signals and the log, and its words do not."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.gateway.request_parsing import last_question, query_of
from suffice_testing import Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

QUESTION = "How many legs have 12 cows and 3 hens?"
PICTURE = {"type": "image_url"}
USER = {"role": "user", "content": QUESTION}


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([{"role": "system", "content": "be brief"}, USER], QUESTION),
        ([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, USER], QUESTION),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE, 7, {"text": "b"}]}], "a\nb"),
        ([{"role": "user", "content": [PICTURE]}], None),
        ([{"role": "user", "content": None}], None),
        ([{"role": "system", "content": "be brief"}], None),
        (["x", 7], None),
        ("x", None),
        (None, None),
    ],
)
def test_the_question_is_the_last_users(messages: Any, question: str | None) -> None:
    assert last_question({"messages": messages}) == question
    assert query_of({"messages": messages}, "reasoning", 1).n_chars == (None if question is None else len(question))


async def test_the_log_holds_the_querys_form_and_a_policy_reads_its_plan(serve: Serve) -> None:
    route = {
        "kind": "samples",
        "samples": 8,
        "wave": 1,
        "scorer": "number",
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "policy": {"policy": "stable-answer", "streak": 2, "min_share": 0.35},
    }
    async with serve(Reply(answer=("54",)), route=route) as gateway:
        await gateway.ask(chat(QUESTION, metadata={"name": "somebody"}))
        (stored,) = await gateway.episodes(1)
    query, outcome = stored.episode.request.query, stored.episode.outcome
    assert query is not None
    assert (query.n_numbers, query.question_type, query.planned_steps, query.metadata) == (2, "number", 8, ())
    assert (outcome.stopped, outcome.stop_step) == (True, 3)  # 3 of 8 is the first share of at least 0.35


async def test_of_a_request_that_passes_through_nothing_is_read(serve: Serve) -> None:
    async with serve(Reply(answer=("54",)), route={"mode": "off"}) as gateway:
        await gateway.ask(chat(QUESTION))
        (stored,) = await gateway.episodes(1)
    assert stored.episode.request.query is None
