"""What one decision costs: all signals of a step and the policy, in microseconds of CPU time.

    python bench/decide.py [--check]

Medians over repetitions, on one core, of whole runs divided by their steps. With `--check` a figure above
its limit ends the program with 1.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from suffice.gateway.route import Variants

from suffice.agent.plan import ClassPlan, PlannedDraw
from suffice.policy.base import build_policy
from suffice.rollout.experiment import units_of
from suffice.settings import parse_settings
from suffice.signals.base import FOLDS
from suffice.signals.observe import Observer, observe_columns
from suffice.signals.query import query_signals
from suffice.telemetry import Metrics
from suffice.types import Kind, Query, Step
from suffice.wiring.routes import build_route

QUESTION = "A farm has 12 cows and twice as many hens. How many legs are there in all, if 3 hens lost one each?"
TEXT = (
    "so the sum of both numbers is then equal to and we know that wait but let me check it again since hens have "
    "two legs each which makes forty-eight minus three therefore 93 or 45 if cows are left out of the count"
)
REPEATS = 7
UPSTREAM = {"up": {"url": "http://127.0.0.1:1"}}
ROUTE = parse_settings({"upstreams": UPSTREAM, "routes": {"r": {"upstream": "up", "probe": {}}}}).routes["r"]
PLAN = ClassPlan(
    query_class="",
    draws=(
        PlannedDraw(settings="growth=1.3", share=0.9, ceiling=None),
        PlannedDraw(settings="", share=0.1, ceiling=3),
    ),
    saving=0.3,
    em_drop=0.0,
    n_audits=400,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table."""

    what: str
    microseconds: float
    limit: float | None  # None: none was set


def reasoning_steps(n: int, rng: random.Random) -> list[Step]:
    """Checkpoints of about 60 words, each with a probed answer of 5 tokens and all its numbers."""
    return [
        Step(
            index=index,
            tokens=80,
            answer=str(rng.choice((93, 93, 93, 96, 45))),
            answer_source="probe",
            logprobs=tuple(-rng.expovariate(4.0) for _ in range(5)),
            entropy=rng.expovariate(2.0),
            text=" ".join(rng.choices(TEXT.split(), k=60)),
            probe_tokens=6,
            mass=0.9,
            margin=rng.random(),
            closed_entropy=rng.expovariate(2.0),
            logprob=-rng.random(),
            stated_confidence=0.9,
            reported_done=False,
            action="think",
        )
        for index in range(1, n + 1)
    ]


def samples(n: int, rng: random.Random) -> list[Step]:
    """Samples of a run, with nothing but their answers."""
    answers = rng.choices(("93", "96", "45", None), weights=(6, 2, 1, 1), k=n)
    return [Step(index=i, tokens=200, answer=a, answer_source="sample") for i, a in enumerate(answers, 1)]


def cost(run: Callable[[], object], n_steps: int) -> float:
    """CPU time of a step in microseconds: the median over repetitions."""
    seen = []
    for _ in range(REPEATS):
        begin = time.process_time()
        run()
        seen.append((time.process_time() - begin) / n_steps * 1e6)
    return median(seen)


def decided(kind: Kind, runs: Sequence[Sequence[Step]], query: Query, policy: str, needs: Sequence[str]) -> None:
    """Observe and decide, step after step, as a request does."""
    rule = build_policy({"policy": policy})
    for steps in runs:
        observer = Observer(needs, kind, query=query)
        for step in steps:
            rule.decide(observer.observe(step))


def measure() -> list[Figure]:
    """All rows."""
    rng = random.Random(0)
    query = query_signals(QUESTION, metadata={"task": "sums"}, planned_steps=16)
    thoughts = [reasoning_steps(40, rng) for _ in range(50)]
    votes = [samples(16, rng) for _ in range(1_000)]
    few = ("votes", "stability", "plan")
    every = tuple(FOLDS)

    def columns() -> object:
        return observe_columns(few, "samples", ((query, steps) for steps in votes))

    return [
        Figure(
            what="reasoning step, every signal, confidence-threshold",
            microseconds=cost(lambda: decided("reasoning", thoughts, query, "confidence-threshold", every), 2_000),
            limit=50.0,
        ),
        Figure(
            what="samples step, every signal, beta",
            microseconds=cost(lambda: decided("samples", votes, query, "beta", every), 16_000),
            limit=20.0,
        ),
        Figure(
            what="samples step, votes and stability, beta",
            microseconds=cost(lambda: decided("samples", votes, query, "beta", few[:2]), 16_000),
            limit=None,
        ),
        Figure(
            what="samples step as columns, votes, stability and plan",
            microseconds=cost(columns, 16_000),
            limit=8.0,
        ),
        Figure(
            what="signals of a query of 20 words",
            microseconds=cost(lambda: [query_signals(QUESTION, metadata={}) for _ in range(500)], 500),
            limit=None,
        ),
        Figure(what="draw of an agent's plan", microseconds=cost(draw_plans, 5_000), limit=20.0),
    ]


def draw_plans() -> None:
    """Draw settings and level for requests, as a route with an agent does."""
    variants, route = Variants(salt="salt", metrics=Metrics()), build_route("r", ROUTE)
    planned = replace(route, plan=PLAN)
    for at in range(5_000):
        variants.place(planned, lambda at=at: units_of("", request=f"request {at}"))  # type: ignore[misc]


def main() -> int:
    """Measure, print, and say whether every limit was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="end with 1 where a limit is exceeded")
    check = parser.parse_args().check
    print(f"{platform.machine()}, Python {platform.python_version()}; CPU time of one core, median of {REPEATS}")
    print("| what | µs | limit |\n| --- | --- | --- |")
    figures = measure()
    for figure in figures:
        print(f"| {figure.what} | {figure.microseconds:.1f} | {figure.limit or '–'} |")
    over = [figure for figure in figures if figure.limit is not None and figure.microseconds > figure.limit]
    return 1 if check and over else 0


if __name__ == "__main__":
    sys.exit(main())
