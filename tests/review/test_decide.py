"""A decision has its effect or says why it cannot; it makes things safer, unless what it pins is certified now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from suffice.review.decide import (
    DecisionInputs,
    DecisionRows,
    IncidentForm,
    OverrideForm,
    describe_state,
    override_of,
    resolve_incident,
)
from suffice.review.holds import (
    DAY_S,
    DECISIONS,
    NO_HOLDS,
    Incident,
    IncidentDecision,
    Override,
    OverrideEnd,
    RouteHolds,
)
from suffice.settings import Route
from suffice.types import Pause, Resumption
from tests.review.test_override import EPOCH, override, publication

PAUSE = Pause(route="r", number=3, cause="critical_em", reason="EM is too low", author="w")
# Stopped by a policy that its owner wrote down and nobody certifies.
OWNED = Route(upstream="u", mode="enforce", policy={"policy": "stable-answer"}, uncertified=True)
HELD = NO_HOLDS.after(PAUSE, 100.0)


def now(**changes: Any) -> DecisionInputs:
    known: dict[str, Any] = {
        "name": "r",
        "holds": HELD,
        "epoch": EPOCH,
        "publication": publication(),
        "pause": PAUSE,
        "setup": "s",
        "settings": Route(upstream="u", mode="enforce", max_em_drop=changes.pop("max_em_drop", 0.02)),
    }
    return DecisionInputs(**(known | changes))


def decision_form(decision: Any, **changes: Any) -> IncidentForm:
    return IncidentForm(
        **({"incident": "r:p3", "decision": decision, "reason": "looked at it", "author": "ann"} | changes)
    )


def decided(rows: DecisionRows | str) -> DecisionRows:
    assert isinstance(rows, DecisionRows), rows
    return rows


def test_resuming_ends_the_pause_as_before() -> None:
    rows = decided(resolve_incident(decision_form("resume"), now(), now_s=200.0))
    assert rows.override is None
    assert rows.resumption is not None
    assert rows.resumption.number == 3
    assert rows.decision.before == "paused: EM is too low"
    assert rows.decision.after.startswith("promise: Route 'r', scorer 'text': at the active level all requests")


def test_tightening_holds_a_level_or_a_smaller_budget_for_a_while() -> None:
    cap = decided(resolve_incident(decision_form("tighten", level=2, days=7.0), now(), now_s=200.0))
    assert cap.override is not None
    assert (cap.override.kind, cap.override.level, cap.override.expires_at_s) == ("cap", 2, 200.0 + 7 * DAY_S)
    assert (cap.override.incident, cap.decision.override) == ("r:p3", 1)
    budget = decided(resolve_incident(decision_form("tighten", max_em_drop=0.01), now(), now_s=200.0))
    assert budget.override is not None
    assert (budget.override.kind, budget.override.max_em_drop) == ("budget", 0.01)
    assert budget.resumption is not None
    for wrong in ({}, {"level": 2, "max_em_drop": 0.01}):
        refusal = resolve_incident(decision_form("tighten", **wrong), now(), now_s=1.0)
        assert "either the highest level or the smaller EM budget" in str(refusal)
    assert "below the 0.02 of the settings" in str(
        resolve_incident(decision_form("tighten", max_em_drop=0.02), now(), now_s=1.0)
    )


def test_rolling_back_serves_an_earlier_publication_where_it_fits() -> None:
    rows = decided(
        resolve_incident(decision_form("roll_back", pinned=publication(number=2, level=4)), now(), now_s=200.0)
    )
    assert rows.override is not None
    assert rows.override.pinned is not None
    assert (rows.override.kind, rows.override.level, rows.override.pinned.number) == ("pin", 4, 2)
    assert rows.decision.after.startswith("publication 2, level 4 for 30 days; promise: Route 'r'")


@pytest.mark.parametrize(
    ("made", "changes", "wrong"),
    [
        (None, {}, "name the publication"),
        (publication(epoch=1), {}, "is of epoch 1"),
        (publication(setup="older"), {}, "gathered on other settings"),
        (publication(), {"publication": publication(level=0, certified=False)}, "nothing is certified on the route"),
        (publication(), {"publication": None}, "nothing is certified on the route"),
        (publication(), {"max_em_drop": 0.01}, "the route promises 1 points"),
        (publication(), {"settings": OWNED}, "no levels"),
    ],
)
def test_a_roll_back_that_does_not_fit_is_refused_with_its_reason(
    made: Any, changes: dict[str, Any], wrong: str
) -> None:
    assert wrong in str(resolve_incident(decision_form("roll_back", pinned=made), now(**changes), now_s=200.0))


def test_a_budget_that_is_held_already_bounds_what_can_be_rolled_back_to() -> None:
    held = replace(HELD, overrides=(override(1, "budget", max_em_drop=0.01),), n_overrides=1)
    assert "the route promises 1 points" in str(
        resolve_incident(decision_form("roll_back", pinned=publication()), now(holds=held), now_s=1.0)
    )


def test_accepting_goes_on_until_a_date() -> None:
    rows = decided(resolve_incident(decision_form("accept", days=2.0), now(), now_s=200.0))
    assert rows.decision.until_s == 200.0 + 2 * DAY_S
    held = HELD.after(rows.decision, 200.0)
    assert held.accepted(200.0 + DAY_S) == rows.decision
    assert held.accepted(200.0 + 2 * DAY_S) is None, "then it is watched as before"
    for days in (0.0, 31.0):
        assert "at most 30" in str(resolve_incident(decision_form("accept", days=days), now(), now_s=1.0))


@pytest.mark.parametrize("decision", DECISIONS)
def test_an_incident_is_decided_once_and_with_a_reason(decision: Any) -> None:
    needs: dict[str, dict[str, Any]] = {"tighten": {"level": 1}, "roll_back": {"pinned": publication()}}
    more = needs.get(decision, {})
    rows = decided(resolve_incident(decision_form(decision, **more), now(), now_s=1.0))
    held = HELD.after(rows.decision, 1.0)
    assert "is decided already" in str(resolve_incident(decision_form("resume"), now(holds=held), now_s=2.0))
    assert "an author and a reason" in str(
        resolve_incident(decision_form(decision, reason=" ", **more), now(), now_s=1.0)
    )
    assert "unknown incident" in str(
        resolve_incident(decision_form(decision, incident="r:p9", **more), now(), now_s=1.0)
    )


def test_an_incident_without_a_pause_does_not_end_somebody_elses() -> None:
    by_hand = Incident(
        incident="r:m1",
        route="r",
        cause="person",
        summary="units",
        evidence=(),
        pause=None,
        opened_at_s=1.0,
        author="a",
    )
    rows = decided(
        resolve_incident(decision_form("resume", incident="r:m1"), now(holds=HELD.after(by_hand, 1.0)), now_s=2.0)
    )
    assert rows.resumption is None


def test_resuming_a_route_by_its_own_command_closes_its_incident() -> None:
    held = HELD.after(Resumption(route="r", number=3, reason="fine", author="bob"), 1.0)
    assert (held.open_cases, held.pause) == ((), None)
    assert "bob resumed the route" in str(resolve_incident(decision_form("resume"), now(holds=held), now_s=2.0))


def test_what_opens_an_incident_says_more_than_its_pause() -> None:
    report = Incident(
        incident="r:p3",
        route="r",
        cause="critical_em",
        summary="EM is too low",
        evidence=("29 of 60 right",),
        pause=3,
        opened_at_s=100.0,
        author="w",
    )
    held = HELD.after(report, 100.0)
    assert [case.incident for case in held.cases] == [report]
    assert NO_HOLDS.after(report, 100.0).after(PAUSE, 100.0).cases == held.cases, "whichever row comes first"
    person = NO_HOLDS.after(replace(PAUSE, cause="person"), 1.0)
    assert (person.cases, person.pause is not None) == ((), True)


def wanted(kind: Any = "cap", **changes: Any) -> OverrideForm:
    known = {"kind": kind, "reason": "why", "author": "ann", "days": 1.0}
    return OverrideForm(**(known | changes))


@pytest.mark.parametrize(
    ("want", "changes", "wrong"),
    [
        (wanted(level=3), {}, None),
        (wanted("observe", query_class="choice"), {}, None),
        (wanted("observe"), {"settings": OWNED}, None),
        (wanted("cap", level=3), {"settings": OWNED}, "no levels"),
        (wanted("pin", level=5), {}, None),
        (wanted("pin", level=6), {}, "5 is certified now, and a pin goes no further"),
        (wanted("pin", level=9, pinned=publication(level=5)), {}, "certifies level 5"),
        (wanted("pin", level=3, pinned=publication(level=5)), {}, None),
        (wanted("pin", level=1), {"publication": None}, "0 is certified now"),
        (wanted("budget", max_em_drop=0.05), {}, "can only make things safer"),
        (wanted("cap", level=3, days=31.0), {}, "at most 30 days"),
        (wanted("cap", level=3, reason=""), {}, "an author and a reason"),
    ],
)
def test_an_override_is_set_where_it_is_safer_or_certified(
    want: OverrideForm, changes: dict[str, Any], wrong: str | None
) -> None:
    override = override_of(want, now(pause=None, holds=NO_HOLDS, **changes), now_s=5.0)
    if wrong is None:
        assert isinstance(override, Override), override
        assert (override.number, override.after != "", override.before != "") == (1, True, True)
    else:
        assert wrong in str(override)


def test_ends_and_numbers_of_overrides_are_kept() -> None:
    held: RouteHolds = NO_HOLDS.after(override(1), 0.0).after(override(2), 0.0).after(override(2, level=9), 0.0)
    assert (held.n_overrides, [one.level for one in held.overrides]) == (2, [3, 3])
    end = OverrideEnd(route="r", number=1, reason="over", author="bob", ended_at_s=5.0)
    held = held.after(end, 5.0)
    assert ([one.number for one in held.overrides], held.ended[0][1]) == ([2], end)
    assert held.after(end, 6.0) == held
    assert held.override(1) is None


def test_what_holds_is_said_in_words() -> None:
    held = replace(NO_HOLDS, overrides=(override(1),))
    assert describe_state(now(holds=held), now_s=1.0) == "paused: EM is too low; level 3 at most"
    assert describe_state(now(holds=held, pause=None), now_s=1.0) == "level 5 of publication 4; level 3 at most"
    assert describe_state(now(holds=held, pause=None, publication=None), now_s=11 * DAY_S) == (
        "promise: none is needed: the first requests of an epoch are evidence, and every request runs in full"
    )


def test_a_decision_names_its_incident_and_is_found_again() -> None:
    decision = decided(resolve_incident(decision_form("resume"), now(), now_s=7.0)).decision
    assert isinstance(decision, IncidentDecision)
    case = HELD.after(decision, 7.0).case("r:p3")
    assert case is not None
    assert (case.is_open, case.decision) == (False, decision)
