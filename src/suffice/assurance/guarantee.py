"""The wording of the guarantee, complete or not at all, and the number of audits that a first one needs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from suffice.assurance.bounds import binomial_at_most
from suffice.assurance.exposure import describe_part
from suffice.types import BudgetAccount

KNOWN_AUDITS: Final = 200  # a class with fewer is unknown
Labels: TypeAlias = Literal["labelled", "label-free"]
_LABELS: Final[Mapping[Labels, str]] = {
    "labelled": "with labels",
    "label-free": "without labels (every other answer counts as lost)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    route: str
    scorer: str
    max_em_drop: float  # epsilon, a fraction
    confidence: float  # 1 - delta, a fraction
    n_window: int  # audits of the certificate
    clusters: str = ""  # how many these come from, in words; "": not counted
    requests: tuple[int, int] | None  # numbers of the first and last request covered; None: unknown
    labels: Labels
    detection: str  # clause about the delay until a silent loss is noticed; "": unknown
    classes: Mapping[str, int] = field(default_factory=dict)  # audits in the window, by class
    what: str = "at the active level"  # the condition under which the requests would have lost less
    exposure: float = 1.0  # share of the requests on which the level acts

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(sorted(name for name, n_audits in self.classes.items() if n_audits < KNOWN_AUDITS))


def sentence(claim: Guarantee) -> str:
    """Word the guarantee for people.

    >>> print(sentence(Guarantee(route="gpqa", scorer="choice", max_em_drop=0.01, confidence=0.95, n_window=1600,
    ...     requests=(1, 2400), labels="labelled", classes={"physics": 1440, "law": 160},
    ...     detection="a silent loss of 3 points would be noticed within about 710 requests")))
    Route 'gpqa', scorer 'choice': at the active level all requests from number 1 to 2,400 would have lost less than \
1 point of EM on average over all classes, with 95 % confidence, shown by 1,600 audits with labels; later requests \
are guarded by alarms: a silent loss of 3 points would be noticed within about 710 requests; unknown, \
with under 200 audits: law.
    """
    what = claim.what
    if claim.exposure < 1:
        what += f" on {describe_part(claim.exposure)}"
    which = "all requests of the window"
    if claim.requests is not None:
        which = f"all requests from number {claim.requests[0]:,} to {claim.requests[1]:,}"
    audits = f"{claim.n_window:,} audits" + f" ({claim.clusters})" * bool(claim.clusters)
    promise = (
        f"Route {claim.route!r}, scorer {claim.scorer!r}: {what} {which} would have lost less than"
        f" {_points(claim.max_em_drop)} of EM on average over all classes, with"
        f" {100 * claim.confidence:g} % confidence, shown by {audits} {_LABELS[claim.labels]}"
    )
    noticed = claim.detection or "how soon a silent loss would be noticed is not known"
    parts = [promise]
    if claim.exposure < 1:
        parts.append(f"a drop of {_points(claim.max_em_drop / claim.exposure)} on all of them is refuted")
    parts.append(f"later requests are guarded by alarms: {noticed}")
    if claim.unknown:
        names = ", ".join(name or "no class" for name in claim.unknown)
        parts.append(f"unknown, with under {KNOWN_AUDITS} audits: {names}")
    return "; ".join(parts) + "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    route: str
    scorer: str
    max_em_drop: float  # epsilon, a fraction
    level: int  # active
    account: BudgetAccount
    labels: Labels


def average_sentence(average: Average) -> str:
    account = average.account
    so_far = "no audit is recorded yet"
    if account.em_drop is not None:
        so_far = f"so far it is {100 * account.em_drop:.2f} points over {account.n_audits:,} audits"
    return (
        f"Route {average.route!r}, scorer {average.scorer!r}, budgeted: the mean EM drop of all audits of this epoch is"
        f" steered to {_points(average.max_em_drop)}, {_LABELS[average.labels]}; {so_far}. No confidence belongs to it:"
        f" nothing is promised of level {average.level}, which is active now, of any shorter period, of any class, nor"
        f" within any delay after an unannounced change. Certified is level {account.floor}."
    )


def _points(fraction: float) -> str:
    points = f"{100 * fraction:.4g}"
    return f"{points} point" if points == "1" else f"{points} points"


# --------------------------------------------------------------------------- how many audits a first certificate takes
#
# The least that any test needs: an estimate of the waiting time, never a certificate.

RECENT_AUDITS = 100  # latest audits that give their rate
MAX_AUDITS = 2**40  # a guarantee that needs more is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvidence:
    n_audits: int  # that ended and whose stop's answer can be compared
    n_disagreements: int  # among them: the stop's answer would have differed
    n_needed: int | None  # in total, if no further audit disagrees; None: no number is enough
    audits_per_s: float | None  # recent rate; None: fewer than two audits

    @property
    def n_missing(self) -> int | None:
        return None if self.n_needed is None else max(0, self.n_needed - self.n_audits)

    @property
    def wait_s(self) -> float | None:
        """At the present rate of audits; None: unknown."""
        if self.n_missing == 0:
            return 0.0
        if self.n_missing is None or not self.audits_per_s:
            return None
        return self.n_missing / self.audits_per_s


@lru_cache(maxsize=4_096)
def audits_needed(max_em_drop: float, confidence: float, disagreements: int = 0) -> int | None:
    """The smallest number of audits that bound the disagreement rate, and so the EM drop, by `max_em_drop`.

    One-sided exact binomial bound at a single look, Clopper and Pearson (1934), Biometrika 26(4); a test that is valid
    at every look needs more. None: out of range, or more than 2^40 audits.
    """
    if not 0 < max_em_drop < 1 or not 0 < confidence < 1 or disagreements < 0:
        return None

    def enough(n: int) -> bool:
        return n > disagreements and binomial_at_most(disagreements, n, max_em_drop) <= 1 - confidence

    most = disagreements + 1
    while not enough(most):
        most *= 2
        if most > MAX_AUDITS:
            return None
    first = disagreements + 1
    return first + bisect_left(range(first, most), True, key=enough)


def evidence(
    *, max_em_drop: float, confidence: float, n_audits: int, n_disagreements: int, audits_at_s: Sequence[float] = ()
) -> AuditEvidence:
    """`audits_at_s` are Unix times, in any order."""
    return AuditEvidence(
        n_audits=n_audits,
        n_disagreements=n_disagreements,
        n_needed=audits_needed(max_em_drop, confidence, n_disagreements),
        audits_per_s=rate_of(audits_at_s),
    )


def rate_of(at_s: Sequence[float]) -> float | None:
    recent = sorted(at_s)[-RECENT_AUDITS:]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return None
    return (len(recent) - 1) / (recent[-1] - recent[0])


# --------------------------------------------------------------------------- may a route be enforced at all?
#
# Where the scorer cannot read the answers of full runs, a changed answer cannot be detected.

MIN_SHARE = 0.80  # of full runs with an answer that can be read
MIN_RUNS = 30  # below it, nothing is refused
WINDOW_RUNS = 500  # the latest that count


def extractability_refusal(extracted: Sequence[bool], scorer: str) -> str | None:
    """Why a route must not be enforced, from whether its scorer read the answer of each full run, oldest first."""
    latest = extracted[-WINDOW_RUNS:]
    n, n_read = len(latest), sum(latest)
    if n < MIN_RUNS or n_read >= MIN_SHARE * n:
        return None
    return (
        f"scorer {scorer!r} could read the answer of {n_read} of the last {n} full runs ({n_read / n:.1%});"
        f" at least {MIN_SHARE:.0%} are needed to enforce"
    )
