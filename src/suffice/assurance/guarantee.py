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
from suffice.types import BudgetAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """Everything that the promise hangs on."""

    route: str
    scorer: str
    max_em_drop: float  # epsilon, a fraction
    confidence: float  # 1 - delta, a fraction
    n_window: int  # audits that the certificate rests on
    requests: tuple[int, int] | None  # numbers of the first and the last request that it is about; None: not known
    per: Literal["pooled", "class"]
    labels: Literal["labelled", "label-free"]
    detection: str  # how soon a silent loss would be noticed, in a sentence's part; "": nobody knows
    classes: Mapping[str, int] = field(default_factory=dict)  # audits in the window, by class
    what: str = "at the level in force"  # under which the requests would have lost less

    @property
    def unknown(self) -> tuple[str, ...]:
        """Classes with too few audits for anything to be said of them."""
        return tuple(sorted(name for name, n_audits in self.classes.items() if n_audits < KNOWN_AUDITS))


def sentence(claim: Guarantee) -> str:
    """The promise for people.

    >>> print(sentence(Guarantee(route="gpqa", scorer="choice", max_em_drop=0.01, confidence=0.95, n_window=1600,
    ...     requests=(1, 2400), per="pooled", labels="labelled", classes={"physics": 1440, "law": 160},
    ...     detection="a silent loss of 3 points would be noticed within about 710 requests")))
    Route 'gpqa', scorer 'choice': at the level in force all requests from number 1 to 2,400 would have lost less than \
1 point of EM on average over all classes, with 95 % confidence, shown by 1,600 audits with labels; a silent loss of \
3 points would be noticed within about 710 requests; unknown, with under 200 audits: law.
    """
    over = "on average over all classes" if claim.per == "pooled" else "in each class"
    which = "all requests of the window"
    if claim.requests is not None:
        which = f"all requests from number {claim.requests[0]:,} to {claim.requests[1]:,}"
    how = "with labels" if claim.labels == "labelled" else "without labels (every other answer counts as lost)"
    promise = (
        f"Route {claim.route!r}, scorer {claim.scorer!r}: {claim.what} {which} would have lost less than"
        f" {_points(claim.max_em_drop)} of EM {over}, with {100 * claim.confidence:g} % confidence, shown by"
        f" {claim.n_window:,} audits {how}"
    )
    parts = [promise, claim.detection or "how soon a silent loss would be noticed is not known"]
    if claim.unknown:
        names = ", ".join(name or "no class" for name in claim.unknown)
        parts.append(f"unknown, with under {KNOWN_AUDITS} audits: {names}")
    return "; ".join(parts) + "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Everything that the promise of the budgeted mode hangs on."""

    route: str
    scorer: str
    max_em_drop: float  # epsilon, a fraction
    level: int  # in force
    account: BudgetAccount
    labels: Literal["labelled", "label-free"]


def average_sentence(average: Average) -> str:
    """The promise of the budgeted mode for people: what is kept, how far it is kept, and what nobody promises."""
    account = average.account
    how = "with labels" if average.labels == "labelled" else "without labels (every other answer counts as lost)"
    so_far = (
        "nothing is booked yet"
        if account.em_drop is None
        else (f"so far it is {100 * account.em_drop:.2f} points over {account.n_audits:,} audits")
    )
    return (
        f"Route {average.route!r}, scorer {average.scorer!r}, budgeted: the mean EM drop of all audits of this epoch is"
        f" steered to {_points(average.max_em_drop)}, {how}; {so_far}. No confidence belongs to it: nothing is promised"
        f" of level {average.level}, which is in force now, of any shorter stretch, of any class, nor within any delay"
        f" after a change that nobody announced. Certified is level {account.floor}."
    )


def _points(fraction: float) -> str:
    points = f"{100 * fraction:.4g}"
    return f"{points} point" if points == "1" else f"{points} points"
