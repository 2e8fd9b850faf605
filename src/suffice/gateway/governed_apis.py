"""`POST /v1/responses` and `POST /v1/messages`: governed like chat where their thought can be cut, else relayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from suffice.episode.apis.events import ENGINES, ApiFormat
from suffice.episode.ledger import Ledger
from suffice.gateway.chat import admit_chat, answer
from suffice.gateway.context import GatewayState
from suffice.gateway.lifecycle import AdmittedRequest
from suffice.gateway.passthrough import PassingExchange, Passthrough
from suffice.gateway.route import BuiltRoute
from suffice.upstream.reply_form import has_field


@dataclass(frozen=True, slots=True)
class GovernedApi(Passthrough):
    format: ApiFormat

    async def _admit(self, gw: GatewayState, exchange: PassingExchange, episode_id: str) -> AdmittedRequest:
        parsed = await self._read_allowed(gw, exchange)
        chat, reason = self.format.as_chat(parsed.body)
        parsed = replace(parsed, as_chat=chat)

        def refusal(route: BuiltRoute) -> str | None:
            if reason is not None or route.settings.kind == "reasoning":
                return reason or _unwritten(chat) or _signed(gw, route)
            return "endpoint"  # a vote is one chat completion

        return admit_chat(gw, exchange, episode_id, parsed, endpoint=self.path, refusal=refusal)

    async def _respond(
        self, gw: GatewayState, exchange: PassingExchange, admitted: AdmittedRequest, ledger: Ledger
    ) -> None:
        relay = partial(self.relay, gw, exchange, admitted, ledger)
        await answer(gw, admitted, ledger, exchange, self.format, relay)


def _unwritten(chat: Mapping[str, Any]) -> str | None:
    """Return what a stopped reply of another API could not say: which stop word ended it, its probabilities."""
    if has_field(chat, "stop"):
        return "stop"
    return "logprobs" if has_field(chat, "top_logprobs") else None


def _signed(gw: GatewayState, route: BuiltRoute) -> str | None:
    """Return why only the effort of this route's upstream may be chosen: its thoughts are signed or hidden."""
    settings = route.settings
    upstream = gw.upstreams.get(settings.upstream or gw.fallback_upstream())
    is_engine = upstream is None or upstream.settings.driver in ENGINES
    return None if is_engine or settings.arms else "signed"
