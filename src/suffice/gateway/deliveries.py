"""Recognises repeated deliveries of one request, so that they share its audit draw.

    RequestKey ──▶ DeliveryMemory.assign ──▶ first delivery: a new draw, for a name that nobody can repeat
                                         ──▶ later delivery: the draw of the first, and its number

Knows keys and times; refuses to know HTTP, routes and what an audit is good for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Final

from suffice.rollout.assign import AuditAssignment, assign_audit, joined

KEY_WINDOW_S: Final = 600.0  # for which an idempotency key is remembered at least, whatever the settings say
MOST_DELIVERIES: Final = 500_000  # requests that are remembered; the oldest is forgotten first


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """Everything by which a delivery is recognised as a repeat of an earlier one.

    caller           value of the header `authorization`; "": none was sent
    conversation     id that the client gave; None: none
    idempotency_key  that the client gave; None: the body tells requests apart
    """

    route: str
    caller: str
    body: bytes
    conversation: str | None = None
    idempotency_key: str | None = None

    @property
    def digest(self) -> bytes:
        """16 bytes, equal for deliveries of one request only."""
        prefix = joined(self.route, self.caller, self.conversation or None, self.idempotency_key or None)
        body = b"" if self.idempotency_key else self.body
        # The prefix ends where its four parts end, so whatever follows it is the body.
        return hashlib.blake2b(prefix.encode("utf-8", "surrogatepass") + body, digest_size=16).digest()


@dataclass(slots=True)
class DeliveryMemory:
    """Remembers requests with their audit draws for as long as a delivery may repeat them.

    One draw speaks for all deliveries of a request. If a level could stop m of them, a bet on the draw would have to be
    divided by the largest m allowed. With 8, a harmless level would need 8 times the audits (456 become 3,634 at a
    budget of 1 point and 95 % confidence). So m is 1: from the second delivery on, a request runs in full and is no
    evidence.

    The draw of a first delivery is made for its key and its episode id. The gateway makes that id, so no client can
    choose or repeat a draw, and a process that has forgotten a request makes an independent draw for the next one.
    """

    _known: dict[bytes, tuple[float, AuditAssignment]] = field(default_factory=dict)  # the oldest first

    def assign(
        self, key: RequestKey, *, episode_id: str, share: float, salt: str, window_s: float, now_s: float
    ) -> AuditAssignment:
        """Draw for a first delivery; give a repeated delivery the draw of the first, and its own number.

        share     of audits, for a first delivery, in [0, 1]
        window_s  after the first delivery within which the same body is a repeat; 0: only an idempotency key makes one
        now_s     monotonic

        Raises ValueError for a share outside [0, 1].
        """
        own_window_s = max(window_s, KEY_WINDOW_S) if key.idempotency_key else window_s
        self._forget(now_s - max(window_s, KEY_WINDOW_S))
        digest = key.digest
        first_s, first = self._known.get(digest, (now_s, None))
        if first is not None and own_window_s > 0 and now_s - first_s <= own_window_s:
            repeated = replace(first, delivery=first.delivery + 1)
            self._known[digest] = first_s, repeated
            return repeated
        assigned = assign_audit(joined(digest.hex(), episode_id), share=share, salt=salt)
        if own_window_s > 0:
            self._known.pop(digest, None)  # entries stand in the order of first deliveries
            self._known[digest] = now_s, assigned
        return assigned

    def _forget(self, before_s: float) -> None:
        """Drop requests whose first delivery is too old, and the oldest where there are too many."""
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest][0] >= before_s and len(self._known) < MOST_DELIVERIES:
                return
            del self._known[oldest]
