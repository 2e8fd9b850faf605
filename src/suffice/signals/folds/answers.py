"""Folds on the answers and their probabilities: votes, stability, confidence and trends.

Ties go to the answer seen first. A step without an answer does not vote and breaks the streak, but neither counts as a
change nor hides one: A, none, B is one change. A vote certifies "this is the mode", never "this is correct". Numbers
that cannot be probabilities are unknown, not extreme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import repeat
from typing import ClassVar

from suffice.signals.fold import Fields, SignalField, parse_parameter
from suffice.types import Step

ROUNDING = 1e-3  # engines report probabilities of 1 as logarithms a little above 0
_MOST_NATS = 100.0  # of one token: no vocabulary has e^100 tokens


def probability(value: float | None) -> float | None:
    """Return the value if it is a probability, in [0, 1]; None otherwise."""
    if value is None or not 0.0 <= value <= 1.0 + ROUNDING:
        return None
    return min(1.0, value)


def nats(value: float | None) -> float | None:
    """Return the value if it can be the entropy of one token; None otherwise."""
    return value if value is not None and 0.0 <= value <= _MOST_NATS else None


class Votes:
    name = "votes"
    looks_at = "the answers of all steps so far; no answer does not vote, ties go to the answer seen first"
    source = (
        "Beta posterior: Adaptive-Consistency, Aggarwal et al. 2023, "
        "[arXiv:2305.11860](https://arxiv.org/abs/2305.11860); three counts: "
        "[arXiv:2602.05395](https://arxiv.org/abs/2602.05395)"
    )
    fields: ClassVar[Fields] = {
        "n_votes": SignalField("steps that gave an answer", whole=True),
        "top_votes": SignalField("votes of the leading answer", whole=True),
        "second_votes": SignalField("votes of the runner-up", whole=True),
        "third_votes": SignalField("votes of all answers behind these two", whole=True),
        "p_majority": SignalField(
            "P(the leader beats the runner-up in the limit): p > 1/2 for p ~ Beta(v1 + 1, v2 + 1)",
            unknown="nobody voted",
            high=1.0,
        ),
        "agreement": SignalField("votes of the leader over steps so far", unknown="before the first step", high=1.0),
        "vote_entropy": SignalField("entropy of the shares of the answers, in nats", unknown="nobody voted"),
    }

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # in the order in which answers were first seen
        self._first_step: dict[str, int] = {}  # index of the first step with the answer
        self._n_steps = self._n_votes = self._top_votes = self._second_votes = 0
        self._weighted = 0.0  # sum over the answers of votes · ln(votes)
        self.leader: str | None = None  # the answer that the vote would return now; None: no votes

    def update(self, step: Step) -> None:
        self._n_steps += 1
        answer, leader = step.answer, self.leader
        if answer is None:
            return
        self._n_votes += 1
        votes = self._counts.get(answer, 0) + 1
        self._counts[answer] = votes
        if votes == 1:
            self._first_step[answer] = step.index
        else:
            self._weighted += votes * math.log(votes) - (votes - 1) * math.log(votes - 1)
        if leader is None or answer == leader:
            self.leader, self._top_votes = answer, votes
        elif (votes, self._first_step[leader]) > (self._top_votes, self._first_step[answer]):
            self._second_votes = self._top_votes
            self.leader, self._top_votes = answer, votes
        elif votes > self._second_votes:
            self._second_votes = votes

    @property
    def p_majority(self) -> float | None:
        return p_majority(self._top_votes, self._second_votes) if self._n_votes else None

    def values(self) -> dict[str, int | float | None]:
        n = self._n_votes
        top = self._top_votes
        second = self._second_votes
        return {
            "n_votes": n,
            "top_votes": top,
            "second_votes": second,
            "third_votes": n - top - second,
            "p_majority": self.p_majority,
            "agreement": top / self._n_steps if self._n_steps else None,
            "vote_entropy": self._entropy() if n else None,
        }

    def _entropy(self) -> float:
        """Return the entropy of the answers' shares in nats: ln n - (sum of votes · ln votes) / n."""
        if self._top_votes == self._n_votes:
            return 0.0
        return max(0.0, math.log(self._n_votes) - self._weighted / self._n_votes)


