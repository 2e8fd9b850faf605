"""Responses that were delivered, for requests that refer to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from suffice.episode.apis.responses import as_input
from suffice.gateway.auth import Caller
from suffice.upstream.wire import encode_json

MOST_KEPT_BYTES: Final = 64 * 2**20  # of all kept responses, with their conversations
KEPT_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptResponse:
    caller: Caller
    items: bytes  # the conversation up to and with this response, as a JSON list
    body: bytes  # as the client got it
    is_ours: bool  # the engine has another one, or none
    kept_s: float

    @property
    def n_bytes(self) -> int:
        return len(self.items) + len(self.body)


@dataclass(slots=True)
class KeptResponses:
    """Delivered responses, for requests that refer to one: a stopped one is not what the engine has kept.

    Of this process alone, bounded in bytes and in time: the oldest ones are forgotten first.
    """

    _kept: dict[str, KeptResponse] = field(default_factory=dict)  # by id, the oldest first
    _n_bytes: int = 0

    def keep(
        self, caller: Caller, given: Sequence[Any], response: Mapping[str, Any], *, is_ours: bool, now_s: float
    ) -> None:
        name = response.get("id")
        if not isinstance(name, str):
            return
        items = encode_json([*given, *as_input(response)])
        self.drop(name)
        made = KeptResponse(caller=caller, items=items, body=encode_json(response), is_ours=is_ours, kept_s=now_s)
        self._kept[name] = made
        self._n_bytes += made.n_bytes
        while self._n_bytes > MOST_KEPT_BYTES or now_s - next(iter(self._kept.values())).kept_s > KEPT_S:
            self.drop(next(iter(self._kept)))

    def get(self, name: Any, caller: Caller, *, now_s: float) -> KeptResponse | None:
        """Return a response that this caller may see; None: it is not kept."""
        kept = self._kept.get(name) if isinstance(name, str) else None
        if kept is None or now_s - kept.kept_s > KEPT_S:
            return None
        return kept if caller.owns(kept.caller.id, kept.caller.permits.tenant) else None

    def drop(self, name: str | None) -> None:
        kept = self._kept.pop(name or "", None)
        self._n_bytes -= 0 if kept is None else kept.n_bytes
