"""Episodes whose truth is known: chains that settle, and some that hold a wrong answer boldly until late.

The policy in force stops at the first step that is bold and says the same as the step before. It is good for most
runs, and wrong for those that are led astray; only a run that went on shows which.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from suffice.store.database.views import EpisodeWithLabels, StoredLabel
from suffice.types import Episode, Feedback, Mode, Outcome, Query, StepRecord, Usage
from tests.records import plain_request, plain_step

GOLD = "42"
BOLD = 0.9  # confidence from which the policy in force stops
STEP_TOKENS = 100
ANSWER_TOKENS = 20
PROBE_TOKENS = 4
LabelsOf = Literal["all", "audits", "disagreements", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """How runs go. Rates are fractions."""

    p_astray: float = 0.25  # a run holds a wrong answer from its first step to its last but one
    p_fails: float = 0.15  # the full run is wrong
    audit_share: float = 0.1
    mode: Mode = "enforce"
    labels: LabelsOf = "all"
    n_prompts: int | None = None  # None: each run has a prompt of its own
    astray_class: str = ""  # class of the runs that are led astray; "": the same as of all others


def match(answer: str | None, gold: str) -> bool:
    """Answers are compared as they are written."""
    return answer == gold


def episodes(n: int, seed: int = 0, simulation: Simulation | None = None) -> list[EpisodeWithLabels]:
    """n runs in their order; the same for the same seed."""
    simulation, rng = simulation or Simulation(), random.Random(seed)
    return [_one(number, rng, simulation) for number in range(1, n + 1)]


def would_stop(steps: tuple[StepRecord, ...]) -> int | None:
    """The step at which the policy in force stops a run; None: it lets it run."""
    for before, step in pairwise(steps[:-1]):
        if step.answer == before.answer and (step.confidence or 0.0) >= BOLD:
            return step.index
    return None


def _one(number: int, rng: random.Random, simulation: Simulation) -> EpisodeWithLabels:
    astray, fails = rng.random() < simulation.p_astray, rng.random() < simulation.p_fails
    audit = rng.random() < simulation.audit_share
    steps, final = _steps(rng, astray=astray, fails=fails)
    stop = would_stop(steps)
    stopped = stop is not None and simulation.mode == "enforce" and not audit
    would = None if stop is None else steps[stop - 1].answer
    taken = steps[:stop] if stopped else steps
    prompt = number if simulation.n_prompts is None else rng.randrange(simulation.n_prompts)
    request = plain_request(
        f"e{number}",
        mode=simulation.mode,
        audit=audit,
        propensity=simulation.audit_share if audit else 1 - simulation.audit_share,
        policy_version="p-1",
        certified=True,
        question_key=f"q{prompt}",
        received_at_s=float(number),
        query=Query(query_class=simulation.astray_class if astray else ""),
    )
    thought = STEP_TOKENS * len(taken)
    outcome = Outcome(
        episode_id=f"e{number}",
        end_reason="stopped" if stopped else "done",
        status=200,
        answer=would if stopped else final,
        response_id=None,
        usage=Usage(prompt_tokens=9, completion_tokens=thought + ANSWER_TOKENS, reasoning_tokens=thought),
        stopped=stopped,
        stop_reason="suffices" if stop else None,
        stop_step=stop,
        would_answer=would,
        steps=taken,
    )
    is_labelled = {
        "all": True,
        "none": False,
        "audits": audit or simulation.mode == "observe",
        "disagreements": stop is not None and would != final,
    }[simulation.labels]
    label = StoredLabel(
        seq=10 * number + 5, feedback=Feedback(feedback_id=f"f{number}", gold=GOLD, source="exact-match")
    )
    return EpisodeWithLabels(
        seq=10 * number, episode=Episode(request=request, outcome=outcome), labels=(label,) if is_labelled else ()
    )


def _steps(rng: random.Random, *, astray: bool, fails: bool) -> tuple[tuple[StepRecord, ...], str]:
    """A run's steps with trial answers, and its final answer."""
    n = rng.randint(5, 9)
    final = "7" if fails else GOLD
    settles = rng.randint(1, n - 2)
    steps = []
    for index in range(1, n + 1):
        if astray:
            answer, bold = ("13" if index < n else final), True
        else:
            answer, bold = (final, True) if index >= settles else (str(rng.randint(100, 999)), False)
        # Led astray a run is a little less sure than one that knows: there is something to learn, and no certainty.
        confidence = min(0.999, max(0.01, rng.gauss((0.84 if astray else 0.88) if bold else 0.5, 0.05)))
        steps.append(_step(index, answer, confidence))
    return tuple(steps), final


def _step(index: int, answer: str, confidence: float) -> StepRecord:
    return plain_step(index, tokens=STEP_TOKENS, answer=answer, confidence=confidence, probe_tokens=PROBE_TOKENS)
