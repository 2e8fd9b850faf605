"""`GET /v1/runs`, and `POST /v1/runs/{id}/answer-now` and `/think-more`: requests that run on this gateway now.

A reply depends on what the caller's own stream shows, never on the draw: see `episode.live_run`.
"""

from __future__ import annotations

import msgspec

from suffice.assurance.labels import BEHAVIOUR
from suffice.episode.live_run import LiveRun, Wish
from suffice.gateway.auth import Caller
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.lifecycle import append
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback


class LiveRunView(msgspec.Struct, frozen=True, kw_only=True):
    id: str  # of the episode, as `x-suffice-episode-id` of its response
    route: str
    model: str
    mode: str
    kind: str
    began_at_s: float  # Unix time
    tokens: int  # generated so far, as relayed
    state: str  # "thinking", "answering" or, where there is no thought to cut, "running"
    wish: str | None  # what was asked of it: "answer_now" or "think_more"


async def list_runs(gw: GatewayState, exchange: Exchange) -> None:
    """The caller's own runs; all of them for a key with the scope `operate`."""
    runs = (one for one in gw.process.live_runs.values() if _may_ask(exchange.caller, one))
    body = {"replica": gw.settings.server.replica, "runs": [view_of(one) for one in runs]}
    await exchange.json(200, msgspec.json.encode(body))


def view_of(one: LiveRun) -> LiveRunView:
    request, reader = one.ledger.request, one.reader
    return LiveRunView(
        id=request.episode_id,
        route=request.route,
        model=request.model,
        mode=request.mode,
        kind=request.kind,
        began_at_s=request.received_at_s,
        tokens=0 if reader is None else reader.account.received_tokens,
        state=one.state,
        wish=one.wish,
    )


async def answer_now(gw: GatewayState, exchange: Exchange) -> None:
    await _ask(gw, exchange, "answer_now")


async def think_more(gw: GatewayState, exchange: Exchange) -> None:
    await _ask(gw, exchange, "think_more")


async def _ask(gw: GatewayState, exchange: Exchange, wish: Wish) -> None:
    run = gw.process.live_runs.get(exchange.stored_id or "")
    if run is None or not _may_ask(exchange.caller, run):  # the same for both, so that ids cannot be tried
        message = "no run with this id of yours is running on this gateway: it has ended, or another replica has it"
        await exchange.fail(409, message, "not_running", kind="invalid_request_error")
        return
    why_not = ask_of(gw, run, wish, sender=exchange.caller.id)
    if why_not is not None:
        await exchange.fail(409, why_not, "cannot_be_asked", kind="invalid_request_error")
        return
    await exchange.json(202, msgspec.json.encode(view_of(run)))


def ask_of(gw: GatewayState, run: LiveRun, wish: Wish, *, sender: str) -> str | None:
    """Pass a person's wish to a run and log it, once; return why that cannot be done, or None."""
    is_new = run.wish is None
    why_not = run.ask(wish)
    if why_not is None and is_new:
        episode_id = run.ledger.request.episode_id
        given = Feedback(
            feedback_id=f"{wish}:{episode_id}",
            episode_id=episode_id,
            source=BEHAVIOUR,
            event=wish,
            sender=sender,
            door="live",
        )
        append(gw, FeedbackEvent(given))
    return why_not


def _may_ask(caller: Caller, run: LiveRun) -> bool:
    request = run.ledger.request
    return caller.may_act("operate") or (not caller.only_feedback and caller.owns(request.sender, request.tenant))
