"""Fold `closing`: does the model still waver over what it would say first if it stopped thinking now?

Knows the entropy of the first token behind a closed thought and its moving mean and variance;
refuses to know the threshold below which the variance is called settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from suffice.signals.fold import Fields, SignalField, nats, parse_parameter
from suffice.types import Step


class ClosingEntropy:
    """Exponential moving mean and variance of the entropy behind the closed thought.

    EAT (Wang et al. 2025, "Entropy After </Think>", arXiv:2509.26522) and its authors' code
    (github.com/xidulu/EAT): mean m = (1 - alpha) m + alpha x, begun with the first entropy, then
    variance v = (1 - alpha) v + alpha (x - m)^2 with the new m, begun with 0. Two deviations: the
    variance of one entropy is unknown, where they say 0; and where a step has no entropy behind the closed
    thought, that of its trial answer's first token stands for it. A step with neither leaves
    mean and variance unknown, and the next one goes on from before.

    alpha  weight of the newest entropy, above 0 and at most 1
    """

    name = "closing"
    looks_at = (
        "the entropy of the first token behind a closed thought; where it is unknown, that of the trial "
        "answer's first token"
    )
    source = "EAT, Wang et al. 2025, [arXiv:2509.26522](https://arxiv.org/abs/2509.26522)"
    parameters: ClassVar[Mapping[str, str]] = {"alpha": "weight of the newest entropy"}
    fields: ClassVar[Fields] = {
        "closed_entropy": SignalField(
            "entropy of the first token behind the closed thought, in nats",
            unknown="not given",
            high=100.0,
        ),
        "entropy_ema": SignalField(
            "m: (1 − alpha) m + alpha x, begun with the first entropy x",
            unknown="no entropy at this step",
            high=100.0,
        ),
        "entropy_emv": SignalField(
            "v: (1 − alpha) v + alpha (x − m)², with the new m, begun with 0",
            unknown="the same, and at the first",
        ),
    }

    def __init__(self, *, alpha: float = 0.2) -> None:
        self._alpha = parse_parameter("closing.alpha", alpha, most=1.0)
        self._closed: float | None = None
        self._known = False  # had the last step an entropy?
        self._n_known = 0
        self._mean = 0.0
        self._variance = 0.0

    def update(self, step: Step) -> None:
        self._closed = nats(step.closed_entropy)
        entropy = self._closed
        if entropy is None and step.answer is not None:
            entropy = nats(step.entropy)
        self._known = entropy is not None
        if entropy is None:
            return
        self._n_known += 1
        if self._n_known == 1:
            self._mean = entropy
            return
        self._mean += self._alpha * (entropy - self._mean)
        self._variance += self._alpha * ((entropy - self._mean) ** 2 - self._variance)

    def values(self) -> dict[str, float | None]:
        return {
            "closed_entropy": self._closed,
            "entropy_ema": self._mean if self._known else None,
            "entropy_emv": self._variance if self._known and self._n_known > 1 else None,
        }
