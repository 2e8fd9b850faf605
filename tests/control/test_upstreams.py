"""Models without evidence: whose affair they are, and when they are a change of the whole route."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.control.loop.safety_checks import LATEST_RUNS, MOST_MODELS, Upstreams
from suffice.store.rows.events import Event
from suffice.types import Alarm, Epoch
from tests.control.made import Story, rows, run, story, traffic

LONG = 400


class Route:
    """The upstream identities of one epoch, whose burst has known `models`."""

    def __init__(self, *models: str) -> None:
        self.upstreams, self.changes, self._n = Upstreams(), list[str](), 0
        for _ in range(10):
            for model in models:
                self.ask(model, gathers=True)

    def ask(self, model: str, *, caller: str = "", answered: str | None = None, gathers: bool = False) -> None:
        request, outcome = run(self._n, random.Random(0), model=model)
        self._n += 1
        outcome = replace(outcome, model=answered or model)
        change = self.upstreams.note(replace(request, model=model, sender=caller), outcome, gathers=gathers)
        if change is not None:
            self.changes.append(change)

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self.upstreams.plain()}


def test_made_up_models_end_no_evidence_before_they_are_a_third_of_the_traffic() -> None:
    route = Route("m")
    for n in range(4 * LATEST_RUNS):
        route.ask("m" if n % 4 else f"made-up-{n}", caller="eve" if n % 4 == 0 else f"key-{n % 5}")
    assert route.changes == []
    extra = 0
    while not route.changes:
        route.ask("made-up", caller="eve")
        extra += 1
    assert extra > LATEST_RUNS // 12, "a quarter and a twelfth are a third"
    assert "ask for models without evidence" in route.changes[0]
    assert "by caller eve" in route.changes[0]


def test_a_model_that_many_callers_ask_for_is_a_change_at_a_twentieth() -> None:
    route = Route("m")
    for n in range(2 * LATEST_RUNS):
        is_new = n % 13 == 0
        route.ask("m-2" if is_new else "m", caller=f"key-{n % 7}")
    assert route.changes
    assert "most for 'm-2'" in route.changes[0]


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["m", "alias", "other"]), st.sampled_from(["", "fp-1", "fp-2"])),
        max_size=200,
    )
)
def test_whatever_one_caller_asks_for_with_a_quarter_of_the_traffic_is_its_own_affair(
    attempts: list[tuple[int, str, str]],
) -> None:
    route = Route("m", "alias")
    for _ in range(LATEST_RUNS):
        route.ask("m", caller="others")
    for _, model, moved in attempts:
        route.ask(model, caller="eve", answered=moved or None) if model != "m" else None
        for _ in range(3):
            route.ask("m", caller="others")
    assert route.changes == []
    assert "m" in route.names


def test_names_that_are_made_up_in_the_burst_do_not_displace_the_real_one() -> None:
    route = Route()
    for n in range(3 * MOST_MODELS):
        route.ask(f"made-up-{n}", caller="eve", gathers=True)
    for n in range(20):
        route.ask("m", caller="others", gathers=True)
        route.ask(f"later-{n}", caller="eve", gathers=True)
    assert "m" in route.names
    assert len(route.names) == MOST_MODELS


def test_an_alias_that_moves_ends_only_its_own_evidence() -> None:
    route = Route("m", "alias")
    for _ in range(100):
        route.ask("m")
    route.ask("alias", answered="m-2")
    assert route.changes == []
    assert route.names == {"m"}
    assert route.upstreams.moved == {"alias"}


@pytest.mark.parametrize("names", [("m",), ("m", "alias")])
def test_the_model_of_a_third_of_the_traffic_does_not_move_unnoticed(names: tuple[str, ...]) -> None:
    route = Route(*names)
    route.ask("m", answered="m-2")
    assert len(route.changes) == 1
    assert "model changed from 'm' to 'm-2'" in route.changes[0]


# --------------------------------------------------------------------------- in the loop


def mixed(n: int, *, first: int = 0, seed: int = 0, every: int, **strange: Any) -> list[Event]:
    """Traffic of which every so many runs are other ones, by one caller."""
    rng, events = random.Random(seed), list[Event]()
    for number in range(first, first + n):
        request, outcome = run(number, rng)
        if number % every == 0:
            other = replace(request, model=strange["model"], sender="eve")
            events += [
                other,
                replace(outcome, model=strange.get("answered", strange["model"]), **strange.get("ends", {})),
            ]
        else:
            events += [request, outcome]
    return events


@pytest.fixture(scope="module")
def whole() -> Story:
    return story().feed(rows(traffic(LONG)))


def test_runs_of_a_model_without_evidence_are_no_evidence(whole: Story) -> None:
    history = story(expected=whole.published, artefacts=whole.artefacts)
    strange = mixed(600, first=LONG, seed=4, every=4, model="made-up", ends={"end_reason": "client_left"})
    history.feed(rows([*traffic(LONG), *strange]))
    assert not any(isinstance(event, Alarm | Epoch) for event in history.decided)
    assert history.loop.level > 0
    assert all(audit.episode.request.model == "m" for audit in history.loop.state.audits)


def test_after_an_alias_has_moved_others_keep_a_level_that_is_proved_with_it_in_full() -> None:
    both = mixed(LONG, every=8, model="alias", answered="m")
    history = story().feed(rows(both))
    before = history.published[-1]
    assert {name for name, _, _ in before.upstream} == {"alias", "m"}
    after = mixed(200, first=LONG, seed=5, every=8, model="alias", answered="m-2")
    history.feed(rows([*both, *after]))
    assert not any(isinstance(event, Alarm | Epoch) for event in history.decided)
    made = history.published[-1]
    assert {name for name, _, _ in made.upstream} == {"m"}
    assert 0 < made.level <= before.n_levels
    again = story(expected=history.published, artefacts=history.artefacts).feed(rows([*both, *after])).settle()
    assert again.published == [], "a second worker comes to the same decisions"
