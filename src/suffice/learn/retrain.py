"""Refits: when one is due, and how it becomes a proposal with a report card and a lineage."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.assurance.estimate import IntervalEstimate
from suffice.errors import ConfigError
from suffice.learn.dataset import Dataset
from suffice.learn.models import Examples, FitResult, Parts, export_fit, fit
from suffice.learn.rows import (
    Resamples,
    audit_runs,
    failing_examples,
    good_rows_of_run,
    pick_level,
    ratio,
    weigh_full_runs,
    weigh_labels,
    weigh_runs,
)
from suffice.learn.version import (
    HALF_LIFE,
    LEAST_AUDITS,
    N_FOLDS,
    N_LEVELS,
    EnsembleScore,
    as_served,
    export_version,
    fit_served,
    fold_version,
    saving_within,
)
from suffice.model.artefact import TrainingRecord
from suffice.policy.folded_version import FoldedVersion

# ---- The report card of a version: calibration, savings, harm, and a comparison with its parent

Learned: TypeAlias = Literal["as-good", "hopeless"]

N_BINS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    low: float  # first and last probability in the bin
    high: float
    n: int  # rows
    predicted: float  # mean predicted probability
    seen: IntervalEstimate  # observed share


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    bins: tuple[Bin, ...]
    ece: IntervalEstimate  # expected calibration error: mean |said - seen| over the bins, weighted by rows
    bias: IntervalEstimate  # mean said - mean seen; above 0 the model is overconfident


def calibrate(data: Dataset, version: FoldedVersion, target: Learned, rng: np.random.Generator) -> Calibration:
    """Judge one probability on full runs, by models that have not seen the prompts."""
    of_run = weigh_full_runs(data) * data.full
    if target == "hopeless":
        labels = weigh_labels(data)
        of_run = of_run * (0.0 if labels is None else labels)
    rows = np.flatnonzero(data.inner & data.may_stop & (of_run > 0)[data.run_of_row])  # rows with a decision
    run = data.run_of_row[rows]
    weight = of_run[run]
    fold = data.fold[run]
    p = np.empty(len(rows))
    x = data.columns(version.models[0].features)
    for f, model in enumerate(version.models):
        ensemble = model.suffices if target == "as-good" else model.hopeless
        if ensemble is None:
            raise ValueError(f"version {version.address}: has no model of {target}")
        p[fold == f] = ensemble.scores(x[rows[fold == f]])
    good = good_rows_of_run(data, target)[rows].astype(np.float64)
    draws = Resamples([data.key[i] for i in run], rng)
    edges = np.quantile(p, np.arange(1, N_BINS) / N_BINS) if len(p) else np.zeros(N_BINS - 1)
    number = np.searchsorted(edges, p, side="right")
    inside = (number[:, None] == np.arange(N_BINS)) * weight[:, None]
    sums = draws.sums(np.concatenate([inside * p[:, None], inside * good[:, None], inside], axis=1))
    bins = []
    for b in np.unique(number):
        here = number == b
        n = int(here.sum())
        bins.append(
            Bin(
                low=float(p[here].min()),
                high=float(p[here].max()),
                n=n,
                predicted=float(np.average(p[here], weights=weight[here])),
                seen=draws.rate(sums, N_BINS + int(b), 2 * N_BINS + int(b), n=n),
            )
        )

    def gap(sums: Floats, magnitude: Callable[[Floats], Floats]) -> Floats:
        stated, observed, total = np.split(sums, 3, axis=1)
        return np.asarray(magnitude(stated - observed).sum(axis=1) / total.sum(axis=1))

    return Calibration(
        bins=tuple(bins),
        ece=draws.estimate(sums, lambda sums: gap(sums, np.abs), n=len(rows), pivot=True),
        bias=draws.estimate(sums, lambda sums: gap(sums, np.asarray), n=len(rows)),
    )


Verdict: TypeAlias = Literal["better", "worse", "inconclusive", "first"]
ClassStatus: TypeAlias = Literal["unknown", "within budget", "unclear", "harmed"]

TARGETS: Final = (0.005, 0.01, 0.02)  # EM drops of the frontier, beside the route's own
_STRIDE: Final = 2  # of the levels at which two versions are compared
LEAST_CLASS_RUNS: Final = 200  # below it a class is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    max_em_drop: float  # target, a fraction
    levels: tuple[int, ...]  # of each fold, picked on the others
    saving: IntervalEstimate  # token reduction, probes counted
    drop: IntervalEstimate  # EM(full) - EM(stopped)
    lost: IntervalEstimate  # share of runs that the stop makes wrong
    gained: IntervalEstimate  # share of runs that the stop makes right


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassHarm:
    query_class: str
    n_runs: int
    n_prompts: int
    saving: IntervalEstimate
    drop: IntervalEstimate
    lost: IntervalEstimate
    gained: IntervalEstimate  # reported beside losses, since one does not offset the other
    status: ClassStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentComparison:
    parent: str  # address
    gain: IntervalEstimate  # saving of the version minus the parent's, at equal drops
    saving: IntervalEstimate  # difference at the picked levels
    drop: IntervalEstimate  # likewise
    newly_harmed: tuple[str, ...]  # classes that the parent does not harm
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCard:
    version: str
    max_em_drop: float  # the route's own target
    n_runs: int  # full runs and abandoned audits
    n_prompts: int
    n_labelled: int  # a stop of the others is judged by agreement, which is conservative
    target: str  # of the score: "as-good", "value"
    calibration: Calibration | None  # of P(as good); None: the score is no probability
    failing: Calibration | None  # of P(the full run fails); None: not learned
    curve: tuple[tuple[float, float], ...]  # (saving, drop) of each level, safe first; no interval
    frontier: tuple[FrontierPoint, ...]
    classes: tuple[ClassHarm, ...]
    compared: ParentComparison | None  # None: no parent, or it cannot read these runs


def make_card(
    data: Dataset, version: FoldedVersion, parent: FoldedVersion | None, *, max_em_drop: float, rng: np.random.Generator
) -> ReportCard:
    """Equal seeds give equal cards."""
    judge = _Judge(data, max_em_drop, rng)
    outcome = judge.outcome(version)
    own = judge.point(outcome, max_em_drop)
    targets = sorted({*TARGETS, max_em_drop})
    return ReportCard(
        version=version.address,
        max_em_drop=max_em_drop,
        n_runs=len(judge.runs),
        n_prompts=judge.draws.n_groups,
        n_labelled=int(data.labelled.sum()),
        target=version.target,
        calibration=calibrate(data, version, "as-good", rng) if version.target == "as-good" else None,
        failing=None if version.models[0].hopeless is None else calibrate(data, version, "hopeless", rng),
        curve=judge.curve(outcome),
        frontier=tuple(own if target == max_em_drop else judge.point(outcome, target) for target in targets),
        classes=judge.classes(outcome, own.levels),
        compared=None if parent is None else judge.compared(outcome, own, parent),
    )


# --------------------------------------------------------------------------- frontier


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    z: Floats  # (n, M): EM drop
    cost: Floats  # (n, M): tokens


class _Judge:
    def __init__(self, data: Dataset, max_em_drop: float, rng: np.random.Generator) -> None:
        self.data, self.max_em_drop = data, max_em_drop
        self.runs = audit_runs(data)
        self.weight = weigh_full_runs(data)
        self.classes_of = np.array(data.query_class)
        self.draws = Resamples(data.key, rng)

    def outcome(self, version: FoldedVersion) -> _Outcome:
        if len(version.models) != N_FOLDS:
            raise ConfigError(f"version {version.address}: has {len(version.models)} folds; {N_FOLDS} are judged")
        runs = as_served(replace(self.runs, x=self.data.columns(version.models[0].features)), version)
        rows = fold_version(version).rows(runs)
        z = runs.z[rows].astype(np.float64)
        z[:, 1:][runs.abandoned] = 1.0  # abandoned: lost at every level that may stop
        return _Outcome(z, runs.cost[rows])

    def curve(self, outcome: _Outcome) -> tuple[tuple[float, float], ...]:
        saving = 1 - self.weight @ outcome.cost / (self.weight @ self.runs.full)
        drop = self.weight @ outcome.z / self.weight.sum()
        return tuple(zip(saving.tolist(), drop.tolist(), strict=True))

    def point(self, outcome: _Outcome, target: float) -> FrontierPoint:
        """The frontier at a target, each fold at the level that was picked on the others."""
        folds = [self.runs.fold != f for f in range(N_FOLDS)]
        levels = tuple(pick_level(outcome.z[others], self.weight[others], target) for others in folds)
        z, cost = self._chosen(outcome, levels)
        return self._measured(z, cost, np.ones(len(z), dtype=bool), target, levels)

    def classes(self, outcome: _Outcome, levels: tuple[int, ...]) -> tuple[ClassHarm, ...]:
        z, cost = self._chosen(outcome, levels)
        names, sizes = np.unique(self.classes_of, return_counts=True)
        harms = []
        for name in names[np.argsort(-sizes, kind="stable")]:
            member = self.classes_of == name
            point, n = self._measured(z, cost, member, self.max_em_drop, levels), int(member.sum())
            low, high = point.drop.low, point.drop.high
            status: ClassStatus = "unknown"
            if n >= LEAST_CLASS_RUNS and low is not None and high is not None:
                status = "within budget" if high <= self.max_em_drop else "unclear"
                status = "harmed" if low > self.max_em_drop else status
            harms.append(
                ClassHarm(
                    query_class=str(name),
                    n_runs=n,
                    n_prompts=len({self.data.key[i] for i in np.flatnonzero(member)}),
                    saving=point.saving,
                    drop=point.drop,
                    lost=point.lost,
                    gained=point.gained,
                    status=status,
                )
            )
        return tuple(harms)

    def compared(self, outcome: _Outcome, own: FrontierPoint, parent: FoldedVersion) -> ParentComparison | None:
        """Return None if the parent cannot read these runs."""
        try:
            before = self.outcome(parent)
        except ConfigError:
            return None
        theirs = self.point(before, self.max_em_drop)
        (z, cost), (old_z, old_cost) = self._chosen(outcome, own.levels), self._chosen(before, theirs.levels)
        w = self.weight
        columns = np.stack([w * (z - old_z), w * (old_cost - cost), w, w * self.runs.full], axis=1)
        sums, n = self.draws.sums(columns), len(self.runs)
        saving, drop = self.draws.estimate(sums, ratio(1, 3), n=n), self.draws.estimate(sums, ratio(0, 2), n=n)
        harmed = {one.query_class for one in self.classes(before, theirs.levels) if one.status == "harmed"}
        newly = tuple(
            one.query_class
            for one in self.classes(outcome, own.levels)
            if one.status == "harmed" and one.query_class not in harmed
        )
        gain = self.gain(outcome, before)
        verdict, why = _verdict(gain, newly)
        return ParentComparison(
            parent=parent.address,
            gain=gain,
            saving=saving,
            drop=drop,
            newly_harmed=newly,
            verdict=verdict,
            why=why,
        )

    def gain(self, outcome: _Outcome, before: _Outcome) -> IntervalEstimate:
        """Difference of `saving_within`."""
        w = self.weight[:, None]
        parts = [w * one for o in (outcome, before) for one in (o.z[:, ::_STRIDE], o.cost[:, ::_STRIDE])]
        columns = np.concatenate([*parts, w, w * self.runs.full[:, None]], axis=1)

        def of(sums: Floats) -> Floats:
            runs, full = sums[:, -2:-1], sums[:, -1:]
            lost, spent, old_lost, old_spent = np.split(sums[:, :-2], 4, axis=1)
            old = saving_within(old_lost / runs, 1 - old_spent / full, self.max_em_drop)
            return saving_within(lost / runs, 1 - spent / full, self.max_em_drop) - old

        return self.draws.estimate(self.draws.sums(columns), of, n=len(self.runs))

    def _chosen(self, outcome: _Outcome, levels: tuple[int, ...]) -> tuple[Floats, Floats]:
        level = np.array(levels)[self.runs.fold]
        run = np.arange(len(level))
        return outcome.z[run, level], outcome.cost[run, level]

    def _measured(self, z: Floats, cost: Floats, member: Any, target: float, levels: tuple[int, ...]) -> FrontierPoint:
        w = self.weight * member
        saved, full = w * (self.runs.full - cost), w * self.runs.full
        columns = np.stack([w * z, w * (z > 0), w * (z < 0), w, saved, full], axis=1)
        n, sums = int(member.sum()), self.draws.sums(columns)
        lost, gained = (self.draws.rate(sums, at, 3, n=n) for at in (1, 2))
        drop = _as_open(self.draws.estimate(sums, ratio(0, 3), n=n), lost, gained)
        saving = self.draws.estimate(sums, ratio(4, 5), n=n)
        return FrontierPoint(max_em_drop=target, levels=levels, saving=saving, drop=drop, lost=lost, gained=gained)


def _as_open(drop: IntervalEstimate, lost: IntervalEstimate, gained: IntervalEstimate) -> IntervalEstimate:
    """Widen the drop's interval by the open ends of losses and gains that were never seen."""
    if drop.low is None or drop.high is None or lost.high is None or gained.high is None:
        return drop
    low = drop.low if gained.value > 0 else drop.low - gained.high
    high = drop.high if lost.value > 0 else drop.high + lost.high
    return replace(drop, low=low, high=high)


