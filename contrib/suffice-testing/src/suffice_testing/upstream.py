"""A model server that replies and fails as configured; it shares no HTTP package with the code under test."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Self

import msgspec

from suffice.upstream.wire import encode_json, error_body
from suffice_testing import dialects, prompt
from suffice_testing.chain import Answerer
from suffice_testing.dialects import ServerBehaviour
from suffice_testing.generate import Completion, Token, count_in
from suffice_testing.http1 import BadHttp, ClientConnection, HttpRequest, Response
from suffice_testing.native import SHAPES
from suffice_testing.reply import FakeCall, FakeRefusal, FakeRequest, Reply, Script, merged
from suffice_testing.send import CREATED, ReplyShape, SimulatedFailure, generate, play, send_json, stream

_JSON = {"content-type": "application/json"}
_COMPLETIONS = ("/chat/completions", "/completions", "/messages", "/responses")
_PAGE = b"<!doctype html><title>Welcome</title><h1>It works!</h1>"
_GAUGE_TOKENS = 10  # of a request before SGLang's gauge shows it, which is updated every few dozen steps
_LLAMA_ONLY = ("/chat/completions/control", "/apply-template", "/slots")


def line_rows(shown: Sequence[Token], margins: Sequence[float]) -> list[tuple[int, float, float | None]]:
    """Return what suffice-vllm reports: tokens so far, margin and mean log-probability, with the token after a line."""
    ends = [n for n, token in enumerate(shown[:-1], 1) if token.channel == "reasoning" and "\n" in token.text]
    means = [[token.logprob for token in shown[start:end]] for start, end in zip([0, *ends], ends, strict=False)]
    rows = zip(ends, margins, means, strict=False)
    return [(end, margin, sum(own) / len(own)) for end, margin, own in rows]


class FakeUpstream:
    """A fake model server on 127.0.0.1. `url` is its base address, `calls` its requests so far.

    In asynchronous tests it runs in the test's own loop:

    >>> import asyncio, json, urllib.request
    >>> async def start_and_look() -> int:
    ...     async with FakeUpstream(Reply(answer=("four",))) as fake:
    ...         return len(fake.calls)
    >>> asyncio.run(start_and_look())
    0

    In synchronous tests it runs in a thread:

    >>> with FakeUpstream.in_thread(Reply(reasoning=("2+2",), answer=("four",))) as fake:
    ...     body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "two and two"}]})
    ...     request = urllib.request.Request(fake.url + "/v1/chat/completions", body.encode())
    ...     with urllib.request.urlopen(request) as reply:
    ...         answer = json.load(reply)
    >>> answer["choices"][0]["message"]["content"], fake.total_prompt_tokens, fake.total_completion_tokens
    ('four', 3, 2)

    says  a Reply for every request, a Script, or a function from FakeRequest to one of them, such as
          `ScriptedThought`, `Samples` and `Questions`
    """

    def __init__(self, says: Reply | Script | Answerer | None = None, behaviour: ServerBehaviour | None = None) -> None:
        reply = Reply() if says is None else says
        self._answerer: Answerer = reply if callable(reply) else lambda _: reply
        self._behaviour = behaviour = behaviour or ServerBehaviour()
        self._texts: dict[tuple[int, ...], str] = {}  # texts that /tokenize has encoded
        self._slots = asyncio.Semaphore(behaviour.slots) if behaviour.slots else contextlib.nullcontext()
        self._read: list[list[str]] = []  # prompts, for the prefix cache
        self._live: dict[str, tuple[FakeCall, list[Completion]]] = {}
        self._prompts: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures: list[Exception] = []
        self.calls: list[FakeCall] = []
        self.in_flight = 0  # completions in progress
        self.max_in_flight = 0

    # ---- what tests read

    @property
    def url(self) -> str:
        """Base address without /v1. Raises RuntimeError if the fake is not running."""
        if self._server is None:
            raise RuntimeError("FakeUpstream.url: the fake is not running; use `async with` or `in_thread`")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    @property
    def completions(self) -> list[FakeCall]:
        return [seen for seen in self.calls if seen.is_completion]

    @property
    def total_prompt_tokens(self) -> int:
        return sum(seen.prompt_tokens for seen in self.calls)

    @property
    def total_completion_tokens(self) -> int:
        """Tokens generated over all completions, cancelled ones included."""
        return sum(seen.n_tokens_sent for seen in self.calls)

    async def idle(self, timeout_s: float = 5.0) -> None:
        """Wait until no call is running. Raise TimeoutError."""
        await asyncio.to_thread(self.wait_idle, timeout_s)

    def wait_idle(self, timeout_s: float = 5.0) -> None:
        """Wait like `idle`, for synchronous tests with the fake in its thread. Raise TimeoutError."""
        end_s = time.monotonic() + timeout_s
        while any(seen.closed_at_s is None for seen in self.calls):
            if time.monotonic() > end_s:
                raise TimeoutError(f"FakeUpstream: still busy after {timeout_s} s")
            time.sleep(0.002)

    # ---- running

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._behaviour.port)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failures and kind is None:
            raise self._failures[0]

    @classmethod
    @contextlib.contextmanager
    def in_thread(
        cls, says: Reply | Script | Answerer | None = None, behaviour: ServerBehaviour | None = None
    ) -> Iterator[Self]:
        fake, started = cls(says, behaviour), Future[Callable[[], object]]()

        async def host() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            async with fake:
                started.set_result(lambda: loop.call_soon_threadsafe(stop.set))
                await stop.wait()

        with ThreadPoolExecutor(1, "fake-upstream") as threads:
            running = threads.submit(lambda: asyncio.run(host()))
            futures: list[Future[Any]] = [started, running]
            wait(futures, return_when=FIRST_COMPLETED)
            if running.done():
                running.result()
            try:
                yield fake
            finally:
                started.result()()
            running.result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = ClientConnection(reader, writer)
        try:
            keep = True
            while keep:
                async with asyncio.timeout(self._behaviour.idle_close_s):
                    request = await connection.request()
                keep = await self._answer(connection, request)
        except BadHttp as error:
            with contextlib.suppress(ConnectionError):
                await Response(connection).whole(400, _JSON, error_body(str(error)))
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the client left, the connection was idle, or the fake is stopping
        finally:
            await connection.close()
            self._tasks.discard(task)

    async def _answer(self, connection: ClientConnection, request: HttpRequest) -> bool:
        seen, cancels = self._see(request), self._behaviour.cancels
        out = Response(connection, goes_on=not cancels)
        work = asyncio.create_task(self._work(seen, out, connection))
        hang_up = asyncio.create_task(connection.gone.wait())
        try:
            await asyncio.wait({work, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            if not cancels:
                await asyncio.wait({work})
            if not work.done():
                seen.cancelled = not out.complete
                work.cancel()
            return (await asyncio.gather(work, return_exceptions=True))[0] is True and request.keep_alive
        finally:
            for task in (work, hang_up):
                task.cancel()
            seen.status, seen.n_bytes_sent = out.status, out.n_bytes_sent
            seen.closed_at_s = time.monotonic()

    def _see(self, http: HttpRequest) -> FakeCall:
        path = http.target.partition("?")[0]
        path = path.removeprefix("/v1") if path.startswith("/v1/") else path
        path = path.removeprefix("/beta") if self._behaviour.dialect == "deepseek" else path
        body: Any = None
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            body = msgspec.json.decode(http.body)
        body = {k: v for k, v in body.items() if k not in self._behaviour.ignores} if isinstance(body, dict) else {}
        nth_same = 0
        if path in _COMPLETIONS:
            key = path + repr(body.get("messages", body.get("prompt", body.get("input"))))
            nth_same = self._prompts.get(key, 0)
            self._prompts[key] = nth_same + 1
        request = FakeRequest(
            method=http.method,
            path=path,
            target=http.target,
            headers=http.headers,
            raw_body=http.body,
            body=body,
            nth=len(self.calls),
            nth_same=nth_same,
            prefix=None,
        )
        seen = FakeCall(request=replace(request, prefix=self._prefix(request)), opened_at_s=time.monotonic())
        self.calls.append(seen)
        return seen

    def _prefix(self, request: FakeRequest) -> prompt.Prefix | None:
        if request.is_raw:
            return prompt.prefix_of_prompt(request.text)
        if request.path == "/chat/completions" and dialects.continues(self._behaviour, request):
            # llama.cpp's and vLLM's templates write the closing tag, DeepSeek's does not.
            closes = self._behaviour.dialect in ("llama.cpp", "vllm")
            return prompt.prefix_of_message(request.messages, closes=closes)
        return None

    async def _work(self, seen: FakeCall, out: Response, connection: ClientConnection) -> bool:
        try:
            await self._route(seen, out)
        except FakeRefusal as refusal:
            await self._refuse(seen, out, refusal)
            return True
        except SimulatedFailure as death:
            if death.how == "rst":
                connection.reset()
            return death.how == "error_frame"
        except ConnectionError:
            seen.cancelled = not out.complete
            return False
        except Exception as error:  # noqa: BLE001  a test's own function failed: raised when the fake closes
            self._failures.append(error)
            failure = FakeRefusal(f"{type(error).__name__}: {error}", status=500, code="fake_failed")
            seen.error = str(failure)
            if out.status is None:
                await self._refuse(seen, out, failure)
            return False
        return out.complete

    async def _refuse(self, seen: FakeCall, out: Response, refusal: FakeRefusal) -> None:
        seen.error = f"fake upstream: {refusal}"
        await out.whole(refusal.status, _JSON, error_body(seen.error, code=refusal.code))

    async def _route(self, seen: FakeCall, out: Response) -> None:
        request, key = seen.request, self._behaviour.api_key
        if key is not None and request.header("authorization") != f"Bearer {key}":
            raise FakeRefusal("wrong or missing key", status=401, code="invalid_api_key")
        played = self._behaviour.paths.get(f"{request.method} {request.path}")
        if played is not None:
            await play(played, out)
        elif request.method == "POST" and request.path in _COMPLETIONS:
            await self._complete(seen, out)
        elif (request.method, request.path) == ("GET", "/metrics"):
            await out.whole(200, {"content-type": "text/plain; version=0.0.4"}, self._metrics())
        else:
            await out.whole(200, _JSON, encode_json(self._facts(request)))

    # ---- completions

    async def _complete(self, seen: FakeCall, out: Response) -> None:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            reply = self._behaviour.scripts.get(seen.request.model) or self._answerer(seen.request)
            if isinstance(reply, Script):
                await play(reply, out)
                return
            async with self._slots:
                await self._reply(seen, out, reply)
        finally:
            self.in_flight -= 1

    async def _reply(self, seen: FakeCall, out: Response, reply: Reply) -> None:
        fault, request = merged(reply.faults), seen.request
        out.cut_into(fault.piece_bytes)
        await asyncio.sleep(fault.header_delay_s)
        if fault.status is not None:
            message = f"fake upstream: answers {fault.status} as configured"
            written = SHAPES.get(request.path, ReplyShape).error_body(message, "fake_status")
            body = fault.status_body or written
            await out.whole(fault.status, {**_JSON, **fault.status_headers}, body)
            return
        if fault.html:
            await out.whole(200, {"content-type": "text/html"}, _PAGE)
            return
        dialects.check_dialect(self._behaviour, request)
        runs = self._begin(seen, reply)
        completion_id = f"{'cmpl' if request.is_raw else 'chatcmpl'}-fake-{request.nth}"
        shape = SHAPES.get(request.path, ReplyShape)(seen, reply, self._behaviour, completion_id)
        self._live[completion_id] = (seen, runs)
        try:
            streams = fault.force == "sse" or (request.stream and fault.force is None)
            send = stream if streams else send_json
            async with contextlib.aclosing(generate(seen, reply, fault, runs)) as tokens:
                await send(tokens, runs, shape, fault, out)
        finally:
            del self._live[completion_id]

    def _begin(self, seen: FakeCall, reply: Reply) -> list[Completion]:
        request, budget = seen.request, dialects.budget_of(self._behaviour, seen.body)
        n_choices = count_in(request, "n") or 1
        runs = [Completion(reply, request, index=n, budget_tokens=budget) for n in range(n_choices)]
        read = prompt.count_words(self._template(request))
        seen.prompt_tokens = max(1, len(read))
        if self._behaviour.prefix_cache:
            seen.cached_tokens = max((_n_common(read, before) for before in self._read), default=0)
            self._read.append(read)
        return runs

    def _template(self, request: FakeRequest) -> str:
        if request.is_raw:
            return request.text
        server = self._behaviour
        continues = dialects.continues(server, request)
        return prompt.apply_template(request.messages, continue_last=continues, opens_thought=server.opens_thought)

    # ---- llama.cpp's own routes, and lists

    def _facts(self, request: FakeRequest) -> Any:
        n_slots, n_busy = self._behaviour.slots or 1, len(self._live)
        routes: dict[tuple[str, str], Callable[[FakeRequest], Any]] = {
            ("POST", "/chat/completions/control"): self._control,
            ("POST", "/apply-template"): lambda request: {"prompt": self._template(request)},
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/models"): lambda _: {"object": "list", "data": self._models()},
            ("GET", "/health"): lambda _: {"status": "ok"},
            ("GET", "/get_server_info"): lambda _: self._server_info(),
            ("GET", "/slots"): lambda _: [{"id": n, "is_processing": n < n_busy} for n in range(max(n_slots, n_busy))],
        }
        route = routes.get((request.method, request.path))
        if route is None:
            raise FakeRefusal(f"no route {request.path!r}", status=404, code="not_found")
        server = self._behaviour
        has_control = server.has_control and request.path == _LLAMA_ONLY[0]
        if request.path in _LLAMA_ONLY and server.dialect != "llama.cpp" and not has_control:
            raise FakeRefusal(f"no {request.path!r} in this dialect", status=404, code="not_found")
        return route(request)

    def _control(self, request: FakeRequest) -> dict[str, Any]:
        action = request.body.get("action")
        if action != "reasoning_end" and not (action == "signals" and self._behaviour.has_control):
            raise FakeRefusal("action must be reasoning_end", code="bad_action")
        wanted = str(request.body.get("id"))
        if self._behaviour.has_control:  # which knows a run by the name that its request gave it
            live = self._live.values()
            by_name = {(one.body.get("vllm_xargs") or {}).get("suffice_run"): (one, runs) for one, runs in live}
            seen, runs = by_name.get(wanted, (None, ()))
        else:
            seen, runs = self._live.get(wanted, (None, ()))
        if seen is None:
            return {"success": False, "message": "no such completion is running", "signals": []}
        if seen.body.get("reasoning_control") is not True and not self._behaviour.has_control:
            return {"success": False, "message": "the completion was started without reasoning_control"}
        if action == "signals":
            rows = line_rows(runs[0].shown, self._behaviour.line_margins) if runs else []
            return {"success": True, "signals": [row for row in rows if row[0] > int(request.body.get("after") or 0)]}
        for run in runs:
            run.end_reasoning()
        return {"success": True}

    def _tokenize(self, request: FakeRequest) -> dict[str, Any]:
        """llama.cpp's field is `content`, vLLM's and SGLang's `prompt` or the chat itself."""
        body, dialect = request.body, self._behaviour.dialect
        key = "prompt" if dialect in ("sglang", "vllm") else "content"
        if key == "prompt" and isinstance(body.get("messages"), list):
            # Recorded of vLLM 0.32: of an earlier thought it reads `reasoning` alone, unlike its chat endpoint.
            names = ("reasoning_content", "thinking") if dialect == "vllm" else ()
            messages = [{k: v for k, v in m.items() if k not in names} for m in request.messages]
            opens = self._behaviour.opens_thought
            text = prompt.apply_template(messages, continue_last=False, opens_thought=opens)
        elif isinstance(body.get(key), str):
            text = body[key]
        else:
            raise FakeRefusal(f"/tokenize needs {key!r}")
        ids = prompt.token_ids(text)
        self._texts[tuple(ids)] = text
        return {"tokens": ids} | ({} if dialect == "llama.cpp" else {"count": len(ids), "max_model_len": 32768})

    def _detokenize(self, request: FakeRequest) -> dict[str, Any]:
        ids = request.body.get("tokens")
        text = self._texts.get(tuple(ids)) if isinstance(ids, list) else None
        if text is None:
            raise FakeRefusal("these tokens have no known text")
        return {{"llama.cpp": "content", "sglang": "text"}.get(self._behaviour.dialect, "prompt"): text}

    def _server_info(self) -> dict[str, Any]:
        if self._behaviour.dialect != "sglang":
            raise FakeRefusal("no server info in this dialect", status=404, code="not_found")
        engine = {"effective_max_running_requests_per_dp": self._behaviour.slots, "dp_size": 1}
        return {"max_running_requests": None, "internal_states": [engine]}

    def _models(self) -> list[dict[str, Any]]:
        same = {"object": "model", "created": CREATED, "owned_by": self._behaviour.owner}
        return [{"id": model, **same} for model in self._behaviour.models]

    def _metrics(self) -> bytes:
        n_running = min(len(self._live), self._behaviour.slots or len(self._live))
        counts = {
            "llamacpp:prompt_tokens_total": self.total_prompt_tokens,
            "llamacpp:tokens_predicted_total": self.total_completion_tokens,
            "llamacpp:requests_processing": n_running,
        }
        if self._behaviour.dialect == "vllm":
            n_waiting = self.in_flight - n_running
            counts = {
                'vllm:num_requests_running{engine="0"}': n_running,
                'vllm:num_requests_waiting{engine="0"}': n_waiting,
            }
        elif self._behaviour.dialect == "sglang":
            n_running = sum(seen.n_tokens_sent >= _GAUGE_TOKENS for seen, _ in self._live.values())
            counts = {'sglang:num_running_reqs{tp_rank="0"}': n_running}
        return "".join(f"{name} {value}\n" for name, value in counts.items()).encode()


def _n_common(one: Sequence[str], other: Sequence[str]) -> int:
    n_both = min(len(one), len(other))
    return next((n for n in range(n_both) if one[n] != other[n]), n_both)
