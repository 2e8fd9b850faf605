"""Learners in a story: ours, a fixed arm, a uniform assignment, and one that trusts feedback on its own answers.

Requests come in batches, and a learner sees the returned labels between two batches. The reward is the expected EM
minus price x tokens of all calls, including second calls of audits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.labels import TrustedLabel
from suffice.learn.arm_values import PriceBounds, ShadowAudit
from suffice.learn.tuner import Tuner, TunerTick, TuningBounds, TuningProposal
from tests.simulators.arm_worlds.worlds import ARMS, CLASSES, FULL_TOKENS, SECONDS_A_REQUEST, ArmWorld, Story

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRICE: Final = 0.1  # the value in EM of the tokens of a mean full run
MAX_EM_DROP: Final = 0.02
BATCH: Final = 1_000
LASTING_REQUESTS: Final = 50_000  # horizon of a change in a long story
P_COMPLAINT: Final = 0.4  # of a wrong answer; correct answers get no feedback
GREEDY_EXPLORES: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnerHistory:
    reward: Floats  # (N,): expected EM minus the full run's, minus price x tokens of all calls
    drop: Floats  # (N,): expected EM drop of the client's answer
    n_audits: int = 0
    ticks: tuple[TunerTick, ...] = ()

    @property
    def proposals(self) -> tuple[TuningProposal, ...]:
        return tuple(tick.proposal for tick in self.ticks if tick.proposal is not None)

    def drops(self, story: Story) -> Floats:
        """Mean EM drop in each regime, shape (W,)."""
        return np.array([part.mean() for part in np.array_split(self.drop, len(story.worlds))])


def run_fixed(story: Story, odds: Floats) -> LearnerHistory:
    """A constant assignment with the probabilities `odds` of each arm, shape (K,)."""
    rewards, drops = [], []
    for world in story.worlds:
        drop = float(world.mix @ world.drop @ odds)
        rewards.append(-drop - PRICE * float(world.mix @ world.shares @ odds))
        drops.append(drop)
    n = story.n_requests // len(story.worlds)
    return LearnerHistory(reward=np.repeat(rewards, n), drop=np.repeat(drops, n))


def best_fixed(story: Story, *, in_each_world: bool) -> tuple[int, LearnerHistory]:
    """The best single arm in hindsight among those that keep the EM budget, in each regime or only on average."""
    lives = [(arm, run_fixed(story, np.eye(len(ARMS))[arm])) for arm in range(len(ARMS))]
    kept = [
        (arm, lived)
        for arm, lived in lives
        if (lived.drops(story).max() if in_each_world else lived.drop.mean()) <= MAX_EM_DROP
    ]
    return max(kept, key=lambda pair: float(pair[1].reward.mean()))


def hindsight(story: Story) -> float:
    """Mean reward of the best arm within the budget of every class and regime: an upper bound."""
    found = [
        float(w.mix @ np.where(w.drop <= MAX_EM_DROP, -w.drop - PRICE * w.shares, -np.inf).max(axis=1))
        for w in story.worlds
    ]
    return float(np.mean(found))


def tuning_of(story: Story) -> TuningBounds:
    """The bounds that the owner of the story would configure; everything else is the default."""
    return TuningBounds(
        arms=ARMS,
        classes=CLASSES,
        max_em_drop=MAX_EM_DROP,
        price=PriceBounds(least=0.01, start=PRICE, largest=PRICE),
        expected_requests=min(story.n_requests, LASTING_REQUESTS),
    )


# ---- ours


@dataclass(slots=True, kw_only=True)
class _Life:
    story: Story
    tuner: Tuner
    rng: np.random.Generator
    waiting: list[tuple[float, TrustedLabel]] = field(default_factory=list)  # pending labels by arrival time
    n_audits: int = 0
    n_labels: int = 0


def run_tuner(story: Story, seed: int, tuning: TuningBounds | None = None) -> LearnerHistory:
    """Our tuner, with every proposal accepted at once. `tuning` None: `tuning_of` the story."""
    life = _Life(story=story, tuner=Tuner(tuning or tuning_of(story)), rng=np.random.default_rng(seed))
    reward, drop, ticks = np.zeros(story.n_requests), np.zeros(story.n_requests), []
    for begin in range(0, story.n_requests, BATCH):
        size = min(BATCH, story.n_requests - begin)
        now_s = (begin + size) * SECONDS_A_REQUEST
        world = story.world(begin)
        classes = life.rng.choice(len(CLASSES), size=size, p=world.mix)
        for at in range(len(CLASSES)):
            rows = begin + np.flatnonzero(classes == at)
            audits = life.rng.random(len(rows)) < life.tuner.audit_share(CLASSES[at])
            arms = _live(life, world, at, int((~audits).sum()))
            reward[rows[~audits]] = -world.drop[at, arms] - PRICE * world.shares[at, arms]
            drop[rows[~audits]] = world.drop[at, arms]
            for row in rows[audits]:
                arm = _audit(life, world, at, f"audit-{row}", now_s)
                reward[row] = -PRICE * (world.shares[at, 0] + world.shares[at, arm])
        _deliver_labels(life, now_s)
        ticks.append(life.tuner.tick(now_s))
        if (proposal := ticks[-1].proposal) is not None:
            life.tuner.accept(proposal)
    return LearnerHistory(reward=reward, drop=drop, n_audits=life.n_audits, ticks=tuple(ticks))


def _live(life: _Life, world: ArmWorld, at: int, n: int) -> Ints:
    """Assign n live requests of a class and report their cost; return the arms."""
    odds = life.tuner.draw(CLASSES[at], 0.0).odds
    arms: Ints = life.rng.choice(len(ARMS), size=n, p=odds)
    for arm, n_runs in enumerate(np.bincount(arms, minlength=len(ARMS)).tolist()):
        if n_runs:
            tokens = FULL_TOKENS * float(world.shares[at, arm]) * n_runs
            life.tuner.add_cost(CLASSES[at], arm, tokens=tokens, n_runs=n_runs)
    return arms


def _audit(life: _Life, world: ArmWorld, at: int, audit_id: str, now_s: float) -> int:
    """Run one audit in both ways and schedule its label, if any. Return the arm."""
    rng, labels = life.rng, life.story.labels
    draw = life.tuner.draw_audit(CLASSES[at], rng.random())
    tokens = FULL_TOKENS * world.shares[at, [0, draw.arm]] * rng.uniform(0.5, 1.5, size=2)
    rates = np.cumsum([world.lost[at, draw.arm], world.gained[at, draw.arm], world.differ[at, draw.arm]])
    happened = int(np.searchsorted(rates, rng.random(), side="right"))  # lost, gained, differs, same
    life.tuner.add_audit(
        ShadowAudit(
            audit_id=audit_id,
            query_class=CLASSES[at],
            arm=draw.arm,
            odds=draw.odds,
            disagrees=happened < 3,
            due_s=now_s + 1.5 * labels.delay_s,
            full_tokens=float(tokens[0]),
            arm_tokens=float(tokens[1]),
        )
    )
    life.tuner.add_cost(CLASSES[at], 0, tokens=float(tokens[0]))
    life.tuner.add_cost(CLASSES[at], draw.arm, tokens=float(tokens[1]))
    life.n_audits += 1
    if happened < 3 and rng.random() < (labels.p_if_lost if happened == 0 else labels.p_otherwise):
        comes_s = now_s + labels.delay_s * rng.uniform(0.5, 1.5)
        life.waiting.append((comes_s, _label(life, audit_id, (1, -1, 0)[happened])))
    return draw.arm


def _label(life: _Life, audit_id: str, truth: int) -> TrustedLabel:
    """The label of an audit: that of a reviewer, or a false one of a user."""
    life.n_labels += 1
    for key, part in life.story.labels.liars:
        if life.rng.random() < part:
            return TrustedLabel(audit=audit_id, seq=life.n_labels, source="user", key=key, trust=0, verdict=0)
    return TrustedLabel(audit=audit_id, seq=life.n_labels, source="reviewer", key="r", trust=3, verdict=truth)


def _deliver_labels(life: _Life, now_s: float) -> None:
    come = [label for at_s, label in life.waiting if at_s <= now_s]
    life.waiting = [pair for pair in life.waiting if pair[0] > now_s]
    for label in come:
        life.tuner.add_label(label)


# ---- naive


def run_greedy(story: Story, seed: int) -> LearnerHistory:
    """Epsilon-greedy by class on its own outcomes: no complaint counts as correct, and nothing is forgotten.

    It sees no full runs and no budget, and explores at random. False labels suppress complaints.
    """
    rng = np.random.default_rng(seed)
    n, complaints = np.ones((len(CLASSES), len(ARMS))), np.zeros((len(CLASSES), len(ARMS)))
    delay = int(np.ceil(story.labels.delay_s / SECONDS_A_REQUEST / BATCH))
    heard = 1 - sum(part for _, part in story.labels.liars)
    coming: list[Floats] = []
    reward, drop = np.zeros(story.n_requests), np.zeros(story.n_requests)
    for begin in range(0, story.n_requests, BATCH):
        size, world = min(BATCH, story.n_requests - begin), story.world(begin)
        classes = rng.choice(len(CLASSES), size=size, p=world.mix)
        value = -complaints / n - PRICE * world.shares
        best = value.argmax(axis=1)[classes]
        arms = np.where(rng.random(size) < GREEDY_EXPLORES, rng.integers(0, len(ARMS), size), best)
        reward[begin : begin + size] = -world.drop[classes, arms] - PRICE * world.shares[classes, arms]
        drop[begin : begin + size] = world.drop[classes, arms]
        ran = np.zeros_like(n)
        np.add.at(ran, (classes, arms), 1)
        n += ran  # counted as correct at once …
        wrong = np.clip(1 - world.right[:, np.newaxis] + world.drop, 0, 1)
        coming.append(rng.binomial(ran.astype(np.int64), wrong * P_COMPLAINT * max(0.0, heard)).astype(np.float64))
        if len(coming) > delay:
            complaints += coming.pop(0)  # … until a complaint arrives
    return LearnerHistory(reward=reward, drop=drop)
