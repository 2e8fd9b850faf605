"""How much of its prompt a probe makes the engine read again: a real model behind llama.cpp's server.

Every request is a probing audit. A probe repeats the prompt and the thought so far; an engine that
finds them in a slot's cache reads only what came since the probe before. The first probe of a run
finds nothing but the prompt's beginning: the slot that holds the thought is busy thinking.

    python bench/prefix.py [--slots 8] [--at-once 1,4,8] [--questions 8] [--limit-s 240]

Exits with 2 and a sentence when the model or the package that serves it is not there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import aiohttp

from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice.store.database.views import read_episodes
from suffice.types import Outcome
from suffice_demo.local import LocalModelError, weights
from suffice_demo.local.server import LocalServer, ServerSpec
from suffice_demo.local.tasks import TaskQuestion, questions

MODEL = "qwen0.5b"
FETCH = "python -m suffice_demo.local.weights"


@dataclass(slots=True)
class Cell:
    """What was seen with so many requests at once. Prompt tokens that no cache served, a probe."""

    at_once: int
    n_probes: int = 0
    n_missing: int = 0  # checkpoints at which no probe was sent
    first: list[int] = field(default_factory=list)  # read anew by the first probe of a run
    later: list[int] = field(default_factory=list)  # … by every further one
    distance: list[int] = field(default_factory=list)  # by which its prompt is longer than the one before

    def add(self, outcome: Outcome) -> None:
        self.n_missing += sum(step.answer_source is None for step in outcome.steps)
        before = None
        for call in outcome.calls:
            if call.purpose != "probe" or call.prompt_tokens is None:
                continue
            self.n_probes += 1
            anew = call.prompt_tokens - call.cached_tokens
            if before is None:
                self.first.append(anew)
            else:
                self.later.append(anew)
                self.distance.append(call.prompt_tokens - before)
            before = call.prompt_tokens

    def row(self) -> str:
        def told(numbers: list[int]) -> str:
            return f"{mean(numbers):.0f} ({median(numbers):.0f})" if numbers else "-"

        cells = (self.at_once, self.n_probes, self.n_missing, told(self.first), told(self.later), told(self.distance))
        return "| " + " | ".join(str(cell) for cell in cells) + " |"


def settings(upstream: str, slots: int, folder: Path) -> Settings:
    return parse_settings(
        {
            "upstreams": {"local": {"url": upstream, "driver": "llama.cpp", "slots": slots, "finish": ["raw"]}},
            "routes": {
                "all": {
                    "upstream": "local",
                    "scorer": "number",
                    "audit_share": 1.0,
                    "steps": {"min_tokens": 16, "growth": 1.2},
                    "probe": {"max_tokens": 6, "verified_by": "owner"},
                }
            },
            "store": {"url": f"sqlite:///{folder}/prefix.db"},
        }
    )


async def ask(session: aiohttp.ClientSession, url: str, question: TaskQuestion) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [dict(m) for m in question.messages],
        "max_tokens": 150,
        "temperature": 0,
        "stream": True,
    }
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        async for _ in reply.content.iter_any():
            pass


async def measure(upstream: str, slots: int, at_once: int, asked: Sequence[TaskQuestion]) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        async with serve_in_loop(settings(upstream, slots, Path(folder))) as url, aiohttp.ClientSession() as session:
            waiting = iter(asked)

            async def one_client() -> None:
                for question in waiting:
                    await ask(session, url, question)

            await asyncio.gather(*(one_client() for _ in range(at_once)))
        cell = Cell(at_once)
        for found in read_episodes(Path(folder) / "prefix.db"):
            cell.add(found.episode.outcome)
        return cell


def main() -> int:
    """Measure and print one row for every number of requests at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--at-once", default="1,4,8")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--limit-s", type=float, default=240.0, help="for each row")
    options = parser.parse_args()
    levels = [int(n) for n in options.at_once.split(",")]
    file = weights.cached_file(weights.find_weights(MODEL))
    if not file.is_file():
        print(
            f"prefix: the weights of {MODEL} are not in the cache; {FETCH} {MODEL} fetches them",
            file=sys.stderr,
        )
        return 2
    spec = ServerSpec(
        model_path=file, alias=MODEL, template="think", n_parallel=options.slots, ctx_tokens_per_slot=1024
    )
    asked = questions("reasoning", options.questions * len(levels), seed=17)
    try:
        with LocalServer(spec) as server:
            print(f"{options.slots} slots; prompt tokens read anew a probe: mean (median)\n")
            print("| at once | probes | not sent | first of a run | later ones | distance to the one before |")
            print("| --- | --- | --- | --- | --- | --- |")
            for n, at_once in enumerate(levels):
                mine = asked[n * options.questions :][: options.questions]  # no prompt is asked twice
                run = measure(server.url, options.slots, at_once, mine)
                print(asyncio.run(asyncio.wait_for(run, options.limit_s)).row(), flush=True)
    except LocalModelError as error:
        print(f"prefix: {error}", file=sys.stderr)
        return 2
    except TimeoutError:
        print(f"prefix: took longer than {options.limit_s:g} s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
