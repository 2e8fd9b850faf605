"""Asking twice: in an audit, the client's own question once more with an arm, for the record alone.

Where an upstream's thought cannot be cut, only effort or budget can be chosen, and what they lose is seen in no single
run. The client has its full answer by then; the second call is an extra one, sent now or not at all, and its tokens are
probe tokens. Knows one request; refuses to know which arm is worth asking (`rollout.effects`) and what the pair proves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from suffice.episode.chunk_parsing import pieces
from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import UpstreamBusy, UpstreamError, UpstreamProtocol
from suffice.scoring.base import Scorer
from suffice.upstream.client import Headers, UpstreamClient, governed_headers
from suffice.upstream.drivers import CHAT_PATH, merge_fields, thinking_is_off
from suffice.upstream.wire import encode_json

PAIR_TIMEOUT_S = 600.0  # of a whole second run


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArm:
    """What the second call is asked with."""

    name: str  # "effort=low", "budget_tokens=512"; "full": nothing else
    fields: Mapping[str, Any]  # of the upstream, added to the client's own
    propensity: float


async def ask_twice(
    client: UpstreamClient, ledger: Ledger, scorer: Scorer, arm: CallArm, *, body: Mapping[str, Any], headers: Headers
) -> None:
    """Make the second call and write down what it answered.

    A call that was sent and came to nothing is on record without an answer, which counts against the arm.

    body  the client's, as it was sent for the full run
    """
    account, asked = CallAccount("probe"), merge_fields(body, arm.fields)
    text: str | None = None
    try:
        async with asyncio.timeout(PAIR_TIMEOUT_S):
            with client.extra_call(lambda: account.fresh_tokens, may_be_refused=True):
                ledger.calls.append(account)
                ledger.pair_call, ledger.pair_arm, ledger.pair_propensity = account, arm.name, arm.propensity
                text = await _whole_answer(client, ledger, account, asked, headers)
    except UpstreamBusy as busy:
        ledger.skipped[busy.reason] += 1
        return
    except (UpstreamError, TimeoutError):
        ledger.fail_open("probe")
    ledger.pair_answer = None if text is None else scorer.extract(text)


async def _whole_answer(
    client: UpstreamClient, ledger: Ledger, account: CallAccount, body: Mapping[str, Any], headers: Headers
) -> str:
    own, settings, text = governed_headers(headers, nth=len(ledger.calls)), client.settings, ""
    async with client.open(CHAT_PATH, encode_json(body), own, extra=True) as call:
        ledger.n_refused += call.asks_for_less
        if call.status != 200 or call.content_type != "text/event-stream":
            raise UpstreamProtocol(f"the upstream answered {call.status} {call.content_type} to a second call")
        account.began = True
        opened = settings.think_opened and not thinking_is_off(body)
        read = pieces(call, account, tags=(settings.think_open, settings.think_close), opened=opened)
        async with aclosing(read) as reply:
            async for piece in reply:
                text += piece.text
    return text
