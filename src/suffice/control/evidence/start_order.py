"""Requests in the order in which they began, and audits that have not returned.

    Request ──▶ StartOrder.began ──▶ its number; its audit share opens and closes windows
    Outcome ──▶ StartOrder.ended ──▶ the request and its number

A run may take longer than a thousand others. Were audits counted in the order in which they end, the easy ones would
come first and prove what does not hold of the hard ones. So an audit has the number of its start, and from there until
it returns it is pending, and counts as lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from suffice.assurance.windows import Windows
from suffice.control.evidence.audits import audited_at, is_audit
from suffice.control.evidence.latest import remember
from suffice.learn.certifier import PendingAudits, pending_audits
from suffice.types import Request


@dataclass(slots=True)
class StartOrder:
    """The requests of one epoch that have begun and not ended."""

    observes: bool = False  # did the route of the latest request only observe?
    _open: dict[str, tuple[Request, int]] = field(default_factory=dict)
    _pending: dict[str, tuple[int, float]] = field(default_factory=dict)  # audits: number, and share when drawn

    def began(self, request: Request, number: int, *, probes: bool, windows: Windows) -> None:
        """Take a request in at its start.

        number   of the request among those of its route
        probes   see `audits.audited_at`
        windows  are told the share at which it was drawn
        """
        remember(self._open, request.episode_id, (request, number))
        if request.delivery > 1:
            return  # it runs in full, whatever the draw of the first delivery was
        share = audited_at(request, probes=probes)
        self.observes = request.mode == "observe"
        windows.note(float(number), share)
        if is_audit(request, probes=probes):
            remember(self._pending, request.episode_id, (number, share))

    def ended(self, episode_id: str) -> tuple[Request, int] | None:
        """The request that has ended, with its number; None: it did not begin in this epoch."""
        self._pending.pop(episode_id, None)
        return self._open.pop(episode_id, None)

    def pending_with(self, before: Iterable[tuple[int, float]]) -> PendingAudits:
        """Audits that have begun and not returned, and those that an earlier epoch has given up.

        before  number and share of each of these
        """
        return pending_audits([*before, *self._pending.values()])
