"""Every published rule, ours and the oracles on one set: as published, frozen, and in hindsight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from bench.nested import NestedRungs, nest
from bench.page.ladders import build_all_ladders, count_votes, published_rungs
from bench.page.sets import Case
from bench.page.store import Line
from numpy.typing import NDArray

from suffice.learn.features import DENSE
from suffice.replay.study.policies import PolicyRung, Rung, ScoreRung, halts_of, list_ladder_folds
from suffice.replay.study.runs import Runs, read_runs, select_runs, stop_at_first
from suffice.replay.study.scores import SCORES
from suffice.replay.study.sets import OURS, TOO_SMALL_QUESTIONS, TOO_SMALL_RUNS, pools_of
from suffice.replay.study.study import LadderPool, ReplayOptions, RungSums, Study
from suffice.replay.study.sums import MARGIN, QuestionSums, sum_halts
from suffice.replay.traces.read import Survey
from suffice.signals.features import FeatureSet

MARGINS: Final = (1.0, 1.25, 1.5, 2.0)  # standard errors
N_DRAWS: Final = 1_000
FEW_MODELS: Final = 8  # a set with more is not shown by model
PUBLISHED: Final = "published"


def judge(case: Case, budgets: Sequence[float]) -> Line:
    data = case.survey()
    study = _open(data)
    runs, nested = study.runs, nest(study)
    pools = pools_of(study.ladders, SCORES)  # ours, all published rules together, and each alone
    return {
        "kind": data.kind,
        "n_runs": len(runs),
        "n_questions": len(set(runs.question)),
        "em": float(runs.full_ok.mean()),
        "tokens": float(runs.full_tokens.mean()),
        "too_small": len(runs) < TOO_SMALL_RUNS or len(set(runs.question)) < TOO_SMALL_QUESTIONS,
        "unstopped": measure(nested.never),
        "oracles": {
            "agrees": measure(sum_halts(runs, [stop_at_first(runs, runs.same)]), probes=False),
            "right": measure(sum_halts(runs, [stop_at_first(runs, runs.ok)]), probes=False),
        },
        "as_published": _as_published(runs),
        "never": sorted(pool.name for pool in pools if not _stops(nested.all, pool)),
        "budgets": {f"{budget:g}": {pool.name: _picked(nested, pool, budget) for pool in pools} for budget in budgets},
        "margins": {f"{margin:g}": _at_margin(nested, pools, budgets[0], margin) for margin in MARGINS},
        "plainly": {name: _missing(nested, pools, name, budgets[0], None) for name in (OURS, PUBLISHED)},
    }


def _open(data: Survey) -> Study:
    full_tokens = [float(tokens) for batch in data.batches(share=data.share) for tokens in batch.full_tokens]
    votes = count_votes(data) if data.kind == "samples" else ()
    ladders = build_all_ladders(data.kind, longest=data.longest, full_tokens=full_tokens, votes=votes)
    rungs = published_rungs(data.kind).values()
    needs = [*list_ladder_folds(ladders), *(need for rung in rungs for need in rung.policy.needs)]
    needs += FeatureSet(DENSE[data.kind]).needs
    runs = read_runs(data, tuple(dict.fromkeys(needs)), probe_tokens=None, longest=data.longest)
    return Study(runs, ladders, ReplayOptions(scores=SCORES))


def measure(sums: QuestionSums, *, probes: bool = True) -> Line:
    """One policy; with 95 % intervals from draws of whole questions. Fractions."""
    if not probes:
        values = sums.values.copy()
        values[:, :, 2] -= values[:, :, 3]
        sums = replace(sums, values=values)
    at = sums.measure(sums.weights(None))
    (drop,), (saved,) = sums.bootstrap(N_DRAWS, np.random.default_rng(0))
    spared = sums.of("tokens") - (sums.of("probes") if probes else 0.0)
    return {
        "saved": float(at.saved[0, 0]),
        "saved_range": [saved.low, saved.high],
        "saved_free": float(1 - spared.sum() / sums.full_tokens.sum()),
        "drop": float(at.drop[0, 0]),
        "drop_range": [drop.low, drop.high],
    }


def _as_published(runs: Runs) -> Line:
    """Each rule at its published setting, and by model where there are few."""
    model = np.array([dict(query.metadata).get("model", "") for query in runs.queries])
    models = np.unique(model).tolist()
    found = {}
    for name, rung in published_rungs(runs.kind).items():
        found[name] = measure(sum_halts(runs, [halts_of(rung, runs)]))
        if 1 < len(models) <= FEW_MODELS:
            found[name]["by_model"] = {one: _of_model(runs, model == one, rung) for one in models}
    return found


def _of_model(runs: Runs, keep: NDArray[np.bool_], rung: PolicyRung) -> Line:
    part = select_runs(runs, keep)
    found = measure(sum_halts(part, [halts_of(rung, part)]))
    return {"saved": found["saved"], "drop": found["drop"], "em": float(part.full_ok.mean())}


def _stops(laid: RungSums, pool: LadderPool) -> bool:
    sums, _, _ = laid.of(pool.ladders)
    return bool(sums.of("stopped").any())


def _picked(nested: NestedRungs, pool: LadderPool, budget: float) -> Line:
    rule, late = nested.hindsight(pool, budget)
    return {
        "frozen": {**measure(nested.frozen(pool, budget)), "rule": _label(nested.chosen(pool, budget))},
        "hindsight": {**measure(late), "rule": rule},
        "misses": nested.miss_share(pool, budget),
    }


def _label(rungs: Sequence[Rung | None]) -> str:
    names = Counter(
        "never" if rung is None else rung.score if isinstance(rung, ScoreRung) else rung.label for rung in rungs
    )
    return ", ".join(name if n == len(rungs) else f"{name} ({n} of {len(rungs)})" for name, n in names.most_common())


def _at_margin(nested: NestedRungs, pools: Sequence[LadderPool], budget: float, margin: float) -> Line:
    ours = next(pool for pool in pools if pool.name == OURS)
    frozen = measure(nested.frozen(ours, budget, margin=margin))
    return {"saved": frozen["saved"], "misses": nested.miss_share(ours, budget, margin=margin)}


def _missing(
    nested: NestedRungs, pools: Sequence[LadderPool], name: str, budget: float, margin: float | None = MARGIN
) -> float:
    return nested.miss_share(next(pool for pool in pools if pool.name == name), budget, margin=margin)
