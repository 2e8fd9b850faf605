"""Checks that stop enforcement beside the certificate itself. Each answers with a sentence or None.

outcomes ──▶ Upstreams        the model, fingerprint or setup changed             ──▶ a new epoch, at once
draws    ──▶ SampleRatioTest  audits are missing (`assurance.sampling`)           ──▶ a pause, for a person
labels   ──▶ CriticalEM       EM of delivered answers is below `critical_em`      ──▶ a pause, for a person
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Final

import numpy as np

from suffice.assurance.certify import Counts, log_wealth
from suffice.assurance.drift import Fingerprint, find_changes
from suffice.assurance.runs import REPRESENTATIVE, Match
from suffice.assurance.sampling import Draws, UnloggedRequests, assignment_of, count_draws, find_sample_ratio_mismatch
from suffice.assurance.strata import Outcomes, post_stratify
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.run_join import LabelJoin
from suffice.learn.certifier import Certificate
from suffice.signals.query import class_of
from suffice.types import Feedback, Outcome, Request

MOST_UPSTREAMS: Final = 50  # different upstream identities that one epoch remembers
STRANGERS: Final = 1_000  # latest requests among which …
MOST_STRANGERS: Final = 0.05  # … this share at most may request models without evidence
CRITICAL_LABELS: Final = 500  # latest labels from which a critical EM is tested
LEAST_LABELS: Final = 30
MIX_REQUESTS: Final = 1_000  # latest requests whose classes are the mix of the traffic


@dataclass(frozen=True, slots=True)
class UpstreamIdentity:
    model: str
    fingerprint: Fingerprint


def upstream_of(request: Request, outcome: Outcome) -> UpstreamIdentity:
    """For a loop of the caller's own, the caller reports who answered."""
    own = outcome.model if request.kind != "rounds" else request.model or None
    return UpstreamIdentity(
        request.model if request.kind != "rounds" else "",
        Fingerprint(model=own, system_fingerprint=outcome.system_fingerprint, sampling=request.setup or None),
    )


@dataclass(slots=True)
class Upstreams:
    """The upstream identities of this epoch, and the test for a change.

    All identities during the burst belong to the evidence. Afterwards another fingerprint of a known model is a change
    at once. A model that was never requested before is a stranger, and only many strangers are a change, so that a
    client's typing error does not cost a burst.
    """

    known: list[UpstreamIdentity] = field(default_factory=list)
    strangers: deque[bool] = field(default_factory=lambda: deque(maxlen=STRANGERS))

    def note(self, who: UpstreamIdentity, *, gathers: bool) -> str | None:
        """Note an answer; return why it is a change, or None. gathers: the epoch still gathers its evidence."""
        same_name = [one for one in self.known if one.model == who.model]
        if not all(find_changes(one.fingerprint, who.fingerprint) for one in same_name):
            self.strangers.append(False)
            return None
        if gathers or not self.known:
            if len(self.known) < MOST_UPSTREAMS:
                self.known.append(who)
            return None
        if same_name:
            return "; ".join(str(change) for change in find_changes(same_name[-1].fingerprint, who.fingerprint))
        setup_before = self.known[-1].fingerprint.sampling
        if setup_before is not None and who.fingerprint.sampling not in (None, setup_before):
            return f"the route's setup changed from {setup_before!r} to {who.fingerprint.sampling!r}"
        self.strangers.append(True)
        if sum(self.strangers) > MOST_STRANGERS * STRANGERS:
            return f"{sum(self.strangers)} of the last {STRANGERS:,} requests ask for models without evidence"
        return None

    def plain(self) -> tuple[tuple[str, str, str], ...]:
        known = ((one.model, one.fingerprint) for one in self.known)
        return tuple(sorted({(model, own.model or "", own.system_fingerprint or "") for model, own in known}))


@dataclass(slots=True)
class SampleRatioTest:
    """Tests the audit share of all requests that have begun, because audits may run longer than stopped runs."""

    draws: Draws = field(default_factory=Draws)
    _new: list[tuple[bool, float]] = field(default_factory=list)

    def note(self, request: Request) -> None:
        """Count the draw of a request once: later deliveries had no draw."""
        draw = assignment_of(request)
        if draw is not None and request.unit and request.delivery == 1:
            self._new.append(draw)

    def broken(self) -> str | None:
        if self._new:
            audit, propensity = zip(*self._new, strict=True)
            self.draws += count_draws(np.array(audit, dtype=bool), np.array(propensity))
            self._new = []
        return find_sample_ratio_mismatch(self.draws)


