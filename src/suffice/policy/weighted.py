"""Policies over votes that are weighted by how sure the model was of each sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import ge
from typing import Annotated, ClassVar

from suffice.policy.parameters import ParameterRange
from suffice.policy.rules import AT_LEAST_ONE, SHARE_ABOVE_0, Condition, Conditions
from suffice.signals.fold import need


@dataclass(frozen=True, slots=True)
class Cisc(Conditions):
    """Stop when the leading answer has a large share of the confidence-weighted votes.

    CISC (Taubenfeld et al. 2025, ACL Findings, arXiv:2502.06233): each vote weighs the softmax of its confidence over
    the question's samples. The authors draw a fixed number of samples, return the weighted leader and tune the
    temperature on other questions. Here the share is tested after each sample, and the plain vote is returned; with
    more than half of the weight its leader is the weighted one, too. The threshold is that of `vote-share`.
    """

    name: ClassVar[str] = "cisc"
    source: ClassVar[str] = "CISC, Taubenfeld et al. 2025, [arXiv:2502.06233](https://arxiv.org/abs/2502.06233)"
    threshold: Annotated[float, ParameterRange(0.5, 1.0, low_open=True)] = 0.8  # share, above 0.5, at most 1
    temperature: Annotated[float, ParameterRange(0.01, 100.0, low_open=True)] = 1.0  # the smaller, the more it counts
    min_samples: Annotated[int, AT_LEAST_ONE] = 2  # samples that gave an answer, at least 1

    @property
    def needs(self) -> tuple[str, ...]:
        return ("votes", need("weighted-votes", temperature=self.temperature))

    def conditions(self) -> Iterator[Condition]:
        yield "weighted_share", ge, self.threshold, "weighted share of the leader {value:.3f}, {bound:g} required"
        yield "n_votes", ge, self.min_samples, "{value:.0f} of at least {bound:.0f} votes are in"


@dataclass(frozen=True, slots=True)
class Cges(Conditions):
    """Stop when the posterior of the leading answer, given each vote and how sure it was, reaches a threshold.

    CGES (Aghazadeh et al. 2025, arXiv:2511.02603): a sample of confidence c supports its answer with likelihood c and
    shares 1 - c among the other candidates. Here an answer that nobody has given yet is a candidate, too, so that one
    sample is as sure as it says; a confidence counts as 0.999 at most, and the plain vote is returned. No threshold is
    in the text that we could read; 0.95 is ours.
    """

    name: ClassVar[str] = "cges"
    source: ClassVar[str] = "CGES, Aghazadeh et al. 2025, [arXiv:2511.02603](https://arxiv.org/abs/2511.02603)"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.95  # on the posterior, above 0, at most 1

    needs: ClassVar[tuple[str, ...]] = ("weighted-votes",)

    def conditions(self) -> Iterator[Condition]:
        yield "p_leader", ge, self.threshold, "P(leader is right) {value:.4f}, {bound:g} required"
