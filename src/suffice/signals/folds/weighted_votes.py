"""The fold on votes of which each has a weight: how sure the model was of its sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final

from suffice.signals.fold import Fields, SignalField, parse_parameter
from suffice.signals.folds.answers import Votes, confidence_of, geometric_mean_probability
from suffice.types import Step

_LEAST: Final = 1e-3  # of a confidence and of its complement in the posterior: one sample alone decides nothing
_UNKNOWN: Final = "nobody voted, or the confidence of a vote is unknown"


class WeightedVotes:
    """Confidence-weighted votes of the leader of the plain vote.

    Share: each vote weighs exp(c / temperature), with c its confidence (softmax within the question). Posterior: with d
    answers seen, a vote for a has the likelihood c if a is right and (1 - c) / d if another one is; the candidates are
    these answers and one that nobody gave, all alike before the first vote. A step costs time linear in d.
    """

    name = "weighted-votes"
    looks_at = (
        "the answers, each with the mean probability of its sample's own tokens; where that is unknown, `confidence`"
    )
    source = (
        "CISC, Taubenfeld et al. 2025, [arXiv:2502.06233](https://arxiv.org/abs/2502.06233); CGES, Aghazadeh et al. "
        "2025, [arXiv:2511.02603](https://arxiv.org/abs/2511.02603)"
    )
    parameters: ClassVar[Mapping[str, str]] = {"temperature": "of the weights: the smaller, the more confidence counts"}
    fields: ClassVar[Fields] = {
        "weighted_share": SignalField("leader's part of the confidence-weighted votes", unknown=_UNKNOWN, high=1.0),
        "p_leader": SignalField(
            "posterior of the leader among the answers seen and one that was not", unknown=_UNKNOWN, high=1.0
        ),
    }

    def __init__(self, *, temperature: float = 1.0) -> None:
        self._temperature = parse_parameter("weighted-votes.temperature", temperature, above=0.01, most=100.0)
        self._votes = Votes()
        self._weights: dict[str, float] = {}
        self._evidence: dict[str, tuple[int, float]] = {}  # by answer: votes, and the sum of their ln(c / (1 - c))
        self._known = True  # whether all votes so far had a confidence

    def update(self, step: Step) -> None:
        self._votes.update(step)
        if step.answer is None or not self._known:
            return
        sure = _confidence(step)
        if sure is None:
            self._known = False
            return
        self._weights[step.answer] = self._weights.get(step.answer, 0.0) + math.exp(sure / self._temperature)
        votes, evidence = self._evidence.get(step.answer, (0, 0.0))
        odds = min(max(sure, _LEAST), 1 - _LEAST)
        self._evidence[step.answer] = votes + 1, evidence + math.log(odds / (1 - odds))

    def values(self) -> dict[str, float | None]:
        leader = self._votes.leader
        if leader is None or not self._known:
            return {"weighted_share": None, "p_leader": None}
        ln_seen = math.log(len(self._evidence))
        scores = {answer: evidence + votes * ln_seen for answer, (votes, evidence) in self._evidence.items()}
        mine = scores[leader]
        others = sum(math.exp(min(700.0, score - mine)) for answer, score in scores.items() if answer != leader)
        unseen = math.exp(min(700.0, -mine))
        return {
            "weighted_share": min(1.0, self._weights[leader] / sum(self._weights.values())),
            "p_leader": 1.0 / (1.0 + others + unseen),
        }


def _confidence(step: Step) -> float | None:
    own = None if step.logprob is None else geometric_mean_probability((step.logprob,))
    return confidence_of(step) if own is None else own
