"""How long the online demonstration runs, on which settings, and what it asks. Pure.

The settings are a file as its owner would write it: `story_settings` is what the gateway reads, and what is shown.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final

from suffice.local.tasks import TaskQuestion

ROUTE: Final = "quiz"
MODEL: Final = "quiz-model"  # what clients ask for, whoever stands behind it
SEED: Final = 20_26
EACH: Final = 5  # questions between two looks at the log


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    burst: int = 340  # full runs before anything may be learned: audits are dense until 16/max_em_drop
    most: int = 600  # … and how long a certificate is waited for
    n_certified: int = 200  # asked under the certificate
    n_swapped: int = 50  # asked behind the swap
    max_em_drop: float = 0.05  # fraction
    confidence: float = 0.95
    tick: int = 20  # requests between two looks of the control loop
    n_samples: int = 8
    wave: int = 2
    period_s: float = 1.0


SMALL: Final = DemoPlan(burst=180, most=300, n_certified=60, n_swapped=15, max_em_drop=0.1)


def story_settings(plan: DemoPlan, *, upstream: str, driver: str, slots: int, database: Path) -> str:
    """The settings file. It names no policy: what stops the route is learned and certified, or nothing does."""
    return f"""\
[upstreams.local]
url = "{upstream}"
driver = "{driver}"
slots = {slots}

[routes.{ROUTE}]
upstream = "local"
match = {{ header = "{ROUTE}" }}
kind = "samples"
samples = {plan.n_samples}
wave = {plan.wave}                   # as many as the server works on at once
scorer = "text"
mode = "enforce"           # and no policy: it is learned, and certified before it acts
max_em_drop = {plan.max_em_drop:<8g}     # default 0.02: a shorter proof needs a larger budget
confidence = {plan.confidence:g}

[control]
burst_requests = {plan.burst}       # default 1000
refit_requests = {plan.burst}       # default 1000
tick_requests = {plan.tick}         # default 100
period_s = {plan.period_s:g}

[store]
url = "sqlite:///{database}"
"""


def generate_traffic(pool: Sequence[TaskQuestion], *, seed: int = SEED) -> Iterator[TaskQuestion]:
    """Traffic without end: questions drawn from the pool with replacement, each request with an id of its own.

    So the traffic is the same from the first request to the last, and a question may come again, as in life.
    """
    rng = random.Random(seed)
    for number in count(1):
        question = rng.choice(pool)
        yield replace(question, id=f"{question.id}#{number}")


def name_of(question: TaskQuestion) -> str:
    return question.id.partition("#")[0]
