"""Regimes with known truth in which arms can be tuned, and learners that run in them.

    story(name) ──▶ Story (regimes, labels) ──▶ run_tuner, run_greedy, run_fixed ──▶ LearnerHistory (reward, drop)

Rewards are expectations, so that a comparison of learners has no other noise than what they learned.
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
