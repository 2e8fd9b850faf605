"""Worlds in which arms can be tuned and whose truth is known, and learners that live in them.

    story(name) ──▶ Story (worlds, labels) ──▶ run_tuner, run_greedy, run_fixed ──▶ Lived (reward, drop, by request)

`worlds` has the truth, `lives` lets a learner see what it would see. Rewards are expectations, so that a comparison of
learners has no noise but that of what they learned.
"""

from tests.simulators.arm_worlds.lives import (
    LearnerHistory,
    best_fixed,
    hindsight,
    run_fixed,
    run_greedy,
    run_tuner,
    tuning_of,
)
from tests.simulators.arm_worlds.worlds import ARMS, CLASSES, SCENARIOS, ArmWorld, LabelLaw, Story, story

__all__ = [
    "ARMS",
    "CLASSES",
    "SCENARIOS",
    "ArmWorld",
    "LabelLaw",
    "LearnerHistory",
    "Story",
    "best_fixed",
    "hindsight",
    "run_fixed",
    "run_greedy",
    "run_tuner",
    "story",
    "tuning_of",
]
