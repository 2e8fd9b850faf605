"""A caller that sends what stops harm once a level is certified runs in full, alone, until its audits lose no more."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from suffice.store.rows.events import Event
from suffice.types import Alarm, Epoch, Publication
from tests.control.made import BURST, rows, run, story

CALLERS = tuple(f"key-{number}" for number in range(9))
EVE = "eve"  # sends every tenth request
N_CALM = 600  # requests until the switch
SHARE = 0.05


class Live:
    """A route whose requests are drawn as its gateway draws them: by what the loop has published."""

    def __init__(self) -> None:
        self.history, self.log, self.rng = story(), list[Event](), random.Random(3)
        self.n = self.n_wrong = 0
        self._n_full: tuple[int, int] = (0, 0)  # number of the publication, and requests of eve's that it still singles

    @property
    def made(self) -> Publication | None:
        return self.history.loop.held.publication

    def _share(self, caller: str) -> float:
        made = self.made
        if self.n < BURST or made is None or not made.level:
            return 1.0
        if self._n_full[0] != made.number:
            self._n_full = made.number, dict(made.callers).get(EVE, 0)
        number, left = self._n_full
        if caller == EVE and left:
            self._n_full = number, left - 1
            return 1.0
        return made.share

    def ask(self, n: int, *, harmful: bool) -> None:
        for _ in range(n):
            caller = EVE if self.n % 10 == 3 else CALLERS[self.n % 9]
            share = self._share(caller)
            audit = self.rng.random() < share
            propensity = share if audit else 1 - share
            request, outcome = run(self.n, self.rng, sure=True, audit=audit, propensity=propensity)
            request = replace(request, sender=caller)
            if harmful and caller == EVE:
                answers = ["11"] * 3 + ["77"] * 5
                steps = tuple(replace(step, answer=own) for step, own in zip(outcome.steps, answers, strict=True))
                outcome = replace(outcome, steps=steps, answer="77")
                self.n_wrong += not audit
            first = len(self.log) + 1
            self.log += [request, outcome]
            self.history.feed(rows([request, outcome], first=first))
            self.n += 1


@pytest.fixture(scope="module")
def live() -> Live:
    one = Live()
    one.ask(N_CALM, harmful=False)
    assert one.made is not None
    assert one.made.level > 0
    assert one.made.callers == ()
    one.ask(1_500, harmful=True)
    one.history.settle()
    return one


def test_the_caller_runs_in_full_and_the_level_of_the_others_stays(live: Live) -> None:
    made = live.made
    assert made is not None
    assert [name for name, _ in made.callers] == [EVE]
    assert made.level > 0
    assert not [event for event in live.history.decided if isinstance(event, Alarm | Epoch)]
    assert live.n_wrong <= 60
    first = next(one for one in live.history.published if one.callers)
    assert first.reason.startswith(f"audits of {EVE} lose: the next requests run in full")


def test_its_audits_weigh_what_the_share_of_all_others_weighs(live: Live) -> None:
    """They are drawn for what it lost before, so they neither begin a window nor count for more than others do."""
    assert all(one.share <= SHARE + 1e-9 for one in live.history.loop.certifier.epoch.windows.known[1:])
    singled = live.history.loop.state.singled
    assert len(singled) > 50
    requests = [event for event in live.log[::2] if event.sender == EVE]  # type: ignore[union-attr]
    assert len(singled) <= sum(one.propensity == 1.0 for one in requests)  # type: ignore[union-attr]


def test_a_replay_doubts_the_same_callers(live: Live) -> None:
    history = live.history
    again = story(expected=history.published, artefacts=history.artefacts).feed(rows(live.log)).settle()
    assert again.published == []
    assert again.loop.held.publication == live.made


def test_it_is_let_back_once_its_audits_lose_no_more() -> None:
    one = Live()
    one.ask(N_CALM, harmful=False)
    one.ask(800, harmful=True)
    assert one.made is not None
    assert one.made.callers
    one.ask(1_500, harmful=False)
    assert one.made.callers == ()
    assert one.made.level > 0
    assert any("callers in doubt may stop again" in made.reason for made in one.history.published)
