"""Record the traces that ship with the project: `python bench/own_traces.py FOLDER`, and again until all are there.

Chains with a trial answer at every step, and votes over 16 samples, of Qwen2.5-Coder-0.5B on questions
drawn from a seed. One thread, so that it can run beside other work; Ctrl-C ends it in order, and the
next call goes on where it was. Compressed files appear in FOLDER at every orderly end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.trace_questions import traced

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
from suffice_demo.local.server import LocalServer, ServerSpec
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.local.weights import fetch

WEIGHTS = "qwen0.5b"
MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
N_A_TASK = {"reasoning": 75, "samples": 50}
BLOCK = 25
SLOTS = {"reasoning": 4, "samples": 2}
RECIPES = {
    "reasoning": RecordingRecipe(
        kind="reasoning",
        model=MODEL,
        scorer="number",
        driver="llama.cpp",
        finish="raw",
        steps=Steps(boundary="tokens", min_tokens=8, growth=1.2),
        probe=Probe(max_tokens=6),
    ),
    "samples": RecordingRecipe(
        kind="samples", model=MODEL, scorer="number", driver="llama.cpp", finish=None, n_samples=16
    ),
}


def lines(kind: str) -> Iterator[str]:
    """The question file, as `suffice record` reads it.

    Tasks in turn, so that they grow alike; in blocks, so that a server reads their worked examples seldom.
    """
    found, n = traced(kind, N_A_TASK[kind]), N_A_TASK[kind]
    tasks = [found[start : start + n] for start in range(0, len(found), n)]
    for start in range(0, n, BLOCK):
        for task in tasks:
            yield from (json.dumps(line(kind, one)) for one in task[start : start + BLOCK])


def line(kind: str, one: TaskQuestion) -> dict[str, object]:
    asked: dict[str, object] = {
        "id": one.id,
        "task": one.task,
        "gold": one.gold,
        "messages": list(one.messages),
        "max_tokens": one.max_tokens,
        "temperature": one.temperature,
    }
    if kind == "samples":
        asked["chat_template_kwargs"] = {"enable_thinking": False}
    return asked


def tell(started_s: float, n_before: int, progress: Progress) -> None:
    left = progress.n_left
    taken = time.monotonic() - started_s
    rate = progress.n_recorded / taken if taken else 0.0
    tokens = (progress.run_tokens + progress.probe_tokens) / taken
    wait = f"{left / rate / 60:.0f} min" if rate else "?"
    print(
        f"{n_before + progress.n_recorded} of {progress.n_questions}, EM {progress.n_right}/{progress.n_recorded},"
        f" {tokens:.1f} tokens/s, {len(progress.failed)} failed, {wait} left",
        flush=True,
    )


async def go(kind: str, folder: Path, url: str) -> Progress:
    recipe = RECIPES[kind]
    asked: list[QuestionLine] = read_recorded_questions(lines(kind), kind)
    server = Upstream(url=url, driver="llama.cpp", finish=("raw",))
    upstream = upstream_for_recording(server, concurrency=SLOTS[kind])
    async with UpstreamClient("local", upstream, None) as client:
        with open_recording(folder / f"own_{kind}.jsonl.gz", recipe) as recording:
            started_s, n_before = time.monotonic(), len(recording.ids)
            return await record_runs(
                asked,
                recording,
                client=client,
                recipe=recipe,
                scorer=build_scorer(recipe.scorer),
                dataset="suffice_own",
                concurrency=SLOTS[kind],
                report=lambda progress: tell(started_s, n_before, progress),
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=("reasoning", "samples"), help="only these; both without")
    parser.add_argument("--questions", type=Path, help="only write the question files there, and record nothing")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else list(RECIPES)
    if options.questions is not None:
        for kind in kinds:
            file = options.questions / f"own_{kind}.questions.jsonl"
            file.write_text("".join(f"{one}\n" for one in lines(kind)), "utf-8")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    left = 0
    for kind in kinds:
        spec = ServerSpec(
            model_path=fetch(WEIGHTS), alias=MODEL, template="think", n_parallel=SLOTS[kind], ctx_tokens_per_slot=1024
        )
        with LocalServer(spec) as server:
            done = asyncio.run(go(kind, options.folder, server.url))
        left += done.n_left
        for question, why in done.failed.items():
            print(f"{question}: {why}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
