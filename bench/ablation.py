"""What each part of the learned rule is worth: leave it out, and compare with the default on the same questions.

    SUFFICE_TRACES=folder python bench/ablation.py [--target 0.01] [--only NAME ...]

Every variant is fitted and its point picked on four fifths of the questions and judged on the other one, as the default
is. Differences are *variant minus default*, or minus the variant that is named, with 95 % intervals from 1,000 draws
of whole questions, both judged on the same draw; that points might have been picked otherwise is not in them. Probes
are charged. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nested import NestedRungs, nest, open_study, share_of
from suffice.arrays import Floats
from suffice.errors import SufficeError
from suffice.learn.audits import find_first_passages
from suffice.learn.features import MAX_CLASSES as MOST_CLASSES
from suffice.replay.study.policies import ScoreRung, halts_at, levels_of
from suffice.replay.study.runs import Halts, Runs, select_runs
from suffice.replay.study.scores import SCORES, Score, ScoredRows
from suffice.replay.study.sets import FALLBACKS
from suffice.replay.study.study import (
    N_LEVELS,
    LadderPool,
    RungSums,
    Study,
    lay_ladders,
    lay_score,
    number_classes,
    sum_rungs,
)
from suffice.replay.study.sums import (
    FIELDS,
    MARGIN,
    N_FOLDS,
    NONE,
    Difference,
    QuestionSums,
    compare_nested,
    sum_halts,
)
from suffice.replay.traces.read import survey
from suffice.signals.features import Classes

N_DRAWS = 1_000
SMALL_CLASS = 200  # runs to pick from; a smaller class takes the pooled level (CONTRACT: it is unknown)
SETS: Sequence[tuple[str, str | None, float | None]] = (  # file, condition, least EM of a run
    ("sc_epoch_gpqa.dev.parquet", None, None),
    ("sc_epoch_aime.dev.parquet", None, 0.3),
    ("cot_gemma12b.dev.parquet", "task=mmlu_pro", None),
    ("cot_gemma12b.dev.parquet", None, None),
    ("loop_revise_gsm8k.dev.parquet", None, None),
    ("agent_mint.dev.parquet", None, None),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What ours is made of when one thing is different."""

    name: str
    scores: tuple[Score, ...]
    fallbacks: bool = True
    by_class: Literal["", "declared", "found"] = ""
    against: str = "default"  # or another variant, where only that one differs in one thing alone


def renamed(mark: str, scores: Sequence[Score], **changes: Any) -> tuple[Score, ...]:
    """The same scores under other names with something changed. Any: fields of a score differ in type."""
    return tuple(replace(score, name=f"{score.name}, {mark}", **changes) for score in scores)


LEARNED = tuple(score for score in SCORES if score.target != "value")
VALUE = tuple(score for score in SCORES if score.target == "value")
COSTS = {cost: Score(name=f"as-good, cost {cost:g}", target="as-good", cost=cost) for cost in (0.0, 0.5, 1.0)}
DEFAULT = Variant(name="default", scores=SCORES)
WITHOUT_VALUE = "without the value model"
VARIANTS = (
    Variant(name="without learned scores", scores=()),
    Variant(name="without published rules to fall back on", scores=SCORES, fallbacks=False),
    Variant(name="without query signals", scores=renamed("no query", SCORES, query_signals=False)),
    Variant(name="a level for each class", scores=SCORES, by_class="declared"),
    Variant(name="a level for each found class", scores=SCORES, by_class="found"),
    Variant(name="value model alone", scores=VALUE),
    Variant(name=WITHOUT_VALUE, scores=LEARNED),
    Variant(name="linear part alone", scores=renamed("linear", LEARNED, parts="linear"), against=WITHOUT_VALUE),
    Variant(name="trees alone", scores=renamed("trees", LEARNED, parts="trees"), against=WITHOUT_VALUE),
    Variant(
        name="without the hopeless side",
        scores=renamed("suffices", LEARNED, target="suffices"),
        against=WITHOUT_VALUE,
    ),
    *(
        Variant(name=f"cost exponent {cost:g} alone", scores=(score,), against=WITHOUT_VALUE)
        for cost, score in COSTS.items()
    ),
)


def pool_of(variant: Variant, study: Study) -> LadderPool:
    names = [ladder.name for ladder in study.ladders if variant.fallbacks and ladder.name in FALLBACKS]
    return LadderPool(name=variant.name, ladders=(*names, *(score.name for score in variant.scores)))


# ---- a level for each class -------------------------------------------------------------------------


def classes_of(study: Study) -> NDArray[np.str_]:
    """The class of each run: its task, or its model where all have one task, shape (E,)."""
    tasks = [query.query_class for query in study.runs.queries]
    if len(set(tasks)) > 1:
        return np.array(tasks)
    return np.array([dict(query.metadata).get("model", "") for query in study.runs.queries])


