"""What rollouts make of the version that a route's certify loop has in force: the loop's own, or one that was brought.

    RolloutStart, RolloutMove, RolloutUndo ──▶ RolloutTransition.after ──▶ the version to take over, do refits rest?

While a version is tried the one that it is compared with must not change, so the loop fits none of its own; and what a
rollout has brought stays, until another one, a person or a new epoch takes it away. A rollout that began before the
epoch is of another world and brings nothing. Knows rows; refuses to know models and what is certified.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from suffice.assurance.certify import spent_delta
from suffice.store.rows.records import RolloutMove, RolloutStart, RolloutUndo


@dataclass(slots=True, kw_only=True)
class RolloutTransition:
    """The rollouts of one route in one epoch."""

    why: str = ""  # that a version was taken over since somebody last asked; "": none was
    _running: str = ""  # the rollout that runs; "": none does
    _stands: str = ""  # the one whose version serves; "": the loop's own does
    _fits: dict[str, tuple[str, str]] = field(default_factory=dict)  # by rollout: its candidate's, and the one before
    _stood: dict[str, str] = field(default_factory=dict)  # by rollout: whose version served before it

    @property
    def rests(self) -> bool:
        """Must the loop fit nothing of its own?"""
        return bool(self._running or self._stands)

    def loops_share(self, delta: float) -> float:
        """Of delta, what the version in force is certified with: the rest is a candidate's while one is tried."""
        return spent_delta(delta, 1) if self._running else delta

    def after(self, event: RolloutStart | RolloutMove | RolloutUndo) -> str | None:
        """Address of the version that is to be taken over now; None: what is in force stays."""
        if isinstance(event, RolloutStart):
            state = event.state
            if state.fit:
                self._running = state.rollout
                self._fits[state.rollout] = state.fit, state.in_force
            return None
        if isinstance(event, RolloutUndo):
            return self._undone(event.rollout, event.author)
        move = event.transition
        if move.rollout != self._running or move.stage not in ("full", "rolled_back"):
            return None
        self._running = ""
        if move.stage == "rolled_back":
            return None
        self._stood[move.rollout], self._stands = self._stands, move.rollout
        self.why = f"rollout {move.rollout} brought {self._fits[move.rollout][0]}"
        return self._fits[move.rollout][0]

    def _undone(self, rollout: str, author: str) -> str | None:
        if rollout != self._stands:
            return None
        self._stands = self._stood.get(rollout, "")
        self.why = f"{author} took back what rollout {rollout} had brought"
        return self._fits[rollout][1]

    def said(self) -> str:
        """Why a version was taken over, once."""
        why, self.why = self.why, ""
        return why
