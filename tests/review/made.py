"""Items, leases and verdicts of a made-up queue."""

from __future__ import annotations

from typing import Any

from suffice.review.items import ReviewItem, Shows, VerdictForm
from suffice.review.queue import ItemState, Queue, Submission, accept_verdict

NOON_S = 20_000 * 86_400.0 + 43_200.0


def item(name: str = "ep_1", shows: Shows = "both", **changes: Any) -> ReviewItem:
    known: dict[str, Any] = {
        "episode_id": name,
        "route": "r",
        "why": "disagreement",
        "because": "it disagrees",
        "shows": shows,
        "full_answer": None if shows == "early" else "42",
        "early_answer": None if shows == "full" else "41",
        "priority": 5.5,
        "day": 20_000,
        "n_reviewers": 1,
        "requested_at_s": 0.0,
        "author": "w",
        "lease_s": 100.0,
    }
    return ReviewItem(**(known | changes))


def says(place: ItemState, reviewer: str, word: str, at_s: float = 1.0, **more: Any) -> Submission:
    output = VerdictForm(item=place.item.episode_id, reviewer=reviewer, word=word, **more)
    submission = accept_verdict(place, output, now_s=at_s)
    assert isinstance(submission, Submission), submission
    return submission


def after(place: ItemState, submission: Submission) -> ItemState:
    """The place once what came of a submission is written."""
    if submission.lease is not None:
        place = place.after(submission.lease)
    return place if submission.verdict is None else place.after(submission.verdict)


def queue(*items: ReviewItem) -> Queue:
    return Queue().after(items)
