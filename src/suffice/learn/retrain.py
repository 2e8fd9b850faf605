"""Refits: when one is due, and how it becomes a proposal with a report card and a lineage.

    Dataset, parent ──▶ retrain ──▶ VersionProposal ──▶ certificate, rollout (elsewhere)

A proposal says what was fitted on what, by which programs, how it did on prompts that it had not seen, and what it
would replace.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from suffice.assurance.estimate import IntervalEstimate
from suffice.learn.audits import AuditRuns, Bools, Floats
from suffice.learn.dataset import Dataset
from suffice.learn.export import export_stop_model, export_value_model
from suffice.learn.groups import pick_level
from suffice.learn.models import PRICES, FitResult, Parts, Values, fit, fit_values
from suffice.learn.report_card import (
    Calibration,
    ClassHarm,
    FrontierPoint,
    ReportCard,
    Verdict,
    make_card,
)
from suffice.learn.rows import audit_runs, build_examples, build_trajectories, weigh_full_runs
from suffice.learn.served import HALF_LIFE, LEAST_AUDITS, N_FOLDS, N_LEVELS, cut_levels, level_risk
from suffice.learn.version import FoldedVersion
from suffice.model.artefact import StepCost, StopModel, TrainingRecord

Reason: TypeAlias = Literal["schedule", "drift", "by hand"]
_PRICES: Final = PRICES[::3]  # one is picked; a finer sweep takes three times as long and picks its neighbour


# --------------------------------------------------------------------------- when


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a route's models are refitted (ASSURANCE.md §3.8)."""

    every_requests: int = 1_000  # since the last refit
    least_new_runs: int = 30  # full runs since then; with fewer a refit would find what it found
    burst_runs: int = 300  # full runs since an alarm that a refit on drift waits for
    rest_requests: int = 500  # between two refits, whatever happens: no flapping


def refit_reason(
    schedule: Schedule, *, n_requests: int, n_new_runs: int, n_runs_since_alarm: int | None = None
) -> Reason | None:
    """Why a refit is due now; None: it is not.

    n_requests          of the route since its last refit
    n_new_runs          full runs among them
    n_runs_since_alarm  full runs since an alarm that no refit has followed yet; None: there was none
    """
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
    """How models are fitted: part of the lineage."""

    parts: Parts = "ensemble"
    half_life: float = HALF_LIFE  # in audits
    cost_exponent: float = 0.5  # of the tokens of a step, in the risk
    n_levels: int = N_LEVELS  # level 0 among them
    with_values: bool = True
    seed: int = 0  # of trees and bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class FitLineage:
    """Where a version comes from: enough to make it again, and to see that it is the same."""

    parent: str | None  # address of the version in force; None: none was
    reason: Reason
    digest: str  # of the dataset
    first_seq: int  # of the log's rows behind it
    last_seq: int
    n_runs: int  # that were learned from
    n_by_design: int  # observed runs and audits among them
    n_stopped: int  # stopped runs that took part, for what stopping pays alone
    n_prompts: int
    n_labelled: int
    left_out: tuple[tuple[str, int], ...]  # reason and number of the runs that teach nothing, sorted
    recipe: FitRecipe
    versions: tuple[tuple[str, str], ...]  # package and version, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionProposal:
    """What a refit found. It takes effect nowhere by itself: a rollout may take it up, and a certificate must."""

    version: FoldedVersion | None  # None: there was too little to learn from
    lineage: FitLineage
    card: ReportCard | None  # None with `version`
    verdict: Verdict  # against the parent; "inconclusive" without a version
    why: str  # one sentence

    def plain(self) -> dict[str, Any]:
        return {
            "version": None if self.version is None else self.version.plain(),
            "address": None if self.version is None else self.version.address,
            "lineage": asdict(self.lineage),
            "card": None if self.card is None else asdict(self.card),
            "verdict": self.verdict,
            "why": self.why,
        }


