"""Fitted versions: fitting, serialising and replaying them on audits.

A version that is read from the log judges as it did when it was fitted, number for number. A fixed policy is a version
with one level (`FIXED`), and unknown results count against it: a stop at or after a missing answer, or without one.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.assurance.forecast import DROP_PER_NEAR, first_disagreement, near_levels, near_share
from suffice.assurance.runs import Match, RunNumbers, is_right
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, changed_verdicts, verdicts
from suffice.errors import ConfigError
from suffice.learn.audits import AuditRuns
from suffice.learn.dataset import recorded_columns
from suffice.learn.features import FeatureSelection
from suffice.learn.models import Examples, export_fit, fit
from suffice.learn.version import (
    N_FOLDS,
    EnsembleScore,
    FoldedModels,
    ServedVersion,
    as_served,
    export_version,
    fit_served,
    fold_version,
)
from suffice.model.artefact import TrainingRecord, canonical
from suffice.policy.base import Policy
from suffice.policy.columns import QueryColumns, stops_of
from suffice.policy.folded_version import FoldedVersion, read_version
from suffice.policy.protocol import returning
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader, read_publications
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import Kind, Publication

SEED = 0


@dataclass(frozen=True, slots=True)
class LiveLearner:
    """Fits a model on rows of the selected features. Raises ConfigError without scikit-learn."""

    chosen: FeatureSelection

    def __call__(self, x: Floats, good: Bools, weight: Floats) -> EnsembleScore:
        return EnsembleScore(export_fit(fit(Examples(x, good, weight), self.chosen, seed=SEED), self.chosen))


def fit_audited_version(runs: AuditRuns, learner: LiveLearner, **options: Any) -> ServedVersion | None:
    """Fit a version on the audits, with the options of `learn.version.fit_served`; None: there are too few."""
    fitted = fit_served(runs, learner, **options)
    if fitted is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for part in (runs.x, runs.starts, runs.z, runs.d, runs.fold):
        digest.update(np.ascontiguousarray(part).tobytes())
    trained = TrainingRecord(
        n_episodes=len(runs), n_questions=0, digest=f"rows:{digest.hexdigest()}", target=fitted.target, seed=SEED
    )
    version = export_version(fitted, learner.chosen, [trained] * N_FOLDS)
    return None if version is None else fold_version(version)


def written(version: FoldedVersion) -> str:
    return canonical(version.plain()).decode()


def read_back(address: str, body: str | None) -> ServedVersion:
    """Parse the artefact under an address. Raises ConfigError if it is missing or does not match the address."""
    return fold_version(read_version(address, body))


def published_on(log: LogReader, route: str) -> Callable[[int], Publication | None]:
    """Look up the active publication of a route at a position of the log. Raises StoreError."""
    rows = read_publications(log, route)
    places = [seq for seq, _ in rows]

    def at(seq: int) -> Publication | None:
        before = bisect_right(places, seq)
        return rows[before - 1][1] if before else None

    return at


def loader(
    log: LogReader, known: dict[str, ServedVersion | None] | None = None
) -> Callable[[str], ServedVersion | None]:
    """Load versions by address, those in `known` without the log; None: it is gone, or cannot be read."""
    known = {} if known is None else known

    def load(address: str) -> ServedVersion | None:
        if address not in known:
            try:
                known[address] = read_back(address, read_artefact(log, address))
            except ConfigError:
                known[address] = None
        return known[address]

    return load


def active_version(log: LogReader, held: RouteDeployment) -> ServedVersion | None:
    """The version that serves a route; None: there is none, or it cannot be read."""
    made = held.publication
    return None if made is None or not made.fit else loader(log)(made.fit)


def version_rows(
    served: ServedVersion, audits: Sequence[Audit], *, match: Match, wave: int, counts: Verdicts
) -> AuditRuns:
    """Audits as rows that the version reads and may stop as it does live, in their order."""
    runs = audits_to_rows(audits, chosen=served.features, match=match, wave=wave, counts=counts)
    return as_served(runs, served.version)


# --------------------------------------------------------------------------- audits at the active level


@dataclass(frozen=True, slots=True)
class AuditAtLevel:
    near: float  # share of the neighbouring levels at which a stop would have given another answer
    z: int  # -1, 0 or +1; without a label a disagreement counts as lost
    expected: float | None = None  # loss that the stop model predicts there; None: none does
    first: int = 0  # `first_disagreement` below the next level


@dataclass(slots=True, kw_only=True)
class ReplayedAudits:
    """How each audit of one route ends at the active level. wave: samples launched together."""

    match: Match
    wave: int
    served: ServedVersion | None = None
    level: int = 0
    _judged: dict[str, AuditAtLevel] = field(default_factory=dict)
    _near: range | None = None  # neighbouring levels, chosen when a level becomes active
    _counts: Verdicts = field(default_factory=dict)

    def deploy(self, served: ServedVersion | None, level: int) -> None:
        before, after = (None if one is None else one.version.address for one in (self.served, served))
        if (before, self.level) != (after, level):
            self.served = served
            self.level = level
            self._near = None
            self._judged.clear()

    def of(self, audits: Sequence[Audit]) -> Mapping[str, AuditAtLevel]:
        if self.served is None or not audits:
            return {}
        before, self._counts = self._counts, verdicts([one for one in audits if one.labels], self.match)
        again = changed_verdicts(before, self._counts)
        self._judge(self.served, [one for one in audits if one.id not in self._judged or one.id in again])
        kept = {one.id for one in audits}
        self._judged = {name: one for name, one in self._judged.items() if name in kept}
        return self._judged

    def _judge(self, served: ServedVersion, audits: Sequence[Audit]) -> None:
        runs = version_rows(served, audits, match=self.match, wave=self.wave, counts=self._counts)
        rows = served.rows(runs)
        if not len(runs):
            return
        losses, disagrees = runs.losses(rows), runs.losses(rows, label_free=True).astype(np.bool_)
        if self._near is None:
            self._near = near_levels(disagrees, self.level)
        expected = served.expected(runs, rows[:, self.level])
        columns = (
            near_share(disagrees, self._near).tolist(),
            losses[:, self.level].tolist(),
            [None] * len(runs) if expected is None else expected.tolist(),
            first_disagreement(disagrees, self.level).tolist(),
        )
        for audit, *seen in zip(audits, *columns, strict=True):
            self._judged[audit.id] = AuditAtLevel(*seen)


def by_itself(run: RunNumbers) -> AuditAtLevel | None:
    """The end of a run under a fixed policy, which has no neighbouring levels; None: nothing is known about a stop."""
    if run.disagrees is None:
        return None
    z = run.drop if run.drop is not None else int(run.disagrees)
    return AuditAtLevel(z / DROP_PER_NEAR, z)


# --------------------------------------------------------------------------- fixed policies

_ANY: Final = FeatureSelection(("step_share",), ())  # rows of audits need a feature, which is not used


def _has_stopped(x: Floats) -> Floats:
    return x[:, 0]


FIXED: Final = FoldedModels(  # level 0 never stops, level 1 is the policy
    models=(_has_stopped,) * N_FOLDS, levels=np.array([[-np.inf, 0.5]] * N_FOLDS), cost_exponent=0.0
)


def fixed_policy_rows(
    audits: Sequence[Audit], *, policy: Policy, kind: Kind, match: Match, wave: int, counts: Verdicts
) -> AuditRuns:
    """Audits as rows for `FIXED`, in their order. wave: samples launched together."""
    runs = audits_to_rows(audits, chosen=_ANY, match=match, wave=wave, counts=counts)
    seen = [audit for audit in audits if audit.fate in ("full", "unprobed") and len(audit.outcome.steps) > 1]
    stops = policy_stops(policy, kind, seen)
    x = np.zeros((len(runs.x), 1))
    z = runs.z.copy()
    d = runs.d.copy()
    may_stop = runs.may_stop.copy()
    abandoned = runs.abandoned.copy()
    for number, audit in enumerate(audits):
        start, end = int(runs.starts[number]), int(runs.starts[number + 1])
        stop, gap = stops.get(audit.id), audit.gap
        if end - start == 1:  # one row: it could not be stopped before its end
            abandoned[number] |= stop is not None
        elif gap is not None and gap < end - start - 1 and (stop is None or gap <= stop[0]):
            x[start + gap : end] = 1.0  # counted as lost from there on
        elif stop is not None:
            row = start + stop[0]
            x[row:end] = 1.0
            may_stop[row] = True
            if kind == "rounds":  # a policy may return another step's answer than the last
                z[row], d[row] = _lost(audit, stop[1], counts, match)
    return replace(runs, x=x, z=z, d=d, may_stop=may_stop, abandoned=abandoned)


def _lost(audit: Audit, answer: str | None, counts: Verdicts, match: Match) -> tuple[int, bool]:
    """EM drop of a run that is stopped with an answer, and whether that differs from the full run's."""
    full, label = audit.outcome.answer, counts.get(audit.id)
    differs = answer is None or answer != full
    right, full_right = (is_right(one, full, label, match) for one in (answer, full))
    return (int(differs) if right is None or full_right is None else int(full_right) - int(right)), differs


