"""Checks that stop enforcement beside the certificate itself. Each answers with a sentence or None.

outcomes ──▶ Upstreams        the model, fingerprint or setup changed             ──▶ a new epoch, at once
draws    ──▶ SampleRatioTest  audits are missing (`assurance.sampling`)           ──▶ a pause, for a person
labels   ──▶ CriticalEM       EM of delivered answers is below `critical_em`      ──▶ a pause, for a person
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.certify import Counts, log_wealth
from suffice.assurance.drift import Fingerprint, find_changes
from suffice.assurance.fidelity import VERBATIM, Fidelity, FinishFidelity, bound_fidelity
from suffice.assurance.labels import CHARGE_CONFIDENCE, JUDGE, TRUSTED, rank_of
from suffice.assurance.runs import REPRESENTATIVE, Match, is_right
from suffice.assurance.sampling import Draws, UnloggedRequests, assignment_of, count_draws, find_sample_ratio_mismatch
from suffice.assurance.strata import FACTOR, MAX_CLASS_DROP, CallerGuards, ClassGuards, post_stratify
from suffice.certification.certificate import Certificate
from suffice.certification.certifier import Certifier
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.feedback import Ratings
from suffice.control.evidence.judging import graded, human_label, pair_grades, parse_grade
from suffice.control.evidence.run_join import LabelJoin, remember
from suffice.learn.version import FoldedModels
from suffice.signals.query import class_of
from suffice.types import Feedback, Outcome, Publication, Request

MOST_MODELS: Final = 50  # names that one epoch remembers, and models that answer to a name
LATEST_RUNS: Final = 1_000  # among which …
MOST_STRANGERS: Final = 0.05  # … this share at most may request models without evidence, one caller left out
MOST_OF_ONE: Final = 1 / 3  # … or this one, whoever they are
CRITICAL_LABELS: Final = 500  # latest labels from which a critical EM is tested
LEAST_LABELS: Final = 30
MIX_REQUESTS: Final = 1_000  # latest requests whose classes are the mix of the traffic


def model_of(request: Request) -> str:
    """Return the model that a request names; "" for a loop of the caller's own, which reports who answered."""
    return "" if request.kind == "rounds" else request.model


@dataclass(slots=True)
class Upstreams:
    """The models of this epoch's evidence by the names in requests, and the test for a change.

    All models during the burst belong to the evidence. Afterwards a run has no evidence if its request names another
    model, or if a known name is answered by another model: gateways serve such requests in full. It is a change of the
    whole route, which costs a burst, if the name is that of a third of the requests, or if so many ask for models
    without evidence; leaving out the caller who does so most, a twentieth is enough. So no caller with less than a
    third of the traffic can end the evidence of others.
    """

    known: dict[str, list[Fingerprint]] = field(default_factory=dict)  # by requested name
    moved: set[str] = field(default_factory=set)  # names whose evidence has ended
    _n_runs: Counter[str] = field(default_factory=Counter)  # of a known name in the burst
    _latest: deque[tuple[str, str, bool]] = field(  # requested name, caller, and whether it has evidence
        default_factory=lambda: deque(maxlen=LATEST_RUNS)
    )

    def covers(self, request: Request) -> bool:
        """Whether there is evidence about the model that a request names."""
        return not self.known or model_of(request) in self.known

    def note(self, request: Request, outcome: Outcome, *, gathers: bool) -> str | None:
        """Note a run; return why it is a change, or None. gathers: the epoch still gathers its evidence."""
        name, answered = model_of(request), answered_by(request, outcome)
        same_name = self.known.get(name, [])
        is_known = not all(find_changes(one, answered) for one in same_name)
        if not is_known and (gathers or not self.known):
            self._learn(name, answered)
            is_known = True
        self._latest.append((name, request.sender, is_known))
        if is_known:
            self._n_runs[name] += gathers
            return None
        before, now = next(iter(self.known.values()))[-1].sampling, answered.sampling
        if before is not None and now not in (None, before):
            return f"the route's setup changed from {before!r} to {now!r}"
        if same_name:
            n_same = sum(one == name for one, _, _ in self._latest)
            if len(self.known) == 1 or n_same > MOST_OF_ONE * len(self._latest):
                return f"{name!r}: " * (len(self.known) > 1) + "; ".join(find_changes(same_name[-1], answered))
            del self.known[name]
            self.moved.add(name)
        return self._crowd()

    def _learn(self, name: str, answered: Fingerprint) -> None:
        """Of too many names the rarest makes room (Metwally et al. 2005), so that made-up ones displace no real one."""
        if name not in self.known and len(self.known) >= MOST_MODELS:
            rarest = min(self.known, key=lambda one: self._n_runs[one])
            del self.known[rarest]
            self._n_runs[name] = self._n_runs.pop(rarest)
        of_name = self.known.setdefault(name, [])
        if len(of_name) < MOST_MODELS:
            of_name.append(answered)

    def _crowd(self) -> str | None:
        """Return who asks for models without evidence, if it is a change."""
        strangers = [(name, caller) for name, caller, is_known in self._latest if not is_known]
        caller, n_caller = Counter(caller for _, caller in strangers).most_common(1)[0]
        n = len(strangers)
        if n <= MOST_OF_ONE * LATEST_RUNS and n - n_caller <= MOST_STRANGERS * LATEST_RUNS:
            return None
        name = Counter(name for name, _ in strangers).most_common(1)[0][0]
        by = f", {n_caller} of them by caller {caller}" if caller else ""
        return f"{n} of the last {LATEST_RUNS:,} requests ask for models without evidence, most for {name!r}{by}"

    def plain(self) -> tuple[tuple[str, str, str], ...]:
        names = {
            (name, one.model or "", one.system_fingerprint or "")
            for name, answered in self.known.items()
            for one in answered
        }
        return tuple(sorted(names))


