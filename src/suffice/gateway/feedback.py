"""`POST /v1/feedback` and its sisters: what people, and the tools they use, say of answers.

    /feedback               one piece, with a key or with the token that came with its answer
    /feedback/batch         up to 1,000, with a result for each
    /feedback/label-studio  annotations, as Label Studio's webhooks send them
    /feedback/langfuse      scores, as Langfuse writes them

A 2xx means that all of it is on disk and stays there; everything may be sent again and counts once. Who may say what is
decided in `find_label_source` and `bind_body`, for all of them. Refuses to know what a vote is worth.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from suffice.assurance.labels import BEHAVIOUR, INFERENCE_KEY
from suffice.errors import BadRequest, StoreError, StoreFull
from suffice.gateway.auth import ANYONE, TOKEN_HEADER, Caller, read_token
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import FOREIGN_PAGE, ClientGone, Exchange, Receive, Scope, Send, headers_of, read_body
from suffice.gateway.feedback_form import id_conflict, read_feedback, seal_feedback
from suffice.gateway.request_parsing import check_body_headers, parse_json, read_aside
from suffice.review import label_studio, langfuse
from suffice.rollout.assign import sender_key
from suffice.settings import Server
from suffice.store.database.log import Receipt
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Feedback
from suffice.upstream.wire import error_body

LIMIT_BYTES: Final = 256 * 1024
BATCH_LIMIT_BYTES: Final = 8 * 2**20
UNKEYED_LIMIT_BYTES: Final = 64 * 1024  # that are read to look for a token; a browser's beacon sends no more
MOST_ROWS: Final = 1_000
MOST_WORDS: Final = 20  # that one token may have written down
SETTLE_S: Final = 0.02  # between two looks whether a run that is labelled has ended
SETTLE_LOOKS: Final = 50  # after which a label of a run that goes on is stored without it
USER: Final = "user"

T = TypeVar("T")
_TOKEN = re.compile(rb'"token"\s*:\s*"([^"\\]{0,400})"')

Row = Feedback | BadRequest  # a piece of feedback that can be stored, or why not


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSource:
    sender: str  # a name for the key, meaningless without the salt; "": none was asked for
    door: str  # as `Feedback.door`
    episode: str | None = None  # the only one that may be spoken of; None: any
    caller: Caller = ANYONE  # whose key it came with: what that may say


# --------------------------------------------------------------------------- the doors


async def one(gw: GatewayState, scope: Scope, receive: Receive, send: Send) -> None:
    exchange, headers = Exchange(send, [], gw.monotonic_s), headers_of(scope)
    async with _refusing(gw, exchange):
        body, token = await _body_and_token(gw, headers, receive)
        if token is None and (refused := scope.get(FOREIGN_PAGE)) is not None:
            raise refused  # whose page it is matters only where no token says what may be rated
        author = find_label_source(gw, headers, token)
        given = (await _owned(gw, author, [_read(gw, author, body)]))[0]
        if isinstance(given, BadRequest):
            raise given
        (event,) = await _events(gw, [given])
        receipt = await gw.log.append_durable(event)
        if receipt.conflict:
            raise id_conflict()
        _note(gw, author, receipt)
        answer = {"accepted": True, "duplicate": receipt.duplicate, "joined": receipt.joined}
        await exchange.json(200, msgspec.json.encode(answer))


async def batch(gw: GatewayState, scope: Scope, receive: Receive, send: Send) -> None:
    exchange, headers = Exchange(send, [], gw.monotonic_s), headers_of(scope)
    async with _refusing(gw, exchange):
        body = await _body(gw, headers, receive, parse_json)
        rows = body.get("feedback")
        if not isinstance(rows, list) or set(body) != {"feedback"}:
            raise BadRequest('body: must be {"feedback": [...]}, a list of objects as /v1/feedback takes them')
        if not rows:
            raise _row_count_refused(0)
        await _store(gw, exchange, find_label_source(gw, headers, None), rows)


async def from_label_studio(gw: GatewayState, scope: Scope, receive: Receive, send: Send) -> None:
    """What a webhook of Label Studio tells; actions that are no annotation are acknowledged and ignored."""
    exchange, headers = Exchange(send, [], gw.monotonic_s), headers_of(scope)
    async with _refusing(gw, exchange):
        told = await _body(gw, headers, receive, lambda raw, limits: label_studio.read_event(parse_json(raw, limits)))
        author = find_label_source(gw, headers, None, door="label-studio")
        if not author.caller.may_write("reviewer"):
            raise _out_of_scope("reviewer")
        await _store(gw, exchange, author, told.rows, told.n_ignored)


async def from_langfuse(gw: GatewayState, scope: Scope, receive: Receive, send: Send) -> None:
    """Scores of Langfuse, signed as its webhooks are or sent with a key."""
    exchange, headers = Exchange(send, [], gw.monotonic_s), headers_of(scope)
    async with _refusing(gw, exchange):
        signature = dict(headers).get(langfuse.SIGNATURE_HEADER)
        signed = gw.clients.langfuse_secret is not None and signature is not None
        if not signed:
            gw.clients.keys.require(headers, feedback=True)
        check_body_headers(headers, BATCH_LIMIT_BYTES)
        raw = await read_body(receive, BATCH_LIMIT_BYTES)
        if signed:
            langfuse.check_signature(raw, signature or "", gw.clients.langfuse_secret or "")
        rules = gw.settings.feedback.langfuse
        told = await read_aside(
            lambda raw, limits: langfuse.read_scores(parse_json(raw, limits), rules.scores, gw.settings.metrics),
            raw,
            gw.settings.server,
        )
        author = find_label_source(gw, headers, None, door="langfuse", signed=signed)
        await _store(gw, exchange, author, told.rows, told.n_ignored)


# --------------------------------------------------------------------------- who may say what


def find_label_source(
    gw: GatewayState, headers: list[tuple[str, str]], token: str | None, *, door: str = "", signed: bool = False
) -> LabelSource:
    """Who speaks. Raises BadRequest 401 for a token that is forged or too old, and for a key that is needed.

    door    that the feedback comes by, where it is one of its own
    signed  a signature was checked in a key's place
    """
    if token is not None:
        episode = read_token(token, now_s=gw.wall_s(), salt=gw.salt)
        # One name for all of them: together they weigh no more than one key.
        return LabelSource(sender=sender_key("feedback token", salt=gw.salt), door="token", episode=episode)
    caller = ANYONE if signed else gw.clients.keys.require(headers, feedback=True)
    if not caller.id:
        # A key that nobody checked could be another one for every label.
        return LabelSource(sender=sender_key(door, salt=gw.salt), door=door or "open")
    # Whoever may ask the model is a user, by whichever door.
    return LabelSource(
        sender=caller.id, door=INFERENCE_KEY if caller.may_ask else door or "feedback-key", caller=caller
    )


def bind_body(body: Mapping[str, Any], author: LabelSource) -> dict[str, Any]:
    """The body with what its author fixes. Raises BadRequest 403 for what it may not say.

    A token speaks of its own answer, for its user. Its ids have a space of their own: nobody can take another's.
    """
    if author.episode is None:
        source = body.get("source") or (BEHAVIOUR if body.get("event") is not None else "")
        if isinstance(source, str) and source and not author.caller.may_write(source):
            raise _out_of_scope(source)
        return dict(body)
    if body.get("episode_id") not in (None, author.episode):
        message = "episode_id: this token came with another answer; it may rate that one only"
        raise BadRequest(message, status=403, param="episode_id", code="wrong_episode")
    source = BEHAVIOUR if body.get("event") is not None else USER
    if body.get("source") not in (None, source):
        message = f"source: whoever rates with a token is {source!r}; another source needs a key"
        raise BadRequest(message, status=403, param="source", code="wrong_source")
    given = body.get("feedback_id")
    if given is None:
        given = hashlib.blake2b(msgspec.json.encode(dict(body), order="sorted"), digest_size=12).hexdigest()
    if not isinstance(given, str) or not 1 <= len(given) <= 100:
        raise BadRequest("feedback_id: must be a string of 1 to 100 characters", param="feedback_id")
    return {**body, "feedback_id": f"token:{author.episode}:{given}", "episode_id": author.episode, "source": source}


def _out_of_scope(source: str) -> BadRequest:
    message = f"source: this key may not speak as {source[:80]!r}; a key for feedback alone may ([server]"
    message += " feedback_keys_env), and one whose sources name it ([keys.NAME] sources)"
    return BadRequest(message, status=403, param="source", code="scope")


async def _owned(gw: GatewayState, author: LabelSource, rows: Sequence[Row]) -> list[Row]:
    """The same rows, with a refusal for each that is about an answer to another key. What is not known yet waits."""
    if not gw.clients.keys.has_tenants or author.caller.sees_all:
        return list(rows)
    given = [row for row in rows if isinstance(row, Feedback)]
    senders = iter(await asyncio.to_thread(gw.clients.senders_of, [(row.episode_id, row.response_id) for row in given]))
    return [_own(row, next(senders), author.sender) if isinstance(row, Feedback) else row for row in rows]


def _own(row: Feedback, senders: frozenset[str], sender: str) -> Row:
    if not senders or sender in senders:
        return row
    where = "response_id" if row.episode_id is None else "episode_id"
    message = f"{where}: is not found among the answers to this key; a key for feedback alone may rate others"
    return BadRequest(message, status=404, param=where, code="not_found")


def _read(gw: GatewayState, author: LabelSource, body: Any) -> Row:
    try:
        if not isinstance(body, dict):
            raise BadRequest("feedback: must be an object")
        feedback = read_feedback(bind_body(body, author), gw.settings.metrics)
        if author.episode is not None and gw.clients.by_token.of(author.episode) >= MOST_WORDS:
            message = f"feedback: {MOST_WORDS} pieces came with this token; more need a key"
            raise BadRequest(message, status=429, code="too_much_feedback")
    except BadRequest as error:
        return error
    return seal_feedback(feedback, sender=author.sender, door=author.door, salt=gw.salt)


# --------------------------------------------------------------------------- reading and storing


async def _body(
    gw: GatewayState, headers: list[tuple[str, str]], receive: Receive, read: Callable[[bytes, Server], T]
) -> T:
    check_body_headers(headers, BATCH_LIMIT_BYTES)
    return await read_aside(read, await read_body(receive, BATCH_LIMIT_BYTES), gw.settings.server)


async def _body_and_token(
    gw: GatewayState, headers: list[tuple[str, str]], receive: Receive
) -> tuple[dict[str, Any], str | None]:
    """The object and the token, which comes in a header or as the field `token`.

    Nothing is parsed before a key or a token has proved to be right. Neither: 401, whatever the body holds.
    """
    token, refused = dict(headers).get(TOKEN_HEADER), None
    try:
        gw.clients.keys.require(headers, feedback=True)
    except BadRequest as error:
        refused = error
    if token is not None:
        read_token(token, now_s=gw.wall_s(), salt=gw.salt)
    limit_bytes = UNKEYED_LIMIT_BYTES if refused is not None and token is None else LIMIT_BYTES
    # Plain text is what a page of another origin may send, as a beacon; it will do for a token in the body.
    plain = [
        (k, "application/json" if k == "content-type" and v.lower().startswith("text/plain") else v) for k, v in headers
    ]
    try:
        check_body_headers(plain, limit_bytes)
        raw = await read_body(receive, limit_bytes)
    except BadRequest:
        if refused is not None and token is None:
            raise refused from None
        raise
    if refused is not None and token is None:
        match = _TOKEN.search(raw)
        if match is None:
            raise refused
        read_token(match[1].decode("latin-1"), now_s=gw.wall_s(), salt=gw.salt)
    body = await read_aside(parse_json, raw, gw.settings.server)
    if "token" not in body:
        check_body_headers(headers, limit_bytes)
    token = body.pop("token", token)
    if token is None and refused is not None:
        raise refused
    if token is not None and not isinstance(token, str):
        raise BadRequest("token: must be a string", param="token")
    return body, token


async def _store(
    gw: GatewayState, exchange: Exchange, author: LabelSource, bodies: Sequence[Any], n_ignored: int = 0
) -> None:
    if len(bodies) > MOST_ROWS:
        raise _row_count_refused(len(bodies))
    read = [body if isinstance(body, BadRequest) else _read(gw, author, body) for body in bodies]
    rows = await _owned(gw, author, read)
    events = await _events(gw, [row for row in rows if isinstance(row, Feedback)])
    done = iter(await asyncio.gather(*map(gw.log.append_durable, events), return_exceptions=True))
    results, failure = list[dict[str, Any]](), None
    for row, body in zip(rows, bodies, strict=True):
        outcome: Any = row if isinstance(row, BadRequest) else next(done)
        if isinstance(outcome, BaseException) and not isinstance(outcome, BadRequest | StoreError):
            raise outcome
        if isinstance(outcome, StoreError):
            failure = outcome
        elif isinstance(outcome, Receipt) and outcome.conflict:
            outcome = id_conflict()
        results.append(_result(gw, author, body, outcome))
    counts = {
        "accepted": sum(one["accepted"] for one in results),
        "duplicates": sum(one.get("duplicate", False) for one in results),
        "refused": sum(not one["accepted"] for one in results),
        "ignored": n_ignored,
    }
    retry = [("retry-after", "5")] if failure is not None else []
    status = 200 if failure is None else _status(failure)
    await exchange.json(status, msgspec.json.encode({**counts, "results": results}), retry)


def _row_count_refused(n: int) -> BadRequest:
    message = f"feedback: got {n} rows; 1 to {MOST_ROWS:,} in one call"
    return BadRequest(message, status=413 if n else 400, param="feedback", code="too_many_rows")


async def _events(gw: GatewayState, given: Sequence[Feedback]) -> list[FeedbackEvent]:
    """What is written, with the runs that sampling may have left without rows, once those that just answered ended."""
    for _ in range(SETTLE_LOOKS):
        if not any(map(gw.sampling.is_open, given)):
            break
        await asyncio.sleep(SETTLE_S)
    return [FeedbackEvent(one, gw.sampling.recalled(one)) for one in given]


def _result(
    gw: GatewayState, author: LabelSource, body: Any, outcome: Receipt | BadRequest | StoreError
) -> dict[str, Any]:
    named = body.get("feedback_id") if isinstance(body, dict) else None
    if isinstance(outcome, Receipt):
        _note(gw, author, outcome)
        return {
            "feedback_id": named,
            "accepted": True,
            "duplicate": outcome.duplicate,
            "joined": outcome.joined,
        }
    refused = isinstance(outcome, BadRequest)
    gw.metrics.inc("suffice_feedback_total", "rejected" if refused else "failed")
    error = {
        "message": str(outcome),
        "param": outcome.param if isinstance(outcome, BadRequest) else None,
        "code": outcome.code if isinstance(outcome, BadRequest) else "store_error",
    }
    return {"feedback_id": named if isinstance(named, str) else None, "accepted": False, "error": error}


def _note(gw: GatewayState, author: LabelSource, receipt: Receipt) -> None:
    gw.metrics.inc("suffice_feedback_total", "duplicate" if receipt.duplicate else "accepted")
    if receipt.duplicate:
        return
    if not receipt.joined:
        gw.metrics.inc("suffice_feedback_unjoined_total")
    if author.episode is not None:
        gw.clients.by_token.note(author.episode)


@asynccontextmanager
async def _refusing(gw: GatewayState, exchange: Exchange) -> AsyncIterator[None]:
    try:
        yield
    except ClientGone:
        return
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
