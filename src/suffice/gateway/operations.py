"""What operators ask of a running gateway over HTTP: its kill switch, its settings, and the runs in progress.

`/v1/admin/kill`, `/v1/admin/reload`, `/v1/runs`, and `/v1/runs/{id}/answer-now` and `/think-more`. A reply about a run
depends on what the caller's own stream shows, never on the draw: see `episode.stream_relay.LiveRun`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from suffice.assurance.labels import BEHAVIOUR
from suffice.episode.stream_relay import LiveRun
from suffice.errors import BadRequest, StoreError, SufficeError
from suffice.gateway.auth import Caller
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.kill import set_switch
from suffice.gateway.lifecycle import append
from suffice.gateway.request_parsing import check_body_headers, check_known, parse_json
from suffice.settings import Settings
from suffice.store.database.location import log_location
from suffice.store.database.presence import replica_name
from suffice.store.database.writer import LogWriter
from suffice.store.routes.deployments import find_running, read_local_kills
from suffice.store.rows.events import FeedbackEvent, KillSwitchState
from suffice.types import Feedback, Request, Wish

LIMIT_BYTES: Final = 16 * 1024
MOST_CHARS: Final = 500
MOST_READ_S: Final = 1.0  # to learn from the log which other gateways a person keeps killed


async def show_switch(gw: GatewayState, exchange: Exchange) -> None:
    """State of this gateway's switch; `by_hand` names gateways that a release does not reach, where there are any."""
    kill = gw.deployment.kill
    body: dict[str, Any] = {"on": kill.on, "reason": kill.reason if kill.on else None}
    by_hand = await _local_kills(gw)
    if by_hand:
        body["by_hand"] = [{"gateway": name, "reason": reason} for name, reason in by_hand.items()]
        body["message"] = "a release does not reach what a person did by hand: run suffice unkill on that machine"
    await exchange.json(200, msgspec.json.encode(body))


async def _local_kills(gw: GatewayState) -> dict[str, str]:
    kill, known = gw.deployment.kill, dict[str, str]()
    if gw.deployment.log_problem is None and isinstance(gw.log, LogWriter):
        with suppress(StoreError, OSError):
            rows = await asyncio.wait_for(asyncio.to_thread(read_local_kills, gw.log.path), MOST_READ_S)
            known = {one.gateway: one.reason for one in rows}
    own = replica_name(gw.settings)
    known.pop(own, None)
    return {own: kill.reason, **known} if kill.is_local else known


async def pull_switch(gw: GatewayState, exchange: Exchange) -> None:
    """`POST /v1/admin/kill` with a reason. Works without the database: a file keeps the state over restarts."""
    check_body_headers(exchange.headers, LIMIT_BYTES)
    reason = parse_json(await exchange.read_body(LIMIT_BYTES), gw.settings.server).get("reason")
    if not isinstance(reason, str) or not 0 < len(reason) <= MOST_CHARS:
        raise BadRequest(f"reason: must be a text of 1 to {MOST_CHARS} characters", param="reason")
    await _switch(gw, exchange, reason)


async def release_switch(gw: GatewayState, exchange: Exchange) -> None:
    """`DELETE /v1/admin/kill`: every gateway removes the file of an order; a file that a person made stays."""
    await _switch(gw, exchange, None)


async def _switch(gw: GatewayState, exchange: Exchange, reason: str | None) -> None:
    """Obey the order here, write the file, then give the order to all replicas; `reason`: None releases the switch."""
    kill, author = gw.deployment.kill, exchange.caller.name or "the API"
    problem = "this gateway has no file for its kill switch" if kill.file is None else ""
    text, stamp = "" if reason is None else f"{reason} ({author})", kill.next_stamp(gw.wall_s())
    order = KillSwitchState(on=reason is not None, reason=text, stamp=stamp, ordered=True)
    kill.follow(order)
    try:
        if kill.file is not None and reason is not None and kill.held_by != "file":
            await asyncio.to_thread(set_switch, kill.file, reason, author, order=stamp)
    except OSError as error:
        problem = f"{kill.file}: cannot be changed ({error.strerror})"
    if kill.on and reason is None and not kill.is_local:
        problem = f"{kill.file}: cannot be removed"
    append(gw, order)
    gw.deployment.check_kill()
    if problem:
        message = f"{problem}; until it ends, this gateway does as ordered, and the order is in the log's queue"
        await exchange.fail(503, message, "kill_file", kind="server_error")
    else:
        await show_switch(gw, exchange)


