"""What a reviewer reads: the question as it was asked, and what the verdict changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from suffice.assurance.estimate import IntervalEstimate
from suffice.review.agreement import LabelEffect, VerdictEffect
from suffice.review.items import format_conversation
from suffice.types import Feedback

LOOK = LabelEffect(n_audits=400, n_pending=7, level=3, n_missing=210, em=None)
LABEL = Feedback(feedback_id="review:a:ann:1", episode_id="a", correct=True, source="reviewer")


def effect(after: LabelEffect, **changes: Any) -> str:
    known: dict[str, Any] = {
        "item": "a",
        "route": "r",
        "label": LABEL,
        "before": LOOK,
        "after": after,
        "active_level": 3,
        "is_drawn": False,
        "in_window": True,
    }
    return VerdictEffect(**(known | changes)).sentence


def estimate(value: float) -> IntervalEstimate:
    return IntervalEstimate(value=value, low=value - 0.1, high=value + 0.1, n=10, method="m")


def test_every_change_is_said_with_what_was_before() -> None:
    output = effect(replace(LOOK, n_pending=6, n_missing=96, level=4))
    assert output == (
        "7 → 6 disagreements without a label, each of which counts as lost;"
        " 210 → 96 audits to the next level; the audits certify level 4 instead of 3;"
        " 3 stays active until the worker evaluates it; picked on purpose, so the estimate of EM does not read it"
    )
    assert effect(replace(LOOK, n_missing=None)).startswith(
        "7 disagreements without a label, as before; 210 → no number of audits to the next level; level 3 as before"
    )
    out_of_reach = replace(LOOK, n_missing=None)
    assert "; no next level in reach, as before; " in effect(out_of_reach, before=out_of_reach)
    assert effect(LOOK, in_window=False).startswith("the run is not among the audits that certify now; ")
    assert effect(LOOK, waits=True).startswith("nothing is learned in this epoch yet, and the label is read when")
    assert effect(LOOK, label=None) == "it has no label yet, so nothing has changed"


def test_a_random_item_says_what_it_made_of_the_estimate() -> None:
    assert effect(LOOK, is_drawn=True).endswith("the estimate of EM waits for the rest of its drawing")
    first = effect(replace(LOOK, em=estimate(0.5)), is_drawn=True)
    assert first.endswith("EM of delivered answers is 50.0% [40.0%, 60.0%]")
    before = replace(LOOK, em=estimate(0.4))
    again = effect(replace(LOOK, em=estimate(0.5)), is_drawn=True, before=before)
    assert again.endswith("EM of delivered answers is 50.0% [40.0%, 60.0%], before 40.0%")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "2 + 2?"}], "2 + 2?"),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
            "system: Be brief.\n\nuser: 2 + 2?",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url"}, "x"]}], "see"),
        ([{"role": "user", "content": None}], ""),
        ([], ""),
        (["no message"], ""),
        ([{"content": 7}], ""),
    ],
)
def test_a_question_reads_as_it_was_asked(messages: list[Any], text: str) -> None:
    assert format_conversation(messages) == text
