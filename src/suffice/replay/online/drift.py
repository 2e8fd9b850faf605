"""The order of recorded runs in a stream, and drifts: a change of regime at a given fraction of the stream.

    em=0.5@0.5                 runs of models with an EM above 0.5 first, then the others
    model=gpt-4*>gpt-3.5*@0.4  requests of some models first, then of others
    class=hard:0.8@0.5         after the change, four fifths of the requests are of this class
    mix=easy>hard:0.8@0.5      of two classes, four fifths are of the first before and of the second after the change
    relabel=0.1@0.5            after the change, only the full run's answer is correct for a tenth of the questions
    silent=0.06@0.5            after the change, 6 % of the requests lose at every early stop, and no signal shows it
    ramp=0.08@0.5              likewise, with a share that rises from 0 at the change to 8 % at the end
    oscillate=0.08@0.5         likewise, with 8 % and 0 alternating in eight phases of equal length
    turns=5:0.06               conversations of five requests; 6 % of all but the first lose likewise
    set=other.parquet@0.5      after the change, requests come from another file

The number after @ is the position of the change in the stream, in (0, 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, cast

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.errors import ConfigError
from suffice.policy.folded_version import place_of
from suffice.replay.online.stream import RecordedTraffic

Kind: TypeAlias = Literal["em", "model", "class", "mix", "relabel", "silent", "ramp", "oscillate", "turns", "set"]
N_PHASES: Final = 8  # of an oscillation
_SHARE: Final = r"(?P<share>0?\.\d+|0\.?|1(?:\.0*)?)"
_FORMS: Final[Mapping[Kind, tuple[str, str]]] = {  # how it is written, and the pattern of its value
    "em": ("em=EM@AT", _SHARE),
    "model": ("model=BEFORE>AFTER@AT", "(?P<first>[^>]*)>(?P<second>[^>]*)"),
    "class": ("class=NAME:SHARE@AT", f"(?P<first>.*):{_SHARE}"),
    "mix": ("mix=CLASS>OTHER:SHARE@AT", f"(?P<first>[^>]+)>(?!(?P=first):)(?P<second>[^>]+):{_SHARE}"),
    "relabel": ("relabel=SHARE@AT", _SHARE),
    "silent": ("silent=SHARE@AT", _SHARE),
    "ramp": ("ramp=SHARE@AT", _SHARE),
    "oscillate": ("oscillate=SHARE@AT", _SHARE),
    "turns": ("turns=N:SHARE", rf"(?P<turns>[2-9]|[1-9]\d+)(?::{_SHARE})?"),
    "set": ("set=FILE@AT", "(?P<first>.+)"),
}
KINDS: Final = tuple(_FORMS)
_SPEC: Final = re.compile(r"(\w+)=(.+?)(?:@(0?\.\d+))?", re.DOTALL)
_COURSES: Final[Mapping[Kind, Callable[[Floats], Floats]]] = {  # factor on the losing share, by progress in [0, 1)
    "silent": np.ones_like,
    "ramp": lambda progress: progress,
    "oscillate": lambda progress: 1.0 - np.floor(N_PHASES * progress) % 2,
}
_ALLOWED: Final = f"{', '.join(form for form, _ in _FORMS.values())}; AT as 0.5, shares from 0 to 1, N at least 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    text: str
    kind: Kind
    at: float  # position in the stream, in (0, 1); 0 for turns
    first: str = ""  # class, pattern of models, or file
    second: str = ""  # class or pattern of models
    share: float = 0.0  # for "em" the EM that divides the models
    turns: int = 0  # of a conversation

    @property
    def file(self) -> Path | None:
        return Path(self.first) if self.kind == "set" else None


def parse_drift(text: str) -> Drift:
    match = _SPEC.fullmatch(text.strip())
    kind, value, at = match.groups() if match else ("", "", None)
    form = _FORMS.get(cast("Kind", kind))
    values = re.fullmatch(form[1], value, re.DOTALL) if form else None
    well_placed = at is None if kind == "turns" else float(at or 0) > 0
    if values is None or not well_placed:
        raise ConfigError(f"--drift: got {text!r:.100}; allowed: {_ALLOWED}")
    given = values.groupdict()
    return Drift(
        text=text,
        kind=cast("Kind", kind),
        at=float(at or 0),
        first=given.get("first", ""),
        second=given.get("second", ""),
        share=float(given.get("share") or 0),
        turns=int(given.get("turns", 0)),
    )


def split_regimes(traffic: RecordedTraffic, drift: Drift, n_own: int | None = None) -> tuple[Bools, Bools]:
    """Masks of the requests that may occur before and after the change, (N,). Raise ConfigError if one is empty.

    n_own  requests of the first file, for a drift to another one
    """
    if drift.kind == "em":
        before = _run_em(traffic) > drift.share
        after = ~before
    elif drift.kind == "model":
        before, after = _models(traffic, drift.first), _models(traffic, drift.second)
    else:
        before = np.arange(len(traffic)) < (len(traffic) if n_own is None else n_own)
        after = ~before
    _refuse_empty(drift, before=bool(before.any()), after=bool(after.any()))
    return before, after


def order_requests(
    traffic: RecordedTraffic, drift: Drift, rng: np.random.Generator, *, n_own: int | None = None
) -> tuple[Ints, int]:
    """A random order without repeats, first regime first, and the index of the first request after the change."""
    if drift.kind == "turns":
        return _conversations(traffic, drift.turns, rng), 0
    if drift.kind == "mix":
        return _swapped(traffic, drift, rng)
    if drift.kind in ("em", "model", "set"):
        first, second = (rng.permutation(np.flatnonzero(part)) for part in split_regimes(traffic, drift, n_own))
        n = min(len(first) / drift.at, len(second) / (1 - drift.at))
        at = max(1, int(n * drift.at))
        return np.concatenate([first[:at], second[: max(1, int(n - at))]]), at
    everything = rng.permutation(len(traffic))
    at = round(drift.at * len(everything))
    late = _mixed(traffic, drift, everything[at:], rng) if drift.kind == "class" else everything[at:]
    return np.concatenate([everything[:at], late]), at


def losing_share(drift: Drift, at: int, n: int) -> Floats:
    """P(a request loses at every early stop), in stream order, shape (n,); `at` is the first after the change."""
    number = np.arange(n)
    if drift.kind == "turns":
        return np.where(number % drift.turns > 0, drift.share, 0.0)
    if drift.kind not in _COURSES:
        return np.zeros(n)
    course = _COURSES[drift.kind]((number - at) / max(1, n - at))
    return np.where(number >= at, drift.share * course, 0.0)


def relabel(traffic: RecordedTraffic, drift: Drift, at: int) -> RecordedTraffic:
    """The stream with the labels that the drift changes.

    With `relabel`, an answer that differs from the full run's is lost from request `at` on. Where a request loses at
    every early stop, its full run is correct and every earlier answer is wrong; signals do not change. A hash of the
    question and the position selects these requests.
    """
    runs, number = traffic.runs, np.arange(len(traffic))
    if drift.kind == "relabel":
        place = np.array([place_of(question, purpose="relabel") for question in traffic.question])
        hit = (place < drift.share) & (number >= at)
        z = np.where(hit[runs.run_of_row], runs.d.astype(np.int8), runs.z)
        return replace(traffic, runs=replace(runs, z=z, orders=None))
    share_of = losing_share(drift, at, len(traffic))
    if not share_of.any():
        return traffic
    place = np.array([place_of(f"{question}\n{i}", purpose="relabel") for i, question in enumerate(traffic.question)])
    wrong = (place < share_of)[runs.run_of_row]
    wrong[runs.last] = False
    changed = replace(runs, z=np.where(wrong, np.int8(1), runs.z), orders=None)  # what holds in one order only
    return replace(traffic, runs=replace(changed, d=runs.d | wrong))


def _conversations(traffic: RecordedTraffic, turns: int, rng: np.random.Generator) -> Ints:
    """Requests in conversations that keep to one question while it has requests left."""
    names, number = np.unique(np.array(traffic.question, dtype=object).astype(str), return_inverse=True)
    shuffled = rng.permutation(len(traffic))
    by_question = shuffled[np.argsort(rng.permutation(len(names))[number[shuffled]], kind="stable")]
    n_whole = len(by_question) // turns * turns
    whole = rng.permutation(by_question[:n_whole].reshape(-1, turns))
    return np.concatenate([whole.ravel(), by_question[n_whole:]])


def _swapped(traffic: RecordedTraffic, drift: Drift, rng: np.random.Generator) -> tuple[Ints, int]:
    share, early = drift.share, drift.at
    a, b = (rng.permutation(np.flatnonzero(_of_class(traffic, name))) for name in (drift.first, drift.second))
    swapped = share * early + (1 - share) * (1 - early)  # the share of the first class in all requests
    n = min(len(a) / swapped, len(b) / (1 - swapped))
    n_a, n_b = int(n * early * share), int(n * early * (1 - share))
    before = np.concatenate([a[:n_a], b[:n_b]])
    after = np.concatenate([a[n_a:][: int(n * (1 - early) * (1 - share))], b[n_b:][: int(n * (1 - early) * share)]])
    _refuse_empty(drift, before=len(before) > 0, after=len(after) > 0)
    return np.concatenate([rng.permutation(before), rng.permutation(after)]), len(before)


def _mixed(traffic: RecordedTraffic, drift: Drift, late: Ints, rng: np.random.Generator) -> Ints:
    share, of_class = drift.share, _of_class(traffic, drift.first)[late]
    mine, others = late[of_class], late[~of_class]
    n = min(len(mine) / share if share else np.inf, len(others) / (1 - share) if share < 1 else np.inf)
    _refuse_empty(drift, before=True, after=n >= 1)
    return rng.permutation(np.concatenate([mine[: int(n * share)], others[: int(n * (1 - share))]]))


def _of_class(traffic: RecordedTraffic, name: str) -> Bools:
    members = np.array([known == name for known in traffic.query_class], dtype=bool)
    if not members.any():
        known = ", ".join(sorted(set(traffic.query_class) - {""})[:10]) or "none"
        raise ConfigError(f"--drift: no request is of class {name!r:.60}; known: {known}")
    return members


def _refuse_empty(drift: Drift, *, before: bool, after: bool) -> None:
    if not before or not after:
        raise ConfigError(f"--drift: {drift.text!r:.100} leaves no requests {'after' if before else 'before'} it")


def _run_em(traffic: RecordedTraffic) -> Floats:
    _, model = np.unique(np.array(traffic.model), return_inverse=True)
    em: Floats = np.bincount(model, np.array(traffic.full_ok)) / np.bincount(model)
    return em[model]


def _models(traffic: RecordedTraffic, pattern: str) -> Bools:
    return np.array([fnmatchcase(model, pattern) for model in traffic.model], dtype=bool)


class StreamOrder(NamedTuple):
    which: Ints  # (n,): indices of recorded runs
    drift_at: int | None  # first request after the drift; None: no drift
    learns: Bools | None  # (n,): requests whose audits are evidence; None: all


def draw_order(
    traffic: RecordedTraffic,
    rng: np.random.Generator,
    *,
    drift: Drift | None = None,
    n_own: int | None = None,
    disjoint: bool = False,
    resample: int | None = None,
) -> StreamOrder:
    """Draw a stream: each run once in a random order, unless an option says otherwise.

    n_own     requests of the first file, for a drift to another one
    disjoint  take the runs of one half of the questions first; only these are evidence
    resample  number of requests to draw by question-level bootstrap
    """
    if drift is not None:
        which, at = order_requests(traffic, drift, rng, n_own=n_own)
        return StreamOrder(which, at, None)
    if disjoint:
        questions = rng.permutation(sorted(set(traffic.question)))
        early = np.isin(np.array(traffic.question), questions[: len(questions) // 2])
        which = np.concatenate([rng.permutation(np.flatnonzero(early)), rng.permutation(np.flatnonzero(~early))])
        return StreamOrder(which, None, np.arange(len(which)) < int(early.sum()))
    if resample is not None:
        return StreamOrder(_bootstrap(traffic.question, resample, rng), None, None)
    return StreamOrder(rng.permutation(len(traffic)), None, None)


def _bootstrap(question: Sequence[str], n: int, rng: np.random.Generator) -> Ints:
    names, number = np.unique(np.array(question, dtype=object).astype(str), return_inverse=True)
    rows = [np.flatnonzero(number == q) for q in range(len(names))]
    drawn, total = [], 0
    while total < n:
        drawn.append(rows[int(rng.integers(len(rows)))])
        total += len(drawn[-1])
    return np.asarray(rng.permutation(np.concatenate(drawn))[:n], dtype=np.int64)