class VoteTrend:
    """Moving mean of `p_majority`; no answer repeats the current lead. `alpha`, in (0, 1], weighs the newest value."""

    name = "vote-trend"
    looks_at = "`p_majority` from step to step"
    source = "[arXiv:2605.08083](https://arxiv.org/abs/2605.08083)"
    parameters: ClassVar[Mapping[str, str]] = {"alpha": "weight of the newest value"}
    fields: ClassVar[Fields] = {
        "majority_ema": SignalField(
            "exponential moving mean of `p_majority`, begun with the first", unknown="nobody voted", high=1.0
        )
    }

    def __init__(self, *, alpha: float = 0.3) -> None:
        self._alpha = parse_parameter("vote-trend.alpha", alpha, most=1.0)
        self._votes = Votes()
        self._mean: float | None = None

    def update(self, step: Step) -> None:
        self._votes.update(step)
        lead = self._votes.p_majority
        if lead is not None:
            self._mean = lead if self._mean is None else self._mean + self._alpha * (lead - self._mean)

    def values(self) -> dict[str, float | None]:
        return {"majority_ema": self._mean}


@lru_cache(maxsize=65_536)
def p_majority(top_votes: int, second_votes: int) -> float:
    """P(p > 1/2) for p ~ Beta(top_votes + 1, second_votes + 1): the leader beats the runner-up in the limit.

    The posterior of the leader's share among the two under a uniform prior: Aggarwal, Madaan, Yang, Mausam (2023),
    "Let's Sample Step by Step", EMNLP 2023, arXiv:2305.11860. For whole numbers the Beta tail is a binomial one: with n
    = top_votes + second_votes + 1 fair coins it is the chance of at most `top_votes` heads, 1 - sum of C(n, i) / 2^n
    for i = 0 … second_votes.

    top_votes, second_votes  at least 0; any order (swapped, the result is 1 minus itself)

    Return a value in [0, 1]; the error is a few units in the last place for some thousand votes.
    """
    if top_votes < second_votes:
        return 1.0 - p_majority(second_votes, top_votes)
    n_coins = top_votes + second_votes + 1
    # Compute the largest term exactly, the smaller ones by their ratios until they no longer count.
    term = math.comb(n_coins, second_votes) / (1 << n_coins)
    tail, heads = [term], second_votes
    while heads > 0 and term > tail[0] * 1e-18:
        term *= heads / (n_coins - heads + 1)
        heads -= 1
        tail.append(term)
    return 1.0 - math.fsum(tail)


class Stability:
    name = "stability"
    looks_at = "the trial answers; a step without one breaks the streak and is no change"
    source = "answer convergence, [arXiv:2506.02536](https://arxiv.org/abs/2506.02536)"
    fields: ClassVar[Fields] = {
        "answer_streak": SignalField("steps in a row with the same trial answer", whole=True),
        "n_flips": SignalField("how often the trial answer changed", whole=True),
        "n_distinct": SignalField("different trial answers so far", whole=True),
    }

    def __init__(self) -> None:
        self._streak = self._n_flips = 0
        self._last: str | None = None
        self._seen: set[str] = set()

    def update(self, step: Step) -> None:
        answer = step.answer
        if answer is None:
            self._streak = 0
            return
        self._n_flips += self._last is not None and answer != self._last
        self._streak = self._streak + 1 if answer == self._last else 1
        self._last = answer
        self._seen.add(answer)

    def values(self) -> dict[str, int]:
        return {"answer_streak": self._streak, "n_flips": self._n_flips, "n_distinct": len(self._seen)}


_NO_LOGPROBS = "no answer, no log-probabilities"


class LastStepFold:
    """Base of folds whose values are those of the latest step alone."""

    _step: Step | None = None

    def update(self, step: Step) -> None:
        self._step = step


class Confidence(LastStepFold):
    name = "confidence"
    looks_at = "the log-probabilities of the trial answer's tokens, and what its source says of its probability"
    source = (
        "DEER, Yang et al. 2025, [arXiv:2504.15895](https://arxiv.org/abs/2504.15895); margin: TASR, "
        "[arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"
    )
    fields: ClassVar[Fields] = {
        "confidence": SignalField(
            "probability of the trial answer as its source gave it; else the geometric mean probability of its tokens",
            unknown=_NO_LOGPROBS,
            high=1.0,
        ),
        "confidence_min": SignalField("smallest probability among its tokens", unknown=_NO_LOGPROBS, high=1.0),
        "confidence_mean": SignalField("arithmetic mean probability of its tokens", unknown=_NO_LOGPROBS, high=1.0),
        "confidence_margin": SignalField("its probability minus that of the runner-up", unknown="not given", high=1.0),
        "mass": SignalField("probability on all valid answers together", unknown="not given", high=1.0),
        "entropy": SignalField("entropy of its first token, in nats", unknown="no answer, not given", high=100.0),
    }

    def values(self) -> dict[str, float | None]:
        step = self._step
        if step is None or step.answer is None:
            return dict.fromkeys(self.fields)
        logprobs, given = step.logprobs, probability(step.confidence)
        geometric, arithmetic = geometric_mean_probability(logprobs), None
        if geometric is not None:  # DEER's first form
            arithmetic = sum(map(math.exp, map(min, logprobs, repeat(0.0)))) / len(logprobs)
        return {
            "confidence": geometric if given is None else given,
            "confidence_min": None if geometric is None else math.exp(min(0.0, *logprobs)),
            "confidence_mean": arithmetic,
            "confidence_margin": probability(step.margin),
            "mass": probability(step.mass),
            "entropy": nats(step.entropy),
        }


