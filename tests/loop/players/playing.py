"""What every player of decision scripts does: play each of them with its framework, and print what was decided.

    python -m tests.loop.players.NAME GATEWAY MODEL

GATEWAY has a route for each script, by its name; MODEL is a `scripted_model`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suffice import Decision, Governor
from suffice_loop import AgentRun

SCRIPTS = Path(__file__).resolve().parents[3] / "contrib" / "suffice-loop" / "scripts"
PASSAGE = "A passage."

Play = Callable[[Governor, str, str, str], AgentRun]  # governor, question, URL of the model, name of the script


def read_scripts() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(SCRIPTS.glob("*.json"))}


def search() -> str:
    """Look something up."""
    return PASSAGE


def played(run: AgentRun) -> dict[str, Any]:
    return {"answer": run.answer, "decisions": [as_json(record.decision) for record in run.episode.history]}


def as_json(decision: Decision) -> dict[str, Any]:
    return {"action": decision.action, "reason": decision.reason, "stop_reason": decision.stop_reason}


def play_all(play: Play) -> None:
    gateway, model = sys.argv[1:]
    results = {}
    for name, script in read_scripts().items():
        with Governor.connect(gateway, route=name, timeout_s=30) as governor:
            results[name] = played(play(governor, script["question"], f"{model}/{name}/v1", name))
    json.dump(results, sys.stdout)
