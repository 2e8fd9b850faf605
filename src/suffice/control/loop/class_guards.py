"""Guard-rails per class of one live route: a class that loses too much gets a lower level.

    audits with their classes, Z at every level ──▶ LiveGuards.look ──▶ who stepped down, who came back
    level in force                              ──▶ held            ──▶ (class, level) for a publication

`assurance.strata` is asked in the order of the log, at looks alone, so a replay comes to the same. Another version has
other levels: what was seen of a held class since its last move is then judged anew by that version, as the certificate
is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from suffice.assurance.strata import FACTOR, MAX_CLASS_DROP, ClassGuards
from suffice.control.evidence.audits import Audit
from suffice.control.loop.live_certifier import LiveCertifier
from suffice.learn.audits import Small
from suffice.learn.served import FoldedModels
from suffice.signals.query import class_of

Held = tuple[tuple[str, int], ...]
NOBODY: Final[Held] = ()


@dataclass(slots=True, kw_only=True)
class LiveGuards:
    """The guard-rails of one epoch.

    max_em_drop  the route's budget, a fraction; from 0.45 on twice of it is no bound, and nothing is guarded
    delta        of the proof that lets a class back, in (0, 1)
    """

    max_em_drop: float
    delta: float
    _guards: ClassGuards | None = None
    _served: FoldedModels | None = None
    _n_shown: int = 0  # audits that the guards have had, of those the certifier has
    _moved: dict[str, int] = field(default_factory=dict)  # place in the log of the audit behind which a class moved

    def look(self, certifier: LiveCertifier, audits: Sequence[Audit], *, pooled: int) -> list[str]:
        """Show the guards what is new; a sentence for each class that moved.

        audits  as the certifier has them
        pooled  level that was in force while the new ones were drawn
        """
        outcomes = certifier.outcomes()
        if outcomes is None or not FACTOR * self.max_em_drop < MAX_CLASS_DROP:
            return []
        z, counts = outcomes.z, outcomes.enters
        if self._guards is None:
            self._guards = ClassGuards(z.shape[1], self.max_em_drop, delta=self.delta)
        if self._served is not certifier.served:
            self._judge_anew(self._guards, z, audits)
            self._served = certifier.served
        sentences = []
        for place in (np.flatnonzero(counts[self._n_shown :]) + self._n_shown).tolist():
            sentences += self._show(self._guards, audits[place], z[place], pooled)
            self._n_shown = place + 1
        return sentences

    def held(self, level: int) -> Held:
        """Classes that run below `level`, and theirs; sorted."""
        if self._guards is None:
            return NOBODY
        levels = ((name, self._guards.level(name, level)) for name in self._moved)
        return tuple(sorted((name, own) for name, own in levels if own < level))

    def let_go(self, n: int) -> None:
        """The certifier has forgotten its `n` oldest audits."""
        self._n_shown = max(0, self._n_shown - n)

    def _show(self, guards: ClassGuards, audit: Audit, z: Small, pooled: int) -> list[str]:
        name = class_of(audit.episode.request.query)
        before = guards.steps_down(name)
        alarm = guards.add(name, z, pooled)
        if guards.steps_down(name) == before and not alarm:
            return []
        self._moved[name] = audit.seq
        if not guards.steps_down(name):
            del self._moved[name]
        if alarm:
            return [f"class {name or 'none'} loses more than {100 * FACTOR * self.max_em_drop:g} points: it is held"]
        return [f"class {name or 'none'} is let back"]

    def _judge_anew(self, guards: ClassGuards, z: Small, audits: Sequence[Audit]) -> None:
        """What was seen of held classes since their last move, at the levels of another version."""
        shown = audits[: self._n_shown]
        for name, moved in self._moved.items():
            rows = [
                place
                for place, audit in enumerate(shown)
                if audit.seq > moved and class_of(audit.episode.request.query) == name
            ]
            guards.judge_anew(name, z[rows])