class ConfidenceTrend:
    """Exponential moving mean of the confidence, and its last change; `alpha`, in (0, 1], weighs the newest one."""

    name = "trend"
    looks_at = "`confidence` from step to step"
    source = "ours"
    parameters: ClassVar[Mapping[str, str]] = {"alpha": "weight of the newest confidence"}
    fields: ClassVar[Fields] = {
        "confidence_ema": SignalField(
            "exponential moving mean of `confidence`, begun with the first",
            unknown="confidence unknown at this step",
            high=1.0,
        ),
        "confidence_slope": SignalField(
            "change of `confidence` against the last known one",
            unknown="the same, and at the first",
            low=-1.0,
            high=1.0,
        ),
    }

    def __init__(self, *, alpha: float = 0.3) -> None:
        self._alpha = parse_parameter("trend.alpha", alpha, most=1.0)
        self._last: float | None = None  # the latest known confidence
        self._mean: float | None = None
        self._slope: float | None = None
        self._known = False

    def update(self, step: Step) -> None:
        confidence = confidence_of(step)
        self._known = confidence is not None
        if confidence is None:
            return
        self._slope = None if self._last is None else confidence - self._last
        self._mean = confidence if self._mean is None else self._mean + self._alpha * (confidence - self._mean)
        self._last = confidence

    def values(self) -> dict[str, float | None]:
        mean, slope = (self._mean, self._slope) if self._known else (None, None)
        return {"confidence_ema": mean, "confidence_slope": slope}


class Degeneration:
    """How long the confidence has been low without improving; early steps count most.

    CoDE-Stop (Hosseini et al. 2026, arXiv:2604.04930), with c_i the i-th known confidence of the run, c_0 = c_1, and
    T_i the tokens generated up to it:

        D_k = sum over i = 1 … k of w_i v_i,  v_i = 1 if 2 c_i - c_(i-1) < delta else 0,  w_i = 1 + ln(T_k / T_i)

    v_i means that confidence is low even if its last change continues. D_k never falls. Before the first token is
    generated, T counts as 1.

    delta  below it a confidence is low, from 0 to 2; 0.55 in all their experiments
    """

    name = "degeneration"
    looks_at = "`confidence` from step to step, and the tokens between"
    source = "CoDE-Stop, Hosseini et al. 2026, [arXiv:2604.04930](https://arxiv.org/abs/2604.04930)"
    parameters: ClassVar[Mapping[str, str]] = {"delta": "below it a confidence is low"}
    fields: ClassVar[Fields] = {
        "degeneration": SignalField(
            "sum over the steps k with 2 c(k) − c(k−1) < delta of 1 + ln(T / T(k)); T: tokens so far, T(k): "
            "up to step k",
            unknown="confidence unknown at this step",
        )
    }

    def __init__(self, *, delta: float = 0.55) -> None:
        self._delta = parse_parameter("degeneration.delta", delta, most=2.0, low_included=True)
        self._tokens = self._n_low = 0
        self._last: float | None = None
        self._sum_ln_tokens = 0.0  # over the steps that were low
        self._known = False

    def update(self, step: Step) -> None:
        self._tokens += step.tokens
        confidence = confidence_of(step)
        self._known = confidence is not None
        if confidence is None:
            return
        before = confidence if self._last is None else self._last
        self._last = confidence
        if 2.0 * confidence - before < self._delta:
            self._n_low += 1
            self._sum_ln_tokens += math.log(max(1, self._tokens))

    def values(self) -> dict[str, float | None]:
        if not self._known:
            return {"degeneration": None}
        return {"degeneration": max(0.0, self._n_low * (1.0 + math.log(max(1, self._tokens))) - self._sum_ln_tokens)}


def confidence_of(step: Step) -> float | None:
    """Return the confidence in a step's trial answer, [0, 1]: as its source gave it, otherwise the geometric mean."""
    if step.answer is None:
        return None
    given = probability(step.confidence)
    return geometric_mean_probability(step.logprobs) if given is None else given