def _verdict(gain: IntervalEstimate, newly_harmed: Sequence[str]) -> tuple[Verdict, str]:
    if newly_harmed:
        return "worse", f"harms what the parent does not: {', '.join(newly_harmed)}"
    if gain.low is None or gain.high is None:
        return "inconclusive", "too few prompts for an interval"
    if gain.high < 0:
        return "worse", "saves less than the parent at the same harm"
    if gain.low > 0:
        return "better", "saves more than the parent at the same harm"
    return "inconclusive", "the difference to the parent may be chance"


Reason: TypeAlias = Literal["schedule", "drift", "by hand"]


# --------------------------------------------------------------------------- when


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    every_requests: int = 1_000  # since the last refit
    least_new_runs: int = 30  # full runs since then
    burst_runs: int = 300  # full runs after an alarm before a refit on drift
    rest_requests: int = 500  # least distance of two refits


def refit_reason(
    schedule: Schedule, *, n_requests: int, n_new_runs: int, n_runs_since_alarm: int | None = None
) -> Reason | None:
    """Why a refit is due; None: it is not. `n_runs_since_alarm` counts full runs since an alarm without a refit."""
    if n_requests < schedule.rest_requests:
        return None
    if n_runs_since_alarm is not None:
        return "drift" if n_runs_since_alarm >= schedule.burst_runs else None
    if n_requests >= schedule.every_requests and n_new_runs >= schedule.least_new_runs:
        return "schedule"
    return None


