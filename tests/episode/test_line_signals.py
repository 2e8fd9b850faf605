"""Signals of an engine's line ends: read for the right lines, and given up at the first answer that is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from suffice.episode import line_signals
from suffice.episode.extra_calls import Continuer
from suffice.episode.ledger import Ledger
from suffice.episode.line_signals import LineSignals
from suffice.types import Step
from suffice.upstream.wire import encode_json
from tests.episode.runs import request


class Engine:
    """Gives one answer after another, and the last one for ever."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers, self.n_calls = list(answers), 0

    async def fetch(self, *_: Any, **__: Any) -> tuple[int, bytes, dict[str, str]]:
        self.n_calls += 1
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return status, encode_json(body), {}


def lines_of(engine: Engine) -> LineSignals:
    there = SimpleNamespace(ledger=Ledger(request(), 0.0), client=engine, headers={})
    return LineSignals(cast("Continuer", there))


def step(tokens: int, text: str = "so\n") -> Step:
    return Step(index=1, tokens=tokens, answer=None, answer_source=None, text=text)


@pytest.mark.parametrize("answer", [(404, {}), (200, {}), (200, {"signals": "none"}), (200, [])])
async def test_an_engine_that_reports_no_lines_is_asked_once_and_costs_signals(answer: tuple[int, Any]) -> None:
    engine = Engine(answer)
    lines = lines_of(engine)
    assert [await lines.add_to(one) for one in (step(3), step(4))] == [step(3), step(4)]
    assert (engine.n_calls, lines.continuer.ledger.degraded) == (1, ["signals"])


async def test_a_step_has_the_last_margin_and_the_mean_of_its_own_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_signals, "WAITS_S", (0.0, 0.0))
    rows = [[2, 7.0, -1.0], [3, 5.0, -4.0], [9, 0.2, -0.5]]
    lines = lines_of(Engine((200, {"signals": []}), (200, {"signals": rows})))
    read = await lines.add_to(step(5))
    assert read.end_margin == 5.0
    assert read.logprob == pytest.approx(-2.0)  # (2 x -1 + 1 x -4) / 3; the third is to come
    assert await lines.add_to(step(1, text="no end of a line")) == step(1, text="no end of a line")
