"""When an audit counts, and as what: labels that come late, or never, do not make a level look better than it is.

    audits and labels so far ──▶ mature ──▶ which audits enter, and Z of each at each level ──▶ certify.count

Audits enter by age alone, never by what they showed. If those that are known to be harmless entered at once and those
that wait for a label entered later, the window would be full of harmless ones: in a simulation that rule certified
levels that break the budget far more often than delta (tests/claims/test_certificate.py). An audit whose label never
came counts as lost where it disagrees, so labels that are missing on purpose cost saving and not the promise.
ASSURANCE.md §3.3, F1: EM drop is at most disagreement.

Knows arrays; refuses to know clocks (ages come in), sources of labels (`trust`) and how levels were cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
    labelled: Bools  # (N,): somebody who counts said what is right, see `trust`
    age: Floats  # (N,): since the run ended, in the unit of the time-out: seconds or requests
    abandoned: Bools  # (N,): broken off or timed out
    missing: Bools | None = None  # (N, M): the level's checkpoint was never recorded; None: all were

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together; numpy would stretch some of them without a word."""
        n = len(self.z)
        each = (self.labelled.shape, self.age.shape, self.abandoned.shape)
        at_levels = (self.disagrees.shape, self.z.shape if self.missing is None else self.missing.shape)
        if self.z.ndim != 2 or set(each) != {(n,)} or set(at_levels) != {self.z.shape}:
            raise ValueError(f"audits: need (N, M) and (N,); got z {self.z.shape}, others {at_levels} and {each}")

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatureAudits:
    """Which audits a certificate may look at, and what it sees."""

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
    abandoned audit is a loss at every level but 0, and level 0 loses nothing.

    label_free  no label is looked at: Z is disagreement, which is never smaller than the drop
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

    By the time-out the label of an audit is there, or the audit counts as lost where it disagrees. Label-free there is
    nothing to wait for.

    timeout  longest normal delay of a label, at least 0, in the unit of `age`; 0: labels come with the run
    """
    if not timeout >= 0:
        raise ValueError(f"timeout: got {timeout}; at least 0")
    old = audits.age >= timeout
    enters = np.ones(len(audits), dtype=np.bool_) if label_free else old
    return MatureAudits(enters=enters, z=counted_as(audits, label_free=label_free))


def select_label_requests(audits: Audits, *, deployed: int, timeout: float, ahead: int = AHEAD) -> LabelNeeds:
    """Ask for gold only where it pays: at audits that disagree at a level in play and have no label yet.

    In play are the deployed level and the `ahead` levels above it, and all below. Agreement needs no label, an
    abandoned audit is lost with or without one, and behind a missing checkpoint there is no answer to judge.

    deployed  the level in force, 0 … M - 1
    """
    in_play = audits.disagrees[:, 1 : deployed + ahead + 1]
    if audits.missing is not None:
        in_play = in_play & ~audits.missing[:, 1 : deployed + ahead + 1]
    rows = np.flatnonzero(in_play.any(axis=1) & ~audits.labelled & ~audits.abandoned)
    left = timeout - audits.age[rows]
    # Those that still have time come first, by deadline; then those that are late, the latest arrivals first: they
    # stay in the window for longest.
    order = np.lexsort((rows, np.abs(left), left <= 0))
    return LabelNeeds(rows=rows[order], left=left[order])
