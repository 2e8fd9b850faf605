"""Text of strangers on the console's pages: what a terminal or a browser would obey is shown as a harmless sign."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.sanitize import printable_text
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback, Query
from tests.console.test_runs import console_on, made
from tests.console.visitor import Visitor

ESCAPE, CSI, OVERRIDE, ISOLATE, HIDDEN = "\x1b]0;", "\x9b31m", "\u202e", "\u2066", "\u200b"
BAD = (ESCAPE[:1], CSI[:1], OVERRIDE, ISOLATE, HIDDEN, "\x07", "\u2028")
EVIL = f"{ESCAPE}gone\x07 {CSI}{OVERRIDE}{ISOLATE}x{HIDDEN}\u2028 سلام می\u200cشود"


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """A console on runs whose every text of a client, a model server or a labeller is hostile."""

    def events() -> Iterator[Any]:
        for number in range(20):
            request, outcome = made(number)
            query = Query(query_class=f"c{EVIL}", metadata=((f"k{EVIL}", f"v{EVIL}"),))
            yield replace(request, model=f"m{EVIL}", query=query, tenant=f"t{EVIL}")
            steps = tuple(replace(one, answer=f"s{EVIL}", reason=f"r{EVIL}") for one in outcome.steps)
            yield replace(outcome, answer=f"a{EVIL}", would_answer=f"w{EVIL}", steps=steps, decision=f"d{EVIL}")
            comment = Feedback(
                feedback_id=f"f{number}", episode_id=request.episode_id, gold=f"g{EVIL}", comment=f"o{EVIL}"
            )
            yield FeedbackEvent(comment)

    with console_on(tmp_path_factory.mktemp("texts"), events()) as (visitor, _, _app):
        yield visitor


PAGES = (
    "/console",
    "/console/routes/math",
    "/console/runs",
    "/console/runs?q={evil}",
    "/console/changes",
    "/console/review",
    "/console/report",
    "/console/policies",
    "/console/alerts",
    "/console/incidents",
)


@pytest.mark.parametrize("place", [*PAGES, "run"])
def test_no_page_obeys_text_of_strangers(admin: Visitor, place: str) -> None:
    if place == "run":
        place = f"/console/runs/{admin.get('/api/episodes').json['lines'][0]['episode_id']}"
    page = admin.get(place.replace("{evil}", "%1B%5D0%3B%E2%80%AE")).text
    assert not [f"U+{ord(one):04X}" for one in BAD if one in page]
    if place.startswith("/console/runs"):
        assert "\ufffd" in page
    if place.startswith("/console/runs/"):
        assert "سلام می\u200cشود" in page, "what Persian is written with stays"


@given(st.text())
def test_printable_text_keeps_what_can_be_seen_and_lines(text: str) -> None:
    displayed = printable_text(text)
    assert len(displayed) == len(text)
    assert all(b in (a, "\ufffd") for a, b in zip(text, displayed, strict=True))
    assert not set(displayed) & set(BAD)
    assert [n for n, one in enumerate(text) if one in "\r\n\t"] == [
        n for n, one in enumerate(displayed) if one in "\r\n\t"
    ]
    assert printable_text(displayed) == displayed
