"""One set from files to report: survey, study on what fits into memory, then every run judged once.

The judging pass reads the files again, batch by batch, so a set of millions of runs needs no more memory
than its sample; a set that fits is its own sample. Each run is judged by the point of the fold that has not
seen its question, or by the point of the `fit` files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval
from suffice.errors import ConfigError
from suffice.learn.audits import Bools
from suffice.learn.features import DENSE
from suffice.replay.study.policies import (
    Ladder,
    Rung,
    ScoreRung,
    build_given_ladder,
    build_ladders,
    levels_of,
    list_ladder_folds,
)
from suffice.replay.study.result import (
    TOO_SMALL_QUESTIONS,
    TOO_SMALL_RUNS,
    Choice,
    Family,
    Parts,
    PlotPoint,
    PolicyResult,
    SetReport,
)
from suffice.replay.study.runs import (
    PROBE_TOKENS,
    Halts,
    Runs,
    concatenate,
    read_runs,
    select_runs,
    stop_at_first,
    stream_runs,
)
from suffice.replay.study.scores import SCORES, Score
from suffice.replay.study.study import (
    N_LEVELS,
    FoldChoice,
    LadderPool,
    RungSums,
    ScoreLevels,
    Study,
    StudyOptions,
    Target,
    find_halts,
    lay_rungs,
    pick_classed,
)
from suffice.replay.study.sums import (
    MARGIN,
    N_FOLDS,
    NONE,
    QuestionSums,
    SumsFold,
    bootstrap,
    compare_nested,
    folds_of,
    measure_policies,
    miss_share,
    pick_plainly,
)
from suffice.replay.traces.read import Survey
from suffice.signals.features import FeatureSet
from suffice.types import Kind

N_DRAWS = 1_000
# Published rules that ours may fall back on: one ladder a rule. Near twins would only add chances for a fluke.
FALLBACKS = ("fixed-rounds", "stable-answer", "beta", "esc", "confidence-threshold", "stated-confidence, patience 2")

LEARNED = "learned"
OURS, BY_CLASS = "ours", "ours_by_class"
HINDSIGHT = {"published": "hindsight", "ours": "ours_hindsight"}  # pool → its line picked after the fact
DETAILED = ("ours", "published", "hindsight")  # lines that are shown by class and by step
FAMILIES: Mapping[str, tuple[Family, Choice]] = {
    "full": ("full", "fixed"),
    OURS: ("ours", "frozen"),
    BY_CLASS: ("ours", "frozen"),
    "ours_hindsight": ("ours", "hindsight"),
    "published": ("published", "frozen"),
    "hindsight": ("published", "hindsight"),
    "oracle_agree": ("oracle", "fixed"),
    "oracle_correct": ("oracle", "fixed"),
}

Tick = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    max_em_drop: float = 0.01  # fraction
    probe_tokens: int | None = None  # a probe; None: as recorded, else 15 for `reasoning`
    margin: float = MARGIN  # standard errors between a frozen point and the target
    families: tuple[str, ...] = ()  # published rules and "learned"; (): all
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # given ones, by label
    scores: tuple[Score, ...] = SCORES
    classes: int = 0  # found in the data, at most, each with its own level; 0: none
    seed: int = 0
    n_draws: int = N_DRAWS


def replay_set(
    data: Survey, asked: ReplayOptions, *, fit: Sequence[Survey] = (), tick: Tick = lambda _: None
) -> SetReport:
    """Replay one set. Raises TraceError for data, ConfigError for policies or a missing package.

    fit  other sets: models and points come from them alone and are frozen; (): folds of this set
    """
    longest = max([data.longest, *(other.longest for other in fit)])
    ladders = _ladders(data.kind, asked, longest)
    scores = asked.scores if not asked.families or LEARNED in asked.families else ()
    learned = FeatureSet(DENSE[data.kind]).needs if scores else ()
    needs, probe_tokens = tuple(dict.fromkeys([*list_ladder_folds(ladders), *learned])), asked.probe_tokens
    tick("reading")
    sample, *others = (read_runs(one, needs, probe_tokens=probe_tokens, longest=longest) for one in (data, *fit))
    source = concatenate(others) if fit else sample
    options = StudyOptions(max_em_drop=asked.max_em_drop, scores=scores, margin=asked.margin, seed=asked.seed)
    study = Study(source, [lad for lad in ladders if lad.origin == "published"], options, tick=lambda: tick("fitting"))
    pools = pools_of(ladders, scores)
    folds: Sequence[int | None] = [None] if fit else range(N_FOLDS)
    frozen = [_with_classes(study, v, asked, study.freeze(pools, v)) for v in folds]
    tick("picking")
    case = _Case(data, asked, study, pools, frozen, sample, longest)
    here = _lay_here(case) if fit else study.lay(None)
    late = _in_hindsight(case, here)
    for given_ladder in (lad for lad in ladders if lad.origin == "given"):
        late[given_ladder.name] = given_ladder.rungs[0]
    case.frozen[:] = [replace(one, rungs={**one.rungs, **late}) for one in frozen]
    everything = iter([sample])
    if data.share < 1:
        everything = stream_runs(data, needs, probe_tokens=probe_tokens, longest=longest, share=1.0)
    return _judge(case, everything, here, tuple(path.name for other in fit for path in other.files), tick)


def _with_classes(study: Study, v: int | None, asked: ReplayOptions, frozen: FoldChoice) -> FoldChoice:
    """Beside ours also ours by found classes, where that saves more on the questions that may be known."""
    if not asked.classes or OURS not in frozen.rungs:
        return frozen
    picked = pick_classed(study, v, asked.classes, Target(asked.max_em_drop, asked.margin))
    better = picked is not None and picked[1] > frozen.saved[OURS]
    rung = picked[0] if picked is not None and better else frozen.rungs[OURS]
    return replace(frozen, rungs={**frozen.rungs, BY_CLASS: rung})


@dataclass(frozen=True, slots=True)
class _Case:
    data: Survey
    asked: ReplayOptions
    study: Study
    pools: tuple[LadderPool, ...]
    frozen: list[FoldChoice]  # one for each fold, or one for all
    sample: Runs
    longest: int  # steps of the longest run


# ---- what is compared -----------------------------------------------------------------------------


def _ladders(kind: Kind, asked: ReplayOptions, longest: int) -> tuple[Ladder, ...]:
    ladders = build_ladders(kind, longest=longest)
    known = sorted({family_of(ladder.name) for ladder in ladders} | {LEARNED})
    for family in asked.families:
        if family not in known:
            raise ConfigError(f"policies: unknown rule {family!r:.80} for {kind}; known: {', '.join(known)}")
    if asked.families:
        ladders = tuple(ladder for ladder in ladders if family_of(ladder.name) in asked.families)
    return (*ladders, *(build_given_ladder(spec, label) for label, spec in asked.policies.items()))


def family_of(ladder: str) -> str:
    """The published rule that a ladder belongs to: its name up to the first comma."""
    return ladder.partition(",")[0]


def pools_of(ladders: Sequence[Ladder], scores: Sequence[Score]) -> tuple[LadderPool, ...]:
    """What points are picked from: ours, all published rules, and each rule alone."""
    names = tuple(ladder.name for ladder in ladders if ladder.origin == "published")
    pools = []
    if scores:
        fallbacks = tuple(name for name in names if name in FALLBACKS)
        pools.append(LadderPool(name=OURS, ladders=(*fallbacks, *(score.name for score in scores))))
    if names:
        pools.append(LadderPool(name="published", ladders=names))
    return (
        *pools,
        *(
            LadderPool(name=rule, ladders=tuple(name for name in names if family_of(name) == rule))
            for rule in dict.fromkeys(family_of(name) for name in names)
        ),
    )


def _lay_here(case: _Case) -> RungSums:
    """Every rung on the set that is judged, where points come from other files: what hindsight could have picked."""
    runs, study = case.sample, case.study
    learned = {}
    for score in study.options.scores:
        risk, codes = study.score_others(score.name, case.frozen[0], runs)
        learned[score.name] = ScoreLevels(risk, codes, levels_of(risk, N_LEVELS))
    return lay_rungs(runs, find_halts(study.ladders, runs), learned)


def _in_hindsight(case: _Case, here: RungSums) -> dict[str, Rung | None]:
    best: dict[str, Rung | None] = {}
    for pool in case.pools:
        name = HINDSIGHT.get(pool.name)
        if name is not None:
            sums, rungs, _ = here.of(pool.ladders)
            choice = int(pick_plainly(measure_policies(sums, np.ones((1, len(sums.n)))), case.asked.max_em_drop)[0])
            best[name] = None if choice == NONE else rungs[choice]
    return best


# ---- judging --------------------------------------------------------------------------------------


def _judge(
    case: _Case, everything: Iterator[Runs], here: RungSums, fitted_on: tuple[str, ...], tick: Tick
) -> SetReport:
    names = _order(case)
    summing = SumsFold(len(names))
    parts = Parts([name for name in names if name in DETAILED])
    count: Counter[str] = Counter()
    for runs in everything:
        judged = _halts(case, runs)
        summing.add(runs, [judged[name][0] for name in names], [judged[name][1] for name in names])
        parts.add(runs, judged)
        count.update(runs=len(runs), answered=int((~np.isnan(runs.columns.answer[runs.last])).sum()))
        tick("judging")
    sums = summing.sums()
    drops, reductions = bootstrap(sums, case.asked.n_draws, np.random.default_rng(case.asked.seed))
    misses, plain = _misses(case)
    lines = tuple(
        _line(case, name, sums.columns([at]), (drops[at], reductions[at]), misses.get(name), summing.n_questions)
        for at, name in enumerate(names)
    )
    return SetReport(
        set=case.data.set,
        kind=case.data.kind,
        max_em_drop=case.asked.max_em_drop,
        probe_tokens=PROBE_TOKENS[case.data.kind] if case.asked.probe_tokens is None else case.asked.probe_tokens,
        lines=lines,
        frontier=_frontier(case, here),
        by_class=parts.by_class(),
        by_step=parts.by_step(),
        notes=(*_notes(case, summing.n_questions, count, plain), *_about_classes(case, names, sums)),
        fitted_on=fitted_on,
    )


def _order(case: _Case) -> list[str]:
    pools = [pool.name for pool in case.pools]
    by_class = [BY_CLASS] if BY_CLASS in case.frozen[0].rungs else []
    late = [name for name in case.frozen[0].rungs if name not in (*pools, BY_CLASS)]
    first = [name for name in pools if name == OURS]
    return ["full", *first, *by_class, *pools[len(first) :], *late, "oracle_agree", "oracle_correct"]


def _halts(case: _Case, runs: Runs) -> dict[str, tuple[Halts, Bools]]:
    row: dict[str, NDArray[np.int64]] = {}
    code: dict[str, NDArray[np.int8]] = {}
    returned: dict[str, NDArray[np.int64]] = {}
    asks: dict[str, Bools] = {}
    fold = folds_of(runs) if len(case.frozen) > 1 else np.zeros(len(runs), dtype=np.int64)
    for v, frozen in enumerate(case.frozen):
        mine = np.flatnonzero(fold == v)
        if not len(mine):
            continue
        those = select_runs(runs, fold == v)
        shift = runs.starts[mine] - those.starts[:-1]
        for name, halt in case.study.halts(frozen, those).items():
            row.setdefault(name, runs.last.copy())[mine] = halt.row + shift
            given_row = halt.row if halt.returned is None else halt.returned
            returned.setdefault(name, runs.last.copy())[mine] = given_row + shift
            code.setdefault(name, np.zeros(len(runs), dtype=np.int8))[mine] = halt.code
            rung = frozen.rungs[name]
            asks.setdefault(name, np.zeros(len(runs), dtype=bool))[mine] = rung is not None and rung.asks
    silent = np.zeros(len(runs), dtype=bool)
    full = Halts(runs.last, np.zeros(len(runs), dtype=np.int8))
    halts = {name: (Halts(row[name], code[name], returned[name]), asks[name]) for name in row}
    return {
        **halts,
        "full": (full, silent),
        "oracle_agree": (stop_at_first(runs, runs.same), silent),
        "oracle_correct": (stop_at_first(runs, runs.ok), silent),
    }


def _misses(case: _Case) -> tuple[dict[str, float], dict[str, float]]:
    """Share of question splits that miss the target, for each pool: with the margin, and by plain tuning."""
    laid = case.study.lay(None)
    with_margin, plain = {}, {}
    for pool in case.pools:
        sums, _, slices = laid.of(pool.ladders)
        if len(sums.n) < 4:
            continue
        target, margin = case.asked.max_em_drop, case.asked.margin
        with_margin[pool.name] = miss_share(sums, slices, target, np.random.default_rng(case.asked.seed), margin=margin)
        plain[pool.name] = miss_share(sums, slices, target, np.random.default_rng(case.asked.seed), margin=None)
    return with_margin, plain


# ---- lines ----------------------------------------------------------------------------------------


def _line(
    case: _Case,
    name: str,
    sums: QuestionSums,
    intervals: tuple[Interval, Interval],
    missed: float | None,
    n_questions: int,
) -> PolicyResult:
    n, full_ok, full_tokens = (float(value) for value in sums.base.sum(axis=0))
    lost, gained, tokens, probes, resent, stopped, hopeless = (float(x) for x in sums.values[:, 0].sum(axis=0))
    family, choice = FAMILIES.get(name, ("given", "fixed") if name in case.asked.policies else ("published", "frozen"))
    chosen = [one.rungs.get(name) for one in case.frozen]
    specs = [rung.spec if rung is not None else None for rung in chosen]
    same_spec = specs[0] if specs and all(spec == specs[0] for spec in specs) else None
    interval_drop, interval_saved = (None, None) if family == "full" else intervals
    return PolicyResult(
        set=case.data.set,
        policy=name,
        family=family,
        choice=choice,
        spec=same_spec,
        n_episodes=int(n),
        n_questions=n_questions,
        full_em=full_ok / n,
        em=(full_ok - lost + gained) / n,
        em_drop=(lost - gained) / n,
        lost=lost / n,
        gained=gained / n,
        full_tokens=int(full_tokens),
        tokens=round(tokens),
        token_reduction=_reduction(tokens, full_tokens),
        token_reduction_without_probes=_reduction(tokens - probes, full_tokens),
        token_reduction_without_cache=_reduction(tokens + resent, full_tokens) if resent else None,
        em_drop_interval=interval_drop,
        token_reduction_interval=interval_saved,
        stopped=stopped / n,
        hopeless=hopeless / n,
        miss_share=missed,
        note=_chosen(name, chosen) if name in case.frozen[0].rungs else "",
    )


def _reduction(tokens: float, full_tokens: float) -> float:
    return 1 - tokens / full_tokens if full_tokens else 0.0


def _chosen(name: str, rungs: Sequence[Rung | None]) -> str:
    """Which rungs the folds settled on: "beta 0.95 (4 of 5 folds), never (1)"."""
    labels = Counter(
        "never stops"
        if rung is None
        else rung.score
        if isinstance(rung, ScoreRung) and rung.classes is None
        else rung.label
        for rung in rungs
    )
    if len(labels) == 1:
        return "" if next(iter(labels)) == name else next(iter(labels))
    return ", ".join(f"{label} ({n} of {len(rungs)} folds)" for label, n in labels.most_common())


def _frontier(case: _Case, here: RungSums) -> dict[str, tuple[PlotPoint, ...]]:
    """Every rung in sample, by group: the dots of the plot."""
    at = measure_policies(here.sums, np.ones((1, len(here.sums.n))))
    points = [
        PlotPoint(policy=rung.label, em_drop=float(drop), token_reduction=float(saved))
        for rung, drop, saved in zip(here.rungs, at.drop[0], at.saved[0], strict=True)
    ]
    groups: dict[str, tuple[PlotPoint, ...]] = {}
    for pool in case.pools:
        if pool.name in HINDSIGHT:
            names = [name for name in pool.ladders if pool.name == "published" or name not in FALLBACKS]
            groups[pool.name] = tuple(point for name in names for point in points[here.slices[name]])
    return groups


def _notes(case: _Case, n_questions: int, count: Counter[str], plain: Mapping[str, float]) -> tuple[str, ...]:
    notes = []
    if count["runs"] < TOO_SMALL_RUNS or n_questions < TOO_SMALL_QUESTIONS:
        notes.append(
            f"too small to certify: {count['runs']:,} runs of {n_questions:,} questions; certificates begin at"
            f" {TOO_SMALL_RUNS:,} runs and {TOO_SMALL_QUESTIONS} questions"
        )
    if case.data.kind != "samples":
        notes.append(
            f"the planned length of a run, which a live route knows as its cap, is taken to be {case.longest}"
            " steps, the longest recorded run"
        )
    if case.data.share < 1:
        notes.append(
            f"models and points come from {case.data.share:.1%} of the questions, chosen by hash; all runs are judged"
        )
    if "published" in plain:
        shares = ", ".join(f"{name} {plain[name]:.0%}" for name in ("ours", "published") if name in plain)
        notes.append(
            f"tuned plainly, the best of all settings on one half of the questions misses the target on the"
            f" other in this share of 200 splits: {shares}"
        )
    if count["answered"] < 0.8 * count["runs"]:
        share = count["answered"] / max(1, count["runs"])
        notes.append(f"only {share:.0%} of the full runs gave an answer; the others count as wrong")
    return tuple(notes)


def _about_classes(case: _Case, names: Sequence[str], sums: QuestionSums) -> tuple[str, ...]:
    if BY_CLASS not in names:
        return ()
    rungs = [one.rungs[BY_CLASS] for one in case.frozen]
    classed = [rung for rung in rungs if isinstance(rung, ScoreRung) and rung.classes is not None]
    if not classed:
        return ("no classes were found that are large enough and save more with levels of their own",)
    first, other = (sums.columns([names.index(name)]) for name in (OURS, BY_CLASS))
    by = compare_nested(first, other, n_draws=case.asked.n_draws, rng=np.random.default_rng(case.asked.seed))
    saved, drop = by.saved_interval, by.drop_interval
    classes = "; ".join(f"{name} ({level:.3g})" for name, level in classed[0].levels.items())
    note = (
        f"levels by found class, in {len(classed)} of {len(rungs)} folds, against one level for all: saved"
        f" {100 * by.saved:+.1f} points ({100 * saved.low:+.1f} to {100 * saved.high:+.1f}), drop"
        f" {100 * by.drop:+.2f} ({100 * drop.low:+.2f} to {100 * drop.high:+.2f}). Classes of the first: {classes}"
    )
    return (note,)
