"""Keeps texts for reviewers, where a route's owner wants that: in rows of their own, which can be erased."""

from __future__ import annotations

from collections.abc import Callable

from suffice.episode.ledger import Ledger
from suffice.gateway import request_log
from suffice.gateway.context import Gateway
from suffice.gateway.route import BuiltRoute
from suffice.review.items import DAY_S
from suffice.review.question import MOST_CHARS, Shelf
from suffice.store.rows.records import QuestionText, Sources


def keep(gw: Gateway, route: BuiltRoute | None, ledger: Ledger, text: Callable[[], str]) -> None:
    """Keep a governed request's question, if its route says so; it is not even written out where it does not."""
    until_s = _until_s(route, ledger)
    if until_s is None:
        return
    request = ledger.request
    question = QuestionText(
        episode_id=request.episode_id, route=request.route, text=text()[:MOST_CHARS], expires_at_s=until_s
    )
    request_log.append(gw, question, ledger)


def shelf(route: BuiltRoute, ledger: Ledger) -> Shelf | None:
    """Where the texts of a run's steps are gathered; None: its route keeps none, and nobody holds on to them."""
    until_s = _until_s(route, ledger)
    return None if until_s is None else Shelf(until_s=until_s)


def keep_sources(gw: Gateway, ledger: Ledger, found: Shelf | None) -> None:
    """Write down what was gathered, at the end of a run."""
    if found is None or not found.sources:
        return
    request = ledger.request
    kept = Sources(
        episode_id=request.episode_id,
        route=request.route,
        sources=tuple(found.sources),
        is_cut=found.is_cut,
        expires_at_s=found.until_s,
    )
    request_log.append(gw, kept, ledger)


def _until_s(route: BuiltRoute | None, ledger: Ledger) -> float | None:
    """Unix time until which texts of a request are shown; None: they are not kept."""
    request = ledger.request
    if route is None or request.ungoverned is not None or not route.settings.review.keep_text or not ledger.has_rows:
        return None
    return request.received_at_s + route.settings.review.text_days * DAY_S