def geometric_mean_probability(logprobs: tuple[float, ...]) -> float | None:
    """exp(mean log-probability): the per-token probability of the trial answer, in [0, 1]; None if unknown.

    The trial-answer confidence of DEER in its geometric form (Yang et al. 2025, "Dynamic Early Exit in Reasoning
    Models", arXiv:2504.15895), which does not reward long answers.
    """
    if not logprobs or not max(logprobs) <= ROUNDING:
        return None
    mean = sum(map(min, logprobs, repeat(0.0))) / len(logprobs)
    return None if math.isnan(mean) else math.exp(mean)


class EndOfThought(LastStepFold):
    """How close the model was to ending its thought by itself, read from its own stream at the end of a sentence."""

    name = "end-of-thought"
    looks_at = "the log-probabilities of the stream at the step's last end of a sentence, or of a line in suffice-vllm"
    source = "ThinkBrake, Song et al. 2026, [arXiv:2510.00546](https://arxiv.org/abs/2510.00546)"
    fields: ClassVar[Fields] = {
        "end_margin": SignalField(
            "log-probability of the best next token minus that of the end of thought, in nats",
            unknown="not given, or the end of thought is not among the listed tokens",
            high=_MOST_NATS,
        )
    }

    def values(self) -> dict[str, float | None]:
        return {"end_margin": None if self._step is None else nats(self._step.end_margin)}


class ClosingEntropy:
    """Exponential moving mean and variance of the entropy after the closed thought.

    EAT (Wang et al. 2025, "Entropy After </Think>", arXiv:2509.26522) and its authors' code (github.com/xidulu/EAT):
    mean m = (1 - alpha) m + alpha x, begun with the first entropy, then variance v = (1 - alpha) v + alpha (x - m)^2
    with the new m, begun with 0. Two deviations: the variance of a single entropy is unknown, not 0; and a step without
    an entropy after the closed thought uses that of its trial answer's first token. A step with neither leaves mean and
    variance unknown, and the next one continues from before.

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
            "entropy of the first token behind the closed thought, in nats", unknown="not given", high=100.0
        ),
        "entropy_ema": SignalField(
            "m: (1 − alpha) m + alpha x, begun with the first entropy x", unknown="no entropy at this step", high=100.0
        ),
        "entropy_emv": SignalField(
            "v: (1 − alpha) v + alpha (x − m)², with the new m, begun with 0", unknown="the same, and at the first"
        ),
    }

    def __init__(self, *, alpha: float = 0.2) -> None:
        self._alpha = parse_parameter("closing.alpha", alpha, most=1.0)
        self._closed: float | None = None
        self._known = False  # whether the last step had an entropy
        self._n_known = 0
        self._mean = self._variance = 0.0

    def update(self, step: Step) -> None:
        self._closed, entropy = nats(step.closed_entropy), checkpoint_entropy(step)
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


class EntropyChange:
    """Page's cumulative sum of how far the entropy lies below a reference: max(0, S + reference - entropy), from 0.

    For a normal entropy whose mean falls once, this is the log-likelihood ratio of "it fell" up to a factor, if the
    reference lies in the middle between the two means. A step without an entropy leaves the sum as it is, unknown.
    """

    name = "entropy-change"
    looks_at = "the same entropy as `closing`, from step to step"
    source = "CUSUM, Xu et al. 2026, [arXiv:2606.02020](https://arxiv.org/abs/2606.02020)"
    parameters: ClassVar[Mapping[str, str]] = {"reference": "entropy between doubt and certainty, in nats"}
    fields: ClassVar[Fields] = {
        "entropy_cusum": SignalField(
            "S: max(0, S + reference − entropy), begun with 0, in nats", unknown="no entropy at this step"
        )
    }

    def __init__(self, *, reference: float = 0.5) -> None:
        self._reference = parse_parameter("entropy-change.reference", reference, most=_MOST_NATS)
        self._sum = 0.0
        self._known = False  # whether the last step had an entropy

    def update(self, step: Step) -> None:
        entropy = checkpoint_entropy(step)
        self._known = entropy is not None
        if entropy is not None:
            self._sum = max(0.0, self._sum + self._reference - entropy)

    def values(self) -> dict[str, float | None]:
        return {"entropy_cusum": self._sum if self._known else None}


def checkpoint_entropy(step: Step) -> float | None:
    """Return the entropy behind the closed thought; where it is unknown, that of the trial answer's first token."""
    closed = nats(step.closed_entropy)
    return nats(step.entropy) if closed is None and step.answer is not None else closed
