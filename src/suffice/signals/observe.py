"""Step after step in, Signals out: the one place where facts about a run are computed.

Live traffic, shadow and replay use this class, so the same steps give the same signals
everywhere. It knows the three kinds and refuses to know policies, clocks and texts beyond the
current step.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, get_args

from suffice.errors import ConfigError
from suffice.signals.base import FOLDS, Fold
from suffice.signals.votes import Votes
from suffice.types import Kind, Signals, Step


class Observer:
    """Folds the steps of one run into Signals.

    needs  names in FOLDS, as a policy or a route declares them; only these folds run and only their
           fields are filled, the others stay None
    kind   what a step is; for `samples` the answer is the vote's leader, otherwise the step's own

    Raises ConfigError for an unknown fold or kind.
    """

    def __init__(self, needs: Sequence[str], kind: Kind) -> None:
        if kind not in get_args(Kind):
            raise ConfigError(f"kind: unknown kind {kind!r}; allowed: {', '.join(get_args(Kind))}")
        self._folds: tuple[Fold, ...] = tuple(_build_fold(name) for name in dict.fromkeys(needs))
        self._votes = Votes() if kind == "samples" else None  # the vote decides even if no policy reads it
        self._last_index = 0
        self._tokens_used = 0

    @property
    def votes(self) -> Votes | None:
        """The running vote, for kind `samples`; None for the other kinds."""
        return self._votes

    def observe(self, step: Step) -> Signals:
        """Take the next step in and say what is known after it. O(the step).

        Raises ValueError when a step is seen twice or out of order, because it would count twice.
        """
        if step.index <= self._last_index:
            raise ValueError(f"step {step.index} came after step {self._last_index}; need rising indices")
        self._last_index = step.index
        self._tokens_used += step.tokens
        values: dict[str, Any] = {}
        for fold in self._folds:
            fold.update(step)
            values.update(fold.values())
        answer = step.answer
        if self._votes is not None:
            self._votes.update(step)
            answer = self._votes.leader
        known = Signals(step=step.index, tokens_used=self._tokens_used, answer=answer)
        return dataclasses.replace(known, **values)


def _build_fold(name: str) -> Fold:
    if name in FOLDS:
        return FOLDS[name]()
    near = difflib.get_close_matches(name[:100], FOLDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"needs: unknown signal {name!r:.100}; {hint}known: {', '.join(sorted(FOLDS))}")
