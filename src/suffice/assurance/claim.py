"""The one sentence in which the promise is printed, wherever it is printed: complete, or not at all (CONTRACT.md §8).

It names route, scorer, epsilon, confidence, window, pooled or per class, labelled or label-free, and how long an
unannounced change goes unnoticed. What was not measured is said to be unmeasured; a class that is not known is called
unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from suffice.assurance.ledger import KNOWN_AUDITS
from suffice.types import Spending


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """How many requests pass, after a change that nobody announced, until the promise holds again; as measured."""

    median_requests: int
    p90_requests: int
    where: str  # what it was measured on


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Everything that the promise hangs on."""

    route: str
    scorer: str
    max_em_drop: float     # epsilon, a fraction
    confidence: float      # 1 - delta, a fraction
    n_window: int          # audits that the certificate looks back on
    per: Literal["pooled", "class"]
    labels: Literal["labelled", "label-free"]
    delay: Delay | None    # None: not measured
    classes: Mapping[str, int] = field(default_factory=dict)  # audits in the window, by class
    what: str = "stopping" # that is promised to lose less: another way to save than ending a run

    @property
    def unknown(self) -> tuple[str, ...]:
        """Classes with too few audits for anything to be said of them."""
        return tuple(sorted(name for name, n_audits in self.classes.items() if n_audits < KNOWN_AUDITS))


def sentence(claim: Claim) -> str:
    """The promise for people.

    >>> print(sentence(Claim(route="gpqa", scorer="choice", max_em_drop=0.01, confidence=0.95, n_window=800,
    ...     per="pooled", labels="labelled", delay=None, classes={"physics": 640, "law": 160})))
    Route 'gpqa', scorer 'choice': stopping loses less than 1 point of EM, with 95 % confidence, on average over all \
classes of the last 800 audits, with labels; after a change that nobody announced the delay was not measured; unknown, \
with under 200 audits: law.
    """
    over = "on average over all classes" if claim.per == "pooled" else "in each class"
    how = "with labels" if claim.labels == "labelled" else "without labels (every other answer counts as lost)"
    promise = (
        f"Route {claim.route!r}, scorer {claim.scorer!r}: {claim.what} loses less than {_points(claim.max_em_drop)} of"
        f" EM, with {100 * claim.confidence:g} % confidence, {over} of the last {claim.n_window:,} audits, {how}"
    )
    parts = [promise, _delayed(claim.delay)]
    if claim.unknown:
        names = ", ".join(name or "no class" for name in claim.unknown)
        parts.append(f"unknown, with under {KNOWN_AUDITS} audits: {names}")
    return "; ".join(parts) + "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Everything that the promise of the budgeted mode hangs on."""

    route: str
    scorer: str
    max_em_drop: float     # epsilon, a fraction
    level: int             # in force
    account: Spending
    labels: Literal["labelled", "label-free"]


def average_sentence(average: Average) -> str:
    """The promise of the budgeted mode for people: what is kept, how far it is kept, and what nobody promises."""
    account = average.account
    how = "with labels" if average.labels == "labelled" else "without labels (every other answer counts as lost)"
    so_far = "nothing is booked yet" if account.em_drop is None else (
        f"so far it is {100 * account.em_drop:.2f} points over {account.n_audits:,} audits"
    )  # fmt: skip
    return (
        f"Route {average.route!r}, scorer {average.scorer!r}, budgeted: the mean EM drop of all audits of this epoch is"
        f" steered to {_points(average.max_em_drop)}, {how}; {so_far}. No confidence belongs to it: nothing is promised"
        f" of level {average.level}, which is in force now, of any shorter stretch, of any class, nor within any delay"
        f" after a change that nobody announced. Certified is level {account.floor}."
    )


def _points(fraction: float) -> str:
    points = f"{100 * fraction:.4g}"
    return f"{points} point" if points == "1" else f"{points} points"


def _delayed(delay: Delay | None) -> str:
    if delay is None:
        return "after a change that nobody announced the delay was not measured"
    return (
        f"after a change that nobody announced it held again within {delay.median_requests:,} requests at the median"
        f" and {delay.p90_requests:,} in nine of ten cases, measured on {delay.where}"
    )
