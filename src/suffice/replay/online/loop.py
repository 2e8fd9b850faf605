"""One stream from cold start to end: each request is audited by lot or stopped at the level in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

import numpy as np

from suffice.assurance.drift import BATCH
from suffice.learn.audits import AuditRuns, Bools, Floats, Ints, Small
from suffice.learn.certifier import Certifier, CertifierDecision, PendingAudits
from suffice.learn.served import FoldedModels
from suffice.replay.online.traffic import RecordedTraffic

PERIOD: Final = 100  # requests between two looks of the control loop


class Design(Protocol):
    """What decides about a stream: `learn.certifier.Keeper`, or anything else with its face."""

    now: float

    @property
    def level(self) -> int:
        """In force; 0 never stops."""
        ...

    @property
    def served(self) -> FoldedModels | None:
        """The models and levels in force."""
        ...

    @property
    def share(self) -> float:
        """Share of the next requests to audit."""
        ...

    @property
    def in_burst(self) -> bool:
        """Does every request run in full now?"""
        ...

    def take(self, runs: AuditRuns) -> None:
        """Take audits in that have returned."""
        ...

    def notice(self, signals: Floats) -> tuple[CertifierDecision, ...]:
        """Look at what all traffic of one batch showed."""
        ...

    def tick(self, now: float) -> tuple[CertifierDecision, ...]:
        """Look at the evidence; what changed."""
        ...


D = TypeVar("D", bound=Design)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """What happened to each of N requests, in the order in which they came."""

    audit: Bools  # (N,): ran in full by lot, or because all did
    burst: Bools  # (N,): all requests ran in full then
    level: Ints  # (N,): in force when the request came
    z: Small  # (N,): EM drop; 0 for audits
    tokens: Floats  # (N,): spent, everything in
    probes: Floats  # (N,): the part of them that probes took
    full: Floats  # (N,): what the full run alone takes
    changes: tuple[CertifierDecision, ...]

    def reduction(self, part: slice, *, probes: bool = True) -> float:
        """Token reduction over some of the requests, a fraction."""
        spent = self.tokens[part].sum() - (0.0 if probes else self.probes[part].sum())
        return float(1 - spent / max(1.0, self.full[part].sum()))

    def drop(self, part: slice) -> float:
        """Mean EM drop over some of the requests, audits as 0."""
        return float(self.z[part].mean()) if len(self.z[part]) else 0.0


def _nothing(_: object) -> None:
    """Look at nothing."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """Audits that have begun and not returned, in the order in which they began."""

    traffic: RecordedTraffic
    which: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    share: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, which: Ints, share: float) -> None:
        """These requests were drawn, at this share."""
        self.which = np.concatenate([self.which, which])
        self.share = np.concatenate([self.share, np.full(len(which), share)])

    def forget(self) -> None:
        """Whoever was asked in an epoch that is over says nothing in the next one."""
        self.which, self.share = self.which[:0], self.share[:0]

    def give(self, design: Design, now: float) -> None:
        """Give the design those that have returned by now."""
        duration = self.traffic.duration[self.which]
        back = self.which + duration < now if duration.any() else np.ones(len(self.which), dtype=bool)
        order = np.argsort(self.which[back] + duration[back], kind="stable")
        found = self.traffic.runs.take(self.which[back][order])
        if isinstance(design, Certifier):
            design.returned(duration[back])
            design.pending = PendingAudits(at=self.which[~back].astype(np.float64), share=self.share[~back])
        design.take(replace(found, share=self.share[back][order]))
        self.which, self.share = self.which[~back], self.share[~back]


def run_stream(
    traffic: RecordedTraffic,
    design: D,
    rng: np.random.Generator,
    *,
    period: int = PERIOD,
    learns: Bools | None = None,
    watch: Callable[[D], None] = _nothing,
) -> Stream:
    """Serve the requests of `traffic` in their order.

    design  decides, from its cold start on
    rng     draws the audit lots
    period  requests between two looks of the control loop; signals come in batches of 100 whatever it is
    learns  requests whose audits count as evidence, shape (N,); None: all
    watch   is shown the design after each look
    """
    runs, n = traffic.runs, len(traffic)
    audit, burst, level = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
    row = runs.last.copy()
    changes: list[CertifierDecision] = []
    n_noticed, waiting = 0, _Waiting(traffic)
    for begin in range(0, n, period):
        block = np.arange(begin, min(begin + period, n))
        now = begin + len(block)
        share = design.share
        audit[block] = rng.random(len(block)) < share
        level[block], burst[block] = design.level, design.in_burst
        if design.level and design.served is not None:
            served = block[~audit[block]]
            part = runs.take(served)
            row[served] = design.served.rows_at(part, design.level) - part.starts[:-1] + runs.starts[served]
        design.now = float(now)
        waiting.add(block[audit[block] if learns is None else audit[block] & learns[block]], share)
        waiting.give(design, now)
        n_changes = len(changes)
        while n_noticed + BATCH <= now:
            changes += design.notice(traffic.early[n_noticed : n_noticed + BATCH])
            n_noticed += BATCH
        changes += design.tick(float(now))
        if any(change.kind == "epoch" for change in changes[n_changes:]):
            waiting.forget()
        watch(design)
    return Stream(
        audit=audit,
        burst=burst,
        level=level,
        z=runs.z[row],
        tokens=runs.cost[row],
        probes=traffic.probes[row],
        full=runs.full,
        changes=tuple(changes),
    )