def answered_by(request: Request, outcome: Outcome) -> Fingerprint:
    """Return who answered; for a loop of the caller's own, the caller reports it."""
    return Fingerprint(
        model=(request.model or None) if request.kind == "rounds" else outcome.model,
        system_fingerprint=outcome.system_fingerprint,
        sampling=request.setup or None,
    )


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
    """The guardrails of query classes and of callers in one epoch.

    The guards read audits in the order of the log, and only at looks, so a replay reproduces their decisions. Another
    version judges again the audits of a restricted class since the class last moved.

    max_em_drop  the route's budget, a fraction; from 0.45 on, twice the budget bounds nothing, and no class is guarded
    delta        of the proof that lifts a restriction, in (0, 1)
    """

    max_em_drop: float
    delta: float
    callers: CallerGuards = field(init=False)
    _guards: ClassGuards | None = None
    _served: FoldedModels | None = None
    _n_seen: int = 0  # of the certifier's audits, how many the guards have read
    _moved: dict[str, int] = field(default_factory=dict)  # position of the audit after which a class moved

    def __post_init__(self) -> None:
        self.callers = CallerGuards(self.max_em_drop)

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
            audit = audits[place]
            self.callers.add(audit.episode.request.sender, lost=bool(z[place, pooled] == 1))
            if audit.at not in certifier.latest.singled:
                sentences += self._add(self._guards, audit, z[place], pooled)
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


# ---- charges to the EM budget: for answers that finishing a stop changes, and for a judge model's errors

MOST_WAITING: Final = 5_000  # finishes of audits whose level is not known yet
MOST_SHARE: Final = 0.5  # of the budget that a judge may cost
_NEVER_FINISHED: Final = 4.0  # charge where nothing was compared: above any budget, on any share of the requests


@dataclass(slots=True)
class FinishLog:
    """Comparisons of finished answers with recorded ones; `is_needed` where a stop generates an answer."""

    is_needed: bool
    fidelity: FinishFidelity = field(default_factory=lambda: FinishFidelity(2))
    _waiting: deque[tuple[str, int, bool]] = field(default_factory=lambda: deque(maxlen=MOST_WAITING))
    alarm: str | None = None

    def note(self, request: Request, outcome: Outcome) -> None:
        if not self.is_needed:
            return
        if outcome.stopped and outcome.stop_step is not None and outcome.end_reason in ("stopped", "done"):
            self._compare(served_level(request), outcome.answer != outcome.would_answer)
        trial = next((step for step in outcome.steps if step.index == outcome.finish_step), None)
        if trial is not None:
            self._waiting.append((outcome.episode_id, trial.index, outcome.finish_answer != trial.answer))

    def look(self, n_levels: int, ends: Callable[[str], Ints | None]) -> None:
        """Assign levels to the finishes of audits; for `ends` see `Certifier`."""
        if n_levels != self.fidelity.n_levels:
            self.fidelity = FinishFidelity(n_levels)
        while self._waiting:
            name, step, differs = self._waiting.popleft()
            rows = ends(name)
            if rows is not None:
                later = np.flatnonzero(rows[1:] >= step - 1)
                self._compare(int(later[-1]) + 1 if len(later) else 1, differs)

    def charges(self) -> Floats:
        """Charge for the finish at each level, a fraction of EM, shape (M,); above 1 where nothing was compared."""
        if not self.is_needed:
            return np.zeros(self.fidelity.n_levels)
        charges = [0.0]
        for top in self.fidelity.tops:  # the levels of a band have one charge
            bound = self.fidelity.charge(top)
            charges += [_NEVER_FINISHED if bound is None else bound.upper] * (top + 1 - len(charges))
        return np.array(charges)

    def at(self, level: int) -> Fidelity | None:
        """The bound behind a level's charge; None: nothing was compared."""
        return self.fidelity.charge(min(level, self.fidelity.n_levels - 1)) if self.is_needed else VERBATIM

    def _compare(self, level: int, differs: bool) -> None:
        if self.fidelity.note(min(max(1, level), self.fidelity.n_levels - 1), differs):
            self.alarm = self.fidelity.alarm


