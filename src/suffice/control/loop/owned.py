"""The certify loop of a route whose owner wrote its policy down: that very policy, proved on audits before it acts.

    requests, outcomes, labels ──▶ OwnLoop.feed ──▶ Resolution: level 1, the policy, once it is proved; else level 0

The fold, its epochs, alarms, pauses and the rule that the log must follow from itself are those of
`control.loop.certify`; nothing is learned, so there is no burst to learn from and no refit. Another policy in the
settings is another one to be proved. What a rollout brings in its place is vouched for by nobody here, and the gateway
lets it stop nothing.

Knows records of the log; refuses to know databases, clocks and who asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from suffice.control.evidence.audits import Audit
from suffice.control.evidence.owned import OWNED, owned_rows
from suffice.control.evidence.resolution import ReplayMismatch, Resolution
from suffice.control.loop.certify import RouteLoop
from suffice.learn.audits import AuditRuns
from suffice.policy.base import Policy, build_policy
from suffice.store.routes.rollouts import own_version
from suffice.types import Epoch, Publication


@dataclass(slots=True, kw_only=True, eq=False)
class OwnLoop(RouteLoop):
    """One route with a policy of its owner's, from the beginning of its epoch on."""

    policy: Policy = field(init=False)
    address: str = field(init=False)  # of the policy, as publications name it

    def __post_init__(self) -> None:
        """Begin where the epoch began."""
        self.policy, self.address = build_policy(self.route.policy), own_version(self.route).address
        super(OwnLoop, self).__post_init__()  # named: a class with slots is not the one that a bare `super` remembers

    def _begin(self, epoch: Epoch, kept: Sequence[Audit]) -> None:
        super(OwnLoop, self)._begin(epoch, kept)
        self.keeper.plan = replace(self.keeper.plan, n_levels=OWNED.n_levels)
        self.keeper.rests = True
        self.keeper.adopt(OWNED, None)

    def _take_over(self, address: str | None) -> None:
        """What a rollout brings is proved by its own comparison, and by no certificate."""

    def _rows(self, audits: Sequence[Audit]) -> AuditRuns | None:
        return owned_rows(
            audits,
            policy=self.policy,
            kind=self.route.kind,
            match=self.match,
            wave=self.route.wave,
            counts=self._counts,
        )

    def _say(self, made: Publication, artefacts: Mapping[str, str]) -> Resolution | None:
        if self.expected and self.expected[0].version != self.address:
            raise ReplayMismatch(f"route {self.name}: its owner has written another policy down")
        return super(OwnLoop, self)._say(replace(made, version=self.address), artefacts)
