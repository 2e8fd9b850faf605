"""Arms: settings of a route that a recorded audit cannot replay, in order from the safe end.

    probe schedule and wording, closing message, wave size, cap on retrieval rounds, and where the upstream cannot be
    cut, reasoning effort and thinking budget: each changes what the model does next, so it has to be tried

Arm 0 is the full run, as the client asked for it. An arm is a name and plain values; refuses to know how they are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Knob: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedArm:
    """One way to run a route's requests."""

    name: str
    expected_share: float = 1.0  # of a full run's tokens: a guess for the time before anything was seen, above 0
    knobs: Mapping[str, Knob] = field(default_factory=dict)  # settings of the route that differ from the full run's

    def __post_init__(self) -> None:
        if not self.name or not self.expected_share > 0:
            raise ValueError(f"arm: needs a name and expected_share above 0; got {self.name!r}, {self.expected_share}")


def check_arms(arms: Sequence[TunedArm]) -> None:
    """Raise ValueError unless the arms can be tuned over: two or more, names once, the first without knobs."""
    names = [arm.name for arm in arms]
    if len(arms) < 2 or len(set(names)) < len(names):
        raise ValueError(f"arms: got {names}; two or more, each name once")
    if arms[0].knobs:
        raise ValueError(f"arms[0]: got knobs {sorted(arms[0].knobs)}; none, because it is the full run")


def effort_arms(efforts: Sequence[str] = (), budgets_tokens: Sequence[int] = ()) -> tuple[TunedArm, ...]:
    """The full run, then levels of effort from high to low, then budgets of thought from large to small.

    efforts         words of the upstream, each below what clients get without asking
    budgets_tokens  sorted here, the largest first

    Raises ValueError for none of both and for anything twice.
    """
    budgets = sorted(budgets_tokens, reverse=True)
    n = len(efforts) + len(budgets)
    knobs: list[tuple[str, Knob]] = [("effort", effort) for effort in efforts]
    knobs += [("budget_tokens", budget) for budget in budgets]
    arms = [TunedArm(name="full")]
    for i, (knob, value) in enumerate(knobs, start=1):
        arms.append(TunedArm(name=f"{knob}={value}", knobs={knob: value}, expected_share=1 - i / (n + 1)))
    check_arms(arms)
    return tuple(arms)
