"""Published policies over trial answers and drafts. Docstrings say where one differs from its publication."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isnan
from operator import ge, gt, le, lt
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

import numpy as np

from suffice.errors import ConfigError
from suffice.policy.columns import CONTINUE, HOPELESS, SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.parameters import Length, ParameterChecks, ParameterRange
from suffice.policy.protocol import go_on, hopeless, suffices
from suffice.policy.rules import AT_LEAST_ONE, SHARE, SHARE_ABOVE_0, STEPS, Condition, Conditions
from suffice.signals.fold import need
from suffice.types import Decision, Signals

# How many probes in a row must agree. The published presets also fix the probe interval, which here is a
# setting of the route: every 64 tokens, "crazy" every 32.
_AGREEING: Final = {"mild": 8, "low": 5, "mid": 3, "high": 2, "crazy": 2}


@dataclass(frozen=True, slots=True)
class Dynasor(Conditions):
    """Stop when the last probes all gave one answer, and the last step shows no doubt.

    Dynasor-CoT with Certaindex (Fu et al. 2024, arXiv:2412.20993): the last m probe answers are equal, and none is
    empty or shows doubt. Presets: "mild" m = 8, "low" 5, "mid" 3, "high" and "crazy" 2. Here only the text of the last
    step is searched for doubt, not that of all m probes; the exit without agreement in the authors' code is left out.
    """

    name: ClassVar[str] = "dynasor"
    source: ClassVar[str] = (
        "Dynasor-CoT with Certaindex, Fu et al. 2024, [arXiv:2412.20993](https://arxiv.org/abs/2412.20993)"
    )
    effort: Literal["mild", "low", "mid", "high", "crazy"] = "mid"  # 8, 5, 3, 2 and 2 probes in a row must agree

    needs: ClassVar[tuple[str, ...]] = ("stability", "hedges")

    def conditions(self) -> Iterator[Condition]:
        agreeing = _AGREEING[self.effort]
        yield "answer_streak", ge, agreeing, "{value:.0f} of {bound:.0f} probes agree"
        yield "hedges", le, 0, "{value:.0f} hedges in the last step"


@dataclass(frozen=True, slots=True)
class Deer(Conditions):
    """Stop when the mean probability of the trial answer's tokens exceeds a threshold.

    DEER (Yang et al. 2025, ICLR 2026, arXiv:2504.15895): greedy trial answers, threshold 0.95. For the over-confident
    Qwen3 the authors take the geometric mean and also require that the model then closes its thought itself, which is
    not visible here. Their code leaves out the first token and tries at most 10 times; here every token and step
    counts.
    """

    name: ClassVar[str] = "deer"
    source: ClassVar[str] = "DEER, Yang et al. 2025, [arXiv:2504.15895](https://arxiv.org/abs/2504.15895)"
    threshold: Annotated[float, SHARE] = 0.95  # from 0 to 1
    mean: Literal["arithmetic", "geometric"] = "arithmetic"  # or "geometric", as for Qwen3

    needs: ClassVar[tuple[str, ...]] = ("confidence",)

    def conditions(self) -> Iterator[Condition]:
        field = "confidence_mean" if self.mean == "arithmetic" else "confidence"
        yield field, gt, self.threshold, "mean probability {value:.3f}, above {bound:g} required"


@dataclass(frozen=True, slots=True)
class CodeStop(ParameterChecks):
    """Stop when confidence reaches a rising bar, or it stayed low for too long (`stop_reason` is then `hopeless`).

    CoDE-Stop (Hosseini et al. 2026, arXiv:2604.04930). The bar at step k is min(top, start + (top - start) k /
    ramp_steps); the run is hopeless once the degeneration score D_k reaches `give_up`. Published: start 0.9, two ramp
    steps, delta 0.55. No fixed `give_up` is published (the authors tune it on other questions and scale it with their
    mean length), so it is off by default. `top` is not in the text that we could read; 0.95 is DEER's.
    """

    name: ClassVar[str] = "code-stop"
    source: ClassVar[str] = "CoDE-Stop, Hosseini et al. 2026, [arXiv:2604.04930](https://arxiv.org/abs/2604.04930)"
    needs_note: ClassVar[str] = "`confidence`; also `degeneration` with `give_up` above 0"
    start: Annotated[float, SHARE] = 0.9  # bar before the first step
    top: Annotated[float, SHARE_ABOVE_0] = 0.95  # bar after the rise
    ramp_steps: Annotated[int, AT_LEAST_ONE] = 2  # steps of the rise
    give_up: Annotated[float, ParameterRange(0.0, 1_000_000.0)] = 0.0  # degeneration that is hopeless, 0 for never
    delta: Annotated[float, ParameterRange(0.0, 2.0)] = 0.55  # below it confidence counts as low

    @property
    def needs(self) -> tuple[str, ...]:
        return ("confidence", need("degeneration", delta=self.delta)) if self.give_up > 0 else ("confidence",)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or s.confidence is None or isnan(s.confidence):
            return go_on("no trial answer with a known confidence")
        if self.give_up > 0 and (s.degeneration is None or isnan(s.degeneration)):
            return go_on("how low confidence has been so far is unknown", s.confidence)
        bar = min(self.top, self.start + (self.top - self.start) / self.ramp_steps * s.step)
        if s.confidence >= bar:
            return suffices(f"confidence {s.confidence:.3f} reached {bar:.3f} at step {s.step}", s.confidence)
        if self.give_up > 0 and s.degeneration is not None and s.degeneration >= self.give_up:
            return hopeless(f"degeneration {s.degeneration:.2f} reached {self.give_up:g}", s.degeneration)
        return go_on(f"confidence {s.confidence:.3f} is below {bar:.3f} at step {s.step}", s.confidence)

    def stops(self, columns: Columns) -> Stops:
        confidence, usable = known_column(columns, "confidence"), answered(columns)
        bar = np.minimum(self.top, self.start + (self.top - self.start) / self.ramp_steps * columns["step"])
        codes = where(usable & (confidence >= bar), SUFFICES)
        if self.give_up == 0:
            return codes
        degeneration = known_column(columns, "degeneration")
        lost = usable & ~np.isnan(confidence) & (degeneration >= self.give_up)
        codes = np.where(codes == CONTINUE, where(lost, HOPELESS), codes)
        return np.where(np.isnan(degeneration), np.int8(CONTINUE), codes)


Points: TypeAlias = Annotated[
    tuple[tuple[float, ...], ...], ParameterRange(-1_000.0, 1_000.0), Length(0, 200), Length(2, 2)
]


@dataclass(frozen=True, slots=True)
class Tasr(Conditions):
    """Stop when a round repeats the answer of the one before, and the model clearly prefers it to any other.

    TASR (Kieback et al. 2026, arXiv:2606.13814), for iterative retrieval: the normalised answer equals that of the last
    round, and the isotonic-calibrated margin exceeds 0.25. Their margin is one of logits, ours of probabilities.
    `calibration` must be fitted on other runs; without it the margin is not calibrated.
    """

    name: ClassVar[str] = "tasr"
    source: ClassVar[str] = "TASR, Kieback et al. 2026, [arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"
    streak: Annotated[int, AT_LEAST_ONE] = 2  # rounds in a row with the same answer
    margin: Annotated[float, ParameterRange(-1.0, 1.0)] = 0.25  # to be exceeded by the calibrated margin
    calibration: Points = ()  # points (margin, calibrated), from other runs

    def __post_init__(self) -> None:
        ParameterChecks.__post_init__(self)
        for before, after in pairwise(self.calibration):
            if not (before[0] < after[0] and before[1] <= after[1]):
                raise ConfigError(
                    f"policy.tasr.calibration: got {list(after)} after {list(before)}; "
                    "points (margin, calibrated) whose margins rise and whose second numbers do not fall"
                )

    needs: ClassVar[tuple[str, ...]] = ("stability", "confidence")

    def conditions(self) -> Iterator[Condition]:
        yield "answer_streak", ge, self.streak, "same answer for {value:.0f} of {bound:.0f} rounds"
        yield "confidence_margin", self._exceeds, self.margin, "margin {value:.3f}, not above {bound:g}"

    def _exceeds(self, margin: Any, bound: float) -> Any:
        if not self.calibration:
            return margin > bound
        margins, calibrated = zip(*self.calibration, strict=True)
        return np.interp(margin, margins, calibrated) > bound


@dataclass(frozen=True, slots=True)
class Eat(Conditions):
    """Stop when the entropy behind the closed thought has stopped moving.

    EAT (Wang et al. 2025, arXiv:2509.26522): close the thought at each step, take the entropy of the next token, and
    stop when its exponential moving variance falls below delta, after a warm-up of about 4 / alpha steps, because the
    variance starts at 0. The paper sweeps delta; 1e-4 is the value of a later implementation (interwhen). Here a step
    without a trial answer never stops, because the answer that a stop delivers must be on record.
    """

    name: ClassVar[str] = "eat"
    source: ClassVar[str] = "EAT, Wang et al. 2025, [arXiv:2509.26522](https://arxiv.org/abs/2509.26522)"
    delta: Annotated[float, ParameterRange(0.0, 100.0, low_open=True)] = 1e-4  # on its moving variance, nats squared
    alpha: Annotated[float, ParameterRange(0.001, 1.0)] = 0.2  # weight of the newest entropy
    warm_up_steps: Annotated[int, STEPS] = 0  # no stop before this step, 0 for 4 / alpha

    @property
    def needs(self) -> tuple[str, ...]:
        return (need("closing", alpha=self.alpha),)

    def conditions(self) -> Iterator[Condition]:
        yield "entropy_emv", lt, self.delta, "variance of the entropy {value:.2g}, below {bound:g} required"
        yield "step", ge, self.warm_up_steps or ceil(4 / self.alpha), "step {value:.0f} of {bound:.0f} to warm up"


@dataclass(frozen=True, slots=True)
class HaltCot(Conditions):
    """Stop when the entropy of the answer is below theta.

    HALT-CoT (Laaouach 2025, ICML MusIML workshop, openreview.net/forum?id=CX5c7C1CZa). The authors' release takes 0.6
    bits (0.4159 nats) and requires two such steps in a row over a given list of answers. Here it is the entropy of the
    trial answer's first token, and one step is enough, as in the paper.
    """

    name: ClassVar[str] = "halt-cot"
    source: ClassVar[str] = "HALT-CoT, Laaouach 2025, [OpenReview](https://openreview.net/forum?id=CX5c7C1CZa)"
    theta: Annotated[float, ParameterRange(0.0, 100.0, low_open=True)] = 0.4159  # nats, which is 0.6 bits

    needs: ClassVar[tuple[str, ...]] = ("confidence",)

    def conditions(self) -> Iterator[Condition]:
        yield "entropy", lt, self.theta, "answer entropy {value:.3f} nats, below {bound:g} required"


@dataclass(frozen=True, slots=True)
class EntropyCusum(Conditions):
    """Stop when the entropy has fallen for good: its cumulative sum below a reference reaches a threshold.

    Change-point detection by CUSUM (Xu et al. 2026, ICML, arXiv:2606.02020): a chain goes over from a region of doubt
    to one of certainty, and S = max(0, S + reference - entropy) detects it. The authors read the entropy of each token;
    here it is that of each trial answer. No constants are in the text that we could read; both are ours.
    """

    name: ClassVar[str] = "cusum"
    source: ClassVar[str] = "CUSUM, Xu et al. 2026, [arXiv:2606.02020](https://arxiv.org/abs/2606.02020)"
    threshold: Annotated[float, ParameterRange(0.0, 10_000.0, low_open=True)] = 0.8  # on the sum, nats
    reference: Annotated[float, ParameterRange(0.0, 100.0, low_open=True)] = 0.5  # between doubt and certainty, nats

    @property
    def needs(self) -> tuple[str, ...]:
        return (need("entropy-change", reference=self.reference),)

    def conditions(self) -> Iterator[Condition]:
        yield (
            "entropy_cusum",
            ge,
            self.threshold,
            "entropy fell below the reference by {value:.3f}, {bound:g} required",
        )


@dataclass(frozen=True, slots=True)
class SemanticDistance(Conditions):
    """Stop when the drafts of a loop have hardly moved for some rounds.

    Semantic early stopping (Shrivastava 2026, arXiv:2606.27009), without its judge: the distance of successive drafts
    stays at or below epsilon for `patience` rounds. The critic's approval and the quality score are left out; `guarded`
    is the hard cap. The abstract gives no numbers, so both defaults are ours. Steps without an embedding compare words.
    """

    name: ClassVar[str] = "semantic-distance"
    source: ClassVar[str] = (
        "semantic early stopping, Shrivastava 2026, [arXiv:2606.27009](https://arxiv.org/abs/2606.27009)"
    )
    epsilon: Annotated[float, SHARE] = 0.1  # largest distance that counts as unchanged
    patience: Annotated[int, AT_LEAST_ONE] = 2  # rounds in a row

    @property
    def needs(self) -> tuple[str, ...]:
        return (need("drafts", threshold=self.epsilon),)

    def conditions(self) -> Iterator[Condition]:
        yield "draft_patience", ge, self.patience, "draft still for {value:.0f} of {bound:.0f} rounds"
