"""The two backends of the governor: a gateway in this process with a log of its own, and a remote server.

Both fail open: no method raises because of signals, policies, logs or networks. Both are thread-safe; the steps of one
run come one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from suffice.episode.extra_calls import SITE
from suffice.episode.rounds import RoundsRun, StepReport, last_answer
from suffice.errors import BadRequest, ConfigError, StoreError, UpstreamError, UpstreamProtocol
from suffice.gateway import lifecycle, rounds_service
from suffice.gateway.feedback_form import FIELDS, id_conflict, seal_feedback
from suffice.gateway.load_control import Breaker
from suffice.gateway.rounds_service import SIGNAL_FIELDS, RunStart
from suffice.review.items import MOST_CHARS, MOST_SOURCES
from suffice.settings import Settings
from suffice.store.database.log import Receipt
from suffice.store.database.writer import LateLog, LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.telemetry import LOG
from suffice.types import Decision, Feedback, Mode, StopReason
from suffice.upstream.client import Headers, helper_client
from suffice.upstream.wire import within
from suffice.wiring.gateway import open_library
from suffice.wiring.startup import embedders

T = TypeVar("T")

REPLY_LIMIT_BYTES = 1024 * 1024
FEEDBACK_TIMEOUT_S = 10.0  # the server answers within 5 s
_AGAIN = "send it again with the same feedback_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReceipt:
    duplicate: bool  # this `feedback_id` was stored before; nothing changed
    joined: bool  # its run is known; otherwise it joins when the run arrives


class BackgroundLoop:
    """Runs an asynchronous helper in a thread with its own event loop. Any thread may use it."""

    def __init__(self, helper: AbstractAsyncContextManager[object]) -> None:
        self._loop, self._stack = asyncio.new_event_loop(), AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, name="suffice-background", daemon=True)
        self._thread.start()
        self.wait(self._stack.enter_async_context(helper))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self.wait(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


# --------------------------------------------------------------------------- in this process


class LocalRun:
    def __init__(self, backend: LocalBackend, run: RoundsRun) -> None:
        self._backend, self._run = backend, run
        request = run.ledger.request
        self.id = run.id
        self.mode = request.mode
        self.policy_version = request.policy_version
        self.certified, self.feedback_token = request.certified, run.ledger.disclosure.feedback_token

    @property
    def degraded(self) -> tuple[str, ...]:
        return tuple(self._run.ledger.degraded)

    @property
    def return_step(self) -> int | None:
        return self._run.return_step

    def take(self, index: int, report: StepReport, *, done: bool) -> Decision:
        with self._backend.lock:
            self._backend.gateway.deployment.refresh()  # a long loop goes on being watched
        decision = self._run.take(index, report, self._vector(index, report))
        if done:
            self.end(aborted=False)
        return decision

    def _vector(self, index: int, report: StepReport) -> tuple[float, ...]:
        embedder = self._backend.embedder
        try:
            return () if embedder is None else embedder.wait(self._run.vector_of(index, report))
        except Exception:  # noqa: BLE001 - a step without a vector is still judged
            self._run.ledger.fail_open(SITE)
            return ()

    def end(self, *, aborted: bool) -> None:
        with self._backend.lock:
            rounds_service.close_run(self._backend.gateway, self._run, "client_left" if aborted else "done")


class LocalBackend:
    def __init__(self, settings: Settings, route: str) -> None:
        if route not in settings.routes:
            known = ", ".join(sorted(settings.routes)) or "none is configured"
            raise ConfigError(f"route: unknown route {route[:80]!r}; known: {known}")
        vectors = embedders(settings)
        self.lock = threading.Lock()
        self._opened = contextlib.ExitStack()
        self.gateway = self._opened.enter_context(open_library(settings, vectors, lock=self.lock))
        self.embedder = BackgroundLoop(vectors[route]) if route in vectors else None
        self.blocks = self.embedder is not None  # an event loop must call it in a thread
        self.declared = settings.metrics
        self._route = route

    @property
    def failed_open(self) -> dict[str, int]:
        metrics = self.gateway.metrics.registry.collect()
        samples = [s for metric in metrics if metric.name == "suffice_failopen" for s in metric.samples]
        return {s.labels["site"]: int(s.value) for s in samples if s.name.endswith("_total")}

    def open(self, start: RunStart) -> LocalRun:
        with self.lock:
            route = next(r for r in self.gateway.deployment.routes if r.name == self._route)
            return LocalRun(self, rounds_service.open_run(self.gateway, route, start, endpoint="library"))

    def feedback(self, labels: Sequence[Feedback]) -> tuple[LabelReceipt, ...]:
        """Store labels and wait until all are on disk. Raise StoreError, and BadRequest for a reused id."""
        gw = self.gateway
        rows = [seal_feedback(one, sender="", door="library", salt=gw.salt) for one in labels]
        events = [FeedbackEvent(row, gw.sampling.recalled(row)) for row in rows]

        async def append() -> list[Receipt]:
            return await asyncio.gather(*map(gw.log.append_durable, events))

        try:
            with ThreadPoolExecutor(1) as thread:  # the calling thread may already run an event loop
                receipts = thread.submit(lambda: asyncio.run(append())).result()
        except StoreError:
            gw.metrics.inc("suffice_feedback_total", "failed")
            raise
        for number, receipt in enumerate(receipts, 1):
            if receipt.conflict:
                raise id_conflict(f"row {number}, " if len(rows) > 1 else "")
            gw.metrics.inc("suffice_feedback_total", "duplicate" if receipt.duplicate else "accepted")
        return tuple(LabelReceipt(duplicate=receipt.duplicate, joined=receipt.joined) for receipt in receipts)

    def flush(self, timeout_s: float) -> bool:
        log = self.gateway.log
        return log.drain(timeout_s) if isinstance(log, LogWriter | LateLog) else True

    def close(self) -> None:
        if self.embedder is not None:
            self.embedder.close()
        with self.lock:
            lifecycle.write_counts(self.gateway, all_of_them=True)
        self._opened.close()


# --------------------------------------------------------------------------- at a server


class FeedbackReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of one row of feedback."""

    accepted: bool
    duplicate: bool = False
    joined: bool = False
    error: Any = None


