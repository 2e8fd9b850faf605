"""What a judge model's mistakes cost: its error against people, with a bound, in points of EM.

Pure: it knows pairs of a grade and a person's word, and refuses to know models and answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Final

from suffice.assurance.bounds import exact_binomial

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
    """Compare grades with people's words, and say how far judged drops may be from true ones.

    A drop is the mean of Z = right(full) - right(stopped) over audits. Where both answers are the same, Z is 0
    whoever judges. Where they differ, a wrong grade of either moves Z by at most 1, so with e the judge's error
    rate on such answers and d the rate of disagreement

        E[Z by people] <= E[Z by the judge] + 2 d e

    The charge 2 * d * upper(e) is subtracted from epsilon before anything is tested, beside the bound on the
    finish's fidelity. The certificate then holds with the confidences of both tests, their risks added.

    pairs         (grade in [-1, 1], was the answer right in a person's eyes?) of answers drawn at random from
                  both sides of disagreeing audits; above 0 the judge says right. A grade None is left out:
                  an audit with an ungraded answer counts as lost, which needs no charge
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
