"""Which version serves while rollouts begin, end and are undone."""

from __future__ import annotations

from dataclasses import dataclass, field

from suffice.assurance.certify import spent_delta
from suffice.rollout.stages import State
from suffice.store.rows.events import RolloutMove, RolloutStart, RolloutUndo


@dataclass(slots=True, kw_only=True)
class RolloutTransition:
    """The rollouts of one route in one epoch: whether the loop's own version serves, or a rollout's.

    The loop fits nothing while a rollout runs, because the version that it is compared with must not change. A rollout
    that began before the epoch activates nothing.
    """

    reason: str = ""  # of a change of version since the last call of `take_reason`; "": none
    _running: State | None = None
    _serving: list[State] = field(default_factory=list)  # the latest last; empty: the loop's own version serves

    @property
    def rests(self) -> bool:
        return self._running is not None or bool(self._serving)

    def loops_share(self, delta: float) -> float:
        """The part of delta for the active version; during a rollout the rest is the candidate's."""
        return delta if self._running is None else spent_delta(delta, 1)

    def after(self, event: RolloutStart | RolloutMove | RolloutUndo) -> str | None:
        """Return the address of the version to activate now; None: no change."""
        if isinstance(event, RolloutStart):
            if event.state.fit:
                self._running = event.state
            return None
        if isinstance(event, RolloutUndo):
            if not self._serving or event.rollout != self._serving[-1].rollout:
                return None
            self.reason = f"{event.author} undid rollout {event.rollout}"
            return self._serving.pop().active
        move, trial = event.transition, self._running
        if trial is None or move.rollout != trial.rollout or move.stage not in ("full", "rolled_back"):
            return None
        self._running = None
        if move.stage == "rolled_back":
            return None
        self._serving.append(trial)
        self.reason = f"rollout {trial.rollout} activated {trial.fit}"
        return trial.fit

    def take_reason(self) -> str:
        reason, self.reason = self.reason, ""
        return reason
