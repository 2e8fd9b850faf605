"""All that is known of clients, and the limits of their keys: requests, tokens and dollars, over all gateways of a log.

What a key spends is logged, and every gateway counts the rows of the others. Requests a minute and at once are shared
out on a server: every second each gateway reserves what it has admitted and a part of what no gateway has reserved,
in one transaction, so the reservations never exceed a limit. A gateway that cannot reserve goes on with its part of the
whole limit.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias, get_args

from suffice.errors import OverloadError
from suffice.gateway.auth import Caller, DeliveryMemory, KeyRing, Objects
from suffice.settings import Key
from suffice.store.rows.events import KeyIssue, KeyUsage

MINUTE_S: Final = 60.0
DAY_S: Final = 86_400
RESERVED_S: Final = 5.0  # for which a reservation counts
MONTH_CHARS: Final = len("2026-01")  # of a day

KeyTraffic: TypeAlias = tuple[int, int]  # requests of the last minute, and open ones
Limit: TypeAlias = Literal["requests_per_minute", "concurrency", "tokens_per_day", "usd_per_day", "usd_per_month"]


class KeyLimitError(OverloadError):
    def __init__(self, message: str, *, limit: Limit, retry_after_s: float) -> None:
        code = "rate_limit_exceeded" if limit in ("requests_per_minute", "concurrency") else "insufficient_quota"
        super().__init__(message, retry_after_s=max(1, math.ceil(retry_after_s)), code=code)
        self.limit = limit


@dataclass(slots=True)
class _Use:
    began_s: deque[float] = field(default_factory=deque)  # monotonic times of the requests of the last minute
    n_live: int = 0
    day: str = ""  # UTC day of `n_tokens` and `day_usd`
    n_tokens: int = 0
    day_usd: float = 0.0
    month_usd: float = 0.0  # of the month of `day`
    reserved: KeyTraffic = 0, 0  # at this gateway

    def traffic(self, now_s: float) -> KeyTraffic:
        while self.began_s and now_s - self.began_s[0] >= MINUTE_S:
            self.began_s.popleft()
        return len(self.began_s), self.n_live

    def start_day(self, day: str) -> None:
        if day != self.day:
            self.month_usd *= day[:MONTH_CHARS] == self.day[:MONTH_CHARS]
            self.day = day
            self.n_tokens = 0
            self.day_usd = 0.0

    def add(self, n_tokens: int, usd: float) -> None:
        self.n_tokens = self.n_tokens + n_tokens
        self.day_usd = self.day_usd + usd
        self.month_usd = self.month_usd + usd

    def refuse_spent(self, permits: Key, wall_s: float) -> None:
        """Raise KeyLimitError if a budget is used up."""
        self.start_day(utc_day(wall_s))
        day_left_s = DAY_S - wall_s % DAY_S
        spent: tuple[tuple[Limit, float, str, float], ...] = (
            ("tokens_per_day", self.n_tokens, "tokens of today", day_left_s),
            ("usd_per_day", self.day_usd, "US dollars of today", day_left_s),
            ("usd_per_month", self.month_usd, "US dollars of this month", _month_left_s(wall_s)),
        )
        for limit, used, what, left_s in spent:
            most = getattr(permits, limit)
            if most is not None and used >= most:
                message = f"this key has used its {most:.15g} {what} (UTC)"
                raise KeyLimitError(message, limit=limit, retry_after_s=left_s)


class KeyLimits:
    """Enforces the limits of keys. What they spend is logged, so a restart does not reset it."""

    def __init__(self, callers: Iterable[Caller] = ()) -> None:
        self._uses: dict[str, _Use] = {}
        self._unwritten: dict[tuple[str, str], tuple[int, float]] = {}  # tokens and dollars by sender and day
        self._n_gateways, self._reserved_s = 1, -math.inf
        self.permits: dict[str, Key] = {}  # of the keys with limits, by sender
        self.add(callers)

    def traffic(self, *, now_s: float) -> dict[str, KeyTraffic]:
        return {sender: use.traffic(now_s) for sender, use in self._uses.items()}

    def hold(self, reserved: Mapping[str, KeyTraffic], *, n_gateways: int, now_s: float) -> None:
        """Admit what this gateway has reserved from now on."""
        self._n_gateways, self._reserved_s = n_gateways, now_s
        for sender, use in self._uses.items():
            use.reserved = reserved.get(sender, (0, 0))

    def _part(self, limit: int, reserved: int, *, now_s: float) -> int:
        """Return how much of a limit is this gateway's."""
        if self._n_gateways == 1:
            return limit
        return reserved if now_s - self._reserved_s <= RESERVED_S else math.ceil(limit / self._n_gateways)

    def add(self, callers: Iterable[Caller]) -> None:
        """Count for these keys from now on, too."""
        for one in callers:
            if any(getattr(one.permits, limit) is not None for limit in get_args(Limit)):
                self._uses.setdefault(one.id, _Use())
                self.permits[one.id] = one.permits

    def enter(self, caller: Caller, *, spends: bool, now_s: float, wall_s: float) -> None:
        """Count the start of a request, which `spends` if it may cost tokens. Raise KeyLimitError and count nothing."""
        use, permits = self._uses.get(caller.id), caller.permits
        if use is None:
            return
        if spends:
            use.refuse_spent(permits, wall_s)
        most = permits.concurrency
        if most is not None and use.n_live >= self._part(most, use.reserved[1], now_s=now_s):
            message = f"this key may have {most} requests at once"
            raise KeyLimitError(message, limit="concurrency", retry_after_s=1)
        most = permits.requests_per_minute
        if most is not None:
            n_begun, _ = use.traffic(now_s)
            if n_begun >= self._part(most, use.reserved[0], now_s=now_s):
                message = f"this key may send {most} requests in a minute"
                wait_s = MINUTE_S - (now_s - use.began_s[0]) if n_begun >= most else 1.0
                raise KeyLimitError(message, limit="requests_per_minute", retry_after_s=wait_s)
            use.began_s.append(now_s)
        use.n_live += 1

    def leave(self, caller: Caller) -> None:
        if (use := self._uses.get(caller.id)) is not None:
            use.n_live = max(0, use.n_live - 1)  # its request may have begun before the key had limits

    def spend(self, sender: str, n_tokens: int, *, usd: float = 0.0, wall_s: float) -> None:
        if (use := self._uses.get(sender)) is not None:
            use.start_day(utc_day(wall_s))
            use.add(n_tokens, usd)
            before_tokens, before_usd = self._unwritten.get((sender, use.day), (0, 0.0))
            self._unwritten[sender, use.day] = before_tokens + n_tokens, before_usd + usd

    def restore(self, usages: Iterable[KeyUsage]) -> None:
        """Count what was logged, of one month, in any order."""
        for one in sorted(usages, key=lambda usage: usage.day):
            use = self._uses.get(one.sender)
            if use is None or one.day < use.day[:MONTH_CHARS]:
                continue
            if one.day >= use.day:
                use.start_day(one.day)
                use.add(one.n_tokens, one.usd)
            else:
                use.month_usd += one.usd

    def take_unwritten(self) -> list[KeyUsage]:
        """Return what was not logged yet, also of a day that has ended since."""
        unwritten, self._unwritten = self._unwritten, {}
        usages = ((sender, day, n, usd) for (sender, day), (n, usd) in unwritten.items() if n or usd)
        return [KeyUsage(usage_id="", sender=sender, day=day, n_tokens=n, usd=usd) for sender, day, n, usd in usages]


