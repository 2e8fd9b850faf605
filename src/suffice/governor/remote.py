"""Judges loops at a server, over `POST /v1/decide`. A server that is slow, gone or in error costs tokens only.

Every call may be sent twice and counts once: opening carries an idempotency key, a step its index. So
a broken connection is tried once more, and after that the run goes on without the server.
"""

from __future__ import annotations

import http.client
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import msgspec

from suffice.episode.rounds import StepReport, last_answer
from suffice.errors import BadRequest, ConfigError, StoreError
from suffice.gateway.feedback_form import FIELDS
from suffice.gateway.load_control import Breaker
from suffice.gateway.rounds_service import RunStart
from suffice.governor.episode import LabelReceipt, RunInfo
from suffice.review.items import MOST_CHARS, MOST_SOURCES
from suffice.settings import Metric
from suffice.telemetry import LOG
from suffice.types import Decision, Feedback

MAX_IDLE = 16  # connections that are kept for the next call
REPLY_LIMIT_BYTES = 1024 * 1024
FEEDBACK_TIMEOUT_S = 10.0  # the server promises a label's receipt within 5 s


class ServerUnavailable(Exception):
    """The server could not be asked, or said something that is no decision."""


class RejectionError(Exception):
    """The server's own 4xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServerConnections:
    """HTTP to one server, from any thread; a broken connection is replaced once."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or timeout_s <= 0:
            need = "need http://host[:port][/path] and a time above 0"
            raise ConfigError(f"connect: got {url[:200]!r}, {timeout_s=}; {need}")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """The answer's JSON. Raises RequestRejected for a 4xx and ServerUnavailable for all else but a 200."""
        raw = msgspec.json.encode(body)
        sent = self._headers | (headers or {})
        for attempt in (1, 2):
            connection = self._take(fresh=attempt == 2, timeout_s=timeout_s or self._timeout_s)
            try:
                connection.request("POST", self._base + path, raw, sent)
                reply = connection.getresponse()
                status, answer = reply.status, reply.read(REPLY_LIMIT_BYTES)
            except TimeoutError as error:
                connection.close()
                raise ServerUnavailable("it took too long") from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if attempt == 2:
                    raise ServerUnavailable(type(error).__name__) from error
                continue
            self._give_back(connection)
            return _read(status, answer)
        raise AssertionError("unreachable")

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, *, fresh: bool, timeout_s: float) -> http.client.HTTPConnection:
        with self._lock:
            connection = self._idle.pop() if self._idle and not fresh else None
        if connection is None:
            made = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            return made(self._host, self._port, timeout=timeout_s)
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        return connection

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()


def _read(status: int, raw: bytes) -> Any:
    try:
        body: Any = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        raise ServerUnavailable(f"HTTP {status} without JSON") from None
    if status == 200 and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    message = str(error.get("message", ""))[:500] if isinstance(error, dict) else f"HTTP {status}"
    if 400 <= status < 500:
        raise RejectionError(status, message)
    raise ServerUnavailable(f"HTTP {status}: {message}")


class RemoteRun:
    """One run at the server; once the server was lost, the loop goes on without it."""

    def __init__(self, backend: RemoteBackend, opening: RunStart) -> None:
        self._backend = backend
        self._answers: list[str | None] = []  # told so far: whose last one counts if the server is lost
        self._told: dict[str, Any] = {}  # what the server said last
        self._lost, self._over = False, False
        self._ask(asdict(opening), {"idempotency-key": uuid.uuid4().hex})
        told = self._told
        self.info = RunInfo(
            id=str(told.get("episode_id") or f"ep_{int(time.time() * 1e3):011x}{uuid.uuid4().hex[:16]}"),
            mode=told.get("mode", "off"),
            policy_version=str(told.get("policy_version", "")),
            certified=told.get("certified") is True,
            feedback_token=str(told.get("feedback_token") or ""),
        )

    @property
    def degraded(self) -> tuple[str, ...]:
        there = tuple(str(site) for site in self._told.get("degraded") or ())
        return (*there, "server") if self._lost else there

    @property
    def return_step(self) -> int | None:
        """The step whose answer is the one to use; without the server, the last one that gave any."""
        if not self._lost:
            step = self._told.get("return_step")
            return step if isinstance(step, int) and 1 <= step <= len(self._answers) else None
        return last_answer(self._answers) if any(a is not None for a in self._answers) else None

    def take(self, index: int, told: StepReport, *, done: bool) -> Decision:
        """Take a step in; `done` ends the run with it."""
        self._answers.append(told.answer if told.answer is not None else told.text or None)
        known = self._ask({"episode_id": self.info.id, "step": step_json(index, told), "done": done})
        if done:
            self._leave()
        if known is None:
            return Decision(action="continue", reason="the server could not be asked")
        return Decision(
            action="stop" if known.get("action") == "stop" else "continue",
            reason=str(known.get("reason", "")),
            stop_reason=known.get("stop_reason") if known.get("action") == "stop" else None,
            propensity=float(known.get("propensity") or 1.0),
        )

    def end(self, *, aborted: bool) -> None:
        if self._over:
            return
        self._leave()
        self._ask({"episode_id": self.info.id, "aborted" if aborted else "done": True})

    def _leave(self) -> None:
        self._over = True
        self._backend.forget(self)

    def _ask(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any] | None:
        """What the server says; None, now and for the rest of the run, once it could not be asked."""
        if self._lost:
            return None
        answer = self._backend.ask(body, headers)
        if answer is None:
            self._lost = True
            return None
        self._told = answer
        return answer


