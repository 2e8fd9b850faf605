"""Fitted versions: how they are learned, written, read back and replayed on audits.

What is certified is what is served: the models that judge the audits are the exported ones, number for number, so a
version that is read back from the log judges as it did when it was fitted.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from suffice.assurance.forecast import DROP_PER_NEAR, near_levels, near_share
from suffice.assurance.runs import Match, RunNumbers
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, changed_verdicts, verdicts
from suffice.errors import ConfigError
from suffice.learn.audits import AuditRuns, Bools, Floats
from suffice.learn.export import export_stop_model
from suffice.learn.features import FeatureSelection
from suffice.learn.models import Examples, Parts, fit
from suffice.learn.served import FoldedModels, Split, fit_served
from suffice.learn.version import FoldedVersion, fold_version, read_version
from suffice.model.artefact import StepCost, StopModel, TrainingRecord, canonical
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader
from suffice.store.routes.in_force import InForce
from suffice.store.routes.windows import read_publications
from suffice.types import Publication

SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class ModelScores:
    """A fitted model as the certifier calls it: rows of features → P(stopping is as good as the full run)."""

    model: StopModel

    def __call__(self, x: Floats) -> Floats:
        return self.model.suffices.scores(x)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedVersion(FoldedModels):
    version: FoldedVersion

    @property
    def features(self) -> FeatureSelection:
        return FeatureSelection(tuple(self.version.models[0].features), ())


@dataclass(frozen=True, slots=True)
class LiveLearner:
    """Fits one model on rows of the chosen features. Raises ConfigError where scikit-learn is missing."""

    chosen: FeatureSelection
    cost_exponent: float
    n_runs: int = 0  # that the rows come from
    parts: Parts = "ensemble"

    def __call__(self, x: Floats, good: Bools, weight: Floats) -> ModelScores:
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
    made = fold_version(version)
    return ServedVersion(models=made.models, levels=made.levels, cost_exponent=made.cost_exponent, version=version)


def written(version: FoldedVersion) -> str:
    """The artefact that is kept under the version's address."""
    return canonical(version.plain()).decode()


def read_back(address: str, body: str | None) -> ServedVersion:
    """The version that was kept under an address. Raises ConfigError where it is gone, or is another one."""
    return as_served_version(read_version(address, body))


def published_on(log: LogReader, route: str) -> Callable[[int], Publication | None]:
    """What was in force on a route at a place of the log. Raises StoreError."""
    rows = read_publications(log, route)
    places = [seq for seq, _ in rows]

    def at(seq: int) -> Publication | None:
        before = bisect_right(places, seq)
        return rows[before - 1][1] if before else None

    return at


def loader(
    log: LogReader, known: dict[str, ServedVersion | None] | None = None
) -> Callable[[str], ServedVersion | None]:
    """Versions by their address; None: it is gone, or cannot be read.

    known  those that were read before; new ones are added
    """
    known = {} if known is None else known

    def load(address: str) -> ServedVersion | None:
        if address not in known:
            try:
                known[address] = read_back(address, read_artefact(log, address))
            except ConfigError:
                known[address] = None
        return known[address]

    return load


def version_in_force(log: LogReader, held: InForce) -> ServedVersion | None:
    """The version that serves a route; None: there is none, or it cannot be read."""
    made = held.publication
    return None if made is None or not made.fit else loader(log)(made.fit)


# --------------------------------------------------------------------------- audits at the deployed level


@dataclass(frozen=True, slots=True)
class AuditAtLevel:
    near: float  # part of the neighbouring levels at which a stop would have answered otherwise
    z: int  # -1, 0 or +1; without a label a disagreement counts as lost
    expected: float | None = None  # what the stop model expects it to lose there; None: there is no model


@dataclass(slots=True, kw_only=True)
class ReplayedAudits:
    """How each audit of one route ends at the level that is deployed.

    An audit is judged when it comes, and again when the label that counts changes; all are judged anew when another
    level or version is deployed.

    wave  samples that are launched together
    """

    match: Match
    wave: int
    served: ServedVersion | None = None
    level: int = 0
    _judged: dict[str, AuditAtLevel] = field(default_factory=dict)
    _near: range | None = None  # levels that count as neighbours; chosen when the level is deployed
    _counts: Verdicts = field(default_factory=dict)

    def deploy(self, served: ServedVersion | None, level: int) -> None:
        """Another level is in force: nothing that was judged at the old one counts."""
        before, after = (None if one is None else one.version.address for one in (self.served, served))
        if (before, self.level) != (after, level):
            self.served, self.level, self._near = served, level, None
            self._judged.clear()

    def of(self, audits: Sequence[Audit]) -> Mapping[str, AuditAtLevel]:
        """How each audit, by its id, ends at the deployed level; with a version only."""
        if self.served is None or not audits:
            return {}
        before, (self._counts, _) = self._counts, verdicts([one for one in audits if one.labels], self.match)
        again = changed_verdicts(before, self._counts)
        self._judge(self.served, [one for one in audits if one.id not in self._judged or one.id in again])
        kept = {one.id for one in audits}
        self._judged = {name: one for name, one in self._judged.items() if name in kept}
        return self._judged

    def _judge(self, served: ServedVersion, audits: Sequence[Audit]) -> None:
        runs = audits_to_rows(audits, chosen=served.features, match=self.match, wave=self.wave, counts=self._counts)
        if runs is None:
            return
        rows = served.rows(runs)
        disagrees = runs.d[rows] | runs.abandoned[:, None]
        disagrees[:, 0] = False
        if self._near is None:
            self._near = near_levels(disagrees, self.level)
        labelled = np.isfinite(runs.label_at)
        z = np.where(labelled & ~runs.abandoned, runs.z[rows[:, self.level]], disagrees[:, self.level])
        expected = served.expected(runs, rows[:, self.level]).tolist()
        shares = near_share(disagrees, self._near).tolist()
        for audit, near, lost, feared in zip(audits, shares, z.tolist(), expected, strict=True):
            self._judged[audit.id] = AuditAtLevel(near, int(lost), feared)


def by_itself(run: RunNumbers) -> AuditAtLevel | None:
    """The same of a run whose policy its owner wrote down; None: it says nothing about a stop.

    There are no neighbouring levels to borrow from, so what the forecast follows is the drop itself.
    """
    if run.disagrees is None:
        return None
    z = run.drop if run.drop is not None else int(run.disagrees)
    return AuditAtLevel(z / DROP_PER_NEAR, z)
