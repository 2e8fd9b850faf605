"""Drift features of all traffic, stopped or not, in batches of 100.

    columns 0 to 3   signals of the first step, before which no policy can stop a run
    then N_CLASSES   shares of the most frequent query classes of the first batch, and of all other classes
    last             steps of full runs (audits), in logarithms

Runs are in the order of their starts, because slow ones are missing among those that end first. A prompt counts once in
a batch, and a conversation once for the classes, because repeats would move the means. A signal that is constant in the
reference is left out: any later value would look like drift. So are the signals of trial answers where some runs of the
batch sent no probe, because nothing could stop them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.drift import BATCH, REFERENCE
from suffice.assurance.sampling import weight_of
from suffice.control.evidence.audits import is_evidence
from suffice.control.evidence.run_join import remember
from suffice.learn.dataset import early_features
from suffice.signals.query import class_of
from suffice.store.database.views import EpisodeWithLabels
from suffice.types import Episode

SIGNALS: Final = ("log1p(tokens_used)", "has_answer", "logit(confidence)", "log1p(n_words)")
_OF_ANSWERS: Final = np.array([name in ("has_answer", "logit(confidence)") for name in SIGNALS])
LEAST_SD: Final = 1e-3  # of a batch mean, relative to 1 plus the mean
N_CLASSES: Final = 5  # query classes with a column of their own
N_COLUMNS: Final = len(SIGNALS) + N_CLASSES + 2
CLASS_SPREAD: Final = 0.5  # smallest sd of a class indicator, and the largest possible: rare classes come and go
STEP_SPREAD: Final = 0.1  # smallest sd of log steps: full runs may all be equally long
MOST_CONVERSATIONS: Final = 20_000  # remembered
MOST_REPEATS: Final = 900  # skipped in a batch: a route with few prompts needs batches, too
_ALTERNATING: Final = np.resize([1.0, -1.0], BATCH)  # mean 0 and sd 1 over a batch


@dataclass(slots=True)
class _PartialColumns:
    """Values of some runs of each batch, with the deviation and noise that all runs would show.

    The mean of n of 100 runs deviates by chance by the square root of 100/n more, so deviations are shrunk by that
    factor.
    """

    spread: float  # smallest sd of a value
    _sum: Floats | float = 0.0
    _n: int = 0

    def rows(self, values: Floats, *, normal: bool) -> Floats:
        """Rows for a batch, shape (100, F), from the values of n runs, shape (n, F); normal: of the reference."""
        if normal:
            self._sum, self._n = self._sum + values.sum(axis=0), self._n + len(values)
        n, n_columns = values.shape
        if not n or not self._n:
            return np.outer(_ALTERNATING, np.full(n_columns, self.spread))
        away = (values.mean(axis=0) - self._sum / self._n) * np.sqrt(n / BATCH)
        return np.asarray(away + np.outer(_ALTERNATING, np.maximum(values.std(axis=0), self.spread)))


class DriftFeatures:
    def __init__(self) -> None:
        self._runs: list[Episode] = []  # of the next batch
        self._prompts: set[str] = set()  # of these
        self._n_repeats = 0  # runs skipped in this batch as repeats
        self._reference: list[Floats] = []  # batch means
        self._probes = False  # whether runs of the reference were probed
        self._classes: tuple[str, ...] = ()  # with a column of their own, chosen in the first batch
        self._conversations: dict[str, None] = {}
        self._mix, self._steps = _PartialColumns(CLASS_SPREAD), _PartialColumns(STEP_SPREAD)

    def batches(self, runs: Iterable[Episode]) -> Iterator[Floats]:
        """Yield each batch that these runs complete, shape (100, N_COLUMNS); they are in the order of starts."""
        for episode in runs:
            if not episode.outcome.steps or self._is_repeat(episode.request.question_key):
                continue
            self._runs.append(episode)
            if len(self._runs) == BATCH:
                yield self._features(self._runs)
                self._runs = []
                self._prompts = set()
                self._n_repeats = 0

    def _is_repeat(self, prompt: str) -> bool:
        is_repeat = prompt in self._prompts and self._n_repeats < MOST_REPEATS
        self._n_repeats += is_repeat
        if prompt:
            self._prompts.add(prompt)
        return is_repeat

    def _features(self, batch: list[Episode]) -> Floats:
        normal = len(self._reference) < REFERENCE
        weights = np.array([weight_of(one.request, one.outcome) for one in batch])
        weights = weights / weights.mean()  # requests that each run stands for
        mix = self._mix.rows(self._class_indicators(batch, weights), normal=normal)
        full = [len(one.outcome.steps) for one in batch if is_evidence(one.request, one.outcome, probes=False)]
        steps = self._steps.rows(np.array([log(n) for n in full]).reshape(-1, 1), normal=normal)
        firsts = [EpisodeWithLabels(seq=0, episode=one, labels=()) for one in batch]
        signals = self._steady(_weighted(early_features(firsts, SIGNALS), weights), all(map(_is_probed, batch)))
        return np.column_stack([signals, mix, steps])

    def _class_indicators(self, batch: list[Episode], weights: Floats) -> Floats:
        """Class indicators of new conversations, shape (n, N_CLASSES + 1); the last column is for other classes."""
        new, names = list[int](), [class_of(one.request.query) for one in batch]
        for row, one in enumerate(batch):
            conversation = one.request.conversation
            if not conversation or conversation not in self._conversations:
                new.append(row)
            if conversation:
                remember(self._conversations, conversation, None, MOST_CONVERSATIONS)
        if not self._reference:
            self._classes = tuple(name for name, _ in Counter(sorted(names)).most_common(N_CLASSES))
        indicators = np.zeros((BATCH, N_CLASSES + 1))
        for row, name in enumerate(names):
            indicators[row, self._classes.index(name) if name in self._classes else N_CLASSES] = 1.0
        return _weighted(indicators[new], weights[new] / weights[new].mean()) if new else indicators[:0]

    def _steady(self, batch: Floats, is_probed: bool) -> Floats:
        if len(self._reference) < REFERENCE:
            self._reference.append(batch.mean(axis=0))
            self._probes = self._probes or is_probed
            return batch
        reference = np.array(self._reference)
        mean = reference.mean(axis=0)
        is_constant = reference.std(axis=0, ddof=1) < LEAST_SD * (1 + np.abs(mean))
        is_unseen = _OF_ANSWERS & (self._probes and not is_probed)
        return np.where(is_constant | is_unseen, mean, batch)


def _is_probed(run: Episode) -> bool:
    return any(step.answer_source == "probe" or step.missing for step in run.outcome.steps)


def _weighted(signals: Floats, weights: Floats) -> Floats:
    if (weights == 1).all():
        return signals
    mean = (weights[:, np.newaxis] * signals).mean(axis=0)
    return np.asarray(mean + (signals - mean) * weights[:, np.newaxis])