def step_json(index: int, told: StepReport) -> dict[str, Any]:
    signals = {
        "text": told.text or None,
        "confidence": told.confidence,
        "logprobs": list(told.logprobs) or None,
        "entropy": told.entropy,
        "logprob": told.logprob,
        "stated_confidence": told.stated_confidence,
        "said_done": told.said_done,
        "action": told.action,
        "ctx_tokens": told.ctx_tokens or None,
    }
    given = {k: v for k, v in signals.items() if v is not None}
    step = {"index": index, "answer": told.answer, "tokens": told.tokens, "signals": given}
    sources = _within(told.sources)
    return step | {"sources": sources} if sources else step


def _within(sources: Sequence[str]) -> list[str]:
    """As much of a step's passages as anybody would keep: a longer body would be refused whole."""
    texts, room = list[str](), MOST_CHARS
    for text in sources[:MOST_SOURCES]:
        texts.append(text[:room])
        room -= len(texts[-1])
        if not room:
            break
    return texts


def _as_body(given: Feedback) -> dict[str, Any]:
    """Feedback as `/v1/feedback` reads it: what the server finds out itself is left out."""
    given_as = asdict(given) | {"metrics": dict(given.metrics) or None, "user": given.user or None}
    return {name: given_as[name] for name in FIELDS if given_as[name] is not None}


class RemoteBackend:
    """One route of one server. Raises ConfigError for an address that cannot be one."""

    blocks = True
    declared: Mapping[str, Metric] | None = None  # the server knows them

    def __init__(self, url: str, route: str, *, api_key: str | None, timeout_s: float) -> None:
        self._route = route
        self._http = ServerConnections(url, api_key=api_key, timeout_s=timeout_s)
        self._lock = threading.Lock()
        self._failed: Counter[str] = Counter()
        self._breaker = Breaker()
        self._open: dict[str, RemoteRun] = {}

    @property
    def failed_open(self) -> dict[str, int]:
        with self._lock:
            return dict(self._failed)

    def open(self, opening: RunStart) -> RemoteRun:
        run = RemoteRun(self, opening)
        with self._lock:
            self._open[run.info.id] = run
        return run

    def forget(self, run: RemoteRun) -> None:
        with self._lock:
            self._open.pop(run.info.id, None)

    def ask(self, body: dict[str, Any], headers: dict[str, str] | None) -> dict[str, Any] | None:
        """One call; None: it failed, and that is counted. While the server is down it is hardly asked."""
        with self._lock:
            allowed = self._breaker.allows(time.monotonic())
        if not allowed:
            self._count("server")
            return None
        failed, answer = True, None
        try:
            answer = self._http.post("/v1/decide", {"route": self._route} | body, headers)
            failed = False
        except RejectionError as error:
            failed = False  # it is there and it answers
            self._count("refused")
            LOG.warning("decide: the server refused (%d): %s; this run goes on without it", error.status, error)
        except ServerUnavailable as error:
            self._count("server")
            LOG.warning("decide: the server could not be asked (%s); this run goes on without it", error)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            failed = False
            self._count("body")
            LOG.warning("decide: a step cannot be written as JSON (%s); this run goes on", type(error).__name__)
        with self._lock:
            self._breaker.note(failed=failed, now_s=time.monotonic())
        return answer

    def feedback(self, given: Sequence[Feedback]) -> tuple[LabelReceipt, ...]:
        """Store pieces of feedback; waits until all are on disk at the server. Raises StoreError and BadRequest."""
        rows = [_as_body(one) for one in given]
        path, body = ("/v1/feedback", rows[0]) if len(rows) == 1 else ("/v1/feedback/batch", {"feedback": rows})
        try:
            answer = self._http.post(path, body, timeout_s=FEEDBACK_TIMEOUT_S)
        except ServerUnavailable as error:
            raise StoreError(f"feedback was not stored: {error}; send it again with the same feedback_id") from error
        except RejectionError as error:
            raise BadRequest(str(error), status=error.status) from error
        results = [answer] if len(rows) == 1 else answer.get("results") or []
        for number, one in enumerate(results, 1):
            if one.get("accepted") is not True:
                raise BadRequest(f"row {number}, {(one.get('error') or {}).get('message', 'was not accepted')}")
        return tuple(
            LabelReceipt(duplicate=one.get("duplicate") is True, joined=one.get("joined") is True) for one in results
        )

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing waits here
        """Nothing waits here."""
        return True

    def close(self) -> None:
        with self._lock:
            left = list(self._open.values())
        for run in left:
            run.end(aborted=True)
        self._http.close()

    def _count(self, place: str) -> None:
        with self._lock:
            self._failed[place] += 1