# --------------------------------------------------------------------------- what


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecipe:
    parts: Parts = "ensemble"
    half_life: float = HALF_LIFE  # in audits
    cost_exponent: float = 0.5  # of the tokens of a step, in the risk
    n_levels: int = N_LEVELS  # including level 0
    seed: int = 0  # of trees and bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class FitLineage:
    parent: str | None  # address of the active version; None: none
    reason: Reason
    digest: str  # of the dataset
    first_seq: int  # range of the log's rows
    last_seq: int
    n_runs: int  # full runs
    n_by_design: int  # observed runs and audits among `n_runs`
    n_prompts: int
    n_labelled: int
    left_out: tuple[tuple[str, int], ...]  # reason and number of unusable runs, sorted
    recipe: FitRecipe
    versions: tuple[tuple[str, str], ...]  # package and version, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionProposal:
    """The result of a refit. It has no effect before a certificate and a rollout."""

    version: FoldedVersion | None  # None: too little data
    lineage: FitLineage
    card: ReportCard | None  # None with `version`
    verdict: Verdict  # against the parent; "inconclusive" without a version
    why: str  # one sentence


def retrain(
    data: Dataset,
    parent: FoldedVersion | None = None,
    *,
    max_em_drop: float,
    reason: Reason = "schedule",
    recipe: FitRecipe | None = None,
) -> VersionProposal:
    """Equal data, parent, recipe and packages give equal proposals. Raise ConfigError without scikit-learn."""
    recipe = recipe or FitRecipe()
    lineage = _lineage(data, parent, reason, recipe)
    version = fit_version(data, recipe, max_em_drop=max_em_drop, digest=lineage.digest)
    verdict: Verdict = "inconclusive"
    if version is None:
        why = f"fewer than {LEAST_AUDITS} full runs to learn from, or none that may stop"
        return VersionProposal(version=None, lineage=lineage, card=None, verdict=verdict, why=why)
    rng = np.random.default_rng(recipe.seed)
    card = make_card(data, version, parent, max_em_drop=max_em_drop, rng=rng)
    if parent is None:
        verdict, why = "first", "there is no parent"
    elif card.compared is None:
        why = "the parent reads other features, so the two cannot be compared on these runs"
    else:
        verdict, why = card.compared.verdict, card.compared.why
    return VersionProposal(version=version, lineage=lineage, card=card, verdict=verdict, why=why)


