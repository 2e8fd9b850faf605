"""Labels: when an audit counts and as what, whose label counts, and what a judge model's mistakes cost.

    audits and labels so far ──▶ mature ──▶ which audits enter, and Z of each at each level ──▶ certify.count

Audits enter by age alone, never by what they showed. If those that are known to be harmless entered at once and those
that wait for a label entered later, the window would be full of harmless ones: in a simulation that rule certified
levels that break the budget far more often than delta (tests/claims/test_certificate.py). An audit whose label never
came counts as lost where it disagrees, so labels that are missing on purpose cost saving and not the promise.
ASSURANCE.md §3.3, F1: EM drop is at most disagreement.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.certify import Counts
from suffice.types import Feedback

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Small = NDArray[np.int8]

AHEAD: Final = 2  # levels above the deployed one whose disagreements are worth a label


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Audits:
    """N audits of one epoch at M levels, as they are known now; level 0 never stops."""

    z: Small  # (N, M): EM drop, -1, 0 or +1; read only where labelled
    disagrees: Bools  # (N, M): the answer at the level is not the full run's
    labelled: Bools  # (N,): somebody who counts said what is right
    age: Floats  # (N,): since the run ended, in the unit of the time-out: seconds or requests
    abandoned: Bools  # (N,): broken off or timed out
    missing: Bools | None = None  # (N, M): the level's checkpoint was never recorded; None: all were

    def __post_init__(self) -> None:
        # Checked here: numpy would stretch arrays that do not fit together.
        n = len(self.z)
        each = (self.labelled.shape, self.age.shape, self.abandoned.shape)
        at_levels = (self.disagrees.shape, self.z.shape if self.missing is None else self.missing.shape)
        if self.z.ndim != 2 or set(each) != {(n,)} or set(at_levels) != {self.z.shape}:
            raise ValueError(f"audits: need (N, M) and (N,); got z {self.z.shape}, others {at_levels} and {each}")

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatureAudits:
    enters: Bools  # (N,)
    z: Small  # (N, M): what each counts as now, whether it enters or not

    @property
    def counted(self) -> Small:
        """Z of those that enter, shape (entering, M): what `certify.count_outcomes` takes."""
        return self.z[self.enters]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelNeeds:
    """Audits whose label could change what is certified, the most urgent first."""

    rows: Ints  # (K,): numbers of the audits
    left: Floats  # (K,): until the audit counts as lost; at most 0: it does already, and a label still corrects it


def counted_as(audits: Audits, *, label_free: bool = False) -> Small:
    """What each audit counts as at each level, shape (N, M), whatever its age.

    A label decides. Without one a disagreement, or a checkpoint that is missing, is a loss, and agreement is none. An
    abandoned audit is a loss at every level but 0, and level 0 loses nothing. Label-free, no label is looked at: Z is
    disagreement, which is never smaller than the drop.
    """
    unseen = np.zeros(audits.z.shape, dtype=np.bool_) if audits.missing is None else audits.missing
    worst = audits.disagrees | unseen
    known = audits.labelled[:, np.newaxis] & ~unseen & (not label_free)
    z = np.where(known, audits.z, worst).astype(np.int8)
    z[audits.abandoned] = 1
    z[:, :1] = 0
    return z


def mature(audits: Audits, *, timeout: float, label_free: bool = False) -> MatureAudits:
    """Say which audits are old enough to be news, and what each counts as; its age decides, not what it showed.

    By the time-out, the longest normal delay of a label in the unit of `age`, the label of an audit is there, or the
    audit counts as lost where it disagrees. Label-free there is nothing to wait for.
    """
    if not timeout >= 0:
        raise ValueError(f"timeout: got {timeout}; at least 0")
    return MatureAudits(enters=(audits.age >= timeout) | label_free, z=counted_as(audits, label_free=label_free))


def select_label_requests(audits: Audits, *, deployed: int, timeout: float, ahead: int = AHEAD) -> LabelNeeds:
    """Ask for gold only where it pays: at audits that disagree at an eligible level and have no label yet.

    Eligible are the deployed level, the `ahead` levels above it, and all below. Agreement needs no label, an abandoned
    audit is lost with or without one, and behind a missing checkpoint there is no answer to judge.
    """
    differs = audits.disagrees if audits.missing is None else audits.disagrees & ~audits.missing
    eligible = differs[:, 1 : deployed + ahead + 1].any(axis=1)
    rows = np.flatnonzero(eligible & ~audits.labelled & ~audits.abandoned)
    left = timeout - audits.age[rows]
    # Those that still have time come first, by deadline; then those that are late, the latest arrivals first: they
    # stay in the window for longest.
    order = np.lexsort((rows, np.abs(left), left <= 0))
    return LabelNeeds(rows=rows[order], left=left[order])


# --------------------------------------------------------------------------- label precedence
#
# labels, audits of a window that differ ──▶ resolve_labels ──▶ verdicts; contested audits, to be asked again
#
# 1. A voice (a key speaking for a source) may change its mind: its last label counts, by the log's own sequence.
# 2. A key that is not trusted outright speaks for at most a share of the audits that can use a label, and for one at
#    least. The share is one of the audits and not of the labels, because nobody can send more audits.
# 3. The highest trust present decides. Voices of that trust that contradict each other leave no verdict.
#
# An audit without a verdict counts as lost where it disagrees, so whoever is silenced or quarrels costs saving and
# never the promise. The result depends on the set of labels alone. One lying key decides at most
# `LabelSummary.allowed` audits; a certificate from counts that are `hardened` by so many holds in spite of it. Against
# many keys that lie together the cap only makes many keys necessary (docs/reference/assurance.md).

MAX_SHARE: Final = 0.05  # of the audits that can use a label, for one key
TRUSTED: Final = 2  # keys that speak with this trust or more are not capped
INFERENCE_KEY: Final = "key"  # the door (`Feedback.door`) of keys that may ask the model
BEHAVIOUR: Final = "behaviour"  # the source of what a user did without a word: asked again, left
RANKS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "reviewer": 3,  # a person whom the owner asked
        "exact-match": 2,  # compared with a known reference by the owner's own system
        "judge": 1,  # a judge model
        BEHAVIOUR: -1,  # weaker than what anybody says, users included
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedLabel:
    audit: str
    seq: int  # place in the log, unique; the order in which words were received
    source: str  # "reviewer", "user" …
    key: str  # who sent it
    trust: int  # rank of that source, from this key, on this route; see `trust_of`
    verdict: Hashable  # what it makes of the audit; equal where it means the same, such as the audit's row of Z


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    verdicts: Mapping[str, Hashable]  # by audit; one that is not here is unlabelled
    contested: frozenset[str]  # audits on which voices of equal trust contradict each other: ask again
    set_aside: Mapping[str, int]  # by key: words beyond its share
    allowed: int  # audits that one capped key may speak for


def trust_of(source: str, *, asks: bool = False) -> int:
    """The usual rank of a source; 0 for users and for whatever is not known, below it for what they only did.

    A source is a claim: whoever also asks the model with the same key, or may, is a user, whatever he calls himself.
    """
    rank = RANKS.get(source, 0)
    return min(rank, 0) if asks else rank


def rank_of(given: Feedback, callers: Collection[str] = ()) -> int:
    """The rank of a label: that of its source, unless its key asks the model, or may; `callers` are known to."""
    return trust_of(given.source, asks=given.door == INFERENCE_KEY or given.sender in callers)


def resolve_labels(
    labels: Iterable[TrustedLabel], *, differing: Collection[str], max_share: float = MAX_SHARE, trusted: int = TRUSTED
) -> LabelSummary:
    """Find the one verdict of each audit that can use one; the order of `labels` does not matter.

    differing  audits of the window whose answers differ at an eligible level; labels of others are ignored. All audits
               of the window in their place would give each key ten times the weight
    max_share  largest part of `differing` that one capped key may speak for, [0, 1]. At 0.05 it takes twenty keys of
               equal weight to label everything: a route whose labels all come through one key has to trust that key
    trusted    rank from which on a key is not capped
    """
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_share: got {max_share}; a fraction")
    last: dict[tuple[str, str, str], TrustedLabel] = {}
    for label in labels:
        source = label.audit, label.key, label.source
        if label.audit in differing and (source not in last or label.seq > last[source].seq):
            last[source] = label
    allowed = max(1, floor(max_share * len(differing)))
    spoken, set_aside = defaultdict[str, set[str]](set), Counter[str]()
    kept = list[TrustedLabel]()
    for label in sorted(last.values(), key=lambda label: label.seq):
        audits = spoken[label.key]
        if label.trust < trusted and label.audit not in audits and len(audits) >= allowed:
            set_aside[label.key] += 1
            continue
        if label.trust < trusted:
            audits.add(label.audit)
        kept.append(label)
    verdicts, contested = _decide(kept)
    return LabelSummary(
        verdicts=verdicts, contested=contested, set_aside=dict(sorted(set_aside.items())), allowed=allowed
    )


def hardened(counts: Counts, n_lies: int) -> Counts:
    """The worst that the truth can be if `n_lies` audits were lied about: so many count as lost, gained ones first.

    Their wealth is at most that of the true counts at every level, so what they certify is certified in truth.
    """
    if n_lies < 0:
        raise ValueError(f"n_lies: got {n_lies}; at least 0")
    gained = np.minimum(counts.gained, n_lies)
    same = np.minimum(counts.same, n_lies - gained)
    return Counts(counts.gained - gained, counts.same - same, counts.lost + gained + same)


def _decide(words: Sequence[TrustedLabel]) -> tuple[dict[str, Hashable], frozenset[str]]:
    """One verdict for each audit by the highest trust present; audits on which that trust is of two minds."""
    highest: dict[str, int] = {}
    for label in words:
        highest[label.audit] = max(label.trust, highest.get(label.audit, label.trust))
    by_audit: defaultdict[str, set[Hashable]] = defaultdict(set)
    for label in words:
        if label.trust == highest[label.audit]:
            by_audit[label.audit].add(label.verdict)
    verdicts = {audit: next(iter(values)) for audit, values in sorted(by_audit.items()) if len(values) == 1}
    return verdicts, frozenset(audit for audit, values in by_audit.items() if len(values) > 1)


# --------------------------------------------------------------------------- a judge model's mistakes
#
# Its error against people, with a bound, in points of EM.

JUDGE: Final = "judge"  # the source of its labels
CHARGE_CONFIDENCE: Final = 0.995  # of each of the two bounds that a certificate's charge is made of …
AT_RISK: Final = 2 * (1 - CHARGE_CONFIDENCE)  # … and their risks add up


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeError:
    """How often a judge and people differ over one answer, and what that takes off the EM budget."""

    n: int  # answers that both judged
    n_wrong: int  # of them: the judge said otherwise than the person
    n_ungraded: int  # left out: the judge gave no grade
    rate: float  # n_wrong / n
    upper: float  # upper bound on the rate, [0, 1]
    charge: float  # to be subtracted from epsilon, a fraction of EM


def judge_error_bound(
    pairs: Iterable[tuple[float | None, bool]], *, confidence: float, disagreement: float = 1.0
) -> JudgeError:
    """Compare a judge's grades with people's labels, and say how far judged drops may be from true ones.

    A drop is the mean of Z = right(full) - right(stopped) over audits. Where both answers are the same, Z is 0 whoever
    judges. Where they differ, a wrong grade of either moves Z by at most 1, so with e the judge's error rate on such
    answers and d the rate of disagreement, E[Z by people] <= E[Z by the judge] + 2 d e. The charge 2 * d * upper(e) is
    subtracted from epsilon before anything is tested, and the risks of both tests add up.

    pairs         (grade in [-1, 1], was the answer right in a person's eyes?) of answers drawn at random from both
                  sides of disagreeing audits; above 0 the judge says right. A grade None is left out: an audit with an
                  ungraded answer counts as lost, which needs no charge
    confidence    one-sided, in (0, 1): Clopper and Pearson (1934), Biometrika 26(4)
    disagreement  upper bound on the rate d; 1 when none is known

    Raises ValueError without a single pair, or for a grade or a rate out of range.
    """
    if not 0 <= disagreement <= 1 or not 0 < confidence < 1:
        raise ValueError(f"need 0 <= disagreement <= 1 and 0 < confidence < 1; got {disagreement=} {confidence=}")
    n = n_wrong = n_ungraded = 0
    for grade, is_right in pairs:
        if grade is None:
            n_ungraded += 1
            continue
        if not isfinite(grade) or not -1 <= grade <= 1:
            raise ValueError(f"pairs: got a grade of {grade}; need -1 to 1, or None")
        n += 1
        n_wrong += (grade > 0) != is_right
    if n == 0:
        raise ValueError(f"pairs: no answer has both a grade and a person's word ({n_ungraded} without a grade)")
    # The upper end of a two-sided interval at 1 - 2 (1 - confidence); below one half there is none, so take half.
    upper = exact_binomial(n_wrong, n, max(2 * confidence - 1, 1e-9)).high
    return JudgeError(
        n=n,
        n_wrong=n_wrong,
        n_ungraded=n_ungraded,
        rate=n_wrong / n,
        upper=upper,
        charge=min(1.0, 2 * disagreement * upper),
    )