class DecideReply(msgspec.Struct, frozen=True, kw_only=True):
    """A complete response of `POST /v1/decide`. Any other object counts as no response."""

    episode_id: Annotated[str, msgspec.Meta(min_length=1)]
    action: Literal["continue", "stop"]
    reason: str
    mode: Mode
    policy_version: str
    certified: bool
    propensity: Annotated[float, msgspec.Meta(gt=0, le=1)]
    stop_reason: StopReason | None
    return_step: Annotated[int, msgspec.Meta(ge=1)] | None  # the step whose answer to use
    feedback_token: str | None = None
    degraded: tuple[str, ...] = ()

    def fits(self, episode_id: str, n_steps: int) -> bool:
        """Whether it answers this run, and names a step that the run has if it stops it."""
        if self.episode_id != episode_id:
            return False
        if self.return_step is None:
            return self.action == "continue"
        return self.return_step <= n_steps


class RemoteRun:
    """One run at the server. After the first failed call the loop goes on without the server."""

    def __init__(self, backend: RemoteBackend, start: RunStart) -> None:
        self._backend, self._is_lost = backend, False
        self._answers: list[str | None] = []  # by step; the last one counts if the server is lost
        self._latest: DecideReply | None = None
        self.id = ""
        opened = self._call(asdict(start), [("idempotency-key", uuid.uuid4().hex)])
        self.id = f"ep_{int(time.time() * 1e3):011x}{uuid.uuid4().hex[:16]}" if opened is None else opened.episode_id
        self.mode: Mode = "off" if opened is None else opened.mode
        self.policy_version = "" if opened is None else opened.policy_version
        self.certified = opened is not None and opened.certified
        self.feedback_token = "" if opened is None else opened.feedback_token or ""

    @property
    def degraded(self) -> tuple[str, ...]:
        there = () if self._latest is None else self._latest.degraded
        return (*there, "server") if self._is_lost else there

    @property
    def return_step(self) -> int | None:
        if self._latest is not None and not self._is_lost:
            return self._latest.return_step
        return last_answer(self._answers) if any(a is not None for a in self._answers) else None

    def take(self, index: int, report: StepReport, *, done: bool) -> Decision:
        self._answers.append(report.answer if report.answer is not None else report.text or None)
        reply = self._call({"episode_id": self.id, "step": step_json(index, report), "done": done})
        if reply is None:
            return Decision(action="continue", reason="the call to the server failed")
        return Decision(
            action=reply.action,
            reason=reply.reason,
            stop_reason=reply.stop_reason if reply.action == "stop" else None,
            propensity=reply.propensity,
        )

    def end(self, *, aborted: bool) -> None:
        self._call({"episode_id": self.id, "aborted" if aborted else "done": True})

    def _call(self, body: dict[str, Any], headers: Headers = ()) -> DecideReply | None:
        reply = None
        if not self._is_lost:
            reply = self._backend.decide(body, headers, run_id=self.id, n_steps=len(self._answers))
        self._is_lost = reply is None
        self._latest = reply or self._latest
        return reply


def step_json(index: int, report: StepReport) -> dict[str, Any]:
    given = [one for one in fields(StepReport) if getattr(report, one.name) != one.default]
    signals = {one.name: getattr(report, one.name) for one in given if one.name in SIGNAL_FIELDS}
    step = {"index": index, "answer": report.answer, "tokens": report.tokens, "signals": signals}
    sources = _within(report.sources)
    return step | {"sources": sources} if sources else step


def _within(sources: Sequence[str]) -> list[str]:
    """Cut passages to what the server stores; it would refuse a longer body."""
    texts, room = list[str](), MOST_CHARS
    for text in sources[:MOST_SOURCES]:
        texts.append(text[:room])
        room -= len(texts[-1])
        if not room:
            break
    return texts


