"""Where a policy would have stopped recorded runs, and with which answer.

    policy, full runs ──▶ columns of signals ──▶ the first stop of each run, and what the client would have got there

The policy decides on what its runs recorded, as it would have live. Knows recorded runs and policies; refuses to know
what a stop is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from suffice.control.evidence.audits import Audit
from suffice.learn.dataset import recorded_columns
from suffice.policy.base import Policy
from suffice.policy.columns import AskedColumns, stops_of
from suffice.policy.returning import returning
from suffice.types import Kind


def policy_stops(policy: Policy, kind: Kind, audits: Sequence[Audit]) -> dict[str, tuple[int, str | None]]:
    """Step, from 0, and answer of the policy's first stop in each run, by episode; runs that it lets end are left out.

    audits  runs with steps, seen to their end
    """
    if not audits:
        return {}
    runs = [(one.episode.request.query, one.episode.outcome.steps) for one in audits]
    columns = recorded_columns(policy.needs, kind, runs)
    run = np.repeat(np.arange(len(audits)), np.diff(columns.starts))
    asked = AskedColumns({**columns.values, "answer": columns.answer}, queries=[query for query, _ in runs], run=run)
    found: dict[str, tuple[int, str | None]] = {}
    for row in np.flatnonzero(stops_of(policy, asked) != 0)[::-1].tolist():  # the first one of a run has the last word
        at = int(run[row])
        step = row - int(columns.starts[at])
        if row < int(columns.starts[at + 1]) - 1:
            delivered = answer_of(columns.answer[row], columns.answers)
            found[audits[at].id] = step, _returned(policy, kind, audits[at], step, delivered)
    return found


def answer_of(code: float, answers: Sequence[str]) -> str | None:
    """The answer behind a code of a column; None: there is none."""
    return None if np.isnan(code) else answers[int(code)]


def _returned(policy: Policy, kind: Kind, audit: Audit, step: int, delivered: str | None) -> str | None:
    """The answer behind a stop: in a loop of the caller's own the policy says which step's it is."""
    if kind != "rounds":
        return delivered
    steps = audit.episode.outcome.steps[: step + 1]
    at = returning(policy)([one.answer for one in steps], [one.confidence for one in steps])
    return steps[at - 1].answer
