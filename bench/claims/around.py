"""Base of designs that delegate to a certifier."""

from __future__ import annotations

from suffice.certification.certifier import Certifier
from suffice.certification.evidence import CertifierDecision, Evidence
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels


class Around:
    """The keeper's face, passed on."""

    def __init__(self, keeper: Certifier) -> None:
        self.keeper = keeper

    @property
    def now(self) -> float:
        return self.keeper.now

    @property
    def level(self) -> int:
        return self.keeper.level

    @property
    def served(self) -> FoldedModels | None:
        return self.keeper.served

    @property
    def share(self) -> float:
        return self.keeper.share

    @property
    def in_burst(self) -> bool:
        return self.keeper.in_burst

    def add_audits(self, runs: AuditRuns) -> None:
        self.keeper.add_audits(runs)

    def look(self, evidence: Evidence) -> CertifierDecision:
        return self.keeper.look(evidence)
