"""What people say of full and of stopped answers, and what stopping does to it: per route, class and version.

    runs with what was said of them, in the log's order ──▶ likings: means of full and stopped runs, effect of stopping

The effect is paired by the audit lottery: of runs in which a stop was asked for, audits went on and the others stopped,
so both are alike but for that (`satisfaction.RatingPairs`). All intervals are confidence sequences and may be read at
any moment (`sequence`, `ratio`).

What is assumed. Votes are missing not at random: angry people vote more often. Silence is therefore never counted, in
neither direction; a mean speaks of those who spoke. The *effect* needs less: that whoever votes does so by how the
answer was and not by whether it was stopped. Then no effect among voters is no effect, whatever the anger; its size is
that among voters. The shares of audits and of stopped runs that were rated stand beside it, and where they surely
differ a note says so: then who votes differs, too. Where people are asked by lot, each vote is weighted by one over the
share that was asked, and the means are those of everybody who would answer; where only some runs have rows in the log,
each counts for those that have none (`sampling`).

Pure. Knows words, weights and lots; refuses to know which source may say what, and what a number decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.label_precedence import MAX_SHARE
from suffice.assurance.ratio import weighted_between
from suffice.assurance.satisfaction import RatingPairs
from suffice.assurance.sequence import mean_between, watch

Floats = NDArray[np.float64]

SATISFACTION: Final = "satisfaction"
EVENTS: Final[Mapping[str, str]] = {"regenerate": "regenerated", "abandon": "abandoned"}  # event: name of its measure
METHOD: Final = "valid at every look, empirical Bernstein"
PAIRED: Final = "paired by the audit lottery, valid at every look, empirical Bernstein"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something that can be said of an answer as a number."""

    name: str
    low: float = 0.0
    high: float = 1.0
    better: Literal["higher", "lower"] = "higher"
    level: Literal["request", "conversation", "user"] = "request"  # what one value speaks of
    silent: float | None = None  # of a run of which nothing was said; None: unknown, and left out


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackValue:
    """One piece of feedback on one run, boiled down."""

    seq: int  # place in the log: the order in which words were received
    voice: str  # who says it: a later word of the same voice replaces an earlier one
    values: tuple[tuple[str, float], ...]  # measure and value, in the measure's own unit
    capped: bool = False  # its key speaks for a share of the runs at most
    weight: float = 1.0  # one over the share of people who were asked, at least 1
    user: str = ""  # the person, where named


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One governed run with what was said of it."""

    query_class: str
    version: str
    full: bool  # it ran in full by design
    stopped: bool  # the policy ended it early
    drawn: bool  # a stop was asked for, and the lottery could have made it an audit or none
    audit: bool
    conversation: str  # that the run belongs to, or the run itself
    words: tuple[FeedbackValue, ...] = ()
    stands_for: float = 1.0  # so many runs like it, those whose rows are not kept included


@dataclass(frozen=True, slots=True, kw_only=True)
class SatisfactionEffect:
    """One measure on one route, or one class or version of it. None: nothing to measure it on."""

    measure: str
    better: Literal["higher", "lower"]
    query_class: str | None  # None: all of them together
    version: str | None  # None: all of them together
    n_runs: int
    n_heard: int  # of them: somebody said something of the kind
    everybody: IntervalEstimate | None  # full and stopped runs together
    full: IntervalEstimate | None
    stopped: IntervalEstimate | None  # stopped runs are the easy ones: not to be compared with `full`
    effect: IntervalEstimate | None  # stopped minus full, paired; None: no pair, or the measure speaks of users
    rated_audits: float | None  # share of drawn audits of which something was said; None: there was none
    rated_stopped: float | None  # likewise, of the runs that were stopped in their place
    n_set_aside: int = 0  # words beyond the share of one key


def likings(
    runs: Sequence[Heard], measures: Iterable[Measure], *, confidence: float = 0.95, most_weight: float = 1.0
) -> tuple[SatisfactionEffect, ...]:
    """Everything that was said, by measure: of the route, then of each class and each version, where there are several.

    runs         in the log's own order; intervals depend on it
    measures     those of which nobody said anything are left out
    confidence   of each interval by itself, in (0, 1)
    most_weight  that a word can have, at least 1; larger ones count as this. What runs stand for comes on top
    """
    most_weight *= max((run.stands_for for run in runs), default=1.0)
    whole = list(enumerate(runs))
    groups: dict[tuple[str | None, str | None], list[tuple[int, Heard]]] = {(None, None): whole}
    has_classes = len({run.query_class for run in runs}) > 1
    has_versions = len({run.version for run in runs}) > 1
    for place, run in whole:
        if has_classes:
            groups.setdefault((run.query_class, None), []).append((place, run))
        if has_versions:
            groups.setdefault((None, run.version), []).append((place, run))
    found = list[SatisfactionEffect]()
    for measure in measures:
        values, n_set_aside = _values(runs, measure, most_weight)
        if not values:
            continue
        teller = _Teller(measure, confidence, most_weight, values)
        for (query_class, version), members in groups.items():
            told = teller.liking(members, query_class, version)
            if told is not None:
                found.append(replace(told, n_set_aside=n_set_aside) if members is whole else told)
    return tuple(found)


# --------------------------------------------------------------------------- what counts as said


@dataclass(frozen=True, slots=True)
class _Value:
    """What voices come to, of one run, conversation or user."""

    value: float
    weight: float


def _values(runs: Sequence[Heard], measure: Measure, most_weight: float) -> tuple[dict[int, _Value], int]:
    """What was said, at the place of the run that it counts for, and how many words were set aside.

    The last word of each voice counts; a capped one speaks for a share of the runs, and for one at least; voices that
    remain are averaged. A conversation, or a user, counts once, at its first run.
    """
    last: dict[tuple[int, str], tuple[FeedbackValue, float]] = {}
    place_of: dict[str, int] = {}
    for place, run in enumerate(runs):
        for word in run.words:
            value = dict(word.values).get(measure.name)
            if value is None or (measure.level == "user" and not word.user):
                continue
            of = {"request": "", "conversation": run.conversation, "user": word.user}[measure.level]
            at = place if not of else place_of.setdefault(of, place)
            if (at, word.voice) not in last or word.seq > last[at, word.voice][0].seq:
                last[at, word.voice] = word, value
    allowed, spoken = max(1, floor(MAX_SHARE * len(runs))), defaultdict[str, set[int]](set)
    said, n_set_aside = defaultdict[int, list[_Value]](list), 0
    for (at, voice), (word, value) in sorted(last.items(), key=lambda item: item[1][0].seq):
        if word.capped and at not in spoken[voice] and len(spoken[voice]) >= allowed:
            n_set_aside += 1
            continue
        spoken[voice].add(at)
        weight = min(max(1.0, word.weight) * runs[at].stands_for, most_weight)
        said[at].append(_Value(min(max(value, measure.low), measure.high), weight))
    return {at: _mean_of(voices) for at, voices in sorted(said.items())}, n_set_aside


def _mean_of(voices: Sequence[_Value]) -> _Value:
    return _Value(sum(v.value for v in voices) / len(voices), sum(v.weight for v in voices) / len(voices))


# --------------------------------------------------------------------------- numbers


class _Teller:
    """Turns the values of one measure into numbers, group by group."""

    def __init__(self, measure: Measure, confidence: float, most_weight: float, values: Mapping[int, _Value]) -> None:
        self._measure, self._confidence, self._most = measure, confidence, most_weight
        self._values = values
        self._silent = measure.silent

    def liking(
        self, members: Sequence[tuple[int, Heard]], query_class: str | None, version: str | None
    ) -> SatisfactionEffect | None:
        """One group's numbers; None: nobody said anything of its runs."""
        said = [(run, self._values.get(place) or self._of_silence(run)) for place, run in members]
        n_heard = sum(place in self._values for place, _ in members)
        if not n_heard:
            return None
        drawn = [(run.audit, place in self._values) for place, run in members if run.drawn]
        of_users = self._measure.level == "user"
        effect = None if of_users else self._effect([(run.audit, one) for run, one in said if run.drawn], drawn)
        return SatisfactionEffect(
            measure=self._measure.name,
            better=self._measure.better,
            query_class=query_class,
            version=version,
            n_runs=len(members),
            n_heard=n_heard,
            everybody=self._mean([one for _, one in said]),
            full=None if of_users else self._mean([one for run, one in said if run.full]),
            stopped=None if of_users else self._mean([one for run, one in said if run.stopped]),
            effect=effect,
            rated_audits=_share([heard for audit, heard in drawn if audit]),
            rated_stopped=_share([heard for audit, heard in drawn if not audit]),
        )

    def _of_silence(self, run: Heard) -> _Value | None:
        """What a run says of which nobody says anything; None: nothing."""
        return None if self._silent is None else _Value(self._silent, run.stands_for)

    def _mean(self, values: Sequence[_Value | None]) -> IntervalEstimate | None:
        known = [one for one in values if one is not None]
        if not known:
            return None
        mean, low, high = self._between(self._scaled(known), _weights(known), least=0.0)
        n_silent, span = len(values) - len(known), self._measure.high - self._measure.low
        start = self._measure.low
        return IntervalEstimate(
            value=start + span * mean,
            low=start + span * low,
            high=start + span * high,
            n=len(known),
            method=METHOD,
            note=f"of those who spoke; {n_silent:,} runs without a word are left out" if n_silent else None,
        )

    def _effect(
        self, drawn: Sequence[tuple[bool, _Value | None]], heard: Sequence[tuple[bool, bool]]
    ) -> IntervalEstimate | None:
        known = [(audit, one) for audit, one in drawn if one is not None]
        pairing = RatingPairs()
        scaled = self._scaled([one for _, one in known])
        pairs = [
            pair
            for (audit, one), value in zip(known, scaled.tolist(), strict=True)
            if (pair := pairing.add(value, audit=audit, weight=one.weight)) is not None
        ]
        if not pairs:
            return None
        drops, weights = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
        mean, low, high = self._between(-drops, weights, least=-1.0)
        span = self._measure.high - self._measure.low
        return IntervalEstimate(
            value=span * mean,
            low=span * low,
            high=span * high,
            n=len(pairs),
            method=PAIRED,
            note=None if self._silent is not None else self._who_votes(heard),
        )

    def _who_votes(self, heard: Sequence[tuple[bool, bool]]) -> str | None:
        """A warning where audits and stopped runs are surely not rated alike often."""
        pairing = RatingPairs()
        pairs = [pair for audit, said in heard if (pair := pairing.add(float(said), audit=audit)) is not None]
        between = mean_between(watch(np.array([drop for drop, _ in pairs]), low=-1.0), self._confidence, low=-1.0)
        if between.low <= 0 <= between.high:
            return None
        more = "audits" if between.low > 0 else "stopped runs"
        return f"{more} are rated more often, so who votes differs as well"

    def _scaled(self, known: Sequence[_Value]) -> Floats:
        low, span = self._measure.low, self._measure.high - self._measure.low
        return np.clip((np.array([one.value for one in known], dtype=np.float64) - low) / span, 0.0, 1.0)

    def _between(self, values: Floats, weights: Floats, *, least: float) -> tuple[float, float, float]:
        """A weighted mean of values in [least, 1] with its interval: mean, low, high."""
        mean, between = weighted_between(values, weights, self._confidence, most_weight=self._most, low=least)
        return mean, between.low, between.high


def _weights(known: Sequence[_Value]) -> Floats:
    return np.array([one.weight for one in known], dtype=np.float64)


def _share(heard: Sequence[bool]) -> float | None:
    return sum(heard) / len(heard) if heard else None
