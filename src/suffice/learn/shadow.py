"""Evidence about arms from audits that were asked twice, by query class: what counts, from when on, and as what.

An audit shows the full answer and asks one arm beside it, unseen. Three rules keep the evidence honest:

- late labels: an audit counts once its label is due, whether it disagrees or not; unlabelled it then counts as lost
- poisoned labels: proofs believe trusted sources alone; guesses believe others too, each key for a small part of the
  audits at most (`assurance.label_precedence`)
- old data: the latest `window` audits of a class and arm count; an alarm forgets the class
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from suffice.assurance.certify import Counts
from suffice.assurance.labels import TRUSTED, TrustedLabel, stand


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAudit:
    audit_id: str
    query_class: str
    arm: int  # 1 … K - 1
    odds: tuple[float, ...]  # of every arm in the lottery that drew this one; the full run has 0
    disagrees: bool  # does the arm answer otherwise than the full run? True where either was broken off
    due_s: float  # from when on it counts; without a label, as lost where it disagrees
    full_tokens: float
    arm_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAudits:
    """Audits that count now, oldest first, with what each lost: -1, 0 or +1."""

    audits: Sequence[ShadowAudit]
    proved: Sequence[int]  # by trusted labels; what nobody trusted has spoken of is lost
    guessed: Sequence[int]  # by all labels that are believed


class ShadowLog:
    """The latest `window` audits of each class and arm, in the order in which they came, with their labels.

    One untrusted key may speak for `key_cap` of the disagreeing audits, [0, 1].
    """

    def __init__(self, n_arms: int, *, window: int, key_cap: float) -> None:
        self._n_arms, self._window, self._key_cap = n_arms, window, key_cap
        self._audits: dict[str, ShadowAudit] = {}
        self._cells: dict[tuple[str, int], deque[str]] = {}
        self._labels: dict[str, list[TrustedLabel]] = {}

    def __len__(self) -> int:
        return len(self._audits)

    def add(self, audit: ShadowAudit) -> bool:
        """Take an audit in; False: it was there already. Raises ValueError for an arm that its lottery cannot draw."""
        if audit.audit_id in self._audits:
            return False
        if not 0 < audit.arm < self._n_arms or len(audit.odds) != self._n_arms or not audit.odds[audit.arm] > 0:
            raise ValueError(f"audit {audit.audit_id!r}: arm {audit.arm} of odds {audit.odds}; drawn, not the full run")
        self._cells.setdefault((audit.query_class, audit.arm), deque()).append(audit.audit_id)
        self._audits[audit.audit_id] = audit
        return True

    def get(self, audit_id: str) -> ShadowAudit | None:
        return self._audits.get(audit_id)

    def label(self, label: TrustedLabel) -> bool:
        """Take in a label, whose verdict is what the audit lost; False: the audit is not here, or needs no label."""
        audit = self._audits.get(label.audit)
        if audit is None or not audit.disagrees:
            return False
        labels = self._labels.setdefault(label.audit, [])
        if label not in labels:
            labels.append(label)
        return True

    def forget(self, query_class: str, *, from_arm: int = 0) -> None:
        """Drop what is known of a class, or of its arms from one on: it belongs to another regime."""
        for cell in [cell for cell in self._cells if cell[0] == query_class and cell[1] >= from_arm]:
            for audit_id in self._cells.pop(cell):
                self._drop(audit_id)

    def evidence(self, now_s: float) -> ShadowAudits:
        """What counts now. Audits that no window holds any more are dropped."""
        for cell in self._cells.values():
            for _ in range(self._n_due(cell, now_s) - self._window):
                self._drop(cell.popleft())
        audits = [audit for audit in self._audits.values() if audit.due_s <= now_s]
        proved, guessed = self._verdicts(TRUSTED), self._verdicts(0)
        return ShadowAudits(
            audits=audits,
            proved=[_loss(audit, proved) for audit in audits],
            guessed=[_loss(audit, guessed) for audit in audits],
        )

    def n_waiting(self, query_class: str, now_s: float) -> list[int]:
        """Audits of each arm of a class that do not count yet, shape (K,)."""
        n = [0] * self._n_arms
        for (name, arm), cell in self._cells.items():
            if name == query_class:
                n[arm] = len(cell) - self._n_due(cell, now_s)
        return n

    def _n_due(self, cell: deque[str], now_s: float) -> int:
        return sum(self._audits[audit_id].due_s <= now_s for audit_id in cell)

    def _drop(self, audit_id: str) -> None:
        del self._audits[audit_id]
        self._labels.pop(audit_id, None)

    def _verdicts(self, least_trust: int) -> Mapping[str, Any]:
        labels = [label for some in self._labels.values() for label in some if label.trust >= least_trust]
        differing = {audit.audit_id for audit in self._audits.values() if audit.disagrees}
        return stand(labels, differing=differing, max_share=self._key_cap).verdicts

    def plain(self) -> dict[str, Any]:
        labels = [asdict(label) for some in self._labels.values() for label in some]
        return {"audits": [list(astuple(audit)) for audit in self._audits.values()], "labels": labels}

    def restore(self, plain: Mapping[str, Any]) -> None:
        self._audits, self._cells, self._labels = {}, {}, {}
        for row in plain["audits"]:
            values = dict(zip(ShadowAudit.__slots__, row, strict=True))
            self.add(ShadowAudit(**{**values, "odds": tuple(values["odds"])}))
        for label in plain["labels"]:
            self.label(TrustedLabel(**label))


def count_losses(evidence: ShadowAudits, classes: Sequence[str], n_arms: int) -> list[Counts]:
    """Proved losses of each arm, shape (K,), class by class: what certificates are made of."""
    tables = {name: [[0] * n_arms for _ in range(3)] for name in classes}
    for audit, loss in zip(evidence.audits, evidence.proved, strict=True):
        tables[audit.query_class][loss + 1][audit.arm] += 1
    return [Counts(*np.array(tables[name], dtype=np.int64)) for name in classes]


def _loss(audit: ShadowAudit, verdicts: Mapping[str, Any]) -> int:
    return int(verdicts.get(audit.audit_id, 1)) if audit.disagrees else 0
