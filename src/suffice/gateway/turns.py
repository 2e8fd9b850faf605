"""An agent's turns as steps of one run, where the client names the conversation: its loop ends once a turn suffices.

A turn is a step when its tools have answered, so it is complete once the client asks for the next one. Its trial answer
is the reply to that request with no tool allowed. A stop delivers this very reply, so what is certified is what the
client gets; a run that goes on pays for it. The request's own messages say which turn it is: each answer with calls
behind the last message of a user was one. A history that does not continue an open run passes through.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from suffice.episode.apis.events import ApiFormat
from suffice.episode.chain_reader import holds_call
from suffice.episode.extra_calls import FINISH_TIMEOUT_S, Continuer, HeldCall, Piece
from suffice.episode.ledger import Ledger
from suffice.episode.rounds import RoundsRun, StepReport, TrialAnswer, TurnsState
from suffice.errors import UpstreamBusy, UpstreamError
from suffice.gateway.auth import Caller
from suffice.gateway.context import GatewayState, is_measured
from suffice.gateway.request_parsing import ParsedRequest, last_question
from suffice.gateway.rounds_service import RunStart, close_old, close_run, list_run, open_run
from suffice.policy.protocol import returns_of
from suffice.rollout.assign import joined
from suffice.serving.route import BuiltRoute
from suffice.telemetry import LOG
from suffice.upstream.assemble import calls_of
from suffice.upstream.client import Call, Headers, UpstreamClient
from suffice.upstream.continuation import Continuation
from suffice.upstream.drivers import find_verdict, requires_call, thinking_is_off
from suffice.upstream.wire import encode_json, items_in, within

MISSING: Final = TrialAnswer(answer=None, tokens=0, is_missing=True)
MOST_PENDING_CHARS: Final = 16_384  # kept of a turn's text while its tools run
STOPPED: Final = "turns"  # why a request is not governed on its own route: its reply is the answer of the run

CallIds = tuple[str, ...]  # of the calls in one reply


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPlace:
    """Where a request stands in its run."""

    opening: str  # digest of the messages up to the last one of a user
    called: list[CallIds]  # by each turn since then
    results: tuple[str, ...]  # what the tools of the latest turn returned

    @property
    def index(self) -> int:
        return len(self.called) + 1


def find_place(messages: Sequence[Any]) -> TurnPlace | None:
    """Return None for messages that are not those of an agent's loop."""
    newest = max((n for n, one in enumerate(messages) if within(one, "role") == "user"), default=None)
    if newest is None:
        return None
    called, results = list[CallIds](), list[str]()
    for one in messages[newest + 1 :]:
        role = within(one, "role")
        if role == "assistant" and (calls := calls_of(one)):
            called, results = [*called, _ids_of(calls)], []
        elif role == "tool":
            results.append(str(one.get("content")))
        else:
            return None
    if called and not results:
        return None
    opening = hashlib.blake2b(encode_json([_uncached(one) for one in messages[: newest + 1]]), digest_size=16)
    return TurnPlace(opening=opening.hexdigest(), called=called, results=tuple(results))


def _ids_of(calls: Iterable[Mapping[str, Any]]) -> CallIds:
    return tuple(str(call.get("id") or "") for call in calls)


def _uncached(message: Any) -> Any:
    """Return a message without Anthropic's marks of cached parts, which move on from turn to turn."""
    parts = within(message, "content")
    if not isinstance(parts, list):
        return message
    plain = [
        {k: v for k, v in part.items() if k != "cache_control"} if isinstance(part, dict) else part for part in parts
    ]
    return message | {"content": plain}


def tool_names(chat: Mapping[str, Any]) -> list[str]:
    """Return the names of the tools that a request offers; "" for one that has none."""
    tools = items_in(chat, "tools")
    return [str(within(one, str(within(one, "type") or "function"), "name") or "") for one in tools]