def _lineage(data: Dataset, parent: FoldedVersion | None, reason: Reason, recipe: FitRecipe) -> FitLineage:
    versions = [("python", platform.python_version())]
    for package in ("numpy", "scikit-learn", "suffice"):
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            versions.append((package, "not installed"))
    return FitLineage(
        parent=None if parent is None else parent.address,
        reason=reason,
        digest=data.digest(),
        first_seq=int(data.seq[0]),
        last_seq=data.last_seq,
        n_runs=int(data.full.sum()),
        n_by_design=int((data.full & data.by_design).sum()),
        n_prompts=len(set(data.key)),
        n_labelled=int(data.labelled.sum()),
        left_out=tuple(sorted(data.left_out.items())),
        recipe=recipe,
        versions=tuple(sorted(versions)),
    )


def fit_version(data: Dataset, recipe: FitRecipe, *, max_em_drop: float, digest: str) -> FoldedVersion | None:
    """Return None if there is too little data."""
    full = np.flatnonzero(data.full)

    def learn(x: Floats, good: Bools, weight: Floats) -> EnsembleScore:
        fitted = fit(Examples(x, good, weight), data.chosen, parts=recipe.parts, seed=recipe.seed)
        return EnsembleScore(export_fit(fitted, data.chosen))

    fitted = fit_served(
        audit_runs(data).take(full),
        learn,
        now=np.inf,
        max_em_drop=max_em_drop,
        n_levels=recipe.n_levels,
        cost_exponent=recipe.cost_exponent,
        weight=weigh_runs(data, half_life=recipe.half_life)[full],
    )
    if fitted is None:
        return None
    others = [data.fold != fold for fold in range(N_FOLDS)]
    trained = [_facts(data, learn_from, fitted.target, recipe, digest) for learn_from in others]
    return export_version(fitted, data.chosen, trained, [_failing(data, learn_from, recipe) for learn_from in others])


def _failing(data: Dataset, learn_from: Bools, recipe: FitRecipe) -> FitResult | None:
    """It only classifies stops and never causes a risky one, so the fastest part is enough."""
    examples = failing_examples(data, learn_from, half_life=recipe.half_life)
    return None if examples is None else fit(examples, data.chosen, parts="linear", seed=recipe.seed)


def _facts(data: Dataset, learn_from: Bools, target: str, recipe: FitRecipe, digest: str) -> TrainingRecord:
    runs = np.flatnonzero(data.full & learn_from)
    n_prompts = len({data.key[i] for i in runs})
    return TrainingRecord(n_episodes=len(runs), n_questions=n_prompts, digest=digest, target=target, seed=recipe.seed)
