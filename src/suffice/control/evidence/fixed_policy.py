"""Replays a policy that its owner wrote on recorded runs, as a version with one level.

    policy, audits ──▶ policy_stops ──▶ AuditRuns with one feature, "it has stopped" ──▶ learn.certifier: 0, 1

The policy was written down before the audits came, so all of them certify and none teaches. What nobody saw counts
against it: a stop behind a checkpoint whose answer nobody got, a stop without an answer, and a run with such a
checkpoint that the policy would have let end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from suffice.assurance.runs import Match
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows
from suffice.learn.audits import AuditRuns, Floats
from suffice.learn.dataset import is_right, recorded_columns
from suffice.learn.features import FeatureSelection
from suffice.learn.served import N_FOLDS, FoldedModels
from suffice.policy.base import Policy
from suffice.policy.columns import AskedColumns, stops_of
from suffice.policy.returning import returning
from suffice.types import Kind

_ANY: Final = FeatureSelection(("step_share",), ())  # rows of audits have a feature; which one does not matter here


def _has_stopped(x: Floats) -> Floats:
    return x[:, 0]


FIXED: Final = FoldedModels(  # level 0 never stops, level 1 is the policy
    models=(_has_stopped,) * N_FOLDS, levels=np.array([[-np.inf, 0.5]] * N_FOLDS), cost_exponent=0.0
)


def fixed_policy_rows(
    audits: Sequence[Audit], *, policy: Policy, kind: Kind, match: Match, wave: int, counts: Verdicts
) -> AuditRuns | None:
    """Audits as rows that `FIXED` reads, in their order; None without audits.

    wave    samples that are launched together
    counts  of `audits.verdicts`
    """
    runs = audits_to_rows(audits, chosen=_ANY, match=match, wave=wave, counts=counts)
    if runs is None:
        return None
    seen = [audit for audit in audits if audit.fate in ("full", "unprobed") and len(audit.outcome.steps) > 1]
    stops = policy_stops(policy, kind, seen)
    x = np.zeros((len(runs.x), 1))
    z, d, may_stop, abandoned = runs.z.copy(), runs.d.copy(), runs.may_stop.copy(), runs.abandoned.copy()
    for number, audit in enumerate(audits):
        start, end = int(runs.starts[number]), int(runs.starts[number + 1])
        stop, gap = stops.get(audit.id), audit.gap
        if end - start == 1:  # it has no row of its own to be stopped at, and nobody saw what was there
            abandoned[number] |= stop is not None
        elif gap is not None and gap < end - start - 1 and (stop is None or gap <= stop[0]):
            x[start + gap : end] = 1.0  # counted as lost from there on already
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
    """Step, from 0, and answer of the policy's first stop in each run, by episode; runs that it lets end are left out.

    audits  runs with steps, seen to their end
    """
    if not audits:
        return {}
    runs = [(one.episode.request.query, one.outcome.steps) for one in audits]
    columns = recorded_columns(policy.needs, kind, runs)
    run = np.repeat(np.arange(len(audits)), np.diff(columns.starts))
    asked = AskedColumns({**columns.values, "answer": columns.answer}, queries=[query for query, _ in runs], run=run)
    stops: dict[str, tuple[int, str | None]] = {}
    for row in np.flatnonzero(stops_of(policy, asked) != 0)[::-1].tolist():  # the first one of a run is written last
        at = int(run[row])
        step = row - int(columns.starts[at])
        if row == int(columns.starts[at + 1]) - 1:
            continue
        answer = answer_of(columns.answer[row], columns.answers)
        if kind == "rounds":  # in a loop of the caller's own the policy says which step's answer is returned
            steps = audits[at].outcome.steps[: step + 1]
            returned = returning(policy)([one.answer for one in steps], [one.confidence for one in steps])
            answer = steps[returned - 1].answer
        stops[audits[at].id] = step, answer
    return stops


def answer_of(code: float, answers: Sequence[str]) -> str | None:
    """The answer behind a code of a column; None: there is none."""
    return None if np.isnan(code) else answers[int(code)]