def served_level(request: Request) -> int:
    """The level at which a request was served, from its policy version; 1 for a fixed policy."""
    level = request.policy_version.rpartition("@")[2]
    return int(level) if "@" in request.policy_version and level.isdecimal() else 1


@dataclass(slots=True, kw_only=True)
class JudgeCharge:
    """The charge for errors of a route's judge model, measured on the route's own audits at every look.

    The error rate is measured on audits that have a grade and a trusted person's label, the judge's share on audits
    with a label of the judge alone. Both rates are bounded at every look simultaneously
    (`assurance.fidelity.bound_fidelity`), and 2 x one x other is taken off the budget before any test
    (`assurance.labels`). The labels of a judge that was not measured, or that would take more than half of the budget,
    do not count: a difference is then a loss until a person labels it.
    """

    model: str | None
    match: Match
    charge: float = 0.0  # fraction of EM; 0 where the judge's labels do not count
    is_accepted: bool = False
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)  # at the last look: graded, wrong, on the judge alone, audits
    _compared: dict[str, tuple[int, list[bool]]] = field(default_factory=dict)  # by audit: labels, wrong grades

    def look(self, audits: Sequence[Audit], max_em_drop: float, callers: Collection[str]) -> None:
        if self.model is None:
            return
        judged = [audit for audit in audits if any(label.feedback.source == JUDGE for label in audit.labels)]
        self._compared = {audit.id: self._compare(audit, self.model, callers) for audit in judged}
        mistakes = [mistakes for _, mistakes in self._compared.values()]
        wrong = [grade for grades in mistakes for grade in grades]
        counts = len(wrong), sum(wrong), sum(not grades for grades in mistakes), len(audits)
        if counts != self.counts:  # the bounds depend on these alone
            self.counts = counts
            error = bound_fidelity(counts[1], counts[0], confidence=CHARGE_CONFIDENCE)
            share = bound_fidelity(counts[2], counts[3], confidence=CHARGE_CONFIDENCE)
            charge = 1.0 if error is None or share is None else min(1.0, 2 * error.upper * share.upper)
            self.is_accepted = bool(wrong) and charge <= MOST_SHARE * max_em_drop
            self.charge = charge if self.is_accepted else 0.0

    def accepts(self, given: Feedback) -> bool:
        return self.is_accepted and self.model is not None and parse_grade(given, self.model) is not None

    def _compare(self, audit: Audit, model: str, callers: Collection[str]) -> tuple[int, list[bool]]:
        known = self._compared.get(audit.id)
        if known is not None and known[0] == len(audit.labels):
            return known
        trusted = [label for label in audit.labels if rank_of(label.feedback, callers) >= TRUSTED]
        pairs = pair_grades(audit.outcome, human_label(trusted), graded(audit.labels, model), self.match)
        return len(audit.labels), [(grade > 0) != right for grade, right in pairs]


# ---- Lowers the level, as a whole or of single query classes, to where ratings are estimated to meet the owner's floor