def frozen_by_class(study: Study, nested: NestedRungs, pool: LadderPool, target: float) -> QuestionSums:
    """Each question under the points that were picked without its fold, one for each class that is large enough."""
    classes = classes_of(study)
    place = {question: at for at, question in enumerate(dict.fromkeys(study.runs.question))}
    base = nested.all.sums
    values = np.zeros((len(base.n), 1, len(FIELDS)))
    for v in range(N_FOLDS):
        pooled = nested.by_fold[v]
        for name in np.unique(classes):
            keep = classes == name
            mine = of_class(study, pooled, keep, v)
            enough = int((keep & (study.fold != v)).sum()) >= SMALL_CLASS
            sums, _, slices = (mine if enough else pooled).of(pool.ladders)
            choice = int(sums.measure(sums.weights(v)).pick(slices, target, 1.0)[0])
            questions = dict.fromkeys(q for q, kept in zip(study.runs.question, keep, strict=True) if kept)
            rows = np.array([place[question] for question in questions])
            judged, _, _ = mine.of(pool.ladders)
            inside = judged.fold == v
            if choice == NONE:
                values[rows[inside], 0, FIELDS.index("tokens")] += judged.full_tokens[inside]
            else:
                values[rows[inside], 0] += judged.values[inside, choice]
    return QuestionSums(fold=base.fold, base=base.base, values=values)


def of_class(study: Study, pooled: RungSums, keep: NDArray[np.bool_], v: int) -> RungSums:
    """Every rung of a fold on the runs of one class alone."""
    runs = select_runs(study.runs, keep)
    rows = keep[study.runs.run_of_row]
    laid = lay_ladders(study.ladders, runs)
    for score in study.options.scores:
        rungs = pooled.rungs[pooled.slices[score.name]]
        levels = np.array([rung.level for rung in rungs if isinstance(rung, ScoreRung)])
        laid[score.name] = lay_score(score.name, study.risk(score, v).select(rows), levels, runs)
    return sum_rungs(runs, laid)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLevels:
    """A score at a level for each large class, and one for the rest."""

    score: Score
    level: float
    classes: Classes
    levels: Mapping[str, float]  # by name of the class

    def halts(self, scored: ScoredRows, runs: Runs) -> Halts:
        level = np.array([self.levels.get(self.classes.of(query), self.level) for query in runs.queries])
        different, which = np.unique(level, return_inverse=True)
        row = find_first_passages(scored.risk, runs.starts, different)[which, np.arange(len(runs))]
        return Halts.at(row, scored.codes, runs, asks=True)


def pick_by_class(
    study: Study, v: int | None, scores: Sequence[Score], target: float
) -> tuple[ClassLevels, float] | None:
    """The levels by class that save most on the questions outside fold `v`, and their saving; None: there are none."""
    train = study.train(v)
    partition, training = number_classes(study.runs, train, MOST_CLASSES), select_runs(study.runs, train)
    best: tuple[ClassLevels, float] | None = None
    for score in scores:
        if score.target == "value" or partition.classes is None:
            continue  # each level of the value model is a separate model, and a route has one
        scored = study.risk(score, v).select(train[study.runs.run_of_row])
        levels = levels_of(scored.risk, N_LEVELS)
        pooled = pick_level(training, scored, levels, target)
        if pooled is None:
            continue
        of_class = {}
        for at, name in enumerate(partition.names):
            mine = partition.number[train] == at
            rows = scored.select(mine[training.run_of_row])
            of_class[name] = pick_level(select_runs(training, mine), rows, levels, target) or 0.0
        rung = ClassLevels(score=score, level=pooled, classes=partition.classes, levels=of_class)
        sums = sum_halts(training, [rung.halts(scored, training)])
        drop, error, saved = (float(value[0, 0]) for value in sums.measure(sums.weights(None)))
        if drop + MARGIN * error <= target and saved > (best[1] if best else 0):
            best = rung, saved
    return best


def pick_level(runs: Runs, scored: ScoredRows, levels: Floats, target: float) -> float | None:
    sums = sum_halts(runs, halts_at(scored.risk, levels, runs, scored.codes))
    at = sums.measure(sums.weights(None))
    choice = int(at.pick([slice(0, len(levels))], target, MARGIN)[0])
    return None if choice == NONE else float(levels[choice])


def frozen_by_found_class(study: Study, nested: NestedRungs, variant: Variant, target: float) -> QuestionSums:
    """Each question under the levels by found class that were picked without its fold, where these save more there."""
    pool = pool_of(variant, study)
    pooled = nested.frozen(pool, target)
    values = pooled.values.copy()
    place = {question: at for at, question in enumerate(dict.fromkeys(study.runs.question))}
    for v in range(N_FOLDS):
        picked = pick_by_class(study, v, variant.scores, target)
        if picked is None or picked[1] <= saved_in_pick(nested, pool, v, target):
            continue
        mine, rung = study.fold == v, picked[0]
        scored = study.risk(rung.score, v)
        rows, runs = mine[study.runs.run_of_row], select_runs(study.runs, mine)
        sums = sum_halts(runs, [rung.halts(scored.select(rows), runs)])
        values[[place[question] for question in dict.fromkeys(runs.question)]] = sums.values
    return QuestionSums(fold=pooled.fold, base=pooled.base, values=values)


