"""Attacks by models without evidence, moved aliases and ends: whatever one caller with a quarter of the traffic does.

In every case one caller, eve, sends a share of the traffic in one of several patterns, and others send the rest. Below
a third nothing of the others may end; from a third on, or where many callers do the same, it must.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from suffice.control.loop.safety_checks import LATEST_RUNS, MOST_MODELS, Upstreams
from suffice.store.rows.events import Event
from suffice.types import Alarm, Epoch
from tests.control.made import Story, rows, run, story, traffic

Requested = tuple[str, str | None, str | None]  # the model in the request, who answers, and with which fingerprint

KINDS: dict[str, Callable[[int], Requested]] = {
    "one made-up name": lambda _: ("made-up", None, "fp"),
    "a new name each time": lambda n: (f"made-up-{n}", None, "fp"),
    "as many names as are remembered": lambda n: (f"made-up-{n % MOST_MODELS}", None, "fp"),
    "no name": lambda _: ("", "m", "fp"),
    "the real name with a space": lambda _: ("m ", "m", "fp"),
    "the real name in capitals": lambda _: ("M", "m", "fp"),
    "a look-alike": lambda _: ("\u217f", "m", "fp"),  # the Roman numeral a thousand
    "a path in the name": lambda _: ("../m", "m", "fp"),
    "a line break in the name": lambda _: ("m\nmodel = m", "m", "fp"),
    "a long name": lambda n: ("x" * 10_000 + str(n), None, "fp"),
    "an answer without a model": lambda _: ("made-up", None, None),
    "an alias that moves": lambda _: ("alias", "m-2", "fp"),
    "an alias that moves each time": lambda n: ("alias", f"m-{n}", "fp"),
    "an alias to and fro": lambda n: ("alias", "m" if n % 2 else "m-2", "fp"),
    "an alias with another fingerprint": lambda n: ("alias", "alias", f"fp-{n}"),
    "an alias and made-up names in turn": lambda n: ("alias", "m-2", "fp") if n % 2 else (f"made-up-{n}", None, "fp"),
}
PATTERNS: dict[str, Callable[[int], bool]] = {  # which requests are eve's
    "every fourth": lambda n: n % 4 == 3,
    "bursts of a hundred": lambda n: n % 400 >= 300,
    "a quarter of the window at once": lambda n: n % LATEST_RUNS >= 3 * LATEST_RUNS // 4,
    "at random": lambda n: random.Random(n).random() < 0.25,
}
FOLLOWERS = 7  # other callers


class Window:
    """The models of an epoch whose evidence was gathered from honest requests for `m` and `alias`."""

    def __init__(self, *gathered: str) -> None:
        self.upstreams, self.n, self.changes = Upstreams(), 0, list[str]()
        for at in range(LATEST_RUNS):
            name = gathered[at % len(gathered)]
            self.ask((name, None, "fp"), f"key-{at % FOLLOWERS}", gathers=at < 100)

    def ask(self, requested: Requested, caller: str, *, gathers: bool = False) -> None:
        model, answered, fingerprint = requested
        request, outcome = run(self.n, random.Random(0))
        outcome = replace(outcome, model=answered or model or None, system_fingerprint=fingerprint)
        change = self.upstreams.note(replace(request, model=model, sender=caller), outcome, gathers=gathers)
        self.n += 1
        if change is not None:
            self.changes.append(change)

    def mix(
        self, n: int, is_eves: Callable[[int], bool], kind: Callable[[int], Requested], *, eves: Sequence[str]
    ) -> None:
        for at in range(n):
            if is_eves(at):
                self.ask(kind(at), eves[at % len(eves)])
            else:
                self.ask(("m", None, "fp"), f"key-{at % FOLLOWERS}")


def route() -> Window:
    """A tenth of the honest requests name the alias."""
    return Window(*["m"] * 9, "alias")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quarter_of_the_traffic_ends_nothing_of_others(kind: str, pattern: str) -> None:
    window = route()
    window.mix(LATEST_RUNS + 200, PATTERNS[pattern], KINDS[kind], eves=["eve"])
    assert window.changes == []
    assert "m" in {name for name, _, _ in window.upstreams.plain()}
    assert window.upstreams.moved <= {"alias"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "to and fro" not in kind])
def test_half_of_the_traffic_does_not_pass_unnoticed(kind: str) -> None:
    window = route()
    window.mix(2 * LATEST_RUNS, lambda n: n % 2 == 1, KINDS[kind], eves=["eve"])
    assert window.changes
    assert any(words in window.changes[0] for words in ("models without evidence", "model changed", "fingerprint"))


@pytest.mark.parametrize("kind", ["one made-up name", "a new name each time", "no name", "an alias that moves"])
def test_a_tenth_of_the_traffic_by_many_callers_is_a_change(kind: str) -> None:
    window = route()
    window.mix(2 * LATEST_RUNS, lambda n: n % 10 == 0, KINDS[kind], eves=[f"key-{n}" for n in range(13)])
    assert window.changes


@pytest.mark.parametrize("name", ["eve", ""])  # a gateway without keys knows no callers: all of them are one
@pytest.mark.parametrize(("of_a_hundred", "ends"), [(2, False), (10, False), (25, False), (32, False), (35, True)])
def test_the_bound_of_one_caller_is_a_third_of_the_traffic(of_a_hundred: int, name: str, *, ends: bool) -> None:
    window = route()
    window.mix(LATEST_RUNS + 200, lambda n: n % 100 < of_a_hundred, KINDS["a new name each time"], eves=[name])
    assert bool(window.changes) is ends


@pytest.mark.parametrize("n_names", [MOST_MODELS - 1, MOST_MODELS, MOST_MODELS + 1, 10 * MOST_MODELS])
@pytest.mark.parametrize("first", [True, False])
def test_names_made_up_while_evidence_is_gathered_displace_no_real_one(n_names: int, *, first: bool) -> None:
    window = Window("m")
    window.upstreams = Upstreams()
    invented = [((f"made-up-{n}", None, "fp"), "eve") for n in range(n_names)]
    honest: list[tuple[Requested, str]] = [(("m", None, "fp"), f"key-{n % FOLLOWERS}") for n in range(40)]
    for requested, caller in [*invented, *honest] if first else [*honest, *invented]:
        window.ask(requested, caller, gathers=True)
    assert "m" in {name for name, _, _ in window.upstreams.plain()}
    assert len(window.upstreams.known) <= MOST_MODELS
    window.mix(2 * LATEST_RUNS, PATTERNS["every fourth"], KINDS["a new name each time"], eves=["eve"])
    assert window.changes == []


# --------------------------------------------------------------------------- through the loop's fold

LONG = 400
ENDS: dict[str, dict[str, Any]] = {
    "done": {},
    "hang-ups": {"end_reason": "client_left"},
    "time-outs": {"end_reason": "upstream_error", "status": 504},
    "no status": {"end_reason": "upstream_error", "status": None},
    "no answer": {"answer": None},
    "no usage": {"usage": None},
    "no steps": {"steps": ()},
}


@pytest.fixture(scope="module")
def whole() -> Story:
    return story().feed(rows(traffic(LONG)))


def mixed(n: int, ends: dict[str, Any], *, model: str, first: int) -> list[Event]:
    rng, events = random.Random(4), list[Event]()
    for number in range(first, first + n):
        request, outcome = run(number, rng)
        if number % 4 == 0:
            events += [replace(request, model=model, sender="eve"), replace(outcome, model=model, **ends)]
        else:
            events += [request, outcome]
    return events


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("ends", ENDS)
def test_ends_of_runs_without_evidence_are_neither_losses_nor_changes(ends: str, whole: Story) -> None:
    report = story(expected=whole.published, artefacts=whole.artefacts)
    report.feed(rows([*traffic(LONG), *mixed(240, ENDS[ends], model="made-up", first=LONG)]))
    assert not any(isinstance(event, Alarm | Epoch) for event in report.decided)
    assert report.loop.level > 0
    assert all(audit.episode.request.sender != "eve" for audit in report.loop.state.audits)