async def reload_settings(gw: GatewayState, exchange: Exchange) -> None:
    """`POST /v1/admin/reload`: apply the changes in the settings file, all of them or none; `preview`: list them."""
    body, raw = dict[str, Any](), await exchange.read_body(LIMIT_BYTES)
    if raw:
        check_body_headers(exchange.headers, LIMIT_BYTES)
        body = parse_json(raw, gw.settings.server)
    check_known(body, ("preview", "reason"))
    is_preview, reason = body.get("preview", False), body.get("reason", "")
    if not isinstance(is_preview, bool):
        raise BadRequest("preview: must be true or false", param="preview")
    if not isinstance(reason, str) or len(reason) > MOST_CHARS:
        raise BadRequest(f"reason: must be a text of at most {MOST_CHARS} characters", param="reason")
    if gw.process.reload is None:
        raise BadRequest("this process cannot reload its settings", status=409, code="conflict")
    try:
        result = await gw.process.reload(None if is_preview else f"key {exchange.caller.name}", reason)
    except SufficeError as error:
        raise BadRequest(f"nothing was reloaded: {error}", status=409, code="conflict") from None
    answer = {
        "done": not is_preview,
        "applied": result.applied,
        "need_restart": result.need_restart,
        "changes": result.changes,
        "notes": result.notes,
        "message": result.sentence,
    }
    await exchange.json(200, msgspec.json.encode(answer))


# --------------------------------------------------------------------------- runs in progress


async def list_runs(gw: GatewayState, exchange: Exchange) -> None:
    """The caller's own runs; all of them for a key with the scope `operate`."""
    runs = (one for one in gw.process.live_runs.values() if _may_ask(exchange.caller, one.ledger.request))
    body = {"replica": gw.settings.server.replica, "runs": [one.view() for one in runs]}
    await exchange.json(200, msgspec.json.encode(body))


async def answer_now(gw: GatewayState, exchange: Exchange) -> None:
    await _ask(gw, exchange, "answer_now")


async def think_more(gw: GatewayState, exchange: Exchange) -> None:
    await _ask(gw, exchange, "think_more")


async def _ask(gw: GatewayState, exchange: Exchange, wish: Wish) -> None:
    run = gw.process.live_runs.get(exchange.stored_id or "")
    if run is None or not _may_ask(exchange.caller, run.ledger.request):  # the same for both: ids cannot be tried
        may_ask = partial(_may_ask, exchange.caller)
        where = await asyncio.to_thread(describe_elsewhere, gw.settings, exchange.stored_id or "", may_ask)
        message = f"no run with this id of yours is running on this gateway: {where}"
        raise BadRequest(message, status=409, code="not_running")
    why_not = ask_of(gw, run, wish, sender=exchange.caller.id)
    if why_not is not None:
        raise BadRequest(why_not, status=409, code="cannot_be_asked")
    await exchange.json(202, msgspec.json.encode(run.view()))


def ask_of(gw: GatewayState, run: LiveRun, wish: Wish, *, sender: str) -> str | None:
    """Pass a person's wish to a run and log it, once; return why that cannot be done, or None."""
    is_new, episode_id = run.ledger.stop.wish is None, run.ledger.request.episode_id
    why_not = run.ask(wish)
    if why_not is None and is_new:
        name = f"{wish}:{episode_id}"
        given = Feedback(
            feedback_id=name, episode_id=episode_id, source=BEHAVIOUR, event=wish, sender=sender, door="live"
        )
        append(gw, FeedbackEvent(given))
    return why_not


def describe_elsewhere(settings: Settings, episode_id: str, may_ask: Callable[[Request], bool]) -> str:
    """Say where a run is that this gateway does not have, as far as the log knows and the asker may know."""
    with suppress(StoreError, OSError):
        running = find_running(log_location(settings.store), episode_id)
        if running is not None and may_ask(running[0]) and running[1] not in ("", replica_name(settings)):
            return f"the replica {running[1]} has it; ask there"
    return "it has ended, or another replica has it"


def _may_ask(caller: Caller, request: Request) -> bool:
    return caller.may_act("operate") or (not caller.only_feedback and caller.owns(request.sender, request.tenant))
