"""Runs where the package is installed: a gateway whose route is made of nothing but its parts.

Started by tests/plugins/test_plugins.py in a process of its own, so that no other test sees its names.
"""

from __future__ import annotations

from pathlib import Path

from tests.gateway.conftest import Serve, serve
from tests.gateway.served import chat

from suffice.plugins import load_plugins
from suffice.settings import Upstream
from suffice.signals.observe import Observer
from suffice.types import Step
from suffice.upstream.drivers import driver_facts
from suffice_testing import Reply, ScriptedThought

__all__ = ["serve"]

THOUGHT = [
    ("Is it three?", "Three"),
    (" It may be four.", "four"),
    (" So four.", "Four!"),
    (" Four it is.", "four"),
    (" Is it five?", "five"),
]
ROUTE = {
    "mode": "enforce",
    "uncertified": True,
    "audit_share": 0.0,
    "scorer": "last-word",
    "probe": {},
    "policy": {"policy": "settled", "streak": 2, "most_questions": 0.3},
    "steps": {"boundary": "sentence", "min_tokens": 2, "growth": 1.0},
}


def test_all_five_are_loaded_and_none_was_refused() -> None:
    assert [(p.group, p.name, p.package, p.problem) for p in load_plugins()] == [
        (f"suffice.{group}", name, "suffice-example 1.0", None)
        for group, name in (
            ("signals", "asking"),
            ("scorers", "last-word"),
            ("segmenters", "sentence"),
            ("drivers", "box"),
            ("policies", "settled"),
        )
    ]


def test_a_signal_of_its_own_stands_beside_ours() -> None:
    observer = Observer(["stability", "asking(alpha=1)"], "rounds")
    signals = observer.observe(Step(index=1, tokens=3, answer="x", answer_source="caller", text="so? why?"))
    assert (signals.values["asking.mean"], signals.answer_streak) == (2.0, 1)


async def test_a_route_made_of_its_parts_stops_where_the_policy_says(serve: Serve) -> None:
    model = ScriptedThought(THOUGHT, "five", reply=Reply(delay_s=0.01))
    async with serve(model, route=ROUTE, upstream={"finish": ["raw"], "slots": 4}) as gateway:
        answer = await gateway.ask(chat(stream=True))
        outcome = await gateway.outcome()
    assert answer.status == 200
    assert (outcome.stopped, outcome.stop_step, outcome.answer) == (True, 3, "four")
    assert outcome.decision == "2 equal answers, 0.25 questions a step"
    assert [step.answer for step in outcome.steps] == ["three", "four", "four"]
    assert not outcome.degraded


def test_its_driver_says_how_to_ask_for_less_thought() -> None:
    upstream = Upstream(url="http://127.0.0.1:1", driver="box")
    assert driver_facts(upstream.driver).effort("low") == {"box_effort": "low"}
    assert Path(__file__).with_name("suffice_example.py").is_file()
