"""`POST /v1/feedback`, its batch, and webhooks of labelling tools. After a 2xx all labels are on disk."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from suffice.assurance.labels import BEHAVIOUR, INFERENCE_KEY
from suffice.errors import BadRequest, StoreError, StoreFull
from suffice.gateway.auth import ANYONE, MOST_TOKENS_COUNTED, TOKEN_HEADER, Caller, forget_oldest, read_token
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.feedback_form import id_conflict, read_feedback, seal_feedback
from suffice.gateway.request_parsing import check_body_headers, parse_json, read_aside
from suffice.review import imported_feedback
from suffice.rollout.assign import sender_key
from suffice.store.database.log import Receipt
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from suffice.upstream.wire import error_body

LIMIT_BYTES: Final = 256 * 1024
BATCH_LIMIT_BYTES: Final = 8 * 2**20
UNKEYED_LIMIT_BYTES: Final = 64 * 1024  # read to find a token; the limit of a browser's beacon
MOST_ROWS: Final = 1_000
MOST_WORDS: Final = 20  # labels stored with one token
SETTLE_S: Final = 0.02  # between two checks whether a labelled run has ended
SETTLE_LOOKS: Final = 50  # after these, the label of an open run is stored without its run
USER: Final = "user"
_TOKEN = re.compile(rb'"token"\s*:\s*"([^"\\]{0,400})"')

Row = Feedback | BadRequest  # a label that can be stored, or why not
Stored = Receipt | BadRequest | StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSource:
    sender: str  # keyed hash of the key; "": no key is required
    door: str  # as `Feedback.door`
    episode: str | None = None  # the only one that this source may rate; None: any
    caller: Caller = ANYONE  # the holder of its key


# --------------------------------------------------------------------------- endpoints


async def one(gw: GatewayState, exchange: Exchange) -> None:
    async with _refusing(gw, exchange):
        body, token = await _body_and_token(gw, exchange)
        if token is None and exchange.foreign_page is not None:
            raise exchange.foreign_page  # a token makes any page acceptable
        source = find_label_source(gw, exchange.headers, token)
        (receipt,) = await _store(gw, source, [body])
        if not isinstance(receipt, Receipt):
            raise receipt
        await exchange.json(200, msgspec.json.encode(_accepted(receipt)))


async def batch(gw: GatewayState, exchange: Exchange) -> None:
    async with _refusing(gw, exchange):
        body = await read_aside(parse_json, await _read_batch(exchange), gw.settings.server)
        rows = body.get("feedback")
        if not isinstance(rows, list) or set(body) != {"feedback"}:
            raise BadRequest('body: must be {"feedback": [...]}, a list of objects as /v1/feedback takes them')
        if not rows:
            raise _row_count_refused(0)
        await _store_batch(gw, exchange, find_label_source(gw, exchange.headers, None), rows)


async def from_label_studio(gw: GatewayState, exchange: Exchange) -> None:
    """Actions other than annotations are acknowledged and ignored."""
    async with _refusing(gw, exchange):
        raw, limits = await _read_batch(exchange), gw.settings.server
        event = await read_aside(lambda raw, limits: imported_feedback.read_event(parse_json(raw, limits)), raw, limits)
        source = find_label_source(gw, exchange.headers, None, door="label-studio")
        if not source.caller.may_write("reviewer"):
            raise _out_of_scope("reviewer")
        await _store_batch(gw, exchange, source, event.rows, event.n_ignored)


async def from_langfuse(gw: GatewayState, exchange: Exchange) -> None:
    async with _refusing(gw, exchange):
        headers, secret = exchange.headers, gw.clients.langfuse_secret
        signature = dict(headers).get(imported_feedback.SIGNATURE_HEADER)
        signed = secret is not None and signature is not None
        if not signed:
            gw.clients.keys.require(headers, feedback=True)
        raw = await _read_batch(exchange)
        if signed:
            imported_feedback.check_signature(raw, signature or "", secret or "")
        rules = gw.settings.feedback.langfuse.scores
        declared = gw.settings.metrics
        read = imported_feedback.read_scores
        scores = await read_aside(
            lambda raw, limits: read(parse_json(raw, limits), rules, declared), raw, gw.settings.server
        )
        source = find_label_source(gw, headers, None, door="langfuse", signed=signed)
        await _store_batch(gw, exchange, source, scores.rows, scores.n_ignored)


async def _read_batch(exchange: Exchange) -> bytes:
    check_body_headers(exchange.headers, BATCH_LIMIT_BYTES)
    return await exchange.read_body(BATCH_LIMIT_BYTES)


# --------------------------------------------------------------------------- who may send what


def find_label_source(
    gw: GatewayState, headers: list[tuple[str, str]], token: str | None, *, door: str = "", signed: bool = False
) -> LabelSource:
    """Raise BadRequest 401 for an invalid or expired token or a missing key."""
    if token is not None:
        episode = read_token(token, now_s=gw.wall_s(), salt=gw.salt)
        # All tokens share one name, so that together they weigh no more than one key.
        return LabelSource(sender=sender_key("feedback token", salt=gw.salt), door="token", episode=episode)
    caller = ANYONE if signed else gw.clients.keys.require(headers, feedback=True)
    if not caller.may_rate:
        raise BadRequest("this key may not send feedback: it lacks the scope 'feedback'", status=403, code="scope")
    if not caller.id:
        # Without checked keys, a client could invent one for every label.
        return LabelSource(sender=sender_key(door, salt=gw.salt), door=door or "open")
    # A key that may call the model is a user's, through any channel.
    door = INFERENCE_KEY if caller.may_ask else door or "feedback-key"
    return LabelSource(sender=caller.id, door=door, caller=caller)


def bind_body(body: Mapping[str, Any], source: LabelSource) -> dict[str, Any]:
    """Return the body with the fields that its source fixes. Raise BadRequest 403 for fields that it may not set.

    A token's feedback ids have their own scope, so it cannot take another's.
    """
    given = body.get("source")
    if source.episode is None:
        name = given or (BEHAVIOUR if body.get("event") is not None else "")
        if isinstance(name, str) and name and not source.caller.may_write(name):
            raise _out_of_scope(name)
        return dict(body)
    if body.get("episode_id") not in (None, source.episode):
        message = "episode_id: this token came with another answer; it may rate that one only"
        raise BadRequest(message, status=403, param="episode_id", code="wrong_episode")
    name = BEHAVIOUR if body.get("event") is not None else USER
    if given not in (None, name):
        message = f"source: with a token it must be {name!r}; another source needs a key"
        raise BadRequest(message, status=403, param="source", code="wrong_source")
    feedback_id = body.get("feedback_id")
    if feedback_id is None:
        feedback_id = hashlib.blake2b(msgspec.json.encode(dict(body), order="sorted"), digest_size=12).hexdigest()
    if not isinstance(feedback_id, str) or not 1 <= len(feedback_id) <= 100:
        raise BadRequest("feedback_id: must be a string of 1 to 100 characters", param="feedback_id")
    fixed = {"feedback_id": f"token:{source.episode}:{feedback_id}", "episode_id": source.episode, "source": name}
    return {**body, **fixed}


def _out_of_scope(source: str) -> BadRequest:
    message = f"source: this key may not send feedback as {source[:80]!r}; a key for feedback alone may ([server]"
    message += " feedback_keys_env), and one whose sources name it ([keys.NAME] sources)"
    return BadRequest(message, status=403, param="source", code="scope")


async def _owned(gw: GatewayState, source: LabelSource, rows: Sequence[Row]) -> list[Row]:
    """Return the rows, with a refusal in place of each on another key's answer. Rows on unknown answers stay."""
    if not gw.clients.keys.isolates(source.caller):
        return list(rows)
    named = [(row.episode_id, row.response_id) for row in rows if isinstance(row, Feedback)]
    owners = iter(await asyncio.to_thread(gw.clients.owners_of, named))
    owned = list[Row]()
    for row in rows:
        known = next(owners) if isinstance(row, Feedback) else frozenset[tuple[str, str]]()
        if isinstance(row, Feedback) and known and not any(source.caller.owns(*one) for one in known):
            where = "response_id" if row.episode_id is None else "episode_id"
            message = f"{where}: is not found among the answers to this key; a key for feedback alone may rate others"
            row = BadRequest(message, status=404, param=where, code="not_found")  # noqa: PLW2901 - in its place
        owned.append(row)
    return owned


