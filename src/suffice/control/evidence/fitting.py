"""The live learner: fits the stop models of a version as plain data, and knows them again by their address.

What is certified is what is served: the models that judge the audits are the exported ones, number for number, so a
version that is read back from the log judges as it did when it was fitted. Knows rows and models; refuses to know
when a fit is due.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from suffice.learn.audits import AuditRuns, Bools, Floats
from suffice.learn.export import export_stop_model
from suffice.learn.features import FeatureSelection
from suffice.learn.models import Examples, Parts, fit
from suffice.learn.served import FoldedModels, Split, fit_served
from suffice.learn.version import FoldedVersion, fold_version, read_version
from suffice.model.stop import StepCost, StopModel, TrainingRecord, canonical

SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class ModelScores:
    """A fitted model as the keeper calls it: rows of features → P(stopping is as good as the full run)."""

    model: StopModel

    def __call__(self, x: Floats) -> Floats:
        """P(as good) of each row, shape (R,)."""
        return self.model.suffices.scores(x)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedVersion(FoldedModels):
    """A version in the form in which it is served and judged."""

    version: FoldedVersion


@dataclass(frozen=True, slots=True)
class LiveLearner:
    """Fits one model on rows of the chosen features. Raises ConfigError where scikit-learn is missing."""

    chosen: FeatureSelection
    cost_exponent: float
    n_runs: int = 0  # that the rows come from
    parts: Parts = "ensemble"

    def __call__(self, x: Floats, good: Bools, weight: Floats) -> ModelScores:
        """The fitted model, exported."""
        examples = Examples(x=x, good={"as-good": good}, weight=weight)
        fitted = fit(examples, self.chosen, "as-good", parts=self.parts, seed=SEED)
        digest = hashlib.blake2b(digest_size=8)
        for part in (x, good, weight):
            digest.update(np.ascontiguousarray(part).tobytes())
        trained = TrainingRecord(
            n_episodes=self.n_runs, n_questions=0, digest=f"rows:{digest.hexdigest()}", target="as-good", seed=SEED
        )
        return ModelScores(
            export_stop_model(self.chosen, fitted, trained=trained, cost=StepCost(exponent=self.cost_exponent))
        )


def fit_audited_version(
    runs: AuditRuns,
    learner: LiveLearner,
    *,
    now: float,
    label_free: bool,
    split: Split,
    n_levels: int,
    cost_exponent: float,
) -> ServedVersion | None:
    """Fit a version on the audits; None while there is too little to learn from. As `learn.served.fit_served`."""
    fitted = fit_served(
        runs,
        replace(learner, n_runs=len(runs)),
        now=now,
        label_free=label_free,
        split=split,
        n_levels=n_levels,
        cost_exponent=cost_exponent,
    )
    if fitted is None or not np.isfinite(fitted.levels[:, 1:]).all():
        return None
    models = tuple(model.model for model in fitted.models if isinstance(model, ModelScores))
    return as_served_version(FoldedVersion(models=models, levels=tuple(map(tuple, fitted.levels[:, 1:].tolist()))))


def as_served_version(version: FoldedVersion) -> ServedVersion:
    """The version, ready to judge audits."""
    made = fold_version(version)
    return ServedVersion(models=made.models, levels=made.levels, cost_exponent=made.cost_exponent, version=version)


def written(version: FoldedVersion) -> str:
    """The artefact that is kept under the version's address."""
    return canonical(version.plain()).decode()


def read_back(address: str, body: str | None) -> ServedVersion:
    """The version that was kept under an address. Raises ConfigError where it is gone, or is another one."""
    return as_served_version(read_version(address, body))