def retrain(
    data: Dataset,
    parent: FoldedVersion | None = None,
    *,
    max_em_drop: float,
    reason: Reason = "schedule",
    recipe: FitRecipe | None = None,
) -> VersionProposal:
    """Refit stop, hopeless and value models, and propose them with their report card.

    The same data, parent and recipe give the same proposal on the same packages. Raises ConfigError when
    scikit-learn is not installed.

    max_em_drop  the route's own target, a fraction: where frontier and harm are read
    """
    recipe = recipe or FitRecipe()
    lineage = _lineage(data, parent, reason, recipe)
    version = fit_version(data, recipe, max_em_drop=max_em_drop, digest=lineage.digest)
    if version is None:
        why = f"fewer than {LEAST_AUDITS} full runs to learn from, or none that may stop"
        return VersionProposal(version=None, lineage=lineage, card=None, verdict="inconclusive", why=why)
    rng = np.random.default_rng(recipe.seed)
    card = make_card(data, version, parent, max_em_drop=max_em_drop, rng=rng)
    if parent is None:
        return VersionProposal(version=version, lineage=lineage, card=card, verdict="first", why="there is no parent")
    if card.compared is None:
        why = "the parent reads other features, so the two cannot be compared on these runs"
        return VersionProposal(version=version, lineage=lineage, card=card, verdict="inconclusive", why=why)
    return VersionProposal(
        version=version, lineage=lineage, card=card, verdict=card.compared.verdict, why=card.compared.why
    )


def fit_version(data: Dataset, recipe: FitRecipe, *, max_em_drop: float, digest: str) -> FoldedVersion | None:
    """Fit each fold's models on the other folds and cut their levels; None: there is too little to learn from.

    max_em_drop  a fraction, that the price of the value models keeps
    digest       of the data, for the models' own records
    """
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
    suffices = fit(rows, data.chosen, "as-good", parts=recipe.parts, seed=recipe.seed)
    failing = build_examples(data, learn_from, "hopeless", half_life=recipe.half_life)
    hopeless: FitResult | None = None
    if failing is not None:
        # It names a stop and never makes a risky one, so the part that takes the least time is enough.
        hopeless = fit(failing, data.chosen, "hopeless", parts="linear", seed=recipe.seed)
    facts = _facts(data, learn_from, "as-good", recipe, digest)
    return export_stop_model(data.chosen, suffices, hopeless, trained=facts, cost=StepCost(recipe.cost_exponent))


def _levels(data: Dataset, learn_from: Bools, model: StopModel, recipe: FitRecipe) -> tuple[float, ...] | None:
    """Risks of levels 1, 2 …, cut on the runs that the model was fitted on; None: no row may stop."""
    runs = audit_runs(data, np.flatnonzero(data.full & learn_from))
    risk = level_risk(1.0 - model.suffices.scores(runs.x), runs, recipe.cost_exponent)
    levels = cut_levels(risk, runs, recipe.n_levels)[1:]
    return tuple(levels.tolist()) if np.isfinite(levels).all() else None


def _value_models(data: Dataset, recipe: FitRecipe, max_em_drop: float, digest: str) -> tuple[StopModel, ...] | None:
    """A value model for each fold, at the price that keeps the target on the other folds; None: too few labels.

    The price of tokens is the dual variable of the EM budget: the highest one that keeps it.
    """
    which = np.flatnonzero(data.full | data.abandoned)
    runs, weight = audit_runs(data, which), weigh_full_runs(data)[which]
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
    """EM drop of each run at each price, shape (n, prices)."""
    stops = (values.advantage(runs.x) >= 0) & runs.may_stop[:, None]
    row = np.where(stops, np.arange(len(runs.x))[:, None], runs.last[runs.run_of_row][:, None])
    z = runs.z[np.minimum.reduceat(row, runs.starts[:-1], axis=0)] if len(runs) else np.zeros((0, stops.shape[1]))
    return np.where(runs.abandoned[:, None], 1.0, z)


def _facts(data: Dataset, learn_from: Bools, target: str, recipe: FitRecipe, digest: str) -> TrainingRecord:
    runs = np.flatnonzero(data.full & learn_from)
    n_prompts = len({data.key[i] for i in runs})
    return TrainingRecord(n_episodes=len(runs), n_questions=n_prompts, digest=digest, target=target, seed=recipe.seed)


def _lineage(data: Dataset, parent: FoldedVersion | None, reason: Reason, recipe: FitRecipe) -> FitLineage:
    from importlib.metadata import PackageNotFoundError, version

    versions = [("python", platform.python_version())]
    for package in ("numpy", "scikit-learn", "suffice"):
        try:
            versions.append((package, version(package)))
        except PackageNotFoundError:
            versions.append((package, "not installed"))
    return FitLineage(
        parent=None if parent is None else parent.address,
        reason=reason,
        digest=data.digest(),
        first_seq=int(data.seq[0]),
        last_seq=data.last_seq,
        n_runs=int(data.full.sum()),
        n_by_design=int((data.full & data.by_design).sum()),
        n_stopped=int((~data.full & ~data.abandoned).sum()),
        n_prompts=len(set(data.key)),
        n_labelled=int(data.labelled.sum()),
        left_out=tuple(sorted(data.left_out.items())),
        recipe=recipe,
        versions=tuple(sorted(versions)),
    )


