"""What rollouts make of the version in force, as the certify loop reads it from rows."""

from __future__ import annotations

import pytest

from suffice.assurance.certify import spent_delta
from suffice.control.loop.rollout_transition import RolloutTransition
from suffice.rollout.evidence import Rules
from suffice.rollout.stages import StepOrder, roll_back, start_rollout
from suffice.store.rows.events import RolloutMove, RolloutStart

DELTA = 0.05


@pytest.mark.parametrize("fit", ["v-learned", ""])
def test_the_loop_and_a_candidate_that_is_tried_keep_delta_together(fit: str) -> None:
    transition = RolloutTransition()
    assert transition.loops_share(DELTA) == DELTA
    state = start_rollout(
        "r-1", route="r", candidate="c-1", active="v-before", follows=1, at=0, now_s=0.0, rules=Rules(), fit=fit
    )
    transition.after(RolloutStart(state=state, number=1, author="ann", reason=""))
    if fit:
        for number in (1, 7, 1_000):
            assert transition.loops_share(DELTA) + spent_delta(DELTA, 1 + number) <= DELTA
    else:
        assert transition.loops_share(DELTA) == DELTA, "a policy of the owner's has no certificate"
    back = roll_back(state, StepOrder(by="ann", reason="enough", at=10, now_s=1.0))
    transition.after(RolloutMove(route="r", author="ann", reason="enough", transition=back))
    assert transition.loops_share(DELTA) == DELTA
