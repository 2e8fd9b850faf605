"""Which state a route's promise is in, in the order in which a gateway decides, and what its sentence says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from suffice.review.holds import in_effect
from suffice.review.route_guarantee import (
    STATES,
    GuaranteeInputs,
    RouteGuarantee,
    covers,
    effective_publication,
    guarantee_of,
)
from suffice.settings import Route
from suffice.types import BudgetAccount, EvidenceSummary, Pause
from tests.review.test_override import EPOCH, override, publication

SEEN = EvidenceSummary(
    n_audits=400,
    n_lost=2,
    n_disagreeing=5,
    max_em_drop=0.02,
    confidence=0.95,
    window_start=1.0,
    window_end=401.0,
)
MADE = publication(evidence=SEEN)
ROUTE: dict[str, Any] = {"upstream": "u", "mode": "enforce", "scorer": "number"}
OWN = {"policy": "stable-answer"}
PAUSE = Pause(route="r", number=1, cause="person", reason="x", author="ann")
AVERAGE = BudgetAccount(floor=3, affordable=9, n_audits=9, n_waiting=0, em_drop=0.01, max_em_drop=0.02, clipped=0.0)


def standing(route: dict[str, Any] | None = None, **changes: Any) -> GuaranteeInputs:
    known: dict[str, Any] = {"name": "r", "settings": Route(**(ROUTE | (route or {}))), "epoch": EPOCH}
    return GuaranteeInputs(**(known | {"publication": MADE} | changes))


CASES: list[tuple[str, GuaranteeInputs]] = [
    ("off", standing({"mode": "off"}, killed=True)),
    ("killed", standing({"mode": "observe"}, killed=True)),
    ("observe", standing({"mode": "observe"}, pause=PAUSE)),
    ("unread", standing(unread=True, pause=PAUSE)),
    ("paused", standing(pause=PAUSE, unreadable=True)),
    ("held", standing(holding=in_effect([override(1, "observe", level=None)], 1.0))),
    ("held", standing(holding=in_effect([override(1, "cap", level=0)], 1.0))),
    ("unreadable", standing(unreadable=True)),
    ("certified", standing()),
    ("certified", standing({"uncertified": True})),
    ("certified", standing(setup="s")),
    ("void", standing(setup="other")),
    ("void", standing({"max_em_drop": 0.01})),
    ("void", standing({"confidence": 0.99})),
    ("void", standing(publication=replace(MADE, certified=False, spending=AVERAGE))),
    ("void", standing({"effort": "low"}, publication=replace(MADE, arm="effort=high"))),
    ("void", standing(publication=replace(MADE, evidence=EvidenceSummary()))),
    ("searching", standing(publication=replace(MADE, level=0, certified=False))),
    ("burst", standing(publication=None)),
    ("unattended", standing(publication=None, epoch=None)),
    ("idle", standing({"policy": {"policy": "never"}})),
    ("idle", standing({"policy": {"policy": "never"}, "uncertified": True})),
    ("uncertified", standing({"policy": OWN, "uncertified": True})),
    ("uncertified", standing({"effort": "low", "uncertified": True}, publication=None)),
    ("certified", standing({"effort": "low"}, publication=replace(MADE, level=1, fit="", arm="effort=low"))),
    ("budgeted", standing({"promise": "budgeted"}, publication=replace(MADE, certified=False, spending=AVERAGE))),
    ("certified", standing({"promise": "budgeted"}, publication=replace(MADE, spending=replace(AVERAGE, floor=5)))),
    (
        "budgeted",
        standing(
            {"promise": "budgeted"}, publication=replace(MADE, certified=False, spending=replace(AVERAGE, floor=5))
        ),
    ),
]


@pytest.mark.parametrize(("state", "one"), CASES)
def test_the_first_that_holds_is_the_state(state: str, one: GuaranteeInputs) -> None:
    result = guarantee_of(one)
    assert result.state == state
    stops = state in ("certified", "budgeted", "uncertified")
    assert result.stops == stops
    assert ("runs in full" in result.sentence or "nothing is stopped" in result.sentence or state == "off") == (
        not stops
    )


def test_every_state_has_a_sentence() -> None:
    for state in STATES:
        if state not in ("certified", "budgeted"):
            assert RouteGuarantee(state=state).sentence


def test_a_certificate_says_everything_that_it_depends_on() -> None:
    output = guarantee_of(standing(classes={"law": 12})).sentence
    for part in (
        "Route 'r', scorer 'number'",
        "all requests from number 1 to 400",
        "less than 2 points",
        "94 % confidence",
        "400 audits with labels",
        "a silent loss of 3 points would be noticed",
        "unknown, with under 200 audits: law",
    ):
        assert part in output
    judged = standing(publication=replace(MADE, evidence=replace(SEEN, judge_charge=0.01)))
    assert "94 % confidence" not in guarantee_of(judged).sentence, "a judge's mistakes are a risk of their own"
    assert (
        "without labels"
        in guarantee_of(
            standing(publication=replace(MADE, evidence=replace(SEEN, n_lost=5, window_start=None)))
        ).sentence
    )
    assert (
        "is not known"
        in guarantee_of(standing(publication=replace(MADE, evidence=replace(SEEN, n_disagreeing=None)))).sentence
    )


def test_a_smaller_budget_of_a_person_is_the_one_that_is_promised() -> None:
    strict = publication(evidence=replace(SEEN, max_em_drop=0.01))
    holding = in_effect([override(1, "budget", level=None, max_em_drop=0.01)], 1.0)
    assert "less than 1 point of EM" in guarantee_of(standing(publication=strict, holding=holding)).sentence
    assert guarantee_of(standing(holding=holding)).state == "void"


def test_load_that_may_let_an_uncertified_level_act_is_said() -> None:
    route = {"on_fallback": "availability_first"}
    assert "availability_first" in guarantee_of(standing(route, pause=PAUSE)).sentence
    assert "availability_first" not in guarantee_of(standing(pause=PAUSE)).sentence


def test_who_is_outside_of_a_promise_is_named_where_something_acts() -> None:
    output = guarantee_of(standing(beside=("experiment a", "a rollout"))).sentence
    assert output.endswith("It is not about requests that draw an arm of experiment a, a rollout.")
    assert "draw" not in guarantee_of(standing({"mode": "observe"}, beside=("a rollout",))).sentence


def test_a_pin_brings_back_an_earlier_publication_of_the_same_epoch_alone() -> None:
    earlier = publication(number=1, level=2, fit="g")
    pin = in_effect([override(1, "pin", level=2, pinned=earlier)], 1.0)
    result = effective_publication(MADE, 2, pin)
    assert result is not None
    assert (result.number, result.level) == (1, 2)
    void = effective_publication(MADE, 3, pin)
    assert void is not None
    assert (void.level, void.certified) == (0, False)
    assert effective_publication(None, 2, pin) is None
    nothing = publication(level=0, certified=False)
    assert effective_publication(nothing, 2, pin) is nothing
    assert not covers(Route(**ROUTE), 0.02, None, nothing)
