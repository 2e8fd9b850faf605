"""The job `advance`: it looks at every rollout that runs, and takes the step that the evidence calls for.

    log ──▶ looking.Look ──▶ what follows ──▶ RolloutMove, LabelRequest

Whoever looks at the same rows takes the same step, and of two workers that take it one has written it. The job keeps
what it has read of a rollout and reads only what is new. Looking takes a twentieth of the time at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from suffice.control.compare.assessment import RolloutAssessor, plain_route
from suffice.control.jobs.base import ByRoute, JobWriter
from suffice.rollout.stages import Transition
from suffice.settings import Route
from suffice.store.database.views import LogReader
from suffice.store.routes.in_force import InForce
from suffice.store.routes.rollouts import read_rollouts, read_running_rollouts
from suffice.store.rows.records import RolloutMove

LEAST_REST: Final = 20.0  # between two looks at a rollout: so many times what the last one took, at least


@dataclass(slots=True, kw_only=True)
class Advance(ByRoute):
    """Moves the rollouts of all routes: of policies that owners wrote, and of learned versions.

    secret  of the deployment, which signed the versions
    now     Unix time
    """

    rests_s: ClassVar[float] = 5.0
    failing: ClassVar[str] = "stays where it is"

    secret: str
    now: Callable[[], float]
    name: str = "advance"
    _looks: dict[str, RolloutAssessor] = field(default_factory=dict)  # by route, at the rollout that runs there

    def close(self) -> None:
        self._looks.clear()
        ByRoute.close(self)

    def forget(self) -> None:
        ByRoute.forget(self)
        self._looks.clear()

    def concerns(self, route: Route) -> bool:
        return route.mode != "off" and (bool(route.policy) or route.is_learned)

    def propose(
        self,
        name: str,
        route: Route,
        held: InForce,
        connection: LogReader,
        desk: JobWriter,
        until: int,  # noqa: ARG002 - a look reads to the end of the log
    ) -> str | None:
        """Take the step that the evidence calls for; what was done, or "". None: no rollout runs there."""
        trial = read_running_rollouts(read_rollouts(connection)).get(name)
        if trial is None:
            self._looks.pop(name, None)
            return None
        began_s = self.monotonic_s()
        # What fails half-way may have read a row and not counted it: it is kept only when the look is over.
        kept = self._looks.pop(name, None)
        if kept is None or kept.gathering.held.seq != trial.seq:
            of_route = plain_route(route, self._matched.of(name, route, self.matches))
            kept = RolloutAssessor.at(connection, trial, of_route, self.settings.control, secret=self.secret)
        seen = kept.see(connection, trial, held, now_s=self.now(), reading=desk.renew)
        self._looks[name] = kept
        ended_s = self.monotonic_s()
        self._rests[name] = max(self._rests[name], ended_s + LEAST_REST * (ended_s - began_s))
        desk.renew()
        moves = seen.moves
        wanted = () if moves and moves[-1].move == "roll_back" else seen.wanted
        if not moves and not wanted:
            return ""
        moved = (RolloutMove(route=name, author=self.author, reason=move.reason, transition=move) for move in moves)
        desk.write([*(one for one in moved), *(one for one in wanted)])
        kept.asked.update(one.episode_id for one in wanted)
        said = [*(_said(move) for move in moves), *([f"{len(wanted)} labels wanted"] if wanted else [])]
        return f"rollout {trial.state.rollout}: {'; '.join(said)}"


def _said(move: Transition) -> str:
    if move.move == "certify":
        return f"level {move.level} may act: {move.reason}"
    return f"{move.move}, {move.stage} at {move.share:.0%}: {move.reason}"
