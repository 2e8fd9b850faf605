"""Published rules on entropy: how unsure the model is of the answer that it would give now.

They know entropies in nats and refuse to know answers beyond whether there is one: a settled model may
have settled on the wrong answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.decisions import go_on, suffices
from suffice.policy.parameters import ParameterChecks, ParameterRange, Reference
from suffice.policy.rules import STEPS
from suffice.signals.needs import need
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True)
class Eat(ParameterChecks):
    """Stop once the entropy behind the closed thought has stopped moving.

    EAT (Wang et al. 2025, arXiv:2509.26522): close the thought at each step, take the entropy of the next
    token, and stop when its exponential moving variance falls below delta, after a warm-up of about 4 / alpha
    steps, because the variance starts at 0. The paper sweeps delta; 1e-4 is what a later implementation
    (interwhen) takes. Unlike theirs, a step without a trial answer never stops: what a stop would deliver must
    be on record.
    """

    name: ClassVar[str] = "eat"
    reference: ClassVar[Reference] = Reference(
        stops_when="the entropy behind the closed thought has stopped moving",
        source="EAT, Wang et al. 2025, [arXiv:2509.26522](https://arxiv.org/abs/2509.26522)",
        parameters={
            "delta": "on its moving variance, nats squared",
            "alpha": "weight of the newest entropy",
            "warm_up_steps": "no stop before this step, 0 for 4 / alpha",
        },
    )
    delta: Annotated[float, ParameterRange(0.0, 100.0, low_open=True)] = 1e-4  # on Signals.entropy_emv, nats squared
    alpha: Annotated[float, ParameterRange(0.001, 1.0)] = 0.2  # weight of the newest entropy
    warm_up_steps: Annotated[int, STEPS] = 0  # no stop before this step; 0: 4 / alpha

    @property
    def needs(self) -> tuple[str, ...]:
        return (need("closing", alpha=self.alpha),)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or s.entropy_emv is None:
            return go_on("no trial answer, or no entropy behind the closed thought")
        warm_up_steps = self.warm_up_steps or ceil(4 / self.alpha)
        if s.step < warm_up_steps:
            return go_on(f"step {s.step} of {warm_up_steps} to warm up", s.entropy_emv)
        if s.entropy_emv < self.delta:
            return suffices(f"variance of the entropy {s.entropy_emv:.2g} < {self.delta:g}", s.entropy_emv)
        return go_on(f"variance of the entropy {s.entropy_emv:.2g} is not below {self.delta:g}", s.entropy_emv)

    def stops(self, columns: Columns) -> Stops:
        settled = answered(columns) & (known_column(columns, "entropy_emv") < self.delta)
        return where(settled & (columns["step"] >= (self.warm_up_steps or ceil(4 / self.alpha))), SUFFICES)


@dataclass(frozen=True, slots=True)
class HaltCot(ParameterChecks):
    """Stop once the distribution over answers is sharp.

    HALT-CoT (Laaouach 2025, ICML MusIML workshop, openreview.net/forum?id=CX5c7C1CZa): entropy of the answer
    distribution below theta. The authors' release takes 0.6 bits, which is 0.4159 nats, and asks for two
    such steps in a row over a given list of answers. Here it is the entropy of the trial answer's first token,
    and one step is enough, as in the paper's rule.
    """

    name: ClassVar[str] = "halt-cot"
    reference: ClassVar[Reference] = Reference(
        stops_when="the entropy of the answer is below theta",
        source="HALT-CoT, Laaouach 2025, [OpenReview](https://openreview.net/forum?id=CX5c7C1CZa)",
        parameters={
            "theta": "nats, which is 0.6 bits",
        },
    )
    theta: Annotated[float, ParameterRange(0.0, 100.0, low_open=True)] = 0.4159  # on Signals.entropy, nats

    @property
    def needs(self) -> tuple[str, ...]:
        return ("confidence",)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or s.entropy is None:
            return go_on("no trial answer with a known entropy")
        if s.entropy < self.theta:
            return suffices(f"answer entropy {s.entropy:.3f} < {self.theta:g} nats", s.entropy)
        return go_on(f"answer entropy {s.entropy:.3f} is not below {self.theta:g} nats", s.entropy)

    def stops(self, columns: Columns) -> Stops:
        return where(answered(columns) & (known_column(columns, "entropy") < self.theta), SUFFICES)
