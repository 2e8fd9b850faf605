"""The truth: classes of requests, what each arm loses, gains and costs there, and how labels arrive.

Easy questions need almost no reasoning and hard ones all of it, so no arm is best for every class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.learn.effort import TunedArm

Floats = NDArray[np.float64]

CLASSES: Final = ("easy", "medium", "hard")
ARMS: Final = (
    TunedArm(name="full"),
    TunedArm(name="trim", expected_share=0.8, knobs={"budget_tokens": 4_000}),
    TunedArm(name="short", expected_share=0.6, knobs={"budget_tokens": 2_000}),
    TunedArm(name="brief", expected_share=0.4, knobs={"budget_tokens": 1_000}),
    TunedArm(name="terse", expected_share=0.25, knobs={"budget_tokens": 500}),
    TunedArm(name="none", expected_share=0.05, knobs={"budget_tokens": 0}),
)
SCENARIOS: Final = ("steady", "drifting", "cold", "delayed", "censored", "poisoned", "noisy")
SECONDS_A_REQUEST: Final = 5.0
FULL_TOKENS: Final = 1_000.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmWorld:
    """The truth of one regime. Rows are classes, columns arms."""

    mix: Floats  # (C,): share of requests
    right: Floats  # (C,): P(the full run is correct)
    lost: Floats  # (C, K): P(the full run is correct and the arm is wrong)
    gained: Floats  # (C, K): P(only the arm is correct)
    differ: Floats  # (C, K): P(different answers, both wrong)
    shares: Floats  # (C, K): tokens, relative to a mean full run

    @property
    def drop(self) -> Floats:
        """EM drop of each class and arm, shape (C, K)."""
        return self.lost - self.gained


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLaw:
    """How labels of disagreeing audits arrive."""

    delay_s: float = 600.0  # mean; the maximum is 1.5 times as long
    p_if_lost: float = 1.0  # P(a label arrives) where the arm lost
    p_otherwise: float = 1.0
    liars: tuple[tuple[str, float], ...] = ()  # users who always label "nothing lost", with their share of labels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Story:
    n_requests: int
    worlds: tuple[ArmWorld, ...]  # each for an equal share of the requests
    labels: LabelLaw = LabelLaw()

    def world(self, request: int) -> ArmWorld:
        return self.worlds[min(len(self.worlds) - 1, request * len(self.worlds) // self.n_requests)]


def story(name: str, n_requests: int = 200_000) -> Story:
    """A scenario of SCENARIOS; a cold one has a twentieth of the requests. Raise KeyError for another name."""
    base = world()
    if name == "drifting":
        harder = world(mix=(0.3, 0.3, 0.4), worse=(1.0, 4.0, 1.5))
        turned = world(worse=(25.0, 1.0, 0.2))  # easy questions become risky, hard ones safe
        return Story(n_requests=n_requests, worlds=(base, harder, turned))
    if name == "cold":
        return Story(n_requests=n_requests // 20, worlds=(base,))
    if name == "noisy":
        return Story(n_requests=n_requests, worlds=(world(flips=(0.01, 0.03, 0.03)),))
    many = tuple((f"sybil-{i}", 0.01) for i in range(20))
    labels = {
        "steady": LabelLaw(),
        "delayed": LabelLaw(delay_s=20_000.0),
        "censored": LabelLaw(p_if_lost=0.9, p_otherwise=0.4),
        "poisoned": LabelLaw(liars=(("mallory", 0.3), *many)),
    }
    return Story(n_requests=n_requests, worlds=(base,), labels=labels[name])


def world(
    *,
    mix: tuple[float, float, float] = (0.5, 0.3, 0.2),
    worse: tuple[float, float, float] = (1.0, 1.0, 1.0),
    flips: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> ArmWorld:
    """The default regime with the losses of each class multiplied by `worse`.

    flips  by class: how often two independent draws differ in correctness, equally often each way
    """
    usual = np.array(
        [
            [0.0, 0.000, 0.001, 0.001, 0.002, 0.15],
            [0.0, 0.001, 0.004, 0.015, 0.060, 0.30],
            [0.0, 0.004, 0.050, 0.120, 0.200, 0.45],
        ]
    )
    lost = np.minimum(usual * np.array(worse)[:, np.newaxis], 0.5)
    shares = np.array([arm.expected_share for arm in ARMS]) * np.array([[0.8], [1.0], [1.5]])
    noise = np.array(flips)[:, np.newaxis] * (np.arange(len(ARMS)) > 0)
    return ArmWorld(
        mix=np.array(mix),
        right=np.array([0.95, 0.85, 0.6]),
        lost=lost + noise,
        gained=0.2 * lost + noise,
        differ=lost + noise,
        shares=shares,
    )
