"""Rollouts of learned versions with known truth: the candidates, and one rollout from first request to end.

    streams ──▶ models of the active version and of the candidate ──▶ true drop of each level, on held-out runs
            ──▶ canary.Life with the loop's certifier and the candidate's certificate ──▶ Tried

There are five classes of questions. The active version was fitted on 1,000 full runs and reads only answers; *better*
candidates also read the model's confidence and were fitted on 3,000. A harmful candidate is a better one that takes a
run's first answer where the model is confident, as often as the intended loss requires. The loop certifies with its
part of delta and the candidate with its own; the models do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from bench.claims.canary import ALIKE, CLASSES, Ended, Life, World
from bench.claims.score import Logistic
from bench.claims.streams import Setting, online, ours
from tests.simulators import traffic_worlds as simulated
from tests.simulators.traffic_worlds.stories import LONGEST
from tests.simulators.traffic_worlds.worlds import USUAL

from suffice.arrays import Bools, Floats
from suffice.assurance.certify import Windows, spent_delta, window_audits
from suffice.certification.certificate import NO_PENDING
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.control.compare.assessment import (
    MOST_KEPT,
    CandidateCertificate,
    assess_evidence,
    certify_candidate,
)
from suffice.learn.audits import NO_AUDITS, AuditRuns
from suffice.learn.version import FoldedModels, Learner, PGood, fit_served
from suffice.replay.online.stream import PERIOD
from suffice.rollout.evidence import Rules
from suffice.rollout.stages import Transition
from suffice.store.routes.rollouts import RolloutRun

PLAN: Final = Plan(warm_up=1_200)  # what is in force was fitted before, and is certified by as many full runs as live
BEFORE: Final = 2_000  # requests before the rollout: the loop certifies what is in force
MOST: Final = 26_000  # requests of a rollout; one that is longer did not end
N_TRUTH: Final = 40_000  # runs: ± 0.1 points at a drop of 2 %
N_MODELS: Final = 10  # sets of models; seeds take them in turn
HARMED: Final = 2  # the class that one candidate harms: "history"
_MIDDLE: Final = USUAL.classes[1]
FIVE: Final = replace(
    USUAL,
    classes=(
        *(replace(one, share=0.2) for one in USUAL.classes),
        replace(_MIDDLE, share=0.2, p_right=0.75, p_plateau=0.03),
    ),
)
_COLUMN: Final = {name: at for at, name in enumerate(simulated.FEATURES)}
_ANSWERS: Final = [at for name, at in _COLUMN.items() if "confidence" not in name and name != "entropy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One kind of candidate."""

    says: str
    models: Callable[[int], FoldedModels]  # of a set
    late: int = 0  # requests until a label comes
    skipped: bool = False  # has a person taken it past the shadow at once?


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """How the rollout of a learned candidate went."""

    ended: Ended  # its audits are those that were pairs
    n_audits: int  # all of them
    n_over: int  # live requests that the candidate answered at a level that truly breaks the budget
    passed_over: bool  # at some look such a level passed its certificate, served or not
    kept: float  # of a full run's tokens, at the last level that might act, truly
    kept_in_force: float  # … what the version in force keeps then


# --------------------------------------------------------------------------- models


class _Reads:
    """A trainer that sees some of the features."""

    def __init__(self, columns: list[int]) -> None:
        self._columns, self._inner = columns, Logistic()

    def __call__(self, x: Floats, good: Bools, weight: Floats) -> PGood:
        inner = self._inner(x[:, self._columns], good, weight)
        return lambda rows: inner(rows[:, self._columns])


def setting(late: int = 0) -> Setting:
    """The world of these rollouts."""
    scenario = simulated.Scenario(name="five", says="five classes, nothing changes", before=FIVE, after=FIVE)
    return ours(scenario, labels=simulated.LabelDelays(mean_delay=late), label_timeout=late)


def _runs(n: int, seed: int) -> AuditRuns:
    return online(setting().in_world(0.0, n, seed), np.zeros(n), seed=seed).runs


def _fitted(learner: Learner, n: int, seed: int) -> FoldedModels:
    made = fit_served(_runs(n, seed), learner, now=np.inf)
    assert made is not None
    return made


@lru_cache(maxsize=N_MODELS)
def in_force(number: int) -> FoldedModels:
    return _fitted(_Reads(_ANSWERS), 1_000, 70_000 + number)


@lru_cache(maxsize=N_MODELS)
def better(number: int) -> FoldedModels:
    return _fitted(Logistic(), 3_000, 80_000 + number)


@lru_cache(maxsize=N_MODELS)
def as_good(number: int) -> FoldedModels:
    return _fitted(_Reads(_ANSWERS), 1_000, 90_000 + number)


