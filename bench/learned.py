"""What a learned score costs, and that it says what its trainer says.

    python bench/learned.py [--check]

A stop model is fitted on made-up runs with the default parts (a logistic regression on about 40 features, 60 boosted
trees of 6 leaves), exported, and compared with its trainer on 10,000 rows it has not seen. Medians of CPU time
over repetitions, on one core. With `--check` a figure above its limit ends the program with 1.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from suffice.errors import ConfigError
from suffice.learn.features import choose_features
from suffice.learn.models import Examples, Parts, export_ensemble, fit
from suffice.model.artefact import StopModel, TrainingRecord, dump_model, load_model
from suffice.policy.learned import LearnedPolicy
from suffice.signals.features import FeatureSet
from suffice.signals.observe import Observer, observe_columns
from suffice.types import Query, Signals, Step

N_RUNS, N_STEPS, N_ROWS = 1_500, 12, 10_000
MODELS = ("alpha", "beta")
REPEATS = 9
ALIKE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table."""

    what: str
    value: float
    limit: float | None  # None: none was set


def runs(rng: random.Random) -> list[tuple[Query, list[Step]]]:
    """Chains whose confidence wanders and whose answer settles, each asked of one of two models."""
    made = []
    for _ in range(N_RUNS):
        level, steps = rng.random(), []
        for index in range(1, N_STEPS + 1):
            level = min(0.999, max(0.05, level + rng.gauss(0.02, 0.1)))
            steps.append(
                Step(
                    index=index,
                    tokens=rng.randrange(20, 200),
                    answer=None if rng.random() < 0.05 else rng.choice("aaab"),
                    answer_source="probe",
                    confidence=level,
                    mass=rng.random(),
                    entropy=rng.expovariate(2.0),
                    closed_entropy=rng.expovariate(2.0),
                    text=rng.choice(("so it is", "wait, let me check", "hmm")),
                )
            )
        query = Query(metadata=(("model", rng.choice(MODELS)),), planned_steps=N_STEPS, n_words=20, n_numbers=2)
        made.append((query, steps))
    return made


def microseconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Median CPU time of the work for one item."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.process_time()
        for item in items:
            work(item)
        seconds.append((time.process_time() - begin) / len(items))
    return median(seconds) * 1e6


def signals_of(features: FeatureSet, asked: Sequence[tuple[Query, list[Step]]]) -> list[Signals]:
    found = []
    for query, steps in asked:
        observer = Observer(features.needs, "reasoning", query=query)
        found += [observer.observe(step) for step in steps]
    return found


def figures() -> list[Figure]:
    made = runs(random.Random(0))
    queries = [query for query, _ in made]
    chosen = choose_features("reasoning", queries)
    features = FeatureSet(chosen.names)
    table = features.matrix(observe_columns(features.needs, "reasoning", made), queries)
    rng = np.random.default_rng(0)
    half = len(table) // 3
    at = [chosen.names.index(name) for name in ("logit(confidence)", "log1p(answer_streak)")]
    good = rng.random(len(table)) < 1 / (1 + np.exp(1 - table[:, at] @ [0.4, 0.8]))
    examples = Examples(table[:half], good[:half])
    unseen = table[half:][:N_ROWS]
    seen = signals_of(features, made[:100])
    rows = [features.row(signals) for signals in seen]
    found = [Figure(what=f"features of a row: {len(features)}, µs", value=microseconds(features.row, seen), limit=None)]
    kinds: tuple[tuple[Parts, str], ...] = (("linear", "linear"), ("ensemble", "linear and 60 trees"))
    for parts, name in kinds:
        fitted = fit(examples, chosen, parts=parts)
        ensemble = export_ensemble(fitted.trained, n_features=len(features))
        trained = TrainingRecord(n_episodes=N_RUNS, n_questions=N_RUNS, digest="made up", target="as-good", seed=0)
        model = load_model(dump_model(StopModel(features=features.names, suffices=ensemble, trained=trained)))
        policy, expected = LearnedPolicy(model=model), fitted.scores(unseen)
        one_by_one = [model.suffices.score(row) for row in unseen.tolist()]
        apart = max(np.abs(model.suffices.scores(unseen) - expected).max(), np.abs(one_by_one - expected).max())
        score = lambda signals, model=model: model.suffices.score(features.row(signals))
        begin = time.process_time()
        model.suffices.scores(unseen)
        per_row = (time.process_time() - begin) / len(unseen) * 1e6
        found += [
            Figure(what=f"{name}: score of a row, µs", value=microseconds(model.suffices.score, rows), limit=None),
            Figure(what=f"{name}: features and score, µs", value=microseconds(score, seen), limit=10.0),
            Figure(what=f"{name}: decision with its sentence, µs", value=microseconds(policy.decide, seen), limit=None),
            Figure(what=f"{name}: score of a row of a matrix, µs", value=per_row, limit=None),
            Figure(what=f"{name}: farthest from its trainer on {len(unseen):,} rows", value=float(apart), limit=ALIKE),
            Figure(what=f"{name}: artefact, KiB", value=len(dump_model(model)) / 1024, limit=None),
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is missed")
    options = parser.parse_args()
    print(f"machine: {platform.platform()} | Python {platform.python_version()}\n")
    try:
        found = figures()
    except ConfigError as error:
        print(f"learned: {error}", file=sys.stderr)
        return 2
    print("| what | measured | limit |\n| --- | --- | --- |")
    for row in found:
        limit = "–" if row.limit is None else f"{row.limit:g}"
        print(
            f"| {row.what} | {row.value:.2g} | {limit} |"
            if row.value < 0.01
            else f"| {row.what} | {row.value:.1f} | {limit} |"
        )
    missed = [row.what for row in found if row.limit is not None and row.value > row.limit]
    for what in missed:
        print(f"MISSED  {what}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
