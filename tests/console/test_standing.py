"""What is missing on a route, in a sentence: an effort and an average are not taken for levels that climb."""

from __future__ import annotations

from dataclasses import replace

import pytest

from suffice.console.render import HERE
from suffice.console.views.standing import missing
from suffice.settings import Route
from suffice.store.in_force import InForce
from suffice.store.phases import Phase, phase_of
from suffice.types import Epoch, EvidenceSummary, Publication, Spending

EPOCH = Epoch(route="r", number=1, at=0, since_seq=0, reason="cold start", author="w")
MADE = Publication(
    route="r", number=1, epoch=1, at=100, version="v-1@3", fit="v-1", level=3, n_levels=41, certified=True, share=0.1,
    reason="x", author="w", evidence=EvidenceSummary(max_em_drop=0.02, confidence=0.95, n_missing=40),
)  # fmt: skip
ARM = replace(MADE, version="effort=low", fit="", level=1, n_levels=2, arm="effort=low")
AVERAGE = replace(MADE, certified=False, spending=Spending(
    floor=2, affordable=9, n_audits=10, n_waiting=0, em_drop=0.01, max_em_drop=0.02, clipped=0.0,
))  # fmt: skip
EFFORT = Route(upstream="up", effort="low", mode="enforce")
LEARNED = Route(upstream="up", kind="samples", samples=8, mode="enforce")


def phase(made: Publication | None) -> Phase:
    return phase_of(InForce(epoch=EPOCH, publication=made, last=made, n_epochs=1), attended=True)


@pytest.mark.parametrize(("route", "made", "said"), [
    (LEARNED, MADE, "About 40 more audits"), (EFFORT, ARM, "Nothing: effort=low is proved."),
    (EFFORT, None, "effort=low is not proved: suffice status counts its pairs."),
    (LEARNED, AVERAGE, "Certified is level 2; above it the drop is kept on average, with no confidence.")])
def test_what_is_missing_is_said_of_what_the_route_is(route: Route, made: Publication | None, said: str) -> None:
    assert missing(phase(made), route, None).startswith(said)


def test_a_page_calls_an_average_certified_nowhere() -> None:
    assert phase(AVERAGE).phase == "budgeted"
    pieces = (HERE / "templates" / "pieces.html").read_text("utf-8")
    pill = pieces.partition("one.phase.phase == 'budgeted'")[2].partition("{%")[0].partition("{% el")[0]
    assert "budgeted" in pill
    assert "pill good" not in pill
