"""A drift as it is asked for: what changes in a stream, and from which part of it on.

    em=0.5@0.5                 runs whose model has an EM above 0.5 first, then those at or below it
    model=gpt-4*>gpt-3.5*@0.4  requests of some models first, then of others
    class=hard:0.8@0.5         from then on four fifths of the requests are of this class
    relabel=0.1@0.5            from then on the full run's answer is the right one for a tenth of the questions
    set=other.parquet@0.5      from then on the requests come from another file

The part behind the @ says where in the stream it happens. Knows which requests belong to the world before and which
to the one after; refuses to know how a stream is served.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, TypeAlias, cast

import numpy as np

from suffice.errors import ConfigError
from suffice.learn.audits import Bools, Floats, Ints
from suffice.replay.online.traffic import Traffic

Kind: TypeAlias = Literal["em", "model", "class", "relabel", "set"]
KINDS: Final = ("em", "model", "class", "relabel", "set")
_SPEC: Final = re.compile(r"(\w+)=(.+)@(0?\.\d+)", re.DOTALL)
_ALLOWED: Final = "em=EM@AT, model=BEFORE>AFTER@AT, class=NAME:SHARE@AT, relabel=SHARE@AT or set=FILE@AT, AT as 0.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A parsed drift."""

    text: str
    kind: Kind
    value: str
    at: float   # part of the stream, in (0, 1)

    @property
    def file(self) -> Path | None:
        """The file that the later requests come from; None: the same as before."""
        return Path(self.value) if self.kind == "set" else None


def parse_drift(text: str) -> Drift:
    """Read a drift. Raises ConfigError with what is allowed."""
    match = _SPEC.fullmatch(text.strip())
    if match is None or match[1] not in KINDS or not 0 < float(match[3]) < 1:
        raise ConfigError(f"--drift: got {text!r:.100}; allowed: {_ALLOWED}")
    kind, value = cast("Kind", match[1]), match[2]
    fits: dict[Kind, Callable[[], bool]] = {
        "em": lambda: _is_share(value),
        "model": lambda: value.count(">") == 1,
        "class": lambda: ":" in value and _is_share(value.rpartition(":")[2]),
        "relabel": lambda: _is_share(value),
        "set": lambda: True,
    }
    if not fits[kind]():
        raise ConfigError(f"--drift: got {text!r:.100}; allowed: {_ALLOWED}")
    return Drift(text=text, kind=kind, value=value, at=float(match[3]))


def _is_share(text: str) -> bool:
    return re.fullmatch(r"0?\.\d+|[01](\.\d*)?", text) is not None and 0 <= float(text) <= 1


def worlds(traffic: Traffic, drift: Drift, from_file: Bools | None = None) -> tuple[Bools, Bools]:
    """Which requests belong to the world before, and which to the one after, shape (N,) each.

    from_file  kind "set": which requests come from the other file

    Raises ConfigError where one of the two is empty.
    """
    everything = np.ones(len(traffic), dtype=bool)
    if drift.kind == "em":
        strong = _run_em(traffic) > float(drift.value)
        before, after = strong, ~strong
    elif drift.kind == "model":
        first, _, second = drift.value.partition(">")
        before, after = _models(traffic, first), _models(traffic, second)
    elif drift.kind == "set" and from_file is not None:
        before, after = ~from_file, from_file
    else:
        before, after = everything, everything
    if not before.any() or not after.any():
        empty = "before" if not before.any() else "after"
        raise ConfigError(f"--drift: {drift.text!r:.100} leaves no request for the time {empty} it")
    return before, after


def order(traffic: Traffic, drift: Drift, before: Bools, after: Bools, rng: np.random.Generator) -> tuple[Ints, int]:
    """Requests in a random order, the world before in front, and the number of the first of the world after.

    As many as there are, so that each comes once and the drift lies at its part of the stream.
    """
    if drift.kind in ("class", "relabel"):
        everything = rng.permutation(len(traffic))
        at = round(drift.at * len(everything))
        late = everything[at:] if drift.kind == "relabel" else _mixed(traffic, drift, everything[at:], rng)
        return np.concatenate([everything[:at], late]), at
    first, second = rng.permutation(np.flatnonzero(before)), rng.permutation(np.flatnonzero(after))
    n = min(len(first) / drift.at, len(second) / (1 - drift.at))
    at = max(1, int(n * drift.at))
    return np.concatenate([first[:at], second[: max(1, int(n - at))]]), at


def relabelled(traffic: Traffic, drift: Drift, at: int) -> Traffic:
    """The stream with other labels from request `at` on, where the drift says so: what differs is lost."""
    if drift.kind != "relabel":
        return traffic
    share = float(drift.value)
    hit = np.array([_place(question) < share for question in traffic.question]) & (np.arange(len(traffic)) >= at)
    rows = hit[traffic.runs.run_of_row]
    z = np.where(rows, traffic.runs.d.astype(np.int8), traffic.runs.z)
    return replace(traffic, runs=replace(traffic.runs, z=z))


def _mixed(traffic: Traffic, drift: Drift, late: Ints, rng: np.random.Generator) -> Ints:
    """Of the late requests as many as leave a class with its new share."""
    name, _, text = drift.value.rpartition(":")
    share = float(text)
    of_class = np.array([traffic.query_class[i] == name for i in late.tolist()], dtype=bool)
    if not of_class.any():
        known = ", ".join(sorted(set(traffic.query_class))[:10]) or "none"
        raise ConfigError(f"--drift: no request is of class {name!r:.60}; known: {known}")
    mine, others = late[of_class], late[~of_class]
    n = min(len(mine) / share if share else np.inf, len(others) / (1 - share) if share < 1 else np.inf)
    return rng.permutation(np.concatenate([mine[: int(n * share)], others[: int(n * (1 - share))]]))


def _run_em(traffic: Traffic) -> Floats:
    """EM of the full runs of each request's model, shape (N,)."""
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for model, ok in zip(traffic.model, traffic.full_ok, strict=True):
        right[model][0] += ok
        right[model][1] += 1
    em = {model: ok / n for model, (ok, n) in right.items()}
    return np.array([em[model] for model in traffic.model])


def _models(traffic: Traffic, pattern: str) -> Bools:
    return np.array([fnmatchcase(model, pattern) for model in traffic.model], dtype=bool)


def _place(question: str) -> float:
    digest = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8, person=b"relabel").digest()
    return int.from_bytes(digest, "big") / 2**64
