"""`/v1/admin/kill`: the kill switch over HTTP, of this gateway at once and of every replica of its log."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from suffice.asgi import ClientGone
from suffice.errors import BadRequest
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.kill import clear_switch, set_switch
from suffice.gateway.lifecycle import append
from suffice.gateway.request_parsing import check_body_headers, parse_json
from suffice.store.rows.events import KillSwitchState

LIMIT_BYTES: Final = 16 * 1024
MOST_CHARS: Final = 500


async def show_switch(gw: GatewayState, exchange: Exchange) -> None:
    kill = gw.deployment.kill
    await exchange.json(200, msgspec.json.encode({"on": kill.on, "reason": kill.reason if kill.on else None}))


async def pull_switch(gw: GatewayState, exchange: Exchange) -> None:
    """`POST /v1/admin/kill` with a reason. Works without the database: a file keeps the state over restarts."""
    try:
        check_body_headers(exchange.headers, LIMIT_BYTES)
        body: dict[str, Any] = parse_json(await exchange.read_body(LIMIT_BYTES), gw.settings.server)
        reason = body.get("reason")
        if not isinstance(reason, str) or not 0 < len(reason) <= MOST_CHARS:
            raise BadRequest(f"reason: must be a text of 1 to {MOST_CHARS} characters", param="reason")
    except BadRequest as error:
        await exchange.refuse(error)
        return
    except ClientGone:
        return
    await _switch(gw, exchange, reason)


async def release_switch(gw: GatewayState, exchange: Exchange) -> None:
    await _switch(gw, exchange, None)


async def _switch(gw: GatewayState, exchange: Exchange, reason: str | None) -> None:
    """Change the file, then give the order to all replicas; `reason`: None releases the switch."""
    kill, author = gw.deployment.kill, exchange.caller.name or "the API"
    problem = "this gateway has no file for its kill switch" if kill.file is None else ""
    try:
        if kill.file is not None and reason is None:
            await asyncio.to_thread(clear_switch, kill.file)
        elif kill.file is not None and reason is not None:
            await asyncio.to_thread(set_switch, kill.file, reason, author)
    except OSError as error:
        problem = f"{kill.file}: cannot be changed ({error.strerror})"
    text, stamp = "" if reason is None else f"{reason} ({author})", int(gw.wall_s() * 1e9)
    order = KillSwitchState(on=reason is not None, reason=text, stamp=stamp, ordered=True)
    append(gw, order)
    kill.follow(order, given_here=True)
    gw.deployment.check_kill()
    if problem:
        message = f"{problem}; until it ends, this gateway does as ordered, and the order is in the log's queue"
        await exchange.fail(503, message, "kill_file", kind="server_error")
    else:
        await show_switch(gw, exchange)
