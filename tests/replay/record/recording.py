"""A recorder in front of a fake upstream, and a model that answers by the question: for the tests beside it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suffice.replay.record import (
    Progress,
    QuestionLine,
    RecordingRecipe,
    open_recording,
    read_recorded_questions,
    record_runs,
    upstream_for_recording,
)
from suffice.scoring.base import build_scorer
from suffice.settings import Probe, Steps, Upstream
from suffice.upstream.client import UpstreamClient
from suffice_testing import FakeUpstream, ScriptedThought
from suffice_testing.chain import At

STEPS = Steps(boundary="line", min_tokens=2, growth=1.0)
CHAIN = ScriptedThought(
    [
        At("first we guess\n", "3", 0.5),
        At("then we count\n", "4", 0.7),
        At("wait, let me check\n", "7", 0.6),
        At("no, it was four\n", "4", 0.95),
    ],
    final_answer="4",
    final_p=0.99,
)


def recipe(kind: str = "reasoning", **changes: Any) -> RecordingRecipe:
    known: dict[str, Any] = {
        "kind": kind,
        "model": "m",
        "scorer": "number",
        "driver": "llama.cpp",
        "finish": "raw" if kind == "reasoning" else None,
        "n_samples": 5 if kind == "samples" else 1,
        "steps": STEPS,
        "probe": Probe(max_tokens=6),
    }
    return RecordingRecipe(**known | changes)


def request_of(n: int, gold: str = "4") -> list[QuestionLine]:
    lines = [json.dumps({"id": f"q{i}", "question": f"question {i}?", "gold": gold}) for i in range(n)]
    return read_recorded_questions(lines, "x")


@dataclass
class Report:
    """What the recorder told, and how long it wanted to wait."""

    n_calls: int = 0
    pauses_s: list[float] = field(default_factory=list)

    def tell(self, progress: Progress) -> None:
        self.n_calls += 1

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)


async def recorded(
    fake: FakeUpstream,
    out: Path,
    questions: Sequence[QuestionLine],
    how: RecordingRecipe,
    *,
    report: Report | None = None,
    concurrency: int = 4,
    sleep: Callable[[float], Awaitable[None]] | None = None,
) -> Progress:
    """Record at a fake, without ever waiting between tries."""
    report = report or Report()
    upstream = upstream_for_recording(Upstream(url=fake.url, driver="llama.cpp"), concurrency=concurrency)
    async with UpstreamClient("up", upstream, None) as client:
        with open_recording(out, how) as recording:
            return await record_runs(
                questions,
                recording,
                client=client,
                recipe=how,
                scorer=build_scorer(how.scorer),
                dataset="fakes",
                concurrency=concurrency,
                report=report.tell,
                sleep=sleep or report.sleep,
            )


def ids(lines: Iterable[bytes]) -> list[str]:
    return [json.loads(line)["question_id"] for line in lines]