@dataclass(slots=True)
class SatisfactionFloor:
    """The ceilings that ratings put on the levels of one epoch.

    ceiling  the highest level of the route; None: no limit
    classes  the highest level of a query class, for those held below the route
    """

    ratings: Ratings
    ceiling: int | None = None
    classes: dict[str, int] = field(default_factory=dict)

    def follow(self, made: Publication) -> None:
        """Take the ceilings from a publication of the log: they depend on a floor that the owner may have changed."""
        if (made.ceiling, made.class_ceilings) != (self.ceiling, self.published):
            self._set(made.ceiling, dict(made.class_ceilings))

    @property
    def published(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(self.classes.items()))

    def lift(self) -> str:
        """Drop all ceilings, because the owner has no floor any more; return the reason, or ""."""
        if self.ceiling is None and not self.classes:
            return ""
        self._set(None, {})
        return "ratings no longer limit the level"

    def look(self, level: int, held: Mapping[str, int], certifier: Certifier, audits: Sequence[Audit]) -> str:
        """Move the ceilings where ratings require or allow it; return the reason, or "".

        level  active, of the route
        held   active levels of the classes below it
        """
        outcomes = certifier.outcomes()
        if not level or outcomes is None or not self.ratings.is_conclusive:
            return ""
        names = np.array([audit.query_class for audit in audits])[outcomes[0]]
        n_lost = _LostAudits(names, outcomes[1][outcomes[0]] > 0)
        return self._lower(level, held, n_lost) or self._rise(level, held, n_lost)

    def _lower(self, level: int, held: Mapping[str, int], n_lost: _LostAudits) -> str:
        pooled, by_class = self.ratings.test, self.ratings.by_class
        asking = {name: test.step_down_reason for name, test in by_class.items() if test.step_down_reason is not None}
        now = {name: held.get(name, level) for name in by_class}
        ceiling, targets = self.ceiling, dict[str, int]()
        for name, test in by_class.items():
            most = max(0, now[name] - (name in asking))
            if test.is_telling or name in asking:
                targets[name] = min(most, test.satisfactory_level(n_lost.of(name), served=now[name], most=now[name]))
        if pooled is None or pooled.step_down_reason is None:
            lowered = {name: targets[name] for name in asking if targets[name] < now[name]}
        else:
            most = min(level - 1, pooled.satisfactory_level(n_lost.pooled, served=level, most=level))
            targets = {name: targets.get(name, min(most, now[name])) for name in by_class}
            lowered = {name: to for name, to in targets.items() if to < now[name]}
            if not lowered or len(lowered) == len(targets):  # no class may keep its level
                ceiling = max([most, *lowered.values()])
        if ceiling == self.ceiling and not lowered:
            return ""
        why = self.ratings.asks or "; ".join(f"class {name or 'none'}: {asking[name]}" for name in lowered)
        self._set(ceiling, self.classes | {name: to for name, to in lowered.items() if ceiling is None or to < ceiling})
        return f"{why}: {self._sentence}"

    def _rise(self, level: int, held: Mapping[str, int], n_lost: _LostAudits) -> str:
        """Raise what is proved to be rated above the floor half of the way to its estimated level.

        The estimate is made when ratings happen to look good, so the whole way would often be too far.
        """
        pooled = self.ratings.test
        ceiling = self.ceiling
        classes = dict(self.classes)
        if pooled is not None and pooled.may_rise and ceiling == level:
            most = min(n_lost.n_levels - 1, 2 * level)
            ceiling = _halfway(level, pooled.satisfactory_level(n_lost.pooled, served=level, most=most))
        for name, now in self.classes.items():
            test = self.ratings.by_class.get(name)
            if test is not None and test.may_rise and held.get(name, level) == now:
                highest = min(level, 2 * now)
                classes[name] = _halfway(now, test.satisfactory_level(n_lost.of(name), served=now, most=highest))
        if (ceiling, classes) == (self.ceiling, self.classes):
            return ""
        self._set(ceiling, classes)
        return f"stopped runs are proved to be rated above the floor: {self._sentence}"

    @property
    def _sentence(self) -> str:
        parts = [f"class {name or 'none'} level {to}" for name, to in self.published]
        return f"{', '.join([*([] if self.ceiling is None else [f'level {self.ceiling}']), *parts])} at most"

    def _set(self, ceiling: int | None, classes: dict[str, int]) -> None:
        moved = {name for name, to in classes.items() if self.classes.get(name) != to}
        self.ratings.restart(moved if ceiling == self.ceiling else None)
        self.ceiling, self.classes = ceiling, classes


def _halfway(now: int, estimate: int) -> int:
    return max(now, (now + estimate + 1) // 2)


@dataclass(frozen=True, slots=True, eq=False)
class _LostAudits:
    """The audits whose right answer each level loses."""

    names: NDArray[np.str_]  # class of each audit, shape (N,)
    lost: Bools  # (N, M)

    @property
    def n_levels(self) -> int:
        return int(self.lost.shape[1])

    @property
    def pooled(self) -> Floats:
        return np.asarray(self.lost.sum(axis=0), dtype=np.float64)

    def of(self, query_class: str) -> Floats:
        return np.asarray(self.lost[self.names == query_class].sum(axis=0), dtype=np.float64)
