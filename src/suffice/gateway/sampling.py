"""Which requests of one gateway have rows in the log, and how the others are counted (`assurance.sampling`).

Counts are in memory for a minute at most: a process that is killed loses those, and no row. The latest live runs are
remembered whether they were drawn or not, so whether a label finds its run here does not depend on the draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from suffice.assurance.sampling import UnloggedRequests, is_certain, live_rate
from suffice.rollout.assign import point_of
from suffice.settings import Settings
from suffice.signals.query import class_of
from suffice.store.rows.records import RequestCount, RowRates
from suffice.types import EndReason, Feedback, Outcome, RecalledRun, Request

COUNT_S: Final = 60.0  # that counts wait at most …
COUNT_REQUESTS: Final = 1_000  # … and requests of a route behind them
LOOK_S: Final = 5.0  # between two looks whether counts are due
MOST_CELLS: Final = 200  # of one count; what more there are is counted under OTHER
OTHER: Final = "(others)"
MOST_SENDERS: Final = 100_000  # that were written in counts
MOST_RECALLED: Final = 20_000  # live runs that a label may find
MOST_ANSWER_CHARS: Final = 500  # of a run that is remembered; one with a longer answer is not, drawn or not

_PURPOSE: Final = b"kept-rows"


@dataclass(slots=True)
class _Tally:
    ends: Counter[EndReason] = field(default_factory=Counter)
    sums: dict[str, Any] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        self.ends[outcome.end_reason] += 1
        usage, spent = outcome.usage, outcome.overhead
        amounts: dict[str, Any] = {
            "n": 1,
            "duration_s": outcome.duration_s,
            "probe_tokens": spent.probe_tokens,
            "extra_prompt_tokens": spent.extra_prompt_tokens,
            "cached_prompt_tokens": spent.cached_prompt_tokens,
            "discarded_tokens": spent.discarded_tokens,
        }
        if usage is not None:
            amounts |= {"n_counted": 1, "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens}
            amounts["completion_tokens"] = usage.completion_tokens
        if outcome.cost_usd is not None:
            amounts |= {"n_priced": 1, "cost_usd": outcome.cost_usd, "overhead_usd": outcome.overhead_usd or 0.0}
        if outcome.stopped:
            amounts |= {"n_stopped": 1, "saved_tokens": outcome.tokens_saved_estimate or 0}
            amounts["saved_usd"] = outcome.saved_usd_estimate or 0.0
        for name, amount in amounts.items():
            self.sums[name] = self.sums.get(name, 0) + amount


@dataclass(slots=True)
class _Count:
    since_s: float  # monotonic, of the first request
    tallies: dict[tuple[str, str, str], _Tally] = field(default_factory=dict)  # by class, version, why ungoverned
    senders: list[str] = field(default_factory=list)
    n: int = 0
    audit_share: float | None = None  # the lowest at which a governed one of them was drawn
    last: str = ""  # episode that was counted last; it names the count


@dataclass(slots=True, kw_only=True)
class LogSampler:
    """One gateway's draw of rows. The follower writes `rates`; requests read them."""

    settings: Settings
    salt: str
    rates: Mapping[str, RowRates] = field(default_factory=dict)  # set by the control loop, by route
    _counts: dict[str, _Count] = field(default_factory=dict)
    _senders: dict[str, None] = field(default_factory=dict)  # that were counted before, the oldest first
    _even: dict[tuple[float, float], float] = field(default_factory=dict)  # rates, by sample rate and audit share
    _by_class: dict[str, tuple[RowRates, dict[str, float]]] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)  # drawn runs that have not ended
    _recent: dict[str, RecalledRun] = field(default_factory=dict)  # by episode, the oldest first
    _answered: dict[str, str | None] = field(default_factory=dict)  # episodes by response id; None: two had it

    def drawn(self, request: Request) -> tuple[Request, bool]:
        """The request as its row has it, and whether it has rows. One without gets them if it ends badly."""
        rate = self.rate_of(request)
        if rate >= 1 or (request.ungoverned is None and request.mode != "enforce"):
            return request, True
        if is_certain(request):
            return replace(request, keep_rate=rate), True
        if request.ungoverned is None:
            self._open.add(request.episode_id)
        if point_of(request.unit or request.episode_id, salt=self.salt, purpose=_PURPOSE) < rate:
            return replace(request, keep_rate=rate, kept_by="lot"), True
        return request, False

    def with_rows(self, request: Request) -> Request:
        return replace(request, keep_rate=self.rate_of(request), kept_by="end")

    def rate_of(self, request: Request) -> float:
        """At which rate requests like it have rows, in (0, 1]; 1: all of them."""
        sample_rate = self.settings.sample_rate_of(request.route)
        if sample_rate >= 1:
            return 1.0
        if request.ungoverned is not None:
            return sample_rate
        rates = self.rates.get(request.route)
        if rates is None or rates.sample_rate != sample_rate:  # the owner has changed the rate since
            share = request.propensity if request.audit else 1 - request.propensity
            if (sample_rate, share) not in self._even:
                if len(self._even) >= MOST_CELLS:
                    self._even.clear()
                self._even[sample_rate, share] = live_rate(sample_rate, share)
            return self._even[sample_rate, share]
        known = self._by_class.get(request.route)
        if known is None or known[0] is not rates:
            known = self._by_class[request.route] = rates, dict(rates.after)
        return known[1].get(class_of(request.query), rates.other)

    def remember(self, request: Request, outcome: Outcome, *, now_s: float) -> None:
        """Keep what a label of a drawn run would be joined with, for as long as there is room."""
        name, response = outcome.episode_id, outcome.response_id
        if name not in self._open:
            return
        self._open.discard(name)
        if len(outcome.answer or "") > MOST_ANSWER_CHARS:
            return
        self._recent[name] = RecalledRun(
            episode_id=name,
            response_id=response,
            route=request.route,
            query_class=class_of(request.query),
            policy_version=request.policy_version,
            stopped=outcome.stopped,
            end_reason=outcome.end_reason,
            answer=outcome.answer,
            ended_at_s=now_s,
        )
        if response is not None:
            self._answered[response] = None if response in self._answered else name
        _forget_oldest(self._recent, MOST_RECALLED)
        _forget_oldest(self._answered, MOST_RECALLED)

    def is_open(self, label: Feedback) -> bool:
        """Is this about a run that has not ended? A client has its answer a moment before the ledger is closed."""
        return label.episode_id in self._open

    def recalled(self, label: Feedback) -> RecalledRun | None:
        name = label.episode_id
        if name is None and label.response_id is not None:
            name = self._answered.get(label.response_id)
        return None if name is None else self._recent.get(name)

    def count(self, request: Request, outcome: Outcome, *, now_s: float) -> RequestCount | None:
        """Count a request without rows that has ended; what is due of its route, to be written."""
        count = self._counts.setdefault(request.route, _Count(now_s))
        key = class_of(request.query), request.policy_version, request.ungoverned or ""
        if key not in count.tallies and len(count.tallies) >= MOST_CELLS:
            key = OTHER, OTHER, key[2]
        count.tallies.setdefault(key, _Tally()).add(outcome)
        count.n, count.last = count.n + 1, outcome.episode_id
        if request.ungoverned is None and request.delivery == 1:
            share = 1.0 - request.propensity  # it is no audit, or it would have rows
            count.audit_share = share if count.audit_share is None else min(count.audit_share, share)
        if request.sender and request.sender not in self._senders:
            count.senders.append(request.sender)
            self._senders[request.sender] = None
            _forget_oldest(self._senders, MOST_SENDERS)
        is_due = count.n >= COUNT_REQUESTS or now_s - count.since_s >= COUNT_S
        return self._written(request.route) if is_due else None

    def due(self, *, now_s: float, all_of_them: bool = False) -> Iterator[RequestCount]:
        for route, count in list(self._counts.items()):
            if all_of_them or now_s - count.since_s >= COUNT_S:
                yield self._written(route)

    def _written(self, route: str) -> RequestCount:
        count = self._counts.pop(route)
        cells = tuple(
            UnloggedRequests(
                query_class=query_class,
                version=version,
                ungoverned=ungoverned,
                ends=tuple(sorted(tally.ends.items())),
                **tally.sums,
            )
            for (query_class, version, ungoverned), tally in count.tallies.items()
        )
        return RequestCount(
            count_id=count.last,
            route=route,
            n_requests=count.n,
            n_governed=sum(cell.n for cell in cells if not cell.ungoverned),
            cells=cells,
            senders=tuple(count.senders),
            audit_share=count.audit_share,
        )


def _forget_oldest(table: dict[str, Any], most: int) -> None:
    if len(table) > most:
        del table[next(iter(table))]
