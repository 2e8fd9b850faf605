"""Replays one set from files to report: survey, a study on the runs that fit into memory, and a judging pass.

The judging pass reads the files again in batches, so memory does not grow with the set.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Floats, Ints
from suffice.assurance.bounds import Interval
from suffice.errors import ConfigError
from suffice.executor import Executor, SerialExecutor
from suffice.learn.features import DENSE
from suffice.replay.study.policies import (
    LEARNED,
    Ladder,
    Rung,
    ScoreRung,
    build_given_ladder,
    build_ladders,
    levels_of,
    list_ladder_folds,
)
from suffice.replay.study.runs import (
    PROBE_TOKENS,
    Halts,
    Runs,
    concatenate,
    make_runs,
    never_halt,
    read_runs,
    select_runs,
    stop_at_first,
)
from suffice.replay.study.scores import Score
from suffice.replay.study.study import (
    N_LEVELS,
    FoldChoice,
    FrozenScores,
    LadderPool,
    ReplayOptions,
    RungSums,
    Study,
    Tick,
    lay_ladders,
    lay_score,
    sum_rungs,
)
from suffice.replay.study.sums import (
    N_FOLDS,
    NONE,
    QuestionSums,
    SumsFold,
    base_columns,
    columns_of,
    folds_of,
    measure_rates,
    sum_by_group,
)
from suffice.replay.traces.formats import FileShard
from suffice.replay.traces.read import Survey
from suffice.signals.features import FeatureSet
from suffice.types import Kind

Family: TypeAlias = Literal[
    "full",  # every run to its end
    "published",  # a policy from the literature, at a setting of the grid
    "ours",  # a learned score, alone or composed
    "given",  # a policy of the user, at the given parameters
    "oracle",  # reads labels, which no policy may
]
Choice: TypeAlias = Literal[
    "fixed",  # nothing was picked: full runs, oracles, a given policy
    "frozen",  # the point was picked on other questions than the reported ones
    "hindsight",  # the point was picked on the reported questions: optimistic
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """One policy on one set. JSON lines keep the order of the fields."""

    set: str
    policy: str  # display name with the main parameters
    n_episodes: int
    n_questions: int
    full_em: float
    em: float
    em_drop: float  # full_em - em
    lost: float  # share correct in full and wrong when stopped
    gained: float  # share wrong in full and correct when stopped
    full_tokens: int
    tokens: int  # total, probes included
    token_reduction: float  # 1 - tokens / full_tokens
    token_reduction_without_probes: float
    em_drop_interval: Interval | None = None  # question-clustered bootstrap, 95 %
    frozen: bool = field(init=False)
    family: Family
    choice: Choice
    spec: Mapping[str, Any] | None  # argument of `build_policy`; None: an oracle, or folds differ
    token_reduction_without_cache: float | None = None  # with the prefix of every probe billed in full
    token_reduction_interval: Interval | None = None
    stopped: float = 0.0  # share of runs stopped early
    hopeless: float = 0.0  # share of runs stopped as hopeless
    miss_share: float | None = None  # share of random splits in which the tuned point misses its target
    note: str = ""  # a caveat for the reader

    def __post_init__(self) -> None:
        object.__setattr__(self, "frozen", self.choice != "hindsight")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    policy: str
    em_drop: float
    token_reduction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPart:
    name: str
    n_episodes: int
    n_questions: int
    full_em: float
    em_drop: float
    lost: float
    gained: float
    token_reduction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    set: str
    kind: Kind
    max_em_drop: float  # target, a fraction
    probe_tokens: int  # charged per probe
    lines: tuple[PolicyResult, ...]
    frontier: Mapping[str, tuple[PlotPoint, ...]] = field(default_factory=dict)  # by label of the family
    by_class: Mapping[str, tuple[SetPart, ...]] = field(default_factory=dict)  # by the policy of a line
    by_step: Mapping[str, tuple[SetPart, ...]] = field(default_factory=dict)  # by the policy of a line
    notes: tuple[str, ...] = ()  # for the head of the report, such as "too small to certify"
    fitted_on: tuple[str, ...] = ()  # files for fitting and picking; (): folds of this set


TOO_SMALL_RUNS, TOO_SMALL_QUESTIONS = 1_000, 50  # below either, no certificate is possible
MOST_CLASSES = 24  # only the largest are listed
MOST_KNOWN = 100_000  # questions of a part that are told apart: bounds the memory
_STEP_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Parts:
    def __init__(self, policies: Sequence[str]) -> None:
        self._policies = tuple(policies)
        self._sums = defaultdict[tuple[str, str, str], Floats](partial(np.zeros, 6))  # (policy, what, part)
        self._questions = defaultdict[tuple[str, str, str], set[str]](set)

    def add(self, runs: Runs, judged: Mapping[str, Halts]) -> None:
        classes = class_names(runs)
        for policy in self._policies:
            halts = judged[policy]
            lost, gained, tokens, *_ = columns_of(runs, halts)
            columns = (*base_columns(runs), lost, gained, tokens)
            for what, names in (("class", classes), ("step", _halt_names(runs, halts))):
                different, which = np.unique(names, return_inverse=True)
                sums = sum_by_group(which, columns, len(different))
                for at, name in enumerate(different.tolist()):
                    key = (policy, what, name)
                    self._sums[key] += sums[at]
                    if len(known := self._questions[key]) < MOST_KNOWN:
                        known.update(runs.question[i] for i in np.flatnonzero(which == at).tolist())

    def merge(self, other: Parts) -> None:
        for key, sums in other._sums.items():
            self._sums[key] = self._sums[key] + sums  # Ray gives arrays that nobody may change
            if len(known := self._questions[key]) < MOST_KNOWN:
                known |= other._questions[key]

    def by_class(self) -> dict[str, tuple[SetPart, ...]]:
        """Classes by policy, the largest first; empty if all runs are of one class."""
        return {
            policy: tuple(sorted(parts, key=lambda part: (-part.n_episodes, part.name))[:MOST_CLASSES])
            for policy in self._policies
            if len(parts := self._parts(policy, "class")) > 1
        }

    def by_step(self) -> dict[str, tuple[SetPart, ...]]:
        return {policy: tuple(sorted(self._parts(policy, "step"), key=_step_order)) for policy in self._policies}

    def _parts(self, policy: str, what: str) -> list[SetPart]:
        return [self._part(key) for key in self._sums if key[:2] == (policy, what)]

    def _part(self, key: tuple[str, str, str]) -> SetPart:
        sums, n_questions = self._sums[key].tolist(), len(self._questions[key])
        return SetPart(name=key[2], n_episodes=int(sums[0]), n_questions=n_questions, **measure_rates(sums))


def class_names(runs: Runs) -> NDArray[np.str_]:
    """The class of each run, shape (E,): its task, or its model if all have one task."""
    tasks = [query.query_class for query in runs.queries]
    models = [dict(query.metadata).get("model", "") for query in runs.queries]
    return np.array([f"{task} · {model}" if task else model for task, model in zip(tasks, models, strict=True)])


def _halt_names(runs: Runs, halts: Halts) -> NDArray[np.str_]:
    place = np.searchsorted(_STEP_EDGES, halts.row - runs.starts[:-1] + 1)
    lows = (1, *(edge + 1 for edge in _STEP_EDGES))
    pairs = zip(lows, _STEP_EDGES, strict=False)
    names = [f"step {low}" if low == high else f"steps {low}–{high}" for low, high in pairs]
    names.append(f"steps above {_STEP_EDGES[-1]}")
    return np.where(halts.row < runs.last, np.array(names)[place], "to the end")


def _step_order(part: SetPart) -> tuple[int, str]:
    digits = re.search(r"\d+", part.name)
    return (int(digits[0]) if digits else 10**9, part.name)


# Published policies that `ours` may fall back on, one ladder each; near duplicates would only add chances for a fluke.
FALLBACKS = ("fixed-rounds", "stable-answer", "beta", "esc", "confidence-threshold", "stated-confidence, patience 2")

OURS = "ours"
HINDSIGHT = {"published": "hindsight", "ours": "ours_hindsight"}  # pool → its line picked in hindsight
DETAILED = ("ours", "published", "hindsight")  # lines reported by class and by step
FAMILIES: Mapping[str, tuple[Family, Choice]] = {
    "full": ("full", "fixed"),
    OURS: ("ours", "frozen"),
    "ours_hindsight": ("ours", "hindsight"),
    "published": ("published", "frozen"),
    "hindsight": ("published", "hindsight"),
    "oracle_agree": ("oracle", "fixed"),
    "oracle_correct": ("oracle", "fixed"),
}


def replay_set(
    data: Survey,
    options: ReplayOptions,
    *,
    fit: Sequence[Survey] = (),
    executor: Executor | None = None,
    tick: Tick = lambda _: None,
) -> SetReport:
    """Replay one set. Raise TraceError for data, ConfigError for policies or a missing package.

    fit       sets for fitting and picking, instead of folds of this set
    executor  judges the shards of a set that memory does not hold; None: this process
    """
    longest = max([data.longest, *(other.longest for other in fit)])
    ladders = _ladders(data.kind, options, longest)
    scores = options.scores if not options.families or LEARNED in options.families else ()
    learned = FeatureSet(DENSE[data.kind]).needs if scores else ()
    needs, probe_tokens = tuple(dict.fromkeys([*list_ladder_folds(ladders), *learned])), options.probe_tokens
    tick("reading")
    sample, *others = (read_runs(one, needs, probe_tokens=probe_tokens, longest=longest) for one in (data, *fit))
    source = concatenate(others) if fit else sample
    published = [ladder for ladder in ladders if ladder.origin == "published"]
    study = Study(source, published, replace(options, scores=scores), tick=lambda: tick("fitting"))
    pools = pools_of(ladders, scores)
    folds: Sequence[int | None] = [None] if fit else range(N_FOLDS)
    frozen = [study.freeze(pools, v) for v in folds]
    tick("picking")
    here = _sum_rungs_here(study, frozen[0], sample) if fit else study.sum_rungs(None)
    added = {
        **{HINDSIGHT[pool.name]: _in_hindsight(pool, here, options) for pool in pools if pool.name in HINDSIGHT},
        **{ladder.name: ladder.rungs[0] for ladder in ladders if ladder.origin == "given"},
    }
    frozen = [replace(one, rungs={**one.rungs, **added}) for one in frozen]
    judge = _Judge(data, study, pools, frozen, longest)
    judging = ShardJudge(study.applied, frozen, judge.names())
    if data.share < 1:
        shared = partial(judging.judge_shard, data, needs, probe_tokens, longest)
        parts = (executor or SerialExecutor()).map(shared, data.shards)
    else:
        parts = iter([judging.judge([sample])])
    return judge.report(parts, here, tuple(path.name for other in fit for path in other.files), tick)


# ---- candidates


def _ladders(kind: Kind, options: ReplayOptions, longest: int) -> tuple[Ladder, ...]:
    ladders = build_ladders(kind, longest=longest)
    known = sorted({family_of(ladder.name) for ladder in ladders} | {LEARNED})
    for family in options.families:
        if family not in known:
            raise ConfigError(f"policies: unknown rule {family!r:.80} for {kind}; known: {', '.join(known)}")
    if options.families:
        ladders = tuple(ladder for ladder in ladders if family_of(ladder.name) in options.families)
    return (*ladders, *(build_given_ladder(spec, label) for label, spec in options.policies.items()))


def family_of(ladder: str) -> str:
    return ladder.partition(",")[0]


def pools_of(ladders: Sequence[Ladder], scores: Sequence[Score]) -> tuple[LadderPool, ...]:
    names = tuple(ladder.name for ladder in ladders if ladder.origin == "published")
    fallbacks = tuple(name for name in names if name in FALLBACKS)
    ours = [LadderPool(OURS, (*fallbacks, *(score.name for score in scores)))] if scores else []
    published = [LadderPool("published", names)] if names else []
    rules = dict.fromkeys(map(family_of, names))
    alone = [LadderPool(rule, tuple(name for name in names if family_of(name) == rule)) for rule in rules]
    return (*ours, *published, *alone)


def _sum_rungs_here(study: Study, frozen: FoldChoice, runs: Runs) -> RungSums:
    laid = lay_ladders(study.ladders, runs)
    for score in study.options.scores:
        scored = study.applied.score_others(score.name, frozen, runs)
        laid[score.name] = lay_score(score.name, scored, levels_of(scored.risk, N_LEVELS), runs)
    return sum_rungs(runs, laid)


def _in_hindsight(pool: LadderPool, here: RungSums, options: ReplayOptions) -> Rung | None:
    sums, rungs, _ = here.of(pool.ladders)
    choice = int(sums.measure(sums.weights(None)).pick_plainly(options.max_em_drop)[0])
    return None if choice == NONE else rungs[choice]


# ---- judging


@dataclass(slots=True)
class Judgement:
    """Sums over some runs, at the points of every policy."""

    sums: SumsFold
    parts: Parts
    n_answered: int = 0
    n_steps: list[Ints] = field(default_factory=list)  # of each run

    @property
    def n_runs(self) -> int:
        return sum(map(len, self.n_steps))

    def merge(self, other: Judgement) -> None:
        self.sums.merge(other.sums)
        self.parts.merge(other.parts)
        self.n_answered += other.n_answered
        self.n_steps += other.n_steps


@dataclass(frozen=True, slots=True)
class ShardJudge:
    scores: FrozenScores
    frozen: Sequence[FoldChoice]  # one per fold, or one for all
    names: Sequence[str]  # of the policies, in the order of the report

    def judge_shard(
        self, data: Survey, needs: Sequence[str], probe_tokens: int | None, longest: int, shard: FileShard
    ) -> Judgement:
        runs = (
            make_runs(batch, needs, probe_tokens=probe_tokens, planned_steps=longest)
            for batch in data.batches(shard=shard)
        )
        return self.judge(runs)

    def judge(self, everything: Iterable[Runs]) -> Judgement:
        judgement = Judgement(SumsFold(len(self.names)), Parts([name for name in self.names if name in DETAILED]))
        for runs in everything:
            judged = self._halts(runs)
            judgement.sums.add(runs, [judged[name] for name in self.names])
            judgement.parts.add(runs, judged)
            judgement.n_answered += int((~np.isnan(runs.columns.answer[runs.last])).sum())
            judgement.n_steps.append(runs.n_steps)
        return judgement

    def _halts(self, runs: Runs) -> dict[str, Halts]:
        fold = folds_of(runs) if len(self.frozen) > 1 else np.zeros(len(runs), dtype=np.int64)
        places, parts = list[Ints](), defaultdict[str, list[Halts]](list)
        for v, frozen in enumerate(self.frozen):
            if not (fold == v).any():
                continue
            those, mine = select_runs(runs, fold == v), np.flatnonzero(fold == v)
            places.append(mine)
            shift = runs.starts[mine] - those.starts[:-1]
            for name, halts in self.scores.halts(frozen, those).items():
                parts[name].append(halts._replace(row=halts.row + shift, returned=halts.returned + shift))
        order = np.argsort(np.concatenate(places))
        judged = {
            name: Halts(*(np.concatenate(column)[order] for column in zip(*of_folds, strict=True)))
            for name, of_folds in parts.items()
        }
        return {
            **judged,
            "full": never_halt(runs),
            "oracle_agree": stop_at_first(runs, runs.same),
            "oracle_correct": stop_at_first(runs, runs.ok),
        }


@dataclass(frozen=True, slots=True)
class _Judge:
    data: Survey
    study: Study
    pools: tuple[LadderPool, ...]
    frozen: list[FoldChoice]  # one per fold, or one for all
    longest: int  # steps of the longest run

    @property
    def options(self) -> ReplayOptions:
        return self.study.options

    def report(self, parts: Iterator[Judgement], here: RungSums, fitted_on: tuple[str, ...], tick: Tick) -> SetReport:
        names, whole = self.names(), next(parts)
        for part in parts:
            whole.merge(part)
            tick("judging")
        count = Counter(runs=whole.n_runs, answered=whole.n_answered, questions=whole.sums.n_questions)
        count["turns"] = int(np.percentile(np.concatenate(whole.n_steps), 75, method="higher"))
        sums, options = whole.sums.sums(), self.options
        intervals = zip(*sums.bootstrap(options.n_draws, np.random.default_rng(options.seed)), strict=True)
        misses = self._measure_misses()
        missed = {name: with_margin for name, (with_margin, _) in misses.items()}
        lines = tuple(
            self._line(name, sums.columns([at]), drop_and_saved, missed.get(name), whole.sums.n_questions)
            for at, (name, drop_and_saved) in enumerate(zip(names, intervals, strict=True))
        )
        return SetReport(
            set=self.data.set,
            kind=self.data.kind,
            max_em_drop=options.max_em_drop,
            probe_tokens=PROBE_TOKENS[self.data.kind] if options.probe_tokens is None else options.probe_tokens,
            lines=lines,
            frontier=self._frontier(here),
            by_class=whole.parts.by_class(),
            by_step=whole.parts.by_step(),
            notes=tuple(self._notes(count, misses)),
            fitted_on=fitted_on,
        )

    def names(self) -> list[str]:
        rungs, pools = self.frozen[0].rungs, [pool.name for pool in self.pools]
        return list(dict.fromkeys(["full", *pools, *rungs, "oracle_agree", "oracle_correct"]))

    def _measure_misses(self) -> dict[str, tuple[float, float]]:
        """By pool, the share of splits that miss the target: picked with the margin, and plainly."""
        rung_sums, options = self.study.sum_rungs(None), self.options
        misses = {}
        for pool in self.pools:
            sums, _, slices = rung_sums.of(pool.ladders)
            if len(sums.n) >= 4:
                measure = partial(sums.miss_share, slices, options.max_em_drop)
                with_margin = measure(np.random.default_rng(options.seed), margin=options.margin)
                misses[pool.name] = with_margin, measure(np.random.default_rng(options.seed), margin=None)
        return misses

    def _line(
        self,
        name: str,
        sums: QuestionSums,
        intervals: tuple[Interval, Interval],
        missed: float | None,
        n_questions: int,
    ) -> PolicyResult:
        n, full_ok, full_tokens = (float(value) for value in sums.base.sum(axis=0))
        lost, gained, tokens, probes, resent, stopped, hopeless = (float(x) for x in sums.values[:, 0].sum(axis=0))
        family, choice = FAMILIES.get(
            name, ("given", "fixed") if name in self.options.policies else ("published", "frozen")
        )
        chosen = [one.rungs.get(name) for one in self.frozen]
        specs = [rung.spec if rung is not None else None for rung in chosen]
        drop_interval, saved_interval = (None, None) if family == "full" else intervals

        def reduction(spent: float) -> float:
            return 1 - spent / full_tokens if full_tokens else 0.0

        return PolicyResult(
            set=self.data.set,
            policy=name,
            family=family,
            choice=choice,
            spec=specs[0] if all(spec == specs[0] for spec in specs) else None,
            n_episodes=int(n),
            n_questions=n_questions,
            em=(full_ok - lost + gained) / n,
            full_tokens=int(full_tokens),
            tokens=round(tokens),
            token_reduction_without_probes=reduction(tokens - probes),
            token_reduction_without_cache=reduction(tokens + resent) if resent else None,
            em_drop_interval=drop_interval,
            token_reduction_interval=saved_interval,
            stopped=stopped / n,
            hopeless=hopeless / n,
            miss_share=missed,
            note=_describe_choice(name, chosen) if name in self.frozen[0].rungs else "",
            **measure_rates((n, full_ok, full_tokens, lost, gained, tokens)),
        )

    def _frontier(self, here: RungSums) -> dict[str, tuple[PlotPoint, ...]]:
        at = here.sums.measure(here.sums.weights(None))
        points = [
            PlotPoint(policy=rung.label, em_drop=float(drop), token_reduction=float(saved))
            for rung, drop, saved in zip(here.rungs, at.drop[0], at.saved[0], strict=True)
        ]
        groups: dict[str, tuple[PlotPoint, ...]] = {}
        for pool in self.pools:
            if pool.name in HINDSIGHT:
                names = [name for name in pool.ladders if pool.name == "published" or name not in FALLBACKS]
                groups[pool.name] = tuple(point for name in names for point in points[here.slices[name]])
        return groups

    def _notes(self, count: Counter[str], misses: Mapping[str, tuple[float, float]]) -> Iterator[str]:
        if count["runs"] < TOO_SMALL_RUNS or count["questions"] < TOO_SMALL_QUESTIONS:
            yield (
                f"too small to certify: {count['runs']:,} runs of {count['questions']:,} questions; certificates begin"
                f" at {TOO_SMALL_RUNS:,} runs and {TOO_SMALL_QUESTIONS} questions"
            )
        if self.data.kind != "samples":
            yield (
                f"the planned length of a run, which a live route knows as its cap, is taken to be {self.longest}"
                " steps, the longest recorded run"
            )
        if self.data.kind == "rounds":
            yield f"75 % of the full runs take at most {count['turns']} turns, the published cap of turn-cap"
        if self.data.share < 1:
            yield (
                f"models and points come from {self.data.share:.1%} of the questions, chosen by hash; all runs are"
                " judged"
            )
        if "published" in misses:
            shares = ", ".join(f"{name} {misses[name][1]:.0%}" for name in ("ours", "published") if name in misses)
            yield (
                f"tuned plainly, the best of all settings on one half of the questions misses the target on the"
                f" other in this share of 200 splits: {shares}"
            )
        if count["answered"] < 0.8 * count["runs"]:
            share = count["answered"] / max(1, count["runs"])
            yield f"only {share:.0%} of the full runs gave an answer; the others count as wrong"


def _describe_choice(name: str, rungs: Sequence[Rung | None]) -> str:
    def label(rung: Rung | None) -> str:
        if rung is None:
            return "never stops"
        return rung.score if isinstance(rung, ScoreRung) else rung.label

    labels = Counter(map(label, rungs))
    if len(labels) == 1:
        return "" if next(iter(labels)) == name else next(iter(labels))
    return ", ".join(f"{label} ({n} of {len(rungs)} folds)" for label, n in labels.most_common())
