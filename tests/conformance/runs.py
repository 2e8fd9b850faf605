"""Synthetic runs for the conformance tests: seeded, and the same on every version of Python."""

from __future__ import annotations

import random
from collections.abc import Sequence

from suffice.policy.base import Policy
from suffice.signals.observe import Observer
from suffice.types import Decision, Kind, Query, Step, StopReason

N_RUNS = 240
SEEDS = range(N_RUNS)
TOKENS = "abcdefgh"


def votes(seed: int, n_samples: int = 40) -> list[str]:
    """Answers of repeated samples of one question: some questions are easy, some spread over many answers."""
    rng = random.Random(seed)
    weights = [rng.random() ** rng.choice([1, 4, 12]) for _ in range(rng.randint(1, len(TOKENS)))]
    return rng.choices(TOKENS[: len(weights)], weights, k=n_samples)


def with_gaps(answers: Sequence[str], seed: int) -> list[str | None]:
    """The same answers, one in ten missing."""
    rng = random.Random(seed + 1_000_000)
    return [None if rng.random() < 0.1 else answer for answer in answers]


def sampled(answers: Sequence[str | None]) -> list[Step]:
    """Each answer as one sample."""
    return [Step(index=i, tokens=50, answer=a, answer_source="sample") for i, a in enumerate(answers, 1)]


def chain(seed: int, n_steps: int = 60) -> list[Step]:
    """One chain of thought with a trial answer at each step: it drifts, hesitates, and often settles."""
    rng, own = random.Random(seed), random.Random(seed + 2_000_000)
    settles, calm = rng.randint(2, 2 * n_steps), rng.random()
    answer = rng.choice(TOKENS)
    steps = []
    for index in range(1, n_steps + 1):
        if index < settles and rng.random() < 0.4:
            answer = rng.choice(TOKENS)
        sure = min(1.0, (0.3 + 0.7 * index / settles) if index < settles else 1.0)
        logprobs = tuple(-rng.expovariate(1.0 + 200 * sure**6 * calm) for _ in range(rng.randint(1, 4)))
        steps.append(
            Step(
                index=index,
                tokens=rng.randint(20, 400),
                answer=None if rng.random() < 0.05 else answer,
                answer_source="probe",
                logprobs=logprobs,
                entropy=rng.expovariate(1 + 6 * sure),
                closed_entropy=abs(rng.gauss(0.5 * (1 - sure), 0.3 * (1 - sure) + 0.01)),
                margin=rng.random() * sure,
                end_margin=None if own.random() < 0.3 else own.expovariate(0.1),
                text=rng.choice(["So it is.", "Wait, is it?", "Then add two.", "Hmm."]) if calm < 0.7 else "And so on.",
                vector=tuple(rng.gauss(1.0 if index >= settles else 0.0, 0.2 + (1 - sure)) for _ in range(6)),
            )
        )
    return steps


def decisions(policy: Policy, steps: Sequence[Step], kind: Kind) -> list[Decision]:
    """What the policy says after each step, by way of the real signals."""
    observer = Observer(policy.needs, kind, query=Query(planned_steps=len(steps)))
    return [policy.decide(observer.observe(step)) for step in steps]


def first_stop(policy: Policy, steps: Sequence[Step], kind: Kind) -> tuple[int, StopReason | None] | None:
    """The step of the first stop, and why; None: the run goes to its end."""
    output = decisions(policy, steps, kind)
    return next(((at, d.stop_reason) for at, d in enumerate(output, 1) if d.stop), None)