def as_json(proposal: VersionProposal) -> str:
    """One JSON object on one line, keys sorted; every number in it is finite."""
    return json.dumps(proposal.plain(), sort_keys=True, allow_nan=False)


def as_text(proposal: VersionProposal) -> str:
    address = "none" if proposal.version is None else proposal.version.address
    lines = [f"proposal {address}: {proposal.verdict} ({proposal.why})", *_lineage_lines(proposal.lineage)]
    if proposal.card is not None:
        lines += _card(proposal.card)
    lines.append("Nothing is in force by this: a certificate and a rollout decide.")
    return "\n".join(lines)


_REASONS: Final = {"schedule": "on schedule", "drift": "after drift"}


def _lineage_lines(lineage: FitLineage) -> list[str]:
    recipe, n_full, n_prompts = lineage.recipe, f"{lineage.n_runs:,}", f"{lineage.n_prompts:,}"
    lines = {
        "parent": f"{lineage.parent or 'none'}, refitted {_REASONS.get(lineage.reason, lineage.reason)}",
        "data": f"{lineage.digest}, log rows {lineage.first_seq:,} to {lineage.last_seq:,}",
        "learned from": f"{n_full} full runs ({lineage.n_by_design:,} by design) of {n_prompts} prompts",
        "labels": f"{lineage.n_labelled:,}, {lineage.n_stopped:,} of them of stopped runs",
        "left out": "; ".join(f"{n:,} {why}" for why, n in lineage.left_out) or "none",
        "recipe": f"{recipe.parts}, half-life {recipe.half_life:g}, {recipe.n_levels} levels, seed {recipe.seed}",
        "packages": ", ".join(f"{name} {version}" for name, version in lineage.versions),
    }
    return [f"  {what:<13} {value}" for what, value in lines.items()]


def _card(card: ReportCard) -> list[str]:
    judged = f"judged on {card.n_runs:,} full runs of {card.n_prompts:,} prompts that the judged models have not seen"
    frontier = _table(("EM drop aimed at", "saving", "EM drop", "lost", "gained"), map(_point, card.frontier))
    lines = ["", f"{judged}; {card.n_labelled:,} with a label, the others by agreement", "", *frontier]
    if card.value:
        lines += ["", "value models", *_table(("", "saving", "EM drop", "lost", "gained"), map(_point, card.value))]
    if card.compared is not None:
        against = card.compared
        gain = f"{_signed(against.gain)} saving at the same EM drops, up to {card.max_em_drop:.1%}"
        picked = f"as picked: {_signed(against.saving)} saving, {_signed(against.drop)} EM drop"
        lines += ["", f"against the parent {against.parent}: {gain}", picked]
    header = ("class", "runs", "saving", "EM drop", "lost", "gained", "")
    lines += ["", *_table(header, map(_class, card.classes))]
    lines += ["", *_calibration("P(as good)", card.calibration)]
    if card.failing is not None:
        lines += ["", *_calibration("P(full run fails)", card.failing)]
    return lines


def _point(point: FrontierPoint) -> Sequence[str]:
    shares = (_share(value) for value in (point.saving, point.drop, point.lost, point.gained))
    return (f"{point.max_em_drop:.1%}", *shares)


def _class(harm: ClassHarm) -> Sequence[str]:
    shares = (_share(value) for value in (harm.saving, harm.drop, harm.lost, harm.gained))
    return (harm.query_class or "(none)", f"{harm.n_runs:,}", *shares, harm.status)


def _calibration(what: str, calibration: Calibration) -> list[str]:
    rows = [(f"{b.low:.3f} to {b.high:.3f}", f"{b.n:,}", f"{b.said:.3f}", _share(b.seen)) for b in calibration.bins]
    return [
        f"{what}: calibration error {_share(calibration.ece)}, too sure by {_signed(calibration.bias)}",
        *_table(("said between", "rows", "said", "seen"), rows),
    ]


def _share(value: IntervalEstimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.2%}"
    return f"{value.value:.2%} [{value.low:.2%}, {value.high:.2%}]"


def _signed(value: IntervalEstimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:+.2%}"
    return f"{value.value:+.2%} [{value.low:+.2%}, {value.high:+.2%}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    table = [header, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