def _read(gw: GatewayState, source: LabelSource, body: Any) -> Row:
    try:
        if not isinstance(body, dict):
            raise BadRequest("feedback: must be an object")
        feedback = read_feedback(bind_body(body, source), gw.settings.metrics)
        if source.episode is not None and gw.clients.by_token[source.episode] >= MOST_WORDS:
            message = f"feedback: {MOST_WORDS} entries were sent with this token; more need a key"
            raise BadRequest(message, status=429, code="too_much_feedback")
    except BadRequest as error:
        return error
    return seal_feedback(feedback, sender=source.sender, door=source.door, salt=gw.salt)


# --------------------------------------------------------------------------- reading and storing


async def _body_and_token(gw: GatewayState, exchange: Exchange) -> tuple[dict[str, Any], str | None]:
    """Return the body and the token of the header or body. Nothing is parsed before a key or token is verified."""
    headers, server = exchange.headers, gw.settings.server
    token, refused = dict(headers).get(TOKEN_HEADER), None
    try:
        gw.clients.keys.require(headers, feedback=True)
    except BadRequest as error:
        refused = error
    if token is not None:
        read_token(token, now_s=gw.wall_s(), salt=gw.salt)
        refused = None
    limit_bytes = UNKEYED_LIMIT_BYTES if refused is not None else LIMIT_BYTES
    # A page of another origin can send only plain text, as a beacon; accept it with a token in the body.
    plain = [
        (k, "application/json" if k == "content-type" and v.lower().startswith("text/plain") else v) for k, v in headers
    ]
    try:
        check_body_headers(plain, limit_bytes)
        raw = await exchange.read_body(limit_bytes)
    except BadRequest as error:
        raise refused or error from None
    if refused is not None:
        match = _TOKEN.search(raw)
        if match is None:
            raise refused
        read_token(match[1].decode("latin-1"), now_s=gw.wall_s(), salt=gw.salt)
    body = await read_aside(parse_json, raw, server)
    if "token" not in body:
        check_body_headers(headers, limit_bytes)
    token = body.pop("token", token)
    if token is None and refused is not None:
        raise refused
    if token is not None and not isinstance(token, str):
        raise BadRequest("token: must be a string", param="token")
    return body, token


