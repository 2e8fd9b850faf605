"""How far a delivered answer may differ from the trial answer that was judged, and what that leaves of the budget.

    delivered beside trial answers ──▶ Fidelity ──▶ Budget ──▶ certify

Audits judge the trial answer at a level; a client gets what the finish makes of it. Per request the delivered answer
loses at most what the trial answer loses, plus 1 where the two differ, so with f the rate at which they differ

    E[drop of what is delivered] <= E[drop of the trial answer] + f

An upper bound on f is taken off epsilon before anything is tested. The certificate then holds with the risks of both
tests added: a bound at 99 % beside a certificate at 95 % is a promise at 94 %. Without a measurement there is no
certificate (CONTRACT.md §1). A route that returns a recorded answer word for word (votes, rounds) needs none.

f is the rate over the stops that were measured; a level whose stops finish worse than those is not covered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.certify import smallest_proved_drop

FIDELITY_CONFIDENCE: Final = 0.99  # of the bound on how often a finish changes the answer, on a live route


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How often the finish changed the answer, with a bound."""

    n: int            # stops whose delivered answer was compared with the trial answer
    n_differing: int
    upper: float      # upper bound on the rate, [0, 1]

    @property
    def rate(self) -> float:
        """The rate that was seen, [0, 1]; 0 where nothing had to be measured."""
        return self.n_differing / self.n if self.n else 0.0


VERBATIM = Fidelity(n=0, n_differing=0, upper=0.0)  # what is delivered is the recorded answer itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What is left to certify with."""

    max_em_drop: float  # fraction; 0: nothing may be certified
    reason: str         # a sentence for a person


def measured(n_differing: int, n: int, *, confidence: float, anytime: bool = True) -> Fidelity | None:
    """Bound the rate behind `n_differing` of `n` comparisons; None: nothing was compared.

    confidence  one-sided, in (0.5, 1)
    anytime     the bound holds at all looks at once, however often it is computed: the rate is tested by the same
                wealth as a drop (`certify.smallest_proved_drop`). False: Clopper and Pearson (1934), nearer to the
                rate, for one look after a number of comparisons that was fixed before
    """
    if not 0 <= n_differing <= n or not 0.5 < confidence < 1:
        raise ValueError(f"need 0 <= n_differing <= n and 0.5 < confidence < 1; got {n_differing=} {n=} {confidence=}")
    if n == 0:
        return None
    if not anytime:
        upper = exact_binomial(n_differing, n, 2 * confidence - 1).high
    else:
        proved = smallest_proved_drop(0, n - n_differing, n_differing, delta=1 - confidence)
        upper = 1.0 if proved is None else proved
    return Fidelity(n=n, n_differing=n_differing, upper=upper)


def compared(pairs: Iterable[tuple[str | None, str | None]]) -> tuple[int, int]:
    """Count pairs of (delivered, trial) answers, both normalised: how many differ, of how many.

    None is no answer. Two missing answers are the same wrong answer; one missing answer differs.
    """
    n = n_differing = 0
    for delivered, trial in pairs:
        n += 1
        n_differing += delivered != trial
    return n_differing, n


def budget_left(max_em_drop: float, fidelity: Fidelity | None, *, other_charges: float = 0.0) -> Budget:
    """Take the finish, and whatever else was charged, off the budget.

    fidelity       None: nobody measured it, and nothing may be certified
    other_charges  fractions of EM, at least 0, such as a judge's error (`judge.JudgeError.charge`)
    """
    if other_charges < 0:
        raise ValueError(f"other_charges: got {other_charges}; at least 0")
    if fidelity is None:
        return Budget(max_em_drop=0.0, reason="the finish was never compared with its trial answers")
    charge = fidelity.upper + other_charges
    left = max_em_drop - charge
    if left <= 0:
        return Budget(max_em_drop=0.0, reason=f"charges of {charge:.2%} use up the budget of {max_em_drop:.2%}")
    return Budget(max_em_drop=left, reason=f"{left:.2%} left of {max_em_drop:.2%} after charges of {charge:.2%}")
