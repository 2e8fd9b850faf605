"""One request that is governed, and what follows from it and its route."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from suffice.episode.apis.events import CHAT, ApiFormat, ChatEvents
from suffice.episode.extra_calls import Continuer, HeldCall
from suffice.episode.ledger import Ledger
from suffice.episode.proposer import LISTED_TOKENS
from suffice.gateway.context import GatewayState, may_stop
from suffice.gateway.exchange import Exchange, kept_alive
from suffice.gateway.request_parsing import ParsedRequest
from suffice.gateway.route import BuiltRoute
from suffice.settings import Probe
from suffice.upstream.client import UpstreamClient
from suffice.upstream.continuation import probe_of_form
from suffice.upstream.drivers import DRIVERS, find_verdict, has_field, honoured


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernedRequest:
    gw: GatewayState
    route: BuiltRoute
    client: UpstreamClient
    parsed: ParsedRequest
    headers: list[tuple[str, str]]
    ledger: Ledger
    exchange: Exchange
    api: ApiFormat
    events: ChatEvents
    held: HeldCall | None = None  # the reply, where it has been read already

    @property
    def probe(self) -> Probe:
        probe, form = self.route.settings.probe or Probe(), self.ledger.request.form
        return probe if form == "text" else probe_of_form(probe, form)

    @property
    def may_act(self) -> bool:
        return may_stop(self.ledger.request, self.route) and not self.gw.deployment.kill.on

    @property
    def signal_fields(self) -> dict[str, Any]:
        """Fields that read signals from the model's tokens; a client that wants log-probabilities gets its own."""
        asks = self.api is CHAT and self.route.reads("end-of-thought") and not has_field(self.parsed.body, "logprobs")
        reads_stream = asks and honoured(self.client.findings, "logprobs_stream")
        return self.line_fields or ({"logprobs": True, "top_logprobs": LISTED_TOKENS} if reads_stream else {})

    @property
    def line_fields(self) -> dict[str, Any]:
        """Fields by which the engine reads these signals at the ends of lines; a proposer needs them in the stream."""
        ask, route = DRIVERS[self.client.settings.driver].line_signals, self.route
        reads = (route.reads("end-of-thought") or route.reads("wording")) and route.proposer is None
        if ask is None or not reads or self.api is not CHAT or not honoured(self.client.findings, "line_signals"):
            return {}
        return ask(self.ledger.request.episode_id, self.client.settings.think_close)

    @property
    def max_tokens(self) -> int | None:
        cap = self.parsed.chat.get("max_completion_tokens") or self.parsed.chat.get("max_tokens")
        return cap if isinstance(cap, int) and cap > 0 else None

    @property
    def forces_answers(self) -> bool:
        """Whether a run that would end inside its thought gets an answer; stop words may have ended it on purpose."""
        wants = self.route.acts and self.route.settings.finish_unclosed and not self.gw.deployment.kill.on
        return wants and not has_field(self.parsed.chat, "stop")

    def answer_reserve(self, continuer: Continuer) -> int | None:
        """Return after how many tokens a thought is closed, so that the cap leaves room for a call or JSON."""
        cap = self.max_tokens
        if cap is None or not self.forces_answers or not continuer.methods or self.ledger.request.form == "text":
            return None
        return cap - min(continuer.probe.max_tokens, cap // 2)

    @property
    def upstream_body(self) -> dict[str, Any]:
        """The client's body as a stream, with usage unless `suffice doctor` saw that the upstream refuses it."""
        with_usage = self.api is CHAT and find_verdict(self.client.findings, "stream_usage") != "no"
        return self.parsed.streamed(with_usage=with_usage, in_chunks=self.counts_chunks)

    @property
    def counts_chunks(self) -> bool:
        """Whether the engine is asked for its own counts in every chunk: exact ones of a run that may be stopped."""
        is_cut = self.may_act and self.ledger.request.kind == "reasoning"
        return is_cut and self.api is CHAT and DRIVERS[self.client.settings.driver].counts_chunks

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        if not self.parsed.stream:
            return nullcontext()
        return kept_alive(self.exchange, self.gw.settings.server.ping_s, self.gw.monotonic_s)
