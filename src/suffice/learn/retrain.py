"""Refits: when one is due, and how it becomes a proposal with a report card and a lineage."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.learn.audits import AuditRuns, Bools, Floats
from suffice.learn.dataset import Dataset
from suffice.learn.export import export_stop_model, export_value_model
from suffice.learn.groups import pick_level
from suffice.learn.models import PRICES, FitResult, Parts, Values, fit, fit_values
from suffice.learn.report_card import ReportCard, Verdict, make_card
from suffice.learn.rows import audit_runs, build_examples, build_trajectories, weigh_full_runs
from suffice.learn.version import HALF_LIFE, LEAST_AUDITS, N_FOLDS, N_LEVELS, cut_levels, level_risk
from suffice.model.artefact import StepCost, StopModel, TrainingRecord
from suffice.policy.folded_version import FoldedVersion

Reason: TypeAlias = Literal["schedule", "drift", "by hand"]
_PRICES: Final = PRICES[::3]  # a finer sweep takes three times as long and picks a neighbour


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
    with_values: bool = True
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
    models, levels = list[StopModel](), list[tuple[float, ...]]()
    for fold in range(N_FOLDS):
        learn_from = data.fold != fold
        if int((data.full & learn_from).sum()) < LEAST_AUDITS:
            return None
        model = _stop_model(data, learn_from, recipe, digest)
        cut = _levels(data, learn_from, model, recipe)
        if cut is None:
            return None
        models.append(model)
        levels.append(cut)
    values = _value_models(data, recipe, max_em_drop, digest) if recipe.with_values else None
    return FoldedVersion(models=tuple(models), levels=tuple(levels), values=values)


def _stop_model(data: Dataset, learn_from: Bools, recipe: FitRecipe, digest: str) -> StopModel:
    rows = build_examples(data, learn_from, "as-good", half_life=recipe.half_life)
    assert rows is not None, "agreement needs no label"
    suffices = fit(rows, data.chosen, parts=recipe.parts, seed=recipe.seed)
    failing = build_examples(data, learn_from, "hopeless", half_life=recipe.half_life)
    hopeless: FitResult | None = None
    if failing is not None:
        # It only classifies stops and never causes a risky one, so the fastest part is enough.
        hopeless = fit(failing, data.chosen, parts="linear", seed=recipe.seed)
    facts = _facts(data, learn_from, "as-good", recipe, digest)
    return export_stop_model(data.chosen, suffices, hopeless, trained=facts, cost=StepCost(recipe.cost_exponent))


def _levels(data: Dataset, learn_from: Bools, model: StopModel, recipe: FitRecipe) -> tuple[float, ...] | None:
    runs = audit_runs(data).take(np.flatnonzero(data.full & learn_from))
    risk = level_risk(1.0 - model.suffices.scores(runs.x), runs, recipe.cost_exponent)
    levels = cut_levels(risk, runs, recipe.n_levels)[1:]
    return tuple(levels.tolist()) if np.isfinite(levels).all() else None


def _value_models(data: Dataset, recipe: FitRecipe, max_em_drop: float, digest: str) -> tuple[StopModel, ...] | None:
    """A value model for each fold, at the highest price that keeps the target on the others; None: too few labels."""
    runs, weight = audit_runs(data), weigh_full_runs(data)
    fitted = list[Values]()
    z = np.zeros((len(runs), len(_PRICES) + 1))
    for fold in range(N_FOLDS):
        rows = build_trajectories(data, data.fold != fold, half_life=recipe.half_life)
        if rows is None or rows.go_on_weight is None or not (rows.go_on_weight > 0).any():
            return None
        fitted.append(fit_values(rows, prices=_PRICES))
        mine = np.flatnonzero(runs.fold == fold)
        z[mine, 1:] = _drops_at_prices(fitted[fold], runs.take(mine))
    models = []
    for fold, values in enumerate(fitted):
        others = runs.fold != fold
        at = max(0, pick_level(z[others], weight[others], max_em_drop) - 1)
        facts = _facts(data, data.fold != fold, "value", recipe, digest)
        models.append(export_value_model(data.chosen, values, at, trained=facts))
    return tuple(models)


def _drops_at_prices(values: Values, runs: AuditRuns) -> Floats:
    stops = (values.advantage(runs.x) >= 0) & runs.may_stop[:, None]
    row = np.where(stops, np.arange(len(runs.x))[:, None], runs.last[runs.run_of_row][:, None])
    z = runs.z[np.minimum.reduceat(row, runs.starts[:-1], axis=0)] if len(runs) else np.zeros((0, stops.shape[1]))
    return np.where(runs.abandoned[:, None], 1.0, z)


def _facts(data: Dataset, learn_from: Bools, target: str, recipe: FitRecipe, digest: str) -> TrainingRecord:
    runs = np.flatnonzero(data.full & learn_from)
    n_prompts = len({data.key[i] for i in runs})
    return TrainingRecord(n_episodes=len(runs), n_questions=n_prompts, digest=digest, target=target, seed=recipe.seed)
