"""Published rules on trial answers: the same answer several times, a confident one, or both.

They know the trial answer's run length and probabilities and refuse to know how the model was asked for
it. Where a published rule cannot be said in these signals word for word, the docstring says what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isnan
from typing import Annotated, ClassVar, Final, Literal

import numpy as np

from suffice.errors import ConfigError
from suffice.policy.columns import CONTINUE, HOPELESS, SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.decisions import go_on, hopeless, suffices
from suffice.policy.parameters import Length, ParameterChecks, ParameterRange, Reference
from suffice.policy.rules import AT_LEAST_ONE, SHARE, SHARE_ABOVE_0
from suffice.signals.needs import need
from suffice.types import Decision, Signals

# How many probes in a row must agree. The published presets also fix how often is probed, which here is a
# setting of the route: every 64 tokens, "crazy" every 32.
_AGREEING: Final = {"mild": 8, "low": 5, "mid": 3, "high": 2, "crazy": 2}


@dataclass(frozen=True, slots=True)
class Dynasor(ParameterChecks):
    """Stop once the last probes all gave one answer and show no doubt.

    Dynasor-CoT with Certaindex (Fu et al. 2024, arXiv:2412.20993): the last m probe answers are equal, none
    is empty, none shows doubt. Presets of effort saved: "mild" m = 8, "low" 5, "mid" 3, "high" and "crazy" 2.
    Doubt is looked for in the last step's own text, theirs in the text of each of the m probes. The exit
    without agreement, which one helper of their code takes, is not rebuilt.
    """

    name: ClassVar[str] = "dynasor"
    reference: ClassVar[Reference] = Reference(
        stops_when="the last probes all gave one answer, and the last step shows no doubt",
        source="Dynasor-CoT with Certaindex, Fu et al. 2024, [arXiv:2412.20993](https://arxiv.org/abs/2412.20993)",
        parameters={
            "effort": 'probes in a row that must agree: "mild" 8, "low" 5, "mid" 3, "high" and "crazy" 2',
        },
    )
    effort: Literal["mild", "low", "mid", "high", "crazy"] = "mid"  # how eagerly to save

    @property
    def needs(self) -> tuple[str, ...]:
        return ("stability", "hedges")

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or s.answer_streak is None or s.hedges is None:
            return go_on("agreement of the probes, or their doubt, is unknown")
        score, agreeing = float(s.answer_streak), _AGREEING[self.effort]
        if s.answer_streak < agreeing:
            return go_on(f"{s.answer_streak} of {agreeing} probes agree", score)
        if s.hedges:
            return go_on(f"{s.answer_streak} probes agree, but {s.hedges} hedges in the last step", score)
        return suffices(f"{s.answer_streak} probes agree, {agreeing} were asked for", score)

    def stops(self, columns: Columns) -> Stops:
        agree = answered(columns) & (known_column(columns, "answer_streak") >= _AGREEING[self.effort])
        return where(agree & (known_column(columns, "hedges") == 0), SUFFICES)


@dataclass(frozen=True, slots=True)
class Deer(ParameterChecks):
    """Stop once the trial answer's tokens are probable on average.

    DEER (Yang et al. 2025, ICLR 2026, arXiv:2504.15895): mean probability of the tokens of a trial answer,
    asked for greedily, above 0.95. For Qwen3, which is over-confident, the authors take the geometric mean and
    ask that the model itself then closes its thought; that second condition is not visible here. Their
    code leaves the answer's first token out and tries at most 10 times; here every token and step counts.
    """

    name: ClassVar[str] = "deer"
    reference: ClassVar[Reference] = Reference(
        stops_when="the mean probability of the trial answer's tokens exceeds a threshold",
        source="DEER, Yang et al. 2025, [arXiv:2504.15895](https://arxiv.org/abs/2504.15895)",
        parameters={
            "threshold": "from 0 to 1",
            "mean": 'or "geometric", as for Qwen3',
        },
    )
    threshold: Annotated[float, SHARE] = 0.95  # must be exceeded
    mean: Literal["arithmetic", "geometric"] = "arithmetic"  # of Signals.confidence_mean, or .confidence

    @property
    def needs(self) -> tuple[str, ...]:
        return ("confidence",)

    def decide(self, s: Signals) -> Decision:
        probability = s.confidence_mean if self.mean == "arithmetic" else s.confidence
        if s.answer is None or probability is None:
            return go_on("no trial answer with known probabilities")
        # Asked this way round, a probability that is not a number continues.
        if probability > self.threshold:
            return suffices(f"mean probability {probability:.3f} > {self.threshold:g}", probability)
        return go_on(f"mean probability {probability:.3f} is not above {self.threshold:g}", probability)

    def stops(self, columns: Columns) -> Stops:
        field = "confidence_mean" if self.mean == "arithmetic" else "confidence"
        return where(answered(columns) & (known_column(columns, field) > self.threshold), SUFFICES)


@dataclass(frozen=True, slots=True)
class CodeStop(ParameterChecks):
    """Stop a confident run; give up one whose confidence stays low and does not improve.

    CoDE-Stop (Hosseini et al. 2026, arXiv:2604.04930). At step k, confidence must reach the rising bar
    min(top, start + (top - start) k / ramp_steps); the run is hopeless once the degeneration score D_k reaches
    `give_up`. Published: start 0.9, two ramp steps, delta 0.55. No fixed `give_up` is published (it is tuned on
    other questions and scaled with their mean length), so it is off until it is set. `top` is not in
    the text that we could read; 0.95 is DEER's.
    """

    name: ClassVar[str] = "code-stop"
    reference: ClassVar[Reference] = Reference(
        stops_when=(
            "confidence reaches a bar that rises over the first steps; or it stayed low for too long "
            "(`stop_reason` is then `hopeless`)"
        ),
        needs="`confidence`; also `degeneration` with `give_up` above 0",
        source="CoDE-Stop, Hosseini et al. 2026, [arXiv:2604.04930](https://arxiv.org/abs/2604.04930)",
        parameters={
            "start": "bar before the first step",
            "top": "bar after the rise",
            "ramp_steps": "steps of the rise",
            "give_up": "degeneration at which a run is hopeless, 0 for never",
            "delta": "below it confidence counts as low",
        },
    )
    start: Annotated[float, SHARE] = 0.9  # bar on Signals.confidence before the first step
    top: Annotated[float, SHARE_ABOVE_0] = 0.95  # bar from step `ramp_steps` on, and never more
    ramp_steps: Annotated[int, AT_LEAST_ONE] = 2  # steps over which the bar rises
    give_up: Annotated[float, ParameterRange(0.0, 1_000_000.0)] = 0.0  # on Signals.degeneration; 0: never give up
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


@dataclass(frozen=True, slots=True)
class Tasr(ParameterChecks):
    """Stop once an answer is repeated and the model clearly prefers it to any other.

    TASR (Kieback et al. 2026, arXiv:2606.13814), for iterative retrieval: the normalised answer equals the
    last round's, and the isotonic-calibrated margin exceeds 0.25. Their margin is one of logits, ours of
    probabilities; `calibration` takes either to the scale of the threshold. It must be fitted on other
    runs; without one the margin is taken as it is.
    """

    name: ClassVar[str] = "tasr"
    reference: ClassVar[Reference] = Reference(
        stops_when="a round repeats the answer of the one before, and the model clearly prefers it to any other",
        source="TASR, Kieback et al. 2026, [arXiv:2606.13814](https://arxiv.org/abs/2606.13814)",
        parameters={
            "streak": "rounds in a row with the same answer",
            "margin": "to be exceeded by the calibrated margin",
            "calibration": "points (margin, calibrated), from other runs",
        },
    )
    streak: Annotated[int, AT_LEAST_ONE] = 2  # rounds in a row with the same answer
    margin: Annotated[float, ParameterRange(-1.0, 1.0)] = (
        0.25  # on the calibrated Signals.confidence_margin, to be exceeded
    )
    calibration: Annotated[
        tuple[tuple[float, ...], ...], ParameterRange(-1_000.0, 1_000.0), Length(0, 200), Length(2, 2)
    ] = ()  # points (margin, calibrated), rising; straight in between

    def __post_init__(self) -> None:
        """Refuse a calibration that is not rising."""
        ParameterChecks.__post_init__(self)
        for before, after in pairwise(self.calibration):
            if not (before[0] < after[0] and before[1] <= after[1]):
                raise ConfigError(
                    f"policy.tasr.calibration: got {list(after)} behind {list(before)}; "
                    "points (margin, calibrated) whose margins rise and whose second numbers do not fall"
                )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("stability", "confidence")

    def decide(self, s: Signals) -> Decision:
        margin = s.confidence_margin
        if s.answer is None or s.answer_streak is None or margin is None or isnan(margin):
            return go_on("the answer's streak or its margin is unknown")
        if s.answer_streak < self.streak:
            return go_on(f"same answer for {s.answer_streak} of {self.streak} rounds", float(s.answer_streak))
        margin = self._calibrated(margin)
        if margin > self.margin:
            return suffices(f"same answer for {s.answer_streak} rounds, margin {margin:.3f}", margin)
        return go_on(f"margin {margin:.3f} is not above {self.margin:g}", margin)

    def stops(self, columns: Columns) -> Stops:
        margin = known_column(columns, "confidence_margin")
        if self.calibration:
            margin = np.interp(margin, *self._points())
        again = answered(columns) & ~np.isnan(known_column(columns, "confidence_margin"))
        again &= known_column(columns, "answer_streak") >= self.streak
        return where(again & (margin > self.margin), SUFFICES)

    def _calibrated(self, margin: float) -> float:
        return float(np.interp(margin, *self._points())) if self.calibration else margin

    def _points(self) -> tuple[list[float], list[float]]:
        """The calibration's margins, and what they are worth."""
        return [point[0] for point in self.calibration], [point[1] for point in self.calibration]
