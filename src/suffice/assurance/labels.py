"""Labels: when an audit counts and as what, whose label counts, what a judge model's mistakes cost, and missing labels.

Audits mature by age alone, never by outcome. If known harmless audits counted at once and unlabelled ones later, the
window would be full of harmless ones: in simulation that rule certified levels above the budget far more often than
delta (tests/claims/test_certificate.py). An audit whose label never came counts as lost where it disagrees, so labels
withheld on purpose cost savings and not validity: the EM drop is at most the disagreement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, sqrt
from types import MappingProxyType
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.bounds import exact_binomial
from suffice.assurance.certify import Counts
from suffice.types import Feedback

AHEAD: Final = 2  # levels above the deployed one for which labels are requested


def count_losses(z: Small, disagrees: Bools, *, labelled: Bools, abandoned: Bools, label_free: bool = False) -> Small:
    """EM drop of N audits as it counts now at each of M levels, shape (N, M). Level 0, the first, loses nothing.

    z           EM drop, -1, 0 or +1, shape (N, M); read only where labelled
    disagrees   the answer at the level is not the full run's, shape (N, M): without a label, a loss
    labelled    shape (N,)
    abandoned   left by their clients or broken by us, shape (N,): lost at every other level
    label_free  a disagreement is a loss whatever its label says; it is never below the drop
    """
    known = labelled[:, np.newaxis] & (not label_free)
    losses = np.where(known, z, disagrees).astype(np.int8)
    losses[abandoned] = 1
    losses[:, :1] = 0
    return losses


def find_first_disagreements(disagrees: Bools, *, deployed: int) -> Ints:
    """The safest level at which each audit disagrees, among those up to `AHEAD` above the deployed one; 0: none.

    Only labels of these audits can change the certificate. Shape (N, M) to (N,).
    """
    eligible = disagrees[:, : deployed + AHEAD + 1].copy()
    eligible[:, :1] = False
    return np.asarray(eligible.argmax(axis=1))  # 0 where no level disagrees


# --------------------------------------------------------------------------- label precedence
#
# 1. Of the labels from one key and source for an audit, the last in the log counts.
# 2. A capped key labels at most a share of the audits that can use a label, and at least one. It is a share of the
#    audits and not of the labels, because no sender can add audits.
# 3. The highest trust present decides. If labels of that trust contradict each other, there is no verdict.
#
# An audit without a verdict counts as lost where it disagrees, so ignored or contradictory labels cost savings and
# never validity. One lying key decides at most `MAX_SHARE` of the differing audits. The loop believes it in these; with
# `harden` an analyst sees whether a certificate would hold without them. Against colluding keys the cap only raises the
# number needed (docs/reference/assurance.md).

MAX_SHARE: Final = 0.05  # of the audits that can use a label, for one capped key
TRUSTED: Final = 2  # labels of this trust or more are not capped
INFERENCE_KEY: Final = "key"  # value of `Feedback.door` for keys that may ask the model
BEHAVIOUR: Final = "behaviour"  # the source of implicit feedback: a repeated question, a user who left
RANKS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "reviewer": 3,  # a person appointed by the owner
        "exact-match": 2,  # compared with a known reference by the owner's own system
        "judge": 1,
        BEHAVIOUR: -1,  # weaker than any explicit label
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedLabel:
    audit: str
    seq: int  # place in the log, unique; the order of receipt
    source: str  # "reviewer", "user" …
    key: str  # of the sender
    trust: int  # see `rank_of`
    verdict: Hashable  # compared for equality, such as the audit's row of Z


def rank_of(given: Feedback, callers: Collection[str] = ()) -> int:
    """The rank of a label: 0 for users and unknown sources, and at most 0 for keys that may ask the model.

    callers  keys that have asked the model
    """
    rank = RANKS.get(given.source, 0)
    return min(rank, 0) if given.door == INFERENCE_KEY or given.sender in callers else rank


def resolve_labels(
    labels: Iterable[TrustedLabel], *, differing: Collection[str], max_share: float = MAX_SHARE
) -> dict[str, Hashable]:
    """Return the verdicts by audit, of those in `differing`; the order of `labels` does not matter.

    differing  audits of the window whose answers differ at an eligible level; labels of others are ignored. Counting
               all audits of the window here would give each key ten times the weight
    max_share  largest part of `differing` that one capped key may label, [0, 1]. At 0.05 it takes twenty keys of equal
               weight to label everything, so a route whose labels all come from one key has to trust that key
    """
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_share: got {max_share}; a fraction")
    last: dict[tuple[str, str, str], TrustedLabel] = {}
    for label in labels:
        source = label.audit, label.key, label.source
        if label.audit in differing and (source not in last or label.seq > last[source].seq):
            last[source] = label
    allowed, labelled = max(1, floor(max_share * len(differing))), defaultdict[str, set[str]](set)
    by_rank = defaultdict[str, defaultdict[int, set[Hashable]]](lambda: defaultdict(set))
    for label in sorted(last.values(), key=lambda label: label.seq):
        if label.trust < TRUSTED:
            if len(labelled[label.key] | {label.audit}) > allowed:
                continue
            labelled[label.key].add(label.audit)
        by_rank[label.audit][label.trust].add(label.verdict)
    decisive = {audit: ranks[max(ranks)] for audit, ranks in sorted(by_rank.items())}
    return {audit: next(iter(verdicts)) for audit, verdicts in decisive.items() if len(verdicts) == 1}


def harden(counts: Counts, n_lies: int) -> Counts:
    """The worst true counts if `n_lies` audits have false labels; what they certify holds for the true counts."""
    if n_lies < 0:
        raise ValueError(f"n_lies: got {n_lies}; at least 0")
    gained = np.minimum(counts.gained, n_lies)
    same = np.minimum(counts.same, n_lies - gained)
    return Counts(counts.gained - gained, counts.same - same, counts.lost + gained + same)


# --------------------------------------------------------------------------- a judge model's mistakes
#
JUDGE: Final = "judge"  # the source of its labels
CHARGE_CONFIDENCE: Final = 0.995  # of each of the two bounds in the charge
AT_RISK: Final = 2 * (1 - CHARGE_CONFIDENCE)  # of both together


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeError:
    n: int  # answers with a grade and a person's label
    n_wrong: int  # of them: grade and label differ
    n_ungraded: int  # left out
    rate: float  # n_wrong / n
    upper: float  # upper bound on the rate, [0, 1]
    charge: float  # to be subtracted from epsilon, a fraction of EM


def judge_error_bound(
    pairs: Iterable[tuple[float | None, bool]], *, confidence: float, disagreement: float = 1.0
) -> JudgeError:
    """Compare a judge's grades with people's labels, and bound how far judged drops may be from true ones.

    With e the judge's error rate where the answers of an audit differ and d the rate of disagreement, a wrong grade of
    either answer moves Z by at most 1, so E[Z by people] <= E[Z by the judge] + 2 d e. The charge 2 * d * upper(e) is
    subtracted from epsilon before any test, and the risks of both tests add up.

    pairs         (grade in [-1, 1], label by a person) of answers drawn at random from both sides of disagreeing
                  audits; above 0 means right. None is left out: an audit with an ungraded answer counts as lost
    confidence    one-sided, in (0, 1): Clopper and Pearson (1934), Biometrika 26(4)
    disagreement  upper bound on the rate d; 1 when none is known

    Raise ValueError without a graded pair, or for a grade or a rate out of range.
    """
    if not 0 <= disagreement <= 1 or not 0 < confidence < 1:
        raise ValueError(f"need 0 <= disagreement <= 1 and 0 < confidence < 1; got {disagreement=} {confidence=}")
    everything = list(pairs)
    graded = [(grade, is_right) for grade, is_right in everything if grade is not None]
    n, n_ungraded = len(graded), len(everything) - len(graded)
    invalid = [grade for grade, _ in graded if not -1 <= grade <= 1]
    if invalid or not n:
        raise ValueError(f"pairs: got grades {invalid} and {n} valid ones; need -1 to 1 or None, and at least one")
    n_wrong = sum((grade > 0) != is_right for grade, is_right in graded)
    # The upper end of a two-sided interval at 1 - 2 (1 - confidence), which exists for a confidence above one half.
    upper = exact_binomial(n_wrong, n, max(2 * confidence - 1, 1e-9)).high
    return JudgeError(
        n=n,
        n_wrong=n_wrong,
        n_ungraded=n_ungraded,
        rate=n_wrong / n,
        upper=upper,
        charge=min(1.0, 2 * disagreement * upper),
    )


# --------------------------------------------------------------------------- labels that are missing at random
#
# Who labels is no sample of the runs. If a label depends on the answer only through what is known of the run (its
# class, length, arm, whether it was stopped), labels weighted by the inverse of the probability that such a run gets
# one represent all runs again (Horvitz and Thompson 1952, JASA 47(260); Rosenbaum and Rubin 1983, Biometrika 70(1)). No
# data can tell whether it does. The probability is a logistic regression with a ridge, cross-fitted: that of a run
# comes from runs of other folds.

FOLDS: Final = 5
RIDGE: Final = 4.0  # in runs
LEAST_OF_BOTH: Final = 20  # labelled and unlabelled runs of a fold's complement; below, all have the mean rate
CLIPPED: Final = 0.02  # share of runs whose weights are cut to the weight of the least likely of the others
SURELY: Final = 4.5  # standard deviations at which a group's rate of labels differs from the expected one
MOST_CLASSES: Final = 8
_NEWTON_STEPS: Final = 12
_LARGEST: Final = 12.0  # logit


def covariates(classes: Sequence[str], numbers: Floats) -> Floats:
    """A design matrix: ones, the largest classes, and the numbers (n, d), each centred and scaled."""
    names, counts = np.unique(np.array(classes, dtype=np.str_), return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")][:MOST_CLASSES]
    spread = numbers.std(axis=0)
    scaled = np.clip((numbers - numbers.mean(axis=0)) / np.where(spread > 0, spread, 1.0), -4, 4)
    dummies = np.array(classes, dtype=np.str_)[:, np.newaxis] == largest
    return np.concatenate([np.ones((len(numbers), 1)), dummies, scaled], axis=1)


def label_propensity(x: Floats, labelled: Bools) -> Floats:
    """Estimate P(label) of every run, shape (n,), each from the other folds; x has a first column of ones."""
    fold, propensity = np.arange(len(x)) % FOLDS, np.empty(len(x))
    for one in range(FOLDS):
        others = fold != one
        n_labelled = int(labelled[others].sum())
        if min(n_labelled, int(others.sum()) - n_labelled) < LEAST_OF_BOTH:
            propensity[~others] = (labelled.sum() + 0.5) / (len(x) + 1)
            continue
        propensity[~others] = _probability(x[~others] @ _fit(x[others], labelled[others]))
    return propensity


def label_weights(x: Floats, labelled: Bools, group: Ints) -> Floats:
    """Weights of all runs in proportion to 1 / P(label), in (0, 1], shape (n,); each group has a fit of its own."""
    propensity = np.empty(len(x))
    for one in np.unique(group).tolist():
        mine = group == one
        propensity[mine] = label_propensity(x[mine], labelled[mine])
    least = np.quantile(propensity, CLIPPED) if len(x) else 1.0
    return np.asarray(least / np.maximum(propensity, least))


def unexplained_group(x: Floats, labelled: Bools, group: Ints) -> int | None:
    """A group that is labelled more or less often than its covariates explain; None: none surely is."""
    expected = label_propensity(x, labelled)
    for one in np.unique(group).tolist():
        mine = group == one
        deviation = sqrt(float((expected[mine] * (1 - expected[mine])).sum()))
        if abs(float((labelled[mine] - expected[mine]).sum())) > SURELY * max(deviation, 1.0):
            return int(one)
    return None


def _fit(x: Floats, labelled: Bools) -> Floats:
    weights, penalty = np.zeros(x.shape[1]), np.full(x.shape[1], RIDGE)
    penalty[0] = 1e-6
    for _ in range(_NEWTON_STEPS):
        p = _probability(x @ weights)
        slope = np.maximum(p * (1 - p), 1e-6)
        gradient = x.T @ (labelled - p) - penalty * weights
        change = np.linalg.solve((x * slope[:, np.newaxis]).T @ x + np.diag(penalty), gradient)
        weights = weights + change
        if np.abs(change).max() < 1e-6:
            break
    return weights


def _probability(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_LARGEST, _LARGEST))))