# --------------------------------------------------------------------------- one turn


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """A client's request on a route that governs turns by another one."""

    caller: Caller
    conversation: str | None
    route: BuiltRoute  # that governs the turns
    client: UpstreamClient
    parsed: ParsedRequest
    headers: Headers  # without the client's keys
    api: ApiFormat

    async def try_answer(self, run: RoundsRun) -> tuple[HeldCall | None, TrialAnswer | None]:
        """Return the reply with no tool allowed, None if it cannot be delivered, and its answer, None if none is tried.

        An answer counts as missing if the client wants a call, if there is no reply, if it calls a tool or is cut, or
        if it has none while an earlier one had: a stop could not deliver what the audits saw.
        """
        settings, ledger = self.route.settings, run.ledger
        if settings.probe is None:
            return None, None
        continuer = Continuer(
            client=self.client,
            probe=settings.probe,
            max_extra_calls=settings.max_extra_calls,
            body=self.parsed.chat,
            headers=self.headers,
            ledger=ledger,
        )
        n_before = len(ledger.calls)
        reason = self._hindrance(continuer)
        try:
            if reason is None:
                async with asyncio.timeout(FINISH_TIMEOUT_S):
                    held, pieces = await self._read(continuer)
        except UpstreamBusy as busy:
            reason = busy.reason
        except (UpstreamError, TimeoutError):
            ledger.fail_open("probe")
            return None, replace(MISSING, tokens=sum(call.completion_tokens for call in ledger.calls[n_before:]))
        if reason is not None:
            ledger.extra.skipped[reason] += 1
            return None, MISSING
        text, tokens = "".join(piece.text for piece in pieces), ledger.calls[-1].completion_tokens
        if holds_call(text) or any(piece.calls_delta or piece.finish_reason == "length" for piece in pieces):
            return None, replace(MISSING, tokens=tokens)
        answer = ledger.extract(run.scorer, text)
        is_missing = answer is None and any(step.answer is not None for step in run.seen)
        return held if answer is not None else None, TrialAnswer(answer=answer, tokens=tokens, is_missing=is_missing)

    def _hindrance(self, continuer: Continuer) -> str | None:
        if requires_call(self.parsed.chat):
            return "tool_choice"
        return self.client.extra_refusal() if continuer.may_call(keep=0) else "max_extra_calls"

    async def _read(self, continuer: Continuer) -> tuple[HeldCall, list[Piece]]:
        """Raise UpstreamError."""
        client, held = self.client, list[HeldCall]()
        with_usage = self.api.events is None and find_verdict(client.findings, "stream_usage") != "no"
        body = self.parsed.streamed(with_usage=with_usage) | {"tool_choice": self.api.no_tool}
        opened = client.settings.think_opened and not thinking_is_off(body)
        request = Continuation(path=self.api.path, body=body, opened=opened)

        def hold(call: Call) -> Call:
            held.append(HeldCall(call))
            return held[0]

        call = continuer.open(request, thought_tokens=0, purpose="probe", api=self.api, through=hold)
        async with call as (reply, _):
            pieces = [piece async for piece in reply]
        held[0].rewind()
        return held[0], pieces


@dataclass(slots=True, kw_only=True)
class Turn:
    gw: GatewayState
    run: RoundsRun
    state: TurnsState
    request: TurnRequest
    place: TurnPlace
    held: HeldCall | None = None  # the answer of the run, if it ends before this turn
    _reply: StepReport | None = None  # None: not read, or not yet
    _step: asyncio.Task[None] | None = None  # takes the turn before as a step

    async def begin(self) -> None:
        """Take the turn before as a step. This turn waits for that only where a stop could act."""
        if len(self.state.called) > len(self.place.called):
            return  # the client asks for this turn again
        report, self.state.pending = self.state.pending, None
        if report is not None:
            self._step = asyncio.create_task(self._take_step(replace(report, sources=self.place.results)))
            if self.run.ledger.request.mode == "enforce" or self.run.ledger.stop.wish == "answer_now":
                await self._step

    async def _take_step(self, report: StepReport) -> None:
        run = self.run
        state = self.state
        index = self.place.index - 1
        try:
            async with state.lock:
                if run.is_over or len(run.seen) != index - 1:
                    return
                held = None
                trial = None
                may_act = state.is_live and run.right.refusal() is None
                if may_act or run.ledger.stop.wish == "answer_now" or is_measured(run.ledger.request):
                    held, trial = await self.request.try_answer(run)
                vector = await run.vector_of(index, report)
                run.can_deliver = may_act and held is not None
                if run.take(index, report, vector, trial=trial).stop:
                    close_run(self.gw, run)
                    self.held = held
        except asyncio.CancelledError:
            state.pending = state.pending or report  # the client may ask for this turn again
            raise
        except Exception as error:  # noqa: BLE001 - costs the run its evidence, never an answer
            _give_up(self.gw, run, error)

    def note(self, text: str, calls: Sequence[Mapping[str, Any]], ledger: Ledger) -> None:
        """Note this turn's reply, before the client can go on with it."""
        run = self.run
        state = self.state
        usage = ledger.usage()
        if run.is_over or usage is None:
            return
        kinds = [str(call.get("type") or "function") for call in calls]
        names = [str(within(call, kind, "name") or "tool") for call, kind in zip(calls, kinds, strict=True)]
        before = self._reply
        self._reply = StepReport(
            tokens=usage.completion_tokens,
            ctx_tokens=usage.prompt_tokens,
            text=text[:MOST_PENDING_CHARS] if calls else text,
            action=", ".join(names) or None,
        )
        if calls:
            if state.pending not in (None, before):
                run.add_usage(state.pending)  # of a reply that the client did not go on with
            state.pending, state.called = self._reply, [*self.place.called, _ids_of(calls)]

    async def end(self, ledger: Ledger) -> None:
        """End the run where this turn's reply is its answer."""
        if self._step is not None:
            await self._step
        run = self.run
        reply = ledger.reply
        index = self.place.index
        if run.is_over or ledger.end_reason is not None or (self._reply is not None and self._reply.action):
            return  # after an error the client may ask again
        run.ledger.reply.note_upstream(reply.model, reply.system_fingerprint)
        if self._reply is None and reply.unclosed:
            self.note("", (), ledger)
        if self._reply is None or len(run.seen) != index - 1:
            close_run(self.gw, run, "client_left")  # this turn passed through unread, or a step was missed
            return
        run.can_deliver = False  # it has ended by itself
        run.take(index, self._reply)
        run.ledger.reply.finish_reason = reply.finish_reason
        close_run(self.gw, run)

    def cancel(self) -> None:
        if self._step is not None:
            self._step.cancel()

    @property
    def stop_certified(self) -> bool | None:
        """Whether the stop that this reply delivers is certified; None: it delivers none."""
        return None if self.held is None else self.run.ledger.request.certified

    def report(self) -> dict[str, Any]:
        ledger = self.run.ledger
        return {
            "route": ledger.request.route,
            "episode_id": ledger.request.episode_id,
            "feedback_token": ledger.disclosure.feedback_token or None,
            "turn": self.place.index,
            "stopped": self.held is not None,
        }


