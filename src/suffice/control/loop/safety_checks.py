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
from typing import Final, NamedTuple

import numpy as np

from suffice.assurance.certify import Counts, log_wealth
from suffice.assurance.drift import Fingerprint, find_changes
from suffice.assurance.runs import REPRESENTATIVE, Match, is_right
from suffice.assurance.sampling import Draws, UnloggedRequests, assignment_of, count_draws, find_sample_ratio_mismatch
from suffice.assurance.strata import FACTOR, MAX_CLASS_DROP, ClassGuards, post_stratify
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.run_join import LabelJoin, remember
from suffice.learn.audits import Small
from suffice.learn.certificate import Certificate
from suffice.learn.certifier import Certifier
from suffice.learn.version import FoldedModels
from suffice.signals.query import class_of
from suffice.types import Feedback, Outcome, Request

MOST_UPSTREAMS: Final = 50  # different upstream identities that one epoch remembers
STRANGERS: Final = 1_000  # latest requests among which …
MOST_STRANGERS: Final = 0.05  # … this share at most may request models without evidence
CRITICAL_LABELS: Final = 500  # latest labels from which a critical EM is tested
LEAST_LABELS: Final = 30
MIX_REQUESTS: Final = 1_000  # latest requests whose classes are the mix of the traffic


class UpstreamIdentity(NamedTuple):
    requested: str  # model that the request names; "" for a loop of the caller's own
    answered: Fingerprint


def upstream_of(request: Request, outcome: Outcome) -> UpstreamIdentity:
    """For a loop of the caller's own, the caller reports who answered."""
    is_own = request.kind == "rounds"
    answered = Fingerprint(
        model=(request.model or None) if is_own else outcome.model,
        system_fingerprint=outcome.system_fingerprint,
        sampling=request.setup or None,
    )
    return UpstreamIdentity("" if is_own else request.model, answered)


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
        same_name = [one.answered for one in self.known if one.requested == who.requested]
        if not all(find_changes(one, who.answered) for one in same_name):
            self.strangers.append(False)
            return None
        if gathers or not self.known:
            if len(self.known) < MOST_UPSTREAMS:
                self.known.append(who)
            return None
        if same_name:
            return "; ".join(find_changes(same_name[-1], who.answered))
        before, now = self.known[-1].answered.sampling, who.answered.sampling
        if before is not None and now not in (None, before):
            return f"the route's setup changed from {before!r} to {now!r}"
        self.strangers.append(True)
        if sum(self.strangers) > MOST_STRANGERS * STRANGERS:
            return f"{sum(self.strangers)} of the last {STRANGERS:,} requests ask for models without evidence"
        return None

    def plain(self) -> tuple[tuple[str, str, str], ...]:
        names = {(one.requested, one.answered.model, one.answered.system_fingerprint) for one in self.known}
        return tuple(sorted((requested, model or "", engine or "") for requested, model, engine in names))


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
        classes = np.array([audits[at].query_class for at in np.flatnonzero(certificate.inside).tolist()])
        z = certificate.z[: len(classes), level]
        of_class = {str(name): z[classes == name] for name in np.unique(classes)}
        return post_stratify(of_class, Counter(self._latest)).alarm(max_em_drop)


@dataclass(slots=True)
class Traffic:
    mix: ClassMix = field(default_factory=ClassMix)
    setup: str = ""  # of the latest request that ended
    upstreams: Upstreams = field(default_factory=Upstreams)
    sample_ratio: SampleRatioTest = field(default_factory=SampleRatioTest)
    callers: set[str] = field(default_factory=set)  # senders that have used the model, on any route


