"""The sums behind a route's report, one run after the other: enough to make every estimate, small enough to be kept.

    runs, counted requests ──▶ Tally ──▶ `estimate.report_of`

Sums that become estimates are kept in `N_GROUPS` random groups of questions. All runs of one question are in the same
group, so leaving one group out at a time gives an interval that respects repeated questions (the delete-a-group
jackknife: Kott 2001, Journal of Official Statistics 17(4)) without keeping the runs. Tallies are additive: a run can be
added whenever it ends, and a label that comes later exchanges what its run said.

Knows one run at a time; refuses to know storage and how numbers are shown.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

import msgspec

from suffice.assurance.evidence import RECENT_AUDITS
from suffice.assurance.extractable import WINDOW_RUNS
from suffice.assurance.runs import FINISHED_ENDS, RunNumbers
from suffice.assurance.sampling import Unkept
from suffice.types import Outcome, Request, Usage

N_GROUPS: Final = 32  # of questions, by a hash of their key
MOST_VERSIONS: Final = 50  # of policies that are named, the first ones


class Tally(msgspec.Struct, kw_only=True):
    """Everything a report is made of. Plain data: it is kept as JSON."""

    scorer: str = ""  # by which answers were compared with labels
    n_asked: int = 0  # requests, ended or not
    certified: bool = True  # every governed request ran under a certified policy
    kinds: list[str] = []  # seen, oldest first
    modes: list[str] = []
    versions: list[str] = []
    ends: dict[str, int] = {}
    degraded: dict[str, int] = {}
    ungoverned: dict[str, int] = {}
    tokens: dict[str, int] = {}  # by field of `TokenTotals`
    money: dict[str, float] = {}  # by field of `MoneyTotals`
    counts: dict[str, int] = {}  # of governed runs, by name
    audits_at_s: list[float] = []  # the latest, oldest first
    extracted: str = ""  # of the latest full runs, oldest first: "1", its answer could be read, or "0"
    rates: dict[str, list[float]] = {}  # by name: marked runs, sums of weights, of weights of true marks, of squares
    groups: dict[str, dict[int, list[float]]] = {}  # by name and group of questions: runs, then sums

    def ask(self) -> None:
        """Count a request; what it brings is added when it ends."""
        self.n_asked += 1

    def add(self, request: Request, outcome: Outcome, run: RunNumbers | None) -> None:
        """Add a request that has ended.

        run  what `measure_run` makes of it; None: it passed through
        """
        _count(self.ends, outcome.end_reason)
        for place in outcome.degraded:
            _count(self.degraded, place)
        self._add_money(request, outcome)
        if run is None:
            _count(self.ungoverned, request.ungoverned or "")
            return
        self.certified = self.certified and request.certified
        for seen, one in ((self.kinds, request.kind), (self.modes, request.mode)):
            if one not in seen:
                seen.append(one)
        if request.policy_version not in self.versions and len(self.versions) < MOST_VERSIONS:
            self.versions.append(request.policy_version)
        if request.audit:
            self.audits_at_s = sorted((*self.audits_at_s, request.received_at_s))[-RECENT_AUDITS:]
        self._add_counts(request, outcome, run)
        self._add_tokens(outcome)
        self._add_rate("disagreement", run.disagrees if run.full else None, run.stands_for)
        self._add_marks(run)
        self._add_spent(run)

    def relabel(self, before: RunNumbers, after: RunNumbers) -> None:
        """Exchange what the labels of one governed run say; everything else about it is as it was."""
        self._add_marks(before, sign=-1)
        self._add_marks(after)

    def add_unkept(self, cell: Unkept) -> None:
        """Add requests that have no rows, to all that needs none."""
        self.n_asked += cell.n
        for end, n in cell.ends:
            _count(self.ends, end, n)
        _count(self.counts, "priced", cell.n_priced)
        _count(self.counts, "unpriced", cell.n - cell.n_priced)
        if cell.ungoverned:
            _count(self.ungoverned, cell.ungoverned, cell.n)
            self._pay("ungoverned_usd", cell.cost_usd)
            return
        _count(self.counts, "governed", cell.n)
        _count(self.counts, "stopped", cell.n_stopped)
        self._pay("governed_usd", cell.cost_usd)
        self._pay("overhead_usd", cell.overhead_usd)
        for name, n in (
            ("n_unknown", cell.n - cell.n_counted),
            ("client_prompt", cell.prompt_tokens),
            ("client_completion", cell.completion_tokens),
            ("client_cached", cell.cached_tokens),
            ("probe", cell.probe_tokens),
            ("extra_prompt", cell.extra_prompt_tokens),
            ("cached_prompt", cell.cached_prompt_tokens),
            ("discarded", cell.discarded_tokens),
        ):
            _count(self.tokens, name, n)

    def _add_counts(self, request: Request, outcome: Outcome, run: RunNumbers) -> None:
        for name, holds in (
            ("governed", True),
            ("stopped", outcome.stopped),
            ("audits", run.audit),
            ("abandoned", run.abandoned_audit),
            ("telling", run.audit and run.disagrees is not None),
            ("disagreeing", run.audit and run.disagrees is True),
            ("would_stop", run.full and run.would_stop),
        ):
            if holds:
                _count(self.counts, name)
        whole = outcome.end_reason in FINISHED_ENDS and not outcome.stopped
        if whole and (request.mode != "enforce" or request.audit):
            self.extracted = f"{self.extracted}{int(outcome.answer is not None)}"[-WINDOW_RUNS:]
        if request.kind == "reasoning":  # elsewhere an answer without words to read names no source
            # A probe that was not sent or failed names no source either: nobody knows what it would have said.
            trials = [step.answer for step in outcome.steps if step.answer_source == "probe"]
            _count(self.counts, "trials", len(trials))
            _count(self.counts, "trials_read", len(trials) - trials.count(None))

    def _add_tokens(self, outcome: Outcome) -> None:
        usage, overhead = outcome.usage or Usage(prompt_tokens=0, completion_tokens=0), outcome.overhead
        for name, n in (
            ("n_unknown", int(outcome.usage is None)),
            ("client_prompt", usage.prompt_tokens),
            ("client_completion", usage.completion_tokens),
            ("client_cached", usage.cached_tokens),
            ("probe", overhead.probe_tokens),
            ("extra_prompt", overhead.extra_prompt_tokens),
            ("cached_prompt", overhead.cached_prompt_tokens),
            ("discarded", overhead.discarded_tokens),
        ):
            _count(self.tokens, name, n)

    def _add_money(self, request: Request, outcome: Outcome) -> None:
        if outcome.cost_usd is None:
            _count(self.counts, "unpriced")
            return
        _count(self.counts, "priced")
        if request.ungoverned is not None:
            self._pay("ungoverned_usd", outcome.cost_usd)
            return
        self._pay("governed_usd", outcome.cost_usd)
        self._pay("overhead_usd", outcome.overhead_usd or 0.0)

    def _pay(self, name: str, usd: float) -> None:
        self.money[name] = self.money.get(name, 0.0) + usd

    def _add_marks(self, run: RunNumbers, *, sign: int = 1) -> None:
        """What labels say of the run."""
        correct = run.correct
        _count(self.counts, "labelled", sign * (correct is not None))
        for name, holds in (
            ("em_full", run.full),
            ("em_stopped", run.stopped),
            ("em_live", run.enforce and not run.audit),
        ):
            if holds:
                self._add_rate(name, correct, run.stands_for, sign=sign)
        if run.full and run.drop is not None:
            _count(self.counts, "drops", sign)
            _count(self.counts, "lost", sign * (run.drop == 1))
            _count(self.counts, "gained", sign * (run.drop == -1))
            _count(self.counts, "drops_marked", sign * (correct is not None))

    def _add_rate(self, name: str, mark: bool | None, weight: float, *, sign: int = 1) -> None:
        """Unknown marks are left out, neither one nor the other."""
        if mark is not None:
            sums = self.rates.setdefault(name, [0.0] * 4)
            for at, one in enumerate((1.0, weight, weight * mark, weight * weight)):
                sums[at] += sign * one

    def _add_spent(self, run: RunNumbers) -> None:
        """What means and ratios are made of."""
        w = run.stands_for
        for name, holds, cost in (
            ("tokens_full", run.full, run.spent),
            ("tokens_stopped", run.stopped, run.spent),
            ("cost_full", run.full, run.cost_usd),
            ("cost_stopped", run.stopped, run.cost_usd),
        ):
            if holds and cost is not None:
                self._add_group(name, run, w * cost, w)
        if run.enforce:
            for name, cost, alone in (
                ("saving", run.spent, run.baseline_tokens),
                ("saving_usd", run.cost_usd, run.baseline_usd),
            ):
                if cost is not None and alone is not None:
                    drawn = run.weight if run.audit else 0.0
                    self._add_group(name, run, w * cost, w, drawn * alone, drawn, float(run.audit))
        if run.full and run.baseline_tokens is not None:
            self._add_group("decided", run, w * run.undrawn_tokens, w * run.baseline_tokens)
            if not run.enforce and run.would_spend is not None:
                self._add_group("would_save", run, run.would_spend, run.baseline_tokens)
        if run.full and not run.enforce and run.would_save_usd is not None:
            self._add_group("would_save_usd", run, run.would_save_usd, 1.0)

    def _add_group(self, name: str, run: RunNumbers, *values: float) -> None:
        mine = self.groups.setdefault(name, {})
        sums = mine.setdefault(crc32(run.group.encode()) % N_GROUPS, [0.0] * (len(values) + 1))
        sums[0] += 1
        for at, one in enumerate(values, 1):
            sums[at] += one


def _count(counts: dict[str, int], name: str, n: int = 1) -> None:
    if n:
        counts[name] = counts.get(name, 0) + n
