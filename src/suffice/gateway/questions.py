"""Keeps the text of a question for reviewers, where its route's owner wants that: in a row of its own."""

from __future__ import annotations

from collections.abc import Callable

from suffice.episode.ledger import Ledger
from suffice.gateway import books
from suffice.gateway.context import Gateway
from suffice.gateway.route import BuiltRoute
from suffice.review.items import DAY_S
from suffice.review.question import MOST_CHARS
from suffice.store.review_events import Question, QuestionKept


def keep(gw: Gateway, route: BuiltRoute | None, ledger: Ledger, text: Callable[[], str]) -> None:
    """Keep a governed request's question, if its route says so; it is not even written out where it does not."""
    request = ledger.request
    if route is None or request.ungoverned is not None or not route.settings.review.keep_text:
        return
    rules = route.settings.review
    question = Question(
        episode_id=request.episode_id, route=request.route, text=text()[:MOST_CHARS],
        expires_at_s=request.received_at_s + rules.text_days * DAY_S,
    )  # fmt: skip
    books.append(gw, QuestionKept(question), ledger)
