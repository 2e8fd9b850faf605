"""An HTTP request that was admitted, and its way to exactly one answer and one outcome, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from suffice.asgi import ClientGone
from suffice.episode.apis.events import CHAT, ApiFormat, ChatEvents
from suffice.episode.checkpoints import LISTED_TOKENS
from suffice.episode.extra_calls import Continuer, HeldCall
from suffice.episode.ledger import CostBasis, Ledger
from suffice.episode.samples import SampleRefusal
from suffice.episode.stream_relay import LiveRun
from suffice.errors import BadRequest, OverloadError, UpstreamError, UpstreamTimeout
from suffice.gateway.auth import token_header
from suffice.gateway.context import GatewayState, is_read_on
from suffice.gateway.exchange import Exchange, kept_alive, supervise
from suffice.gateway.lifecycle import (
    Arrival,
    begin_trace,
    blank_request,
    close,
    open_ledger,
    reply_headers,
    write_request,
)
from suffice.gateway.request_parsing import ParsedRequest
from suffice.gateway.turns import Turn
from suffice.records import frozen_struct
from suffice.review.items import format_conversation
from suffice.serving.route import BuiltRoute
from suffice.settings import Probe
from suffice.telemetry import LOG
from suffice.types import EndReason, Request
from suffice.upstream.client import UpstreamClient
from suffice.upstream.continuation import probe_of_form
from suffice.upstream.drivers import DRIVERS, find_verdict, has_field, honoured


@frozen_struct
class AdmittedRequest:
    gw: GatewayState
    exchange: Exchange
    parsed: ParsedRequest
    route: BuiltRoute | None
    upstream: str
    request: Request
    retry_after_s: int | None = None  # set if the request is shed
    turn: Turn | None = None  # of an agent's run, if its route governs turns

    @property
    def client(self) -> UpstreamClient:
        return self.gw.upstreams[self.upstream]


@frozen_struct
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
        return self.gw.stop_right(self.route, self.ledger).refusal() is None

    def live_run(self) -> LiveRun:
        return self.gw.process.live_runs.get(self.ledger.request.episode_id) or LiveRun(self.ledger)

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
        """Whether the engine is asked for its own counts in every chunk: exact ones of a call that may be cut off.

        A vote that is decided cuts its last samples off in every mode.
        """
        kind = self.ledger.request.kind
        may_be_cut = kind == "samples" or (self.may_act and kind == "reasoning")
        return may_be_cut and self.api is CHAT and DRIVERS[self.client.settings.driver].counts_chunks

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        if not self.parsed.stream:
            return nullcontext()
        return kept_alive(self.exchange, self.gw.settings.server.ping_s, self.gw.monotonic_s)


Admit = Callable[[str], Awaitable[AdmittedRequest]]  # takes the episode id
Answer = Callable[[AdmittedRequest, Ledger], Coroutine[Any, Any, None]]


async def serve_request(gw: GatewayState, exchange: Exchange, admit: Admit, answer: Answer, *, endpoint: str) -> None:
    started_s, episode_id = gw.monotonic_s(), gw.new_id()
    token = gw.feedback_token(episode_id)
    exchange.own_headers += [("x-suffice-episode-id", episode_id), *token_header(token)]
    gw.metrics.inc("suffice_live_requests")
    exchange.request.episode_id, trace = episode_id, begin_trace(gw, exchange)
    ledger: Ledger | None = None
    end: EndReason = "internal_error"
    try:
        admitted = await admit(episode_id)
        for field in admitted.parsed.stripped:
            gw.metrics.inc("suffice_stripped_fields_total", field)
        upstream, messages = gw.upstreams[admitted.upstream].settings, admitted.parsed.chat.get("messages")
        ledger = Ledger(admitted.request, started_s, costs=CostBasis(prices=upstream.prices), trace=trace)
        exchange.request.route = admitted.request.route or "-"
        if trace is not None:
            trace.attributes["suffice.upstream"], trace.provider = admitted.upstream, upstream.driver
        exchange.own_headers += reply_headers(admitted.request)
        open_ledger(gw, ledger, admitted.route, token, lambda: format_conversation(messages or ()))
        gw.process.live_runs[episode_id] = LiveRun(ledger)
        end = await _answer(admitted, ledger, answer)
    except BadRequest as error:
        end = "rejected"
        await exchange.refuse(error)
    except ClientGone:
        end = "client_left"
    except asyncio.CancelledError:
        end = "shutdown"  # the server is shutting down; this task ends here either way
        message = "the gateway is shutting down; retry the request"
        await exchange.fail(503, message, "shutting_down", kind="server_error")
    except Exception as error:  # noqa: BLE001 - the last resort: a clean error for the client, and a record
        await _report_internal_error(exchange, episode_id, error)
    finally:
        gw.metrics.inc("suffice_live_requests", by=-1)
        gw.process.live_runs.pop(episode_id, None)
        if ledger is None:
            unread = Arrival(episode_id=episode_id, endpoint=endpoint)
            ledger = Ledger(blank_request(gw, unread, "unreadable"), started_s, trace=trace)
            write_request(gw, ledger)
        ledger.reply.status, ledger.reply.first_byte_s = exchange.status, exchange.first_byte_s
        if trace is not None:
            trace.attributes["suffice.request_id"] = exchange.request.request_id
        close(gw, ledger, end, ended_s=exchange.last_sent_s if exchange.status else gw.monotonic_s())


async def _answer(admitted: AdmittedRequest, ledger: Ledger, answer: Answer) -> EndReason:
    exchange = admitted.exchange
    request = admitted.request
    gw = admitted.gw

    def reads_on() -> bool:
        if admitted.turn is not None or not is_read_on(request, admitted.route):
            return False
        control = gw.settings.control
        most = control.unread_audits if request.mode == "enforce" else control.unread_observed
        return gw.process.unread.enter(request.sender, most=most)

    try:
        left = await supervise(answer(admitted, ledger), exchange, reads_on)
    except OverloadError as error:
        await exchange.refuse(error)
        return "rejected"
    except SampleRefusal as refusal:
        if exchange.status:
            await exchange.fail(502, str(refusal), refusal.code)
        else:
            kept = [("content-type", refusal.content_type), ("content-length", str(len(refusal.body)))]
            await exchange.start(refusal.http_status, [*kept, *refusal.headers])
            await exchange.body(refusal.body, more=False)
        return "upstream_error"
    except UpstreamError as error:
        # The run refers to this error and its traceback to the run: a cycle that would keep the data read.
        error.with_traceback(None)
        gw.metrics.inc("suffice_upstream_errors_total", admitted.upstream, error.code)
        await exchange.fail(error.status, str(error), error.code)
        return "timeout" if isinstance(error, UpstreamTimeout) else "upstream_error"
    except Exception as error:  # noqa: BLE001 - as above, with the tokens spent so far on record
        ledger.fail_open("gateway")
        await _report_internal_error(exchange, ledger.request.episode_id, error)
        return "internal_error"
    finally:
        if exchange.is_unread:
            gw.process.unread.leave(request.sender)
    ledger.audit.finished_unread = exchange.is_unread and exchange.complete and ledger.end_reason is None
    return "client_left" if left else "done"


async def _report_internal_error(exchange: Exchange, episode_id: str, error: Exception) -> None:
    LOG.error("episode %s: internal error (%s)", episode_id, type(error).__name__)
    LOG.debug("the same, with its traceback", exc_info=True)  # may quote the client's data: debug only
    await exchange.fail(500, "internal error of the gateway", "internal_error", kind="server_error")