class RemoteBackend:
    """One route of one server. Calls are idempotent, so a broken connection is retried once."""

    blocks = True
    declared = None  # the server checks metrics

    def __init__(self, url: str, route: str, *, api_key: str | None, timeout_s: float) -> None:
        """Raise ConfigError for an invalid address or time."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or timeout_s <= 0:
            need = "need http://host[:port][/path] and a time above 0"
            raise ConfigError(f"connect: got {url[:200]!r}, {timeout_s=}; {need}")
        longest_s = max(timeout_s, FEEDBACK_TIMEOUT_S)
        self._client = helper_client("suffice", url, timeout_s=longest_s, api_key=api_key, retries=1)
        self._loop = BackgroundLoop(self._client)
        self._route, self._timeout_s = route, timeout_s
        self._lock = threading.Lock()
        self._failed: Counter[str] = Counter()
        self._breaker = Breaker()

    @property
    def failed_open(self) -> dict[str, int]:
        with self._lock:
            return dict(self._failed)

    def open(self, start: RunStart) -> RemoteRun:
        return RemoteRun(self, start)

    def decide(self, body: dict[str, Any], headers: Headers, *, run_id: str, n_steps: int) -> DecideReply | None:
        """Return the response, or None and count a failure. While the server is down it is rarely called.

        run_id   of the run that it is about; "": the response names it
        n_steps  that the run has
        """
        with self._lock:
            if not self._breaker.allows(time.monotonic()):
                self._failed["server"] += 1
                return None
        site = ""
        reply: DecideReply | None = None
        try:
            read = self._post("/v1/decide", {"route": self._route} | body, headers, timeout_s=self._timeout_s)
            reply = _read_decision(read, run_id, n_steps)
        except BadRequest as error:  # the server works; this request is at fault
            site = "refused"
            LOG.warning("decide: the server refused (%d): %s; this run goes on without it", error.status, error)
        except UpstreamError as error:
            site = "server"
            LOG.warning("decide: the call to the server failed (%s); this run goes on without it", error)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            site = "body"
            LOG.warning("decide: a step cannot be written as JSON (%s); this run goes on", type(error).__name__)
        with self._lock:
            if site:
                self._failed[site] += 1
            self._breaker.note(failed=site == "server", now_s=time.monotonic())
        return reply

    def feedback(self, labels: Sequence[Feedback]) -> tuple[LabelReceipt, ...]:
        """Store labels and wait until all are on disk at the server. Raise StoreError and BadRequest."""
        rows = [_as_body(one) for one in labels]
        path, body = ("/v1/feedback", rows[0]) if len(rows) == 1 else ("/v1/feedback/batch", {"feedback": rows})
        try:
            answer = self._post(path, body, timeout_s=FEEDBACK_TIMEOUT_S)
        except UpstreamError as error:
            raise StoreError(f"feedback was not stored: {error}; {_AGAIN}") from error
        try:
            results = msgspec.convert([answer] if len(rows) == 1 else answer.get("results"), list[FeedbackReply])
        except msgspec.ValidationError as error:
            raise StoreError(f"feedback may not be stored: no complete reply: {error}; {_AGAIN}") from None
        if len(results) != len(rows):
            raise StoreError(f"feedback may not be stored: {len(results)} results for {len(rows)} rows; {_AGAIN}")
        for number, one in enumerate(results, 1):
            if not one.accepted:
                raise BadRequest(f"row {number}, {within(one.error, 'message') or 'was not accepted'}")
        return tuple(LabelReceipt(duplicate=one.duplicate, joined=one.joined) for one in results)

    def _post(self, path: str, body: dict[str, Any], headers: Headers = (), *, timeout_s: float) -> dict[str, Any]:
        """Return the server's JSON object. Raise BadRequest for a 4xx, and UpstreamError for any other failure."""
        raw = msgspec.json.encode(body)
        call = self._client.fetch(path, raw, headers, timeout_s=timeout_s, most_bytes=REPLY_LIMIT_BYTES)
        status, reply, _ = self._loop.wait(call)
        try:
            read = msgspec.json.decode(reply)
        except (msgspec.DecodeError, RecursionError):
            raise UpstreamProtocol(f"HTTP {status} without JSON") from None
        if status == 200 and isinstance(read, dict):
            return read
        message = str(within(read, "error", "message") or f"HTTP {status}")[:500]
        if 400 <= status < 500:
            raise BadRequest(message, status=status)
        raise UpstreamProtocol(f"HTTP {status}: {message}")

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing waits here
        return True

    def close(self) -> None:
        self._loop.close()


def _read_decision(read: dict[str, Any], run_id: str, n_steps: int) -> DecideReply:
    """Raise UpstreamProtocol for anything but a complete decision about this run."""
    try:
        reply = msgspec.convert(read, DecideReply)
    except msgspec.ValidationError as error:
        raise UpstreamProtocol(f"no complete decision: {error}") from None
    if not reply.fits(run_id or reply.episode_id, n_steps):
        raise UpstreamProtocol("the decision is about another run, or stops without a step")
    return reply


def _as_body(label: Feedback) -> dict[str, Any]:
    table = asdict(label) | {"metrics": dict(label.metrics) or None, "user": label.user or None}
    return {name: table[name] for name in FIELDS if table[name] is not None}


Backend = LocalBackend | RemoteBackend
BackendRun = LocalRun | RemoteRun