@dataclass(slots=True)
class ClassMix:
    """The query classes of the latest requests, by which audits of another mix are weighted."""

    _latest: deque[str] = field(default_factory=lambda: deque(maxlen=MIX_REQUESTS))

    def note(self, request: Request) -> None:
        self._latest.append(class_of(request.query))

    def count(self, cells: Iterable[UnloggedRequests]) -> None:
        for cell in cells:
            if not cell.ungoverned:
                self._latest.extend([cell.query_class] * min(cell.n, MIX_REQUESTS))

    def alarm(self, certificate: Certificate, level: int, audits: Sequence[Audit], max_em_drop: float) -> str | None:
        if not level or len(self._latest) < MIX_REQUESTS or len(set(self._latest)) < 2:
            return None
        classes = [audits[at].query_class for at in np.flatnonzero(certificate.inside).tolist()]
        z = certificate.z[: len(classes), level]
        of_class = dict[str, Outcomes]()
        for name in set(classes):
            of_name = z[[at for at, one in enumerate(classes) if one == name]]
            gained, lost = int((of_name < 0).sum()), int((of_name > 0).sum())
            of_class[name] = Outcomes(n=len(of_name), n_gained=gained, n_lost=lost)
        return post_stratify(of_class, Counter(self._latest)).alarm(max_em_drop)


@dataclass(slots=True)
class Traffic:
    mix: ClassMix = field(default_factory=ClassMix)
    setup: str = ""  # of the latest request that ended
    upstreams: Upstreams = field(default_factory=Upstreams)
    sample_ratio: SampleRatioTest = field(default_factory=SampleRatioTest)
    callers: set[str] = field(default_factory=set)  # senders that have used the model, on any route


@dataclass(slots=True)
class CriticalEM:
    """Tests whether EM of delivered answers is below the owner's `critical_em`, over the latest labels.

    Tested as an EM drop is: with EM at `critical` or above, a fair bet that it is below grows to 1/delta with
    probability at most delta (`assurance.certify`). A run with less than the largest weight makes a smaller bet: for a
    in [0, 1], (1 + b)^a is at most 1 + a b, so the bets stay fair, or worse.
    """

    critical: float | None  # None: the owner has set none
    delta: float
    right: dict[str, bool] = field(default_factory=dict)  # by episode, the oldest verdict first
    _weights: dict[str, float] = field(default_factory=dict)

    def note(self, episode_id: str, *, right: bool, weight: float = 1.0) -> None:
        """Note a verdict on a run that stands for `weight` runs; a later one about the same episode replaces it."""
        self.right[episode_id], self._weights[episode_id] = right, weight
        while len(self.right) > CRITICAL_LABELS:
            oldest = next(iter(self.right))
            del self.right[oldest], self._weights[oldest]

    def note_label(self, episode_id: str, given: Feedback, joined: LabelJoin, match: Match) -> None:
        """Note a label about correctness. Runs that were reviewed because they were doubtful are not representative."""
        if self.critical is None or given.asked_for not in REPRESENTATIVE:
            return
        answer, right = joined.answers[episode_id], given.correct
        if right is None and given.gold is not None:
            right = answer is not None and match(answer, given.gold)
        if right is not None:
            self.note(episode_id, right=right, weight=joined.weights.get(episode_id, 1.0))

    def forget(self) -> None:
        self.right.clear()
        self._weights.clear()

    def below(self) -> str | None:
        n = len(self.right)
        if self.critical is None or not 0 < self.critical < 1 or n < LEAST_LABELS:
            return None
        most = max(self._weights.values())
        bets = sum(self._weights.values()) / most
        right = sum(self._weights[name] / most for name, is_right in self.right.items() if is_right)
        counts = Counts(np.array([0.0]), np.array([bets - right]), np.array([right]))
        if float(log_wealth(counts, max_em_drop=self.critical)[0]) < log(1 / self.delta):
            return None
        return f"EM is {right / bets:.1%} over the last {n} labels, surely below the critical {self.critical:.1%}"
