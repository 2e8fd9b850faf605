"""The job `advance`: takes the step that the evidence calls for on every rollout that runs.

Whoever looks at the same rows takes the same step, and of two workers that take it one has written it. The job keeps
what it has read of a rollout and reads only what is new. Looking takes a twentieth of the time at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from suffice.control.compare.assessment import RolloutAssessor
from suffice.control.compare.counterfactual import AuditReplay
from suffice.control.jobs.base import JobPass, ProposalJob
from suffice.rollout.stages import Transition
from suffice.settings import Route
from suffice.store.routes.in_force import InForce
from suffice.store.routes.rollouts import read_rollouts, read_running_rollouts
from suffice.store.rows.records import RolloutMove

LEAST_REST: Final = 20.0  # between two looks at a rollout: so many times what the last one took, at least


@dataclass(kw_only=True)
class Advance(ProposalJob):
    """Moves the rollouts of all routes: of policies that owners wrote, and of learned versions."""

    name = "advance"
    failing = "stays where it is"
    rests_s = 5.0
    _assessors: dict[str, RolloutAssessor] = field(init=False, default_factory=dict)  # of running rollouts, by route

    def forget(self) -> None:
        super().forget()
        self._assessors.clear()

    def concerns(self, route: Route) -> bool:
        return route.mode != "off" and (bool(route.policy) or route.is_learned)

    def propose(self, name: str, held: InForce, here: JobPass) -> str | None:
        """Take the step that the evidence calls for; what was done, or "". None: no rollout runs there."""
        trial = read_running_rollouts(read_rollouts(here.log)).get(name)
        # What fails half-way may have read a row and not counted it: it is kept only when the look is over.
        assessor = self._assessors.pop(name, None)
        if trial is None:
            return None
        began_s = self.monotonic_s()
        if assessor is None or assessor.gathering.held.seq != trial.seq:
            of_route = AuditReplay(route=self.settings.routes[name], match=self.match(name))
            assessor = RolloutAssessor.at(here.log, trial, of_route, self.settings.control, secret=self.secret)
        seen = assessor.see(here.log, trial, held, now_s=self.now(), reading=here.desk.renew)
        self._assessors[name] = assessor
        ended_s = self.monotonic_s()
        self._due_s[name] = max(self._due_s[name], ended_s + LEAST_REST * (ended_s - began_s))
        here.desk.renew()
        moves = seen.moves
        wanted = () if moves and moves[-1].move == "roll_back" else seen.wanted
        if not moves and not wanted:
            return ""
        rows = [RolloutMove(route=name, author=self.author, reason=move.reason, transition=move) for move in moves]
        here.desk.write([*rows, *wanted])
        assessor.asked.update(one.episode_id for one in wanted)
        sentences = [*map(_sentence, moves), *([f"{len(wanted)} labels wanted"] if wanted else [])]
        return f"rollout {trial.state.rollout}: {'; '.join(sentences)}"


def _sentence(move: Transition) -> str:
    if move.move == "certify":
        return f"level {move.level} may act: {move.reason}"
    return f"{move.move}, {move.stage} at {move.share:.0%}: {move.reason}"