@dataclass(slots=True, kw_only=True)
class LiveGuards:
    """The query-class guardrails of one epoch.

    The guards read audits in the order of the log, and only at looks, so a replay reproduces their decisions. Another
    version judges again the audits of a restricted class since the class last moved.

    max_em_drop  the route's budget, a fraction; from 0.45 on, twice the budget bounds nothing, and no class is guarded
    delta        of the proof that lifts a restriction, in (0, 1)
    """

    max_em_drop: float
    delta: float
    _guards: ClassGuards | None = None
    _served: FoldedModels | None = None
    _n_seen: int = 0  # of the certifier's audits, how many the guards have read
    _moved: dict[str, int] = field(default_factory=dict)  # position of the audit after which a class moved

    def look(self, certifier: Certifier, audits: Sequence[Audit], *, pooled: int) -> list[str]:
        """Pass new audits, drawn at level `pooled`, to the guards; return a sentence for each move."""
        outcomes = certifier.outcomes()
        if outcomes is None or not FACTOR * self.max_em_drop < MAX_CLASS_DROP:
            return []
        mature, z = outcomes
        if self._guards is None:
            self._guards = ClassGuards(z.shape[1], self.max_em_drop, delta=self.delta)
        if self._served is not certifier.served:
            self._served = certifier.served
            for name, moved in self._moved.items():
                seen = enumerate(audits[: self._n_seen])
                since = [at for at, audit in seen if audit.seq > moved and audit.query_class == name]
                self._guards.judge_anew(name, z[since])
        sentences = list[str]()
        for place in (np.flatnonzero(mature[self._n_seen :]) + self._n_seen).tolist():
            sentences += self._add(self._guards, audits[place], z[place], pooled)
            self._n_seen = place + 1
        return sentences

    def held(self, level: int) -> tuple[tuple[str, int], ...]:
        """Classes restricted below `level`, with their levels; sorted."""
        guards = self._guards
        if guards is None:
            return ()
        return tuple(sorted((name, own) for name in self._moved if (own := guards.level(name, level)) < level))

    def forget(self, n: int) -> None:
        self._n_seen = max(0, self._n_seen - n)

    def _add(self, guards: ClassGuards, audit: Audit, z: Small, pooled: int) -> list[str]:
        name = audit.query_class
        before = guards.steps_down(name)
        alarm, after = guards.add(name, z, pooled), guards.steps_down(name)
        if after == before and not alarm:
            return []
        self._moved[name] = audit.seq
        if not after:
            del self._moved[name]
        if alarm:
            return [f"class {name or 'none'} loses more than {100 * FACTOR * self.max_em_drop:g} points: now held back"]
        return [f"class {name or 'none'} may stop again"]


@dataclass(slots=True)
class CriticalEM:
    """Tests whether EM of delivered answers is below the owner's `critical_em`, over the latest labels.

    Tested as an EM drop is: with EM at `critical` or above, a fair bet that it is below grows to 1/delta with
    probability at most delta (`assurance.certify`). A run with less than the largest weight makes a smaller bet: for a
    in [0, 1], (1 + b)^a is at most 1 + a b, so the bets stay fair, or worse.
    """

    critical: float | None  # None: the owner has set none
    delta: float
    verdicts: dict[str, tuple[bool, float]] = field(default_factory=dict)  # by episode, oldest first: right, and weight

    def note(self, episode_id: str, *, right: bool, weight: float = 1.0) -> None:
        """Note a verdict on a run that stands for `weight` runs; a later one about the same episode replaces it."""
        remember(self.verdicts, episode_id, (right, weight), CRITICAL_LABELS)

    def note_label(self, episode_id: str, given: Feedback, joined: LabelJoin, match: Match) -> None:
        """Note a label about correctness. Runs that were reviewed because they were doubtful are not representative."""
        tells = given.correct is not None or given.gold is not None
        if self.critical is None or given.request_reason not in REPRESENTATIVE or not tells:
            return
        answer = joined.answers[episode_id]
        right = is_right(answer, answer, given, match)
        if right is not None:
            self.note(episode_id, right=right, weight=joined.weights.get(episode_id, 1.0))

    @property
    def evidence(self) -> str:
        n_right = sum(right for right, _ in self.verdicts.values())
        return f"{n_right:,} of the last {len(self.verdicts):,} labelled answers were right"

    def below(self) -> str | None:
        n = len(self.verdicts)
        if self.critical is None or not 0 < self.critical < 1 or n < LEAST_LABELS:
            return None
        weights = [weight for _, weight in self.verdicts.values()]
        most = max(weights)
        bets = sum(weights) / most
        right = sum(weight / most for is_right, weight in self.verdicts.values() if is_right)
        counts = Counts(np.array([0.0]), np.array([bets - right]), np.array([right]))
        if float(log_wealth(counts, max_em_drop=self.critical)[0]) < log(1 / self.delta):
            return None
        return f"EM is {right / bets:.1%} over the last {n} labels, surely below the critical {self.critical:.1%}"