def _hasty(base: FoldedModels, sure: float, only: int | None) -> FoldedModels:
    """A version that takes the first answer where its confidence is at least `sure`, in one class or in all."""

    def of(model: PGood) -> PGood:
        def p_good(x: Floats) -> Floats:
            takes = _first(x) & (x[:, _COLUMN["confidence"]] >= sure)
            if only is not None:
                takes &= x[:, _COLUMN[f"kind_{only}"]] > 0
            return np.where(takes, 1.0, model(x))

        return p_good

    return replace(base, models=tuple(of(model) for model in base.models))


def _first(x: Floats) -> Bools:
    return np.asarray(x[:, _COLUMN["step_share"]] < 1.5 / LONGEST)


def _losing(
    points: float, level: Callable[[FoldedModels], int], *, only: int | None = None
) -> Callable[[int], FoldedModels]:
    """A better version that is made to lose so much at one of its levels.

    points  EM drop against the full run, a fraction; of one class: more than what is in force loses there
    level   which one
    """

    def made(number: int) -> FoldedModels:
        base, runs = better(number), truth_runs()
        mine, wanted, first = np.ones(len(runs), dtype=bool), points, runs.starts[:-1]
        if only is not None:
            other, mine = in_force(number), runs.query_class == only
            wanted += float(runs.z[other.rows_at(runs, within(other))][mine].mean())
        patient, sureness = runs.z[base.rows_at(runs, level(base))], runs.x[first, _COLUMN["confidence"]]
        low, high = -6.0, 6.0
        while high - low > 1e-3:
            sure = (low + high) / 2
            drop = float(np.where(sureness >= sure, runs.z[first], patient)[mine].mean())
            low, high = (sure, high) if drop > wanted else (low, sure)
        return _hasty(base, high, only)

    return lru_cache(maxsize=N_MODELS)(made)


# --------------------------------------------------------------------------- the truth


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truly:
    """What each level of a version really loses and keeps."""

    drop: Floats  # (M,): of the whole, against the full run
    kept: Floats  # (M,): of its tokens


@lru_cache(maxsize=1)
def truth_runs() -> AuditRuns:
    return _runs(N_TRUTH, 60_000)


@lru_cache(maxsize=10 * N_MODELS)  # by identity, which versions that are kept have for good
def truth_of(served: FoldedModels) -> Truly:
    runs = truth_runs()
    rows = served.rows(runs)
    return Truly(drop=runs.z[rows].mean(axis=0), kept=runs.cost[rows].mean(axis=0) / runs.full.mean())


def within(served: FoldedModels, part: float = 0.5) -> int:
    """The last level that truly loses at most so much of the budget: about where a certificate lets a version act."""
    return int(np.flatnonzero(truth_of(served).drop <= part * PLAN.max_em_drop)[-1])


def _safest(_: FoldedModels) -> int:
    return 1


CANDIDATES: Final[Mapping[str, Candidate]] = {
    "better": Candidate(says="loses less in most classes and keeps fewer tokens", models=better),
    "better, late labels": Candidate(says="… each label after 500 requests", models=better, late=500),
    "as good": Candidate(says="fitted like what is in force, on other runs", models=as_good),
    "the same models": Candidate(says="those in force, under another address", models=in_force),
    "one class of five": Candidate(
        says="… but 5 EM points lost in one class of five, against what is in force",
        models=_losing(0.05, within, only=HARMED),
    ),
    "everywhere": Candidate(says="3 EM points lost at its safest level, of 2 allowed", models=_losing(0.03, _safest)),
    "at the edge": Candidate(says="2.1 points at its safest level", models=_losing(0.021, _safest)),
    "at the edge, shadow skipped": Candidate(
        says="… taken straight into the canary by a person", models=_losing(0.021, _safest), skipped=True
    ),
}


# --------------------------------------------------------------------------- one rollout