def reserve(
    own: Mapping[str, KeyTraffic], others: Sequence[Mapping[str, KeyTraffic]], permits: Mapping[str, Key]
) -> dict[str, KeyTraffic]:
    """Return what a gateway may admit of each key: what it has admitted, and its part of what nobody has reserved.

    others  reservations of the other gateways
    """

    def part(limit: int | None, admitted: int, reserved: int) -> int:
        return 0 if limit is None else admitted + max(0, math.ceil((limit - admitted - reserved) / (1 + len(others))))

    result = dict[str, KeyTraffic]()
    for sender, (n_begun, n_live) in own.items():
        theirs, key = [one.get(sender, (0, 0)) for one in others], permits[sender]
        result[sender] = (
            part(key.requests_per_minute, n_begun, sum(begun for begun, _ in theirs)),
            part(key.concurrency, n_live, sum(live for _, live in theirs)),
        )
    return result


def utc_day(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d")


def days_of_month(wall_s: float) -> list[str]:
    """Return the UTC days of the present month so far."""
    day = utc_day(wall_s)
    return [f"{day[:MONTH_CHARS]}-{one:02}" for one in range(1, int(day[-2:]) + 1)]


def _month_left_s(wall_s: float) -> float:
    now = datetime.fromtimestamp(wall_s, UTC)
    month = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return month.timestamp() - wall_s


# --------------------------------------------------------------------------- all that is known of clients

Named: TypeAlias = tuple[str | None, str | None]  # (episode id, response id) of a request, either one


@dataclass(slots=True, kw_only=True)
class Clients:
    keys: KeyRing = field(default_factory=KeyRing)  # accepted from clients; empty: open to all
    limits: KeyLimits = field(init=False)
    deliveries: DeliveryMemory = field(default_factory=DeliveryMemory)
    objects: Objects = field(default_factory=Objects)
    # Looks up the senders of requests and their tenants in the log; called in a thread, raises StoreError.
    owners_of: Callable[[Sequence[Named]], list[frozenset[tuple[str, str]]]] = lambda named: [frozenset()] * len(named)
    # Builds the keys anew, with those that the log has now.
    build_keys: Callable[[Sequence[KeyIssue]], KeyRing] | None = None  # None: keys never change
    issued: tuple[KeyIssue, ...] = ()  # of the log, as the keys were built last
    by_token: Counter[str] = field(default_factory=Counter)  # feedback with each answer's token, the latest last
    langfuse_secret: str | None = None  # for signatures of Langfuse's webhooks; None: none

    def __post_init__(self) -> None:
        self.limits = KeyLimits(self.keys.callers)

    def follow_keys(self, issued: Sequence[KeyIssue]) -> None:
        """Accept the keys of the settings and these from now on; requests in flight go on with theirs."""
        if self.build_keys is not None:
            self.issued, self.keys = tuple(issued), self.build_keys(issued)
            self.limits.add(self.keys.callers)
