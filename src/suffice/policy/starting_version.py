"""Version 0 of a route's policy: a published rule for each kind of run, at settings from safe to bold.

It needs no audit to be fitted, so its levels can be certified from the first request on; the same audits fit the
learned version, which takes over when it saves more. Every setting stops a run where one score passes a threshold:

    kind       score                                         after
    samples    logit of P(the leader keeps its majority),    Adaptive-Consistency (Aggarwal et al. 2023,
               times the share of samples that are drawn;    arXiv:2305.11860), with more patience for votes
               and a tenth of it                             that have just begun
    reasoning  logit of a trial answer's probability, and    DEER (Yang et al. 2025, arXiv:2504.15895), and answer
               how often in a row the answer was the same    convergence (Liu and Wang 2025, arXiv:2506.02536)
    rounds     logit of the stated confidence, and the same  the same

A signal that is unknown adds nothing, so that a route without probes or stated confidence has the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import exp
from typing import Final, NamedTuple

import numpy as np

from suffice.model.artefact import StopModel, TrainingRecord
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.folded_version import FoldedVersion
from suffice.types import Kind

N_SETTINGS: Final = 40  # as many levels as a learned version has, so that one takes the place of the other


class StartingRule(NamedTuple):
    weights: Mapping[str, float]  # of features
    safest: float  # the score of the first level; the others follow in even ratios
    boldest: float


RULES: Final[Mapping[Kind, StartingRule]] = {
    "samples": StartingRule({"logit(p_majority)*step_share": 1.0, "logit(p_majority)": 0.1}, safest=4.0, boldest=0.08),
    "reasoning": StartingRule({"logit(confidence)": 0.4, "log1p(answer_streak)": 1.6}, safest=8.0, boldest=1.8),
    "rounds": StartingRule({"logit(stated_confidence)": 0.6, "log1p(answer_streak)": 1.2}, safest=8.5, boldest=0.8),
}


@cache
def starting_version(kind: Kind) -> FoldedVersion:
    rule = RULES[kind]
    score = Linear(tuple(rule.weights.values()), 0.0)
    record = TrainingRecord(n_episodes=0, n_questions=0, digest="", target="rule", seed=0)
    model = StopModel(features=tuple(rule.weights), suffices=Ensemble((score,)), trained=record)
    risks = [1 / (1 + exp(score)) for score in np.geomspace(rule.safest, rule.boldest, N_SETTINGS).tolist()]
    return FoldedVersion(models=(model,), levels=(tuple(risks),))