async def _store(gw: GatewayState, source: LabelSource, bodies: Sequence[Any]) -> list[Stored]:
    """Store each label that is valid; return what came of each body, in order."""
    rows = await _owned(gw, source, [b if isinstance(b, BadRequest) else _read(gw, source, b) for b in bodies])
    labels = [row for row in rows if isinstance(row, Feedback)]
    for _ in range(SETTLE_LOOKS):
        if not any(map(gw.sampling.is_open, labels)):
            break
        await asyncio.sleep(SETTLE_S)
    events = [FeedbackEvent(label, gw.sampling.recalled(label)) for label in labels]
    receipts = iter(await asyncio.gather(*map(gw.log.append_durable, events), return_exceptions=True))
    results = list[Stored]()
    for row in rows:
        result = row if isinstance(row, BadRequest) else next(receipts)
        if isinstance(result, Receipt) and result.conflict:
            result = id_conflict()
        elif isinstance(result, Receipt):
            _note(gw, source, result)
        elif not isinstance(result, BadRequest | StoreError):
            raise result
        results.append(result)
    return results


async def _store_batch(
    gw: GatewayState, exchange: Exchange, source: LabelSource, bodies: Sequence[Any], n_ignored: int = 0
) -> None:
    if len(bodies) > MOST_ROWS:
        raise _row_count_refused(len(bodies))
    stored = await _store(gw, source, bodies)
    results = [_result(gw, body, result) for body, result in zip(bodies, stored, strict=True)]
    counts = {
        "accepted": sum(one["accepted"] for one in results),
        "duplicates": sum(one.get("duplicate", False) for one in results),
        "refused": sum(not one["accepted"] for one in results),
        "ignored": n_ignored,
    }
    failure = next((one for one in reversed(stored) if isinstance(one, StoreError)), None)
    retry = [("retry-after", "5")] if failure is not None else []
    status = 200 if failure is None else _status(failure)
    await exchange.json(status, msgspec.json.encode({**counts, "results": results}), retry)


def _row_count_refused(n: int) -> BadRequest:
    message = f"feedback: got {n} rows; 1 to {MOST_ROWS:,} in one call"
    return BadRequest(message, status=413 if n else 400, param="feedback", code="too_many_rows")


def _accepted(receipt: Receipt) -> dict[str, Any]:
    return {"accepted": True, "duplicate": receipt.duplicate, "joined": receipt.joined}


def _result(gw: GatewayState, body: Any, stored: Stored) -> dict[str, Any]:
    name = body.get("feedback_id") if isinstance(body, dict) else None
    if isinstance(stored, Receipt):
        return {"feedback_id": name, **_accepted(stored)}
    param, code = (stored.param, stored.code) if isinstance(stored, BadRequest) else (None, "store_error")
    gw.metrics.inc("suffice_feedback_total", "failed" if isinstance(stored, StoreError) else "rejected")
    error = {"message": str(stored), "param": param, "code": code}
    return {"feedback_id": name if isinstance(name, str) else None, "accepted": False, "error": error}


def _note(gw: GatewayState, source: LabelSource, receipt: Receipt) -> None:
    gw.metrics.inc("suffice_feedback_total", "duplicate" if receipt.duplicate else "accepted")
    if receipt.duplicate:
        return
    if not receipt.joined:
        gw.metrics.inc("suffice_feedback_unjoined_total")
    if source.episode is not None:
        by_token = gw.clients.by_token
        by_token[source.episode] = by_token.pop(source.episode, 0) + 1
        forget_oldest(by_token, MOST_TOKENS_COUNTED)


@asynccontextmanager
async def _refusing(gw: GatewayState, exchange: Exchange) -> AsyncIterator[None]:
    try:
        yield
    except BadRequest as error:
        gw.metrics.inc("suffice_feedback_total", "rejected")
        await exchange.refuse(error)
    except StoreError as error:
        gw.metrics.inc("suffice_feedback_total", "failed")
        message = f"feedback was not stored: {error}; send it again"
        body = error_body(message, "server_error", None, "store_error")
        await exchange.json(_status(error), body, [("retry-after", "5")])


def _status(error: StoreError) -> int:
    return 507 if isinstance(error, StoreFull) else 503