def policy_stops(policy: Policy, kind: Kind, audits: Sequence[Audit]) -> dict[str, tuple[int, str | None]]:
    """Step, from 0, and answer of the policy's first stop in each full run that it stops, by episode."""
    if not audits:
        return {}
    runs = [(one.episode.request.query, one.outcome.steps) for one in audits]
    columns = recorded_columns(policy.needs, kind, runs)
    run = np.repeat(np.arange(len(audits)), np.diff(columns.starts))
    inputs = QueryColumns({**columns.values, "answer": columns.answer}, queries=[query for query, _ in runs], run=run)
    stops: dict[str, tuple[int, str | None]] = {}
    for row in np.flatnonzero(stops_of(policy, inputs) != 0)[::-1].tolist():  # the first stop of a run is written last
        at = int(run[row])
        step = row - int(columns.starts[at])
        if row == int(columns.starts[at + 1]) - 1:
            continue
        answer = answer_of(columns.answer[row], columns.answers)
        if kind == "rounds":  # in the caller's own loop, the policy decides which step's answer is returned
            steps = audits[at].outcome.steps[: step + 1]
            returned = returning(policy)([one.answer for one in steps], [one.confidence for one in steps])
            answer = steps[returned - 1].answer
        stops[audits[at].id] = step, answer
    return stops


def answer_of(code: float, answers: Sequence[str]) -> str | None:
    return None if np.isnan(code) else answers[int(code)]