class Trial(Life):
    """The rollout of a learned candidate, beside the loop that keeps what is in force."""

    def __init__(self, candidate: Candidate, rules: Rules, seed: int, *, most: int = MOST) -> None:
        world = World(says=candidate.says, candidate=ALIKE, late=candidate.late, skipped=candidate.skipped)
        super().__init__(world, rules, seed, most=most, fit="v-new")
        self.first, number = self.state, seed % N_MODELS
        made, serves = candidate.models(number), in_force(number)
        self.runs = setting(candidate.late).draw(BEFORE + most, seed).traffic.runs
        self.true, self.true_in_force = truth_of(made), truth_of(serves)
        self.mine, self.other = made.rows(self.runs), serves.rows(self.runs)
        disagrees, z = self.runs.d[self.mine], self.runs.z[self.mine]
        disagrees[:, 0], z[:, 0] = False, 0
        self.z, self.unheard = z, np.where(disagrees, 1, z).astype(np.int8)
        self.audited: list[int] = []  # of the rollout, in order
        self.windows = Windows()  # of the rollout
        self.new: list[int] = []  # the keeper has not seen
        self.n_over, self.passed_over, self.level = 0, False, 0
        self.keeper = Certifier(
            replace(PLAN, label_timeout=float(candidate.late)), Logistic(), fit=lambda *_, **__: None
        )
        self.confidence: float | None = None
        self.keeper.adopt(serves, NO_AUDITS)
        for at in range(BEFORE):
            if self.rng.random() < self.keeper.share:
                self.drawn(at, self.keeper.share)
            self.tick(at + 1)
        self.confidence = 1 - spent_delta(PLAN.delta, 1)

    def drawn(self, number: int, share: float) -> None:
        """An audit of the loop, drawn at this share."""
        self.runs.share[number] = share
        self.new.append(number)

    def tick(self, now: int) -> None:
        """The loop looks at what is new."""
        if now % PERIOD == 0:
            self.keeper.add_audits(self.runs.take(np.array(self.new, dtype=np.int64)))
            self.new.clear()
            self.keeper.look(Evidence(at=float(now), confidence=self.confidence))

    def tried(self) -> Tried:
        ended = self.run()
        return Tried(
            ended=ended,
            n_audits=len(self.audited),
            n_over=self.n_over,
            passed_over=self.passed_over,
            kept=float(self.true.kept[self.level]),
            kept_in_force=float(self.true_in_force.kept[self.keeper.level]),
        )

    def class_of(self, at: int) -> str:
        return CLASSES[int(self.runs.query_class[BEFORE + at])]

    def audit_share(self) -> float:
        return max(self.state.audit_share or 0.0, self.keeper.share)

    def served(self) -> None:
        super().served()
        self.n_over += bool(self.true.drop[self.state.level] > PLAN.max_em_drop)

    def audit(self, at: int, name: str) -> None:
        """An audit of the loop and of the certificate; a pair where a level of the candidate may act."""
        number, runs = BEFORE + at, self.runs
        self.audited.append(number)
        self.drawn(number, self.audit_share())
        self.windows.note(float(number), self.audit_share())
        if not self.state.level:
            return
        mine, other = self.mine[number, self.state.level], self.other[number, self.keeper.level]
        z = int(runs.z[mine]) - int(runs.z[other])
        waits = mine != other and bool(runs.d[mine] or runs.d[other]) and runs.label_at[number] > number
        if waits:
            self.labels.append((int(runs.label_at[number]) - BEFORE, name, z))
        self.evidence = self.evidence.with_audit(
            name,
            None if waits else z,  # type: ignore[arg-type]
            full=float(runs.full[number]),
            active=float(runs.cost[other]),
            candidate=float(runs.cost[mine]),
        )

    def certificate(self, now: int) -> CandidateCertificate | None:
        """The candidate's own; None: nothing is certified on the route."""
        if not self.keeper.level or self.keeper.n_epochs:
            return None
        seen = np.array(self.audited[-MOST_KEPT:], dtype=np.int64)
        told = self.runs.label_at[seen] <= now
        return certify_candidate(
            np.where(told[:, np.newaxis], self.z[seen], self.unheard[seen]),
            self.runs.at[seen],
            self.runs.share[seen],
            told,
            self.runs.clusters[seen],
            NO_PENDING,
            self.windows,
            window=window_audits(PLAN.max_em_drop),
            max_em_drop=PLAN.max_em_drop,
            delta=spent_delta(PLAN.delta, 2),
            harm_delta=1 - self.rules.harm_confidence,
        )

    def moves(self, at: int) -> tuple[Transition, ...]:
        self.tick(BEFORE + at)
        found = self.certificate(BEFORE + at)
        self.level = found.level if found is not None and found.level else self.level
        self.passed_over |= bool(self.true.drop[self.level] > PLAN.max_em_drop)
        held = RolloutRun(state=self.state, first=self.first, number=1, seq=1, author="", reason="", rules=self.rules)
        withheld = "an epoch began within it" if self.keeper.n_epochs else ""
        return assess_evidence(held, self.evidence, found, withheld=withheld, latest=0, at=at, now_s=float(at)).moves


def try_out(name: str, seed: int, rules: Rules | None = None, *, most: int = MOST) -> Tried:
    """One rollout of one candidate: its end."""
    return Trial(CANDIDATES[name], rules or Rules(), seed, most=most).tried()