def saved_in_pick(nested: NestedRungs, pool: LadderPool, v: int, target: float) -> float:
    """What the pooled pick saves on the questions where it was picked."""
    sums, _, slices = nested.by_fold[v].of(pool.ladders)
    at = sums.measure(sums.weights(v))
    choice = int(at.pick(slices, target, MARGIN)[0])
    return 0.0 if choice == NONE else float(at.saved[0, choice])


# ---- the table --------------------------------------------------------------------------------------


def judge(study: Study, nested: NestedRungs, variant: Variant, target: float) -> QuestionSums:
    if variant.by_class == "found":
        return frozen_by_found_class(study, nested, variant, target)
    pool = pool_of(variant, study)
    return frozen_by_class(study, nested, pool, target) if variant.by_class else nested.frozen(pool, target)


def show(study: Study, name: str, target: float) -> None:
    nested = nest(study)
    n_runs, n_questions = len(study.runs), len(set(study.runs.question))
    print(f"\n### {name}, at most {100 * target:g} points\n\n{n_runs:,} runs of {n_questions:,} questions\n")
    print("| variant | saved | drop | hopeless | misses | more saved, 95 % | more dropped, 95 % | reading |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    judged: dict[str, QuestionSums] = {}
    for variant in (DEFAULT, *VARIANTS):
        judged[variant.name] = judge(study, nested, variant, target)
        cells = figures(judged[variant.name], nested, study, variant, target)
        print(f"| {variant.name} | {cells} | {compared(study, variant, judged)} |", flush=True)


def compared(study: Study, variant: Variant, judged: Mapping[str, QuestionSums]) -> str:
    """What the variant saves and loses beyond the one it stands against."""
    if variant is DEFAULT:
        return "| |"
    if variant.by_class == "declared" and max(np.unique(classes_of(study), return_counts=True)[1]) < SMALL_CLASS:
        return f"| | no class has {SMALL_CLASS} runs: all take the pooled level"
    found = compare_nested(judged[variant.against], judged[variant.name], n_draws=N_DRAWS, rng=np.random.default_rng(0))
    saved, drop = found.saved_interval, found.drop_interval
    other = "" if variant.against == DEFAULT.name else f", against *{variant.against}*"
    return (
        f"{signed(found.saved)} ({signed(saved.low)} to {signed(saved.high)}) | {signed(found.drop, 2)}"
        f" ({signed(drop.low, 2)} to {signed(drop.high, 2)}) | {reading(found)}{other}"
    )


def figures(sums: QuestionSums, nested: NestedRungs, study: Study, variant: Variant, target: float) -> str:
    saved = 1 - sums.of("tokens").sum() / sums.full_tokens.sum()
    drop = share_of(sums, "lost")[0] - share_of(sums, "gained")[0]
    misses = "" if variant.by_class else f"{nested.miss_share(pool_of(variant, study), target):.0%}"
    return f"{saved:.1%} | {signed(drop, 2)} | {share_of(sums, 'hopeless')[0]:.0%} | {misses}"


def signed(share: float, digits: int = 1) -> str:
    return f"{100 * share:+.{digits}f}"


def reading(found: Difference) -> str:
    """What the intervals allow to say of the variant."""
    said = []
    for interval, less, more in (
        (found.saved_interval, "saves less", "saves more"),
        (found.drop_interval, "loses less", "loses more"),
    ):
        if interval.high < 0:
            said.append(less)
        elif interval.low > 0:
            said.append(more)
    return ", ".join(said) or "no difference shown"


def every_score() -> tuple[Score, ...]:
    """All scores of all variants, each once: a study fits what several of them need only once."""
    found: Mapping[str, Score] = {score.name: score for variant in (DEFAULT, *VARIANTS) for score in variant.scores}
    return tuple(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=0.01, help="largest EM drop, a fraction")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="sets whose name begins so")
    asked = parser.parse_args()
    folder = Path(os.environ.get("SUFFICE_TRACES") or "no folder was named")
    if not any((folder / file).exists() for file, *_ in SETS):
        print("ablation: set SUFFICE_TRACES to a folder with files named SET.dev.parquet", file=sys.stderr)
        return 2
    for file, where, min_run_em in SETS:
        if not (folder / file).exists() or (asked.only and not file.startswith(tuple(asked.only))):
            continue
        try:
            (data,) = survey([folder / file], where=where, min_run_em=min_run_em)
            study = open_study(data, scores=every_score())
        except SufficeError as error:
            print(f"ablation: {error}", file=sys.stderr)
            return 2
        more = [where or "", "" if min_run_em is None else f"runs with EM > {min_run_em:g}"]
        show(study, ", ".join(part for part in (data.set, *more) if part), asked.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
