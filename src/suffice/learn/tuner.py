"""The tuner: a contextual bandit over arms that no audit can replay, kept inside certificates.

    audits, asked twice ──▶ ShadowLog ──▶ certificate of every class and arm ──▶ arms that clients may get (in play)
    all runs ──▶ Costs, price ──▶ value of every arm ──▶ odds of live draws, and of the audits' second calls
    tick ──▶ a Proposal with its evidence, or why there is none; withdrawals at once

What it may do on its own is little: draw among arms in play, within a floor and a ceiling, and fall back to a safer arm
when one loses its certificate. Everything else it proposes, and somebody else accepts. It cannot put an arm in play:
only audits can, whose full run was shown and whose labels it does not write.

Certificates are by class and arm, so the audits' lot may lean towards promising arms without any weighting, and no
class pays for another. Contexts are query classes; unknown ones run in full. Pure: time and points in [0, 1) come in,
and all it knows is `plain()` data that a new tuner takes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.drift import ShiryaevRoberts
from suffice.assurance.labels import TrustedLabel
from suffice.learn.explore import inverse_gap, pick_arm
from suffice.learn.gain import compare_gain
from suffice.learn.gates import Proof, best_arm, in_play, prove, within_a_step
from suffice.learn.price import next_price
from suffice.learn.promise import audit_odds, promise
from suffice.learn.shadow import ShadowAudit, ShadowAudits, ShadowLog, count_losses
from suffice.learn.tuning import Refusal, Tick, TuningBounds, TuningDraw, TuningProposal, Withdrawal
from suffice.learn.values import Costs, losses

Floats = NDArray[np.float64]
Odds = tuple[float, ...]

DAY_S: Final = 86_400.0
SEEKING: Final = 0.3  # of the watch share: audits of a class that runs in full beside tuned ones
SCHEMA: Final = 1
NEVER_S: Final = float("-inf")


class Tuner:
    """Tunes one route.

    tuning  its bounds; with `state` they must have the same arms and classes
    state   what `plain()` gave; None: nothing is known yet, and everything runs in full

    Raises ValueError for a state of other arms or classes.
    """

    def __init__(self, tuning: TuningBounds, state: Mapping[str, Any] | None = None) -> None:
        n_classes, self._n_arms = len(tuning.classes), len(tuning.arms)
        self.tuning = tuning
        self._at = {name: at for at, name in enumerate(tuning.classes)}
        self._costs = Costs(tuning.arms, n_classes, half_life=tuning.half_life)
        self._shadow = ShadowLog(self._n_arms, window=tuning.window, key_cap=tuning.key_cap)
        self._alarms = [ShiryaevRoberts(tuning.max_em_drop) for _ in tuning.classes]
        self._unwatched: deque[str] = deque()  # audits that alarms and price have not seen yet
        self._price = tuning.price.start
        self._in_force = [0] * n_classes
        self._in_play: list[tuple[int, ...]] = [(0,)] * n_classes
        self._live: list[Odds] = [self._only(0)] * n_classes
        self._asked: list[Odds] = [self._only(0)] * n_classes
        self._pays = [False] * n_classes
        self._epoch, self._n_proposals = 1, 0
        self._proposed_at_s: list[float] = []
        if state is not None:
            self._restore(state)
            return
        nothing = self._shadow.evidence(NEVER_S)
        self._tabulate(self._prove(nothing, NEVER_S), self._losses(nothing))

    # ------------------------------------------------------------------ draws

    def draw(self, query_class: str, point: float) -> TuningDraw:
        """The arm of a live request.

        point  the unit's place in [0, 1), by keyed hash, so that a retry draws the same
        """
        return self._draw(query_class, point, self._live)

    def draw_audit(self, query_class: str, point: float) -> TuningDraw:
        """The arm that an audit asks beside its full run; 0 for an unknown class: none."""
        return self._draw(query_class, point, self._asked)

    def audit_share(self, query_class: str) -> float:
        """The share of a class's requests that should be audits now; 0: tuning would not pay here, so it is off.

        While an arm is worth its evidence: much; with an arm in force: enough to notice that it has become worse; while
        other classes are tuned: a little, so that a change for the better is seen here too.
        """
        at = self._at.get(query_class)
        if at is None:
            return 0.0
        if self._pays[at]:
            return self.tuning.burst_share
        if self._in_force[at]:
            return self.tuning.watch_share
        return self.tuning.watch_share * SEEKING if any(self._in_force) or any(self._pays) else 0.0

    def _draw(self, query_class: str, point: float, tables: Sequence[Odds]) -> TuningDraw:
        at = self._at.get(query_class)
        odds = self._only(0) if at is None else tables[at]
        return TuningDraw(query_class=query_class, arm=pick_arm(odds, point), odds=odds)

    def _only(self, arm: int) -> Odds:
        return tuple(float(other == arm) for other in range(self._n_arms))

    # ------------------------------------------------------------------ what comes back

    def spent(self, query_class: str, arm: int, *, tokens: float, seconds: float = 0.0, n_runs: int = 1) -> None:
        """Take in what runs cost together: live ones, and both runs of audits."""
        at = self._at.get(query_class)
        if at is not None:
            self._costs.add(at, arm, tokens=tokens, seconds=seconds, n_runs=n_runs)

    def audited(self, audit: ShadowAudit) -> bool:
        """Take in an audit that asked an arm; False: it was known, or its class is not tuned."""
        if audit.query_class not in self._at or not self._shadow.add(audit):
            return False
        self._unwatched.append(audit.audit_id)
        return True

    def labelled(self, label: TrustedLabel) -> bool:
        """Take in what a disagreeing audit lost, -1, 0 or +1; False: it is not known here, or needs no label."""
        return self._shadow.label(label)

    # ------------------------------------------------------------------ the look

    def tick(self, now_s: float) -> Tick:
        """Look at the evidence: withdraw what lost its certificate, propose what would be better."""
        evidence = self._shadow.evidence(now_s)
        withdrawn = self._watch(evidence, now_s)
        if withdrawn:
            evidence = self._shadow.evidence(now_s)  # their classes have been forgotten
        lost, shares = self._losses(evidence), self._costs.shares()
        proofs = self._prove(evidence, now_s)
        for at, proof in enumerate(proofs):
            self._in_play[at] = in_play(proof, shares[at], self._in_play[at], self.tuning)
        values = self._values(lost)
        withdrawn += [w for at in range(len(proofs)) if (w := self._withdraw(at, values[at], now_s)) is not None]
        self._tabulate(proofs, lost)
        found = self._propose(proofs, values, evidence, now_s)
        return Tick(
            proposal=found if isinstance(found, TuningProposal) else None,
            refusal=None if isinstance(found, TuningProposal) else found,
            withdrawn=tuple(withdrawn),
            in_play=dict(zip(self.tuning.classes, self._in_play, strict=True)),
        )

    def accept(self, proposal: TuningProposal) -> bool:
        """Put a proposal in force; False: it is void, for what it stands on has changed."""
        names = self.tuning.classes
        if proposal.epoch != self._epoch or dict(proposal.before) != self.in_force:
            return False
        if any(proposal.after[name] not in self._in_play[at] for at, name in enumerate(names)):
            return False
        for at, name in enumerate(names):
            if proposal.after[name] != proposal.before[name]:
                self._move(at, proposal.after[name])
        return True

    def forget(self, query_class: str | None = None) -> None:
        """The world has changed (an alarm, another model): back to full runs, evidence begins anew.

        query_class  None: every class
        """
        for at, name in enumerate(self.tuning.classes):
            if query_class in (None, name):
                self._shadow.forget(name)
                self._alarms[at].reset()
                self._in_force[at], self._in_play[at], self._live[at] = 0, (0,), self._only(0)
        self._epoch += 1

    @property
    def in_force(self) -> dict[str, int]:
        """Number of the arm in force, by class."""
        return dict(zip(self.tuning.classes, self._in_force, strict=True))

    @property
    def price(self) -> float:
        """EM that the tokens of a mean full run are worth now, a fraction."""
        return self._price

    # ------------------------------------------------------------------ the parts of a look

    def _watch(self, evidence: ShadowAudits, now_s: float) -> list[Withdrawal]:
        """Show audits that have begun to count to the price and to the alarms of the arms in force."""
        lost = {audit.audit_id: loss for audit, loss in zip(evidence.audits, evidence.proved, strict=True)}
        withdrawn, waiting = [], deque[str]()
        for audit_id in self._unwatched:
            audit = self._shadow.get(audit_id)
            if audit is None:
                continue
            if audit_id not in lost:
                waiting.append(audit_id)
                continue
            at, z = self._at[audit.query_class], lost[audit_id]
            if audit.arm != self._in_force[at]:
                continue
            self._price = next_price(self._price, z, max_em_drop=self.tuning.max_em_drop, bounds=self.tuning.price)
            if self._alarms[at].add(z):
                withdrawn.append(self._withdrawal(at, 0, now_s, "its audits lose more than the budget"))
                self.forget(audit.query_class)
        self._unwatched = waiting
        return withdrawn

    def _prove(self, evidence: ShadowAudits, now_s: float) -> list[Proof]:
        counts = count_losses(evidence, self.tuning.classes, self._n_arms)
        waiting = [self._shadow.n_waiting(name, now_s) for name in self.tuning.classes]
        return [prove(some, n, self.tuning) for some, n in zip(counts, waiting, strict=True)]

    def _withdraw(self, at: int, values: Floats, now_s: float) -> Withdrawal | None:
        """Fall back where the arm in force is not in play any more: to the best safer one, or to the full run."""
        if self._in_force[at] in self._in_play[at]:
            return None
        safer = [arm for arm in self._in_play[at] if arm < self._in_force[at]]
        to = max(safer, key=lambda arm: float(values[arm]))
        said = self._withdrawal(at, to, now_s, "its latest audits do not prove any more that it keeps the budget")
        self._move(at, to)
        return said

    def _withdrawal(self, at: int, to: int, now_s: float, reason: str) -> Withdrawal:
        name, arm = self.tuning.classes[at], self._in_force[at]
        return Withdrawal(query_class=name, arm=arm, to=to, at_s=now_s, reason=reason)

    def _move(self, at: int, arm: int) -> None:
        """Put another arm in force. One that was left for a safer one, and all behind it, must be proved anew."""
        left, self._in_force[at] = self._in_force[at], arm
        self._alarms[at].reset()
        self._live[at] = self._only(arm)  # until the next look
        if arm < left:
            self._shadow.forget(self.tuning.classes[at], from_arm=left)
            self._in_play[at] = tuple(other for other in self._in_play[at] if other < left)

    def _losses(self, evidence: ShadowAudits) -> Floats:
        """Expected EM drop of each class and arm, shape (C, K)."""
        n, lost = (np.zeros((len(self._at), self._n_arms)) for _ in range(2))
        for audit, loss in zip(evidence.audits, evidence.guessed, strict=True):
            n[self._at[audit.query_class], audit.arm] += 1
            lost[self._at[audit.query_class], audit.arm] += loss
        return losses(n, lost, self._costs.shares())

    def _values(self, lost: Floats) -> Floats:
        """EM value less prices of each class and arm, shape (C, K)."""
        return -lost - self._price * self._costs.shares() - self.tuning.latency_price * self._costs.seconds()

    def _tabulate(self, proofs: Sequence[Proof], lost: Floats) -> None:
        """The odds of all draws until the next look, and whether evidence pays."""
        tuning, values, all_shares = self.tuning, self._values(lost), self._costs.shares()
        for at, proof in enumerate(proofs):
            shares, in_force = all_shares[at], self._in_force[at]
            self._live[at] = inverse_gap(
                values[at].tolist(),
                self._in_play[at],
                in_force,
                n_draws=self._costs.n_draws(at),
                floor=tuning.explore_floor,
                ceiling=tuning.explore_ceiling,
                sharpness=tuning.explore_sharpness,
            )
            within = within_a_step(shares, in_force, tuning)
            saved = np.where(within, min(shares[arm] for arm in self._in_play[at] if within[arm]) - shares, 0.0)
            hopes = promise(
                proof.counts,
                lost[at],
                proof.log_e,
                saved,
                proof.n_waiting,
                price=self._price,
                max_em_drop=tuning.max_em_drop,
                delta=tuning.cell_delta,
            )
            self._pays[at] = hopes.pays(
                n_requests=tuning.lasting_requests * self._costs.class_share(at),
                audit_cost=self._price * np.maximum(0.0, shares[0] - shares[in_force] + shares),
            )
            self._asked[at] = audit_odds(hopes, in_force, pays=self._pays[at])

    def _propose(
        self, proofs: Sequence[Proof], values: Floats, evidence: ShadowAudits, now_s: float
    ) -> TuningProposal | Refusal:
        """The best proved arm of every class, if the change is shown to be worth something and it is not too soon."""
        tuning, shares = self.tuning, self._costs.shares()
        after = [
            best_arm(proof, values[at], shares[at], self._in_play[at], self._in_force[at], tuning)
            for at, proof in enumerate(proofs)
        ]
        changed = [at for at, arm in enumerate(after) if arm != self._in_force[at]]
        if not changed:
            return "none_better"
        if self._proposed_at_s and now_s - self._proposed_at_s[-1] < tuning.cool_down_s:
            return "cooling_down"
        if sum(now_s - at_s < DAY_S for at_s in self._proposed_at_s) >= tuning.proposals_a_day:
            return "day_is_full"
        before_map, after_map = self.in_force, dict(zip(tuning.classes, after, strict=True))
        change = compare_gain(
            evidence,
            before_map,
            after_map,
            n_arms=self._n_arms,
            price=self._price,
            full_tokens=self._costs.full_tokens,
            confidence=tuning.confidence,
        )
        if change.is_worse:
            return "not_shown"
        self._n_proposals += 1
        self._proposed_at_s = [*self._proposed_at_s[-tuning.proposals_a_day :], now_s]
        return TuningProposal(
            number=self._n_proposals,
            before=before_map,
            after=after_map,
            log_e={tuning.classes[at]: float(proofs[at].log_e[after[at]]) for at in changed if after[at]},
            n_audits={tuning.classes[at]: int(proofs[at].counts.n[after[at]]) for at in changed if after[at]},
            change=change,
            price=self._price,
            epoch=self._epoch,
            at_s=now_s,
            reason=self._sentence(changed, after),
        )

    def _sentence(self, changed: Sequence[int], after: Sequence[int]) -> str:
        names = [arm.name for arm in self.tuning.arms]
        moves = [f"{self.tuning.classes[at]}: {names[self._in_force[at]]} to {names[after[at]]}" for at in changed]
        return f"proved and worth more at a price of {self._price:.3g}: {'; '.join(moves)}"

    # ------------------------------------------------------------------ kept state

    def plain(self) -> dict[str, Any]:
        """All it knows, as JSON takes it."""
        kept = {name: list(getattr(self, f"_{name}")) for name in _LISTS}
        kept |= {name: [list(row) for row in getattr(self, f"_{name}")] for name in _TABLES}
        return kept | {
            "schema": SCHEMA,
            "arms": [arm.name for arm in self.tuning.arms],
            "classes": list(self.tuning.classes),
            "costs": self._costs.plain(),
            "shadow": self._shadow.plain(),
            "alarms": [list(alarm.state()) for alarm in self._alarms],
            "price": self._price,
            "epoch": self._epoch,
            "n_proposals": self._n_proposals,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        names = [arm.name for arm in self.tuning.arms]
        if state["schema"] != SCHEMA or state["arms"] != names or state["classes"] != list(self.tuning.classes):
            raise ValueError(f"tuner: its state is of arms {state['arms']}, classes {state['classes']}; others are set")
        self._costs.restore(state["costs"])
        self._shadow.restore(state["shadow"])
        for alarm, kept in zip(self._alarms, state["alarms"], strict=True):
            alarm.restore(kept)
        self._price, self._epoch, self._n_proposals = state["price"], state["epoch"], state["n_proposals"]
        for name in _LISTS:
            setattr(self, f"_{name}", type(getattr(self, f"_{name}"))(state[name]))
        for name in _TABLES:
            setattr(self, f"_{name}", [tuple(row) for row in state[name]])


_LISTS: Final = ("unwatched", "pays", "in_force", "proposed_at_s")
_TABLES: Final = ("in_play", "live", "asked")
