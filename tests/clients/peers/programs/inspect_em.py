"""inspect-ai measures Exact Match with its own scorer, on the questions that it is given."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import inspect_ai
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate

from tests.clients.peers.programs.asking import KEY


def measured(exam: dict[str, Any]) -> dict[str, Any]:
    task = inspect_ai.Task(
        dataset=[Sample(input=item["question"], target=item["gold"]) for item in exam["items"]],
        solver=[generate()],
        scorer=match(location="end"),
    )
    model = get_model(f"openai-api/gw/{exam['model']}", base_url=exam["base_url"], api_key=KEY, memoize=False)
    with tempfile.TemporaryDirectory() as folder:
        log = inspect_ai.eval(task, model=model, display="none", log_dir=folder, max_connections=exam["n_at_once"])[0]
    if log.status != "success":
        raise RuntimeError(f"inspect-ai ended with {log.status}: {log.error}")
    report = log.results.scores[0].metrics["accuracy"].value
    return {"em": report, "n": log.results.completed_samples}


if __name__ == "__main__":
    for line in sys.stdin:
        print("\nSEEN " + json.dumps(measured(json.loads(line))), flush=True)