# --------------------------------------------------------------------------- the turns of a conversation


async def begin_turn(gw: GatewayState, request: TurnRequest) -> Turn | None:
    """Return the turn that a request is; None, with its reason counted, if its turns are not governed."""
    turn: Turn | None = None
    try:
        turn = _find_turn(gw, request)
        if turn is not None:
            await turn.begin()
    except Exception as error:  # noqa: BLE001 - costs the run its evidence, never an answer
        _give_up(gw, None if turn is None else turn.run, error)
        return None
    return turn


def _give_up(gw: GatewayState, run: RoundsRun | None, error: Exception) -> None:
    LOG.error("turns: internal error (%s)", type(error).__name__)
    gw.metrics.inc("suffice_failopen_total", "turns")
    if run is not None:
        close_run(gw, run, "client_left")


def _find_turn(gw: GatewayState, request: TurnRequest) -> Turn | None:
    close_old(gw)
    place = find_place(request.parsed.chat.get("messages") or ())
    names, patterns = tool_names(request.parsed.chat), request.route.settings.reading_tools
    run, reason = None, "conversation"
    if request.conversation and place is not None:
        opening = joined("turns", request.route.name, request.caller.namespace, request.conversation, place.opening)
        run = gw.runs.get(gw.runs.opened.get(opening, ""), sender=request.caller.id, now_s=gw.monotonic_s())
        run = None if run is None or run.is_over else run
        if names and all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in names):
            run, reason = _continued(gw, request, place, opening, run), "unknown_run"
        else:
            reason = "tools"
            if run is not None:
                close_run(gw, run, "client_left")
                run = None
    if run is None or place is None or run.turns is None:
        gw.metrics.inc("suffice_ungoverned_total", request.route.name, reason)
        return None
    if run.ledger.request.ungoverned is not None:
        return None
    return Turn(gw=gw, run=run, state=run.turns, request=request, place=place)


def _continued(
    gw: GatewayState, request: TurnRequest, place: TurnPlace, opening: str, run: RoundsRun | None
) -> RoundsRun | None:
    """Return the run that this history continues, or a new one for a first turn."""
    if run is not None and run.turns is not None:
        n_before = len(place.called)
        if place.called == run.turns.called[:n_before] and (n_before or not run.seen):
            return run
        close_run(gw, run, "client_left")
    if place.called:
        return None
    start = RunStart(
        question=last_question(request.parsed.chat) or "", key=request.conversation, model=request.parsed.model
    )
    made = open_run(gw, request.route, start, caller=request.caller, endpoint=request.api.path, body=opening.encode())
    made.turns = TurnsState(is_live=made.acts and returns_of(made.policy.policy) == "last")
    gw.runs.put(made, key=opening, now_s=gw.monotonic_s())
    list_run(gw, made, can_end=request.route.settings.probe is not None)
    return made
