"""`POST /v1/responses` and `/v1/messages`: governed like chat where their thought can be cut, else relayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from suffice.episode.apis.events import ENGINES, ChatEvents
from suffice.episode.apis.responses import items_of, with_conversation
from suffice.episode.ledger import Ledger
from suffice.gateway.admitted import AdmittedRequest
from suffice.gateway.chat import admit_chat, answer
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.passthrough import Passthrough, ResponsesExchange
from suffice.serving.route import BuiltRoute
from suffice.upstream.drivers import has_field
from suffice.upstream.wire import encode_json


class GovernedApi(Passthrough):
    """A vote is one chat completion, so other APIs govern only a thought."""

    async def _admit(self, gw: GatewayState, exchange: Exchange, episode_id: str) -> AdmittedRequest:
        parsed = await self._read_allowed(gw, exchange)
        previous, whole = parsed.body.get("previous_response_id"), parsed.body
        if previous is not None:
            kept = gw.responses.get(previous, exchange.caller, now_s=gw.monotonic_s())
            if kept is not None:
                whole = with_conversation(kept.items, parsed.body)
                if kept.is_ours:
                    parsed = replace(parsed, body=whole, changed=True)
        chat, reason = self.api.format.as_chat(whole)
        parsed = replace(parsed, as_chat=chat)
        if isinstance(exchange, ResponsesExchange) and parsed.body.get("store") is not False:
            exchange.items = items_of(whole)

        def refusal(route: BuiltRoute) -> str | None:
            if reason is not None or route.settings.kind == "reasoning":
                return reason or _unwritten(chat) or _signed(gw, route)
            return "endpoint"

        return await admit_chat(gw, exchange, episode_id, parsed, api=self.api.format, refusal=refusal)

    async def _respond(self, admitted: AdmittedRequest, ledger: Ledger) -> None:
        gw, exchange = admitted.gw, admitted.exchange

        def began(events: ChatEvents) -> None:
            if not isinstance(exchange, ResponsesExchange):
                return
            given, caller = exchange.items, exchange.caller

            def look() -> None:
                self._note_created(admitted, ledger, ledger.reply.response_id)
                if events.is_over and given is not None:
                    exchange.on_part, now_s = None, gw.monotonic_s()
                    gw.responses.keep(caller, given, events.body(), is_ours=events.is_ours, now_s=now_s)

            exchange.on_part = look

        await answer(admitted, ledger, self.api.format, partial(self.relay, admitted, ledger), began=began)


class StoredResponse(Passthrough):
    """`GET` and `DELETE /v1/responses/{id}`: a stopped response is not what the engine has kept."""

    async def _respond(self, admitted: AdmittedRequest, ledger: Ledger) -> None:
        gw, exchange = admitted.gw, admitted.exchange
        kept = gw.responses.get(exchange.stored_id, exchange.caller, now_s=gw.monotonic_s())
        if self.method == "DELETE":
            gw.responses.drop(exchange.stored_id)
        if kept is None or not kept.is_ours:
            await self.relay(admitted, ledger)
            return
        gone = {"id": exchange.stored_id, "object": "response", "deleted": True}
        await exchange.json(200, encode_json(gone) if self.method == "DELETE" else kept.body)


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
