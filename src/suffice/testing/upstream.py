"""A model server that says what it is told, goes wrong when it is told, and counts what it saw.

It speaks OpenAI's protocol and llama.cpp's additions over a real socket, without any HTTP package,
so that it shares no code with what it tests. It refuses to know tests and expectations.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec

from suffice.testing import dialects, prompt
from suffice.testing.chain import Answerer
from suffice.testing.dialects import NotMyDialect
from suffice.testing.generate import Completion, NotMyThought, count_in
from suffice.testing.http1 import BadHttp, ClientConnection, HttpRequest, Response
from suffice.testing.reply import Dialect, FakeCall, FakeRequest, Reply, Script, merged
from suffice.testing.send import CREATED, Dies, ReplyShape, generate, play, send_json, stream
from suffice.upstream.wire import encode_json, error_body

_JSON = {"content-type": "application/json"}
_COMPLETIONS = ("/chat/completions", "/completions")
_PAGE = b"<!doctype html><title>Welcome</title><h1>It works!</h1>"


class FakeUpstream:
    """A fake model server on 127.0.0.1. `url` is its base address, `calls` what it saw.

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

    says           a Reply for every request, a Script, or a function from FakeRequest to one of them;
                   `ScriptedThought`, `Samples`, `Questions`, `EchoNonce` and `Replay` are such functions
    scripts        streams by model name; a request for such a model gets that stream instead
    dialect        "llama.cpp", plain "openai" (no control, no template, no continuation of a prefill), or
                   "vllm", "sglang", "deepseek", "mistral"; what an engine would misread is refused
    keeps_budgets  vLLM and SGLang were started so that they keep budgets of thought
    paths          by "METHOD /path", without /v1: endpoints of other APIs, played as they stand
    slots          completions generated at once, the others wait; None: no limit
    opens_thought  the chat template writes the opening tag of the thought
    prefill_echo   the reply to a continued assistant message begins with that message's text
    prefix_cache   prompts that begin like an earlier one report cached tokens
    ignores        fields of a request that are accepted and have no effect; `continue_final_message`
                   among them: an assistant's last message is not continued
    cancels        False: a client that hangs up does not end the generation
    models         names listed under /models
    api_key        refuse requests without it; None: open to all
    idle_close_s   close idle connections after so long; None: never
    """

    def __init__(
        self,
        says: Reply | Script | Answerer | None = None,
        *,
        scripts: Mapping[str, Script] | None = None,
        paths: Mapping[str, Script] | None = None,
        dialect: Dialect = "llama.cpp",
        slots: int | None = None,
        opens_thought: bool = True,
        prefill_echo: bool = False,
        keeps_budgets: bool = True,
        prefix_cache: bool = False,
        ignores: Sequence[str] = (),
        cancels: bool = True,
        models: Sequence[str] = ("fake",),
        api_key: str | None = None,
        idle_close_s: float | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        told = Reply() if says is None else says
        self._answerer: Answerer = told if callable(told) else lambda _: told
        self._scripts, self._paths = scripts or {}, paths or {}
        self._dialect, self._opens_thought, self._keeps_budgets = dialect, opens_thought, keeps_budgets
        self._texts: dict[tuple[int, ...], str] = {}  # vLLM: what /tokenize has written
        self._prefill_echo, self._models, self._api_key = prefill_echo, tuple(models), api_key
        self._idle_close_s, self._address = idle_close_s, (host, port)
        self._ignores, self._cancels = frozenset(ignores), cancels
        self._n_slots = slots or 1
        self._slots = asyncio.Semaphore(slots) if slots else contextlib.nullcontext()
        self._read: list[list[str]] | None = [] if prefix_cache else None
        self._live: dict[str, tuple[FakeCall, list[Completion]]] = {}
        self._prompts: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures: list[Exception] = []
        self.calls: list[FakeCall] = []
        self.in_flight = 0  # completions being answered now
        self.max_in_flight = 0  # the most at once so far
        self._routes: dict[tuple[str, str], Callable[[FakeCall, Response], Awaitable[None]]] = {
            ("POST", "/chat/completions"): self._complete,
            ("POST", "/completions"): self._complete,
            ("POST", "/chat/completions/control"): self._control,
            ("POST", "/apply-template"): self._apply_template,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/models"): self._list_models,
            ("GET", "/health"): self._health,
            ("GET", "/slots"): self._list_slots,
            ("GET", "/metrics"): self._metrics,
        }

    # ---- what tests read

    @property
    def url(self) -> str:
        """Base address without /v1. Raises RuntimeError when the fake is not running."""
        if self._server is None:
            raise RuntimeError("FakeUpstream.url: the fake is not running; use `async with` or `in_thread`")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    @property
    def completions(self) -> list[FakeCall]:
        """The calls that asked for generated text, in the order they came in."""
        return [seen for seen in self.calls if seen.is_completion]

    @property
    def total_prompt_tokens(self) -> int:
        """Prompt tokens over all completions for which generation began."""
        return sum(seen.prompt_tokens for seen in self.calls)

    @property
    def total_completion_tokens(self) -> int:
        """Tokens generated over all completions, cancelled ones included."""
        return sum(seen.n_tokens_sent for seen in self.calls)

    async def idle(self, timeout_s: float = 5.0) -> None:
        """Wait until no call is running. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self._is_busy():  # noqa: ASYNC110  several calls end on their own; polling is plainest
                await asyncio.sleep(0.002)

    def wait_idle(self, timeout_s: float = 5.0) -> None:
        """The same for synchronous tests, with the fake in its thread. Raises TimeoutError."""
        end_s = time.monotonic() + timeout_s
        while self._is_busy():
            if time.monotonic() > end_s:
                raise TimeoutError(f"FakeUpstream: still busy after {timeout_s} s")
            time.sleep(0.002)

    def _is_busy(self) -> bool:
        return any(seen.closed_at_s is None for seen in self.calls)

    # ---- running

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, *self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failures and error is None:
            raise self._failures[0]

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, *args: Any, **options: Any) -> Iterator[Self]:
        """Run a fake in a thread of its own, for tests that are not asynchronous."""
        fake = cls(*args, **options)
        ready = threading.Event()
        control: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        failure: list[Exception] = []

        async def host() -> None:
            stop = asyncio.Event()
            async with fake:
                control.append((asyncio.get_running_loop(), stop))
                ready.set()
                await stop.wait()

        def run() -> None:
            try:
                asyncio.run(host())
            except Exception as error:  # noqa: BLE001  it is raised again in the caller's thread
                failure.append(error)
            finally:
                ready.set()

        thread = threading.Thread(target=run, name="fake-upstream", daemon=True)
        thread.start()
        ready.wait()
        try:
            if control:
                yield fake
        finally:
            for loop, stop in control:
                loop.call_soon_threadsafe(stop.set)
            thread.join()
        if failure:
            raise failure[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = ClientConnection(reader, writer)
        try:
            keep = True
            while keep:
                async with asyncio.timeout(self._idle_close_s):
                    request = await connection.request()
                keep = await self._answer(connection, request)
        except BadHttp as error:
            with contextlib.suppress(ConnectionError):
                await Response(connection).whole(400, _JSON, error_body(str(error)))
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the client left, the connection was idle, or the fake is being stopped
        finally:
            await connection.close()
            self._tasks.discard(task)

    async def _answer(self, connection: ClientConnection, request: HttpRequest) -> bool:
        """Answer one request. False: the connection is of no further use."""
        seen = self._see(request)
        out = Response(connection, goes_on=not self._cancels)
        work = asyncio.create_task(self._work(seen, out, connection))
        hang_up = asyncio.create_task(connection.gone.wait())
        try:
            await asyncio.wait({work, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            if not self._cancels:
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
        path = path.removeprefix("/beta") if self._dialect == "deepseek" else path
        body: Any = None
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            body = msgspec.json.decode(http.body)
        body = {k: v for k, v in body.items() if k not in self._ignores} if isinstance(body, dict) else {}
        nth_same = 0
        if path in _COMPLETIONS:
            key = path + repr(body.get("messages", body.get("prompt")))
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
        if request.path == "/completions":
            return prompt.prefix_of_prompt(request.text)
        if request.path == "/chat/completions" and self._goes_on(request):
            return prompt.prefix_of_message(request.messages)
        return None

    def _goes_on(self, request: FakeRequest) -> bool:
        return "continue_final_message" not in self._ignores and dialects.continues(self._dialect, request)

    async def _work(self, seen: FakeCall, out: Response, connection: ClientConnection) -> bool:
        """Run the route's handler. False: the connection is of no further use."""
        if self._api_key is not None and seen.request.header("authorization") != f"Bearer {self._api_key}":
            await self._refuse(seen, out, 401, "fake upstream: wrong or missing key", "invalid_api_key")
            return True
        played = self._paths.get(f"{seen.request.method} {seen.path}")
        handler = self._routes.get((seen.request.method, seen.path))
        if played is not None:
            handler = partial(self._play, played)
        if handler is None:
            await self._refuse(seen, out, 404, f"fake upstream: no route {seen.path!r}", "not_found")
            return True
        try:
            await handler(seen, out)
        except Dies as death:
            if death.how == "rst":
                connection.reset()
            return death.how == "error_frame"
        except ConnectionError:
            seen.cancelled = not out.complete
            return False
        except Exception as error:  # noqa: BLE001  a test's own function failed: raised when the fake closes
            self._failures.append(error)
            seen.error = f"{type(error).__name__}: {error}"
            if out.status is None:
                await self._refuse(seen, out, 500, f"fake upstream: {seen.error}", "fake_failed")
            return False
        return out.complete

    async def _play(self, script: Script, seen: FakeCall, out: Response) -> None:  # noqa: ARG002  a route's signature
        await play(script, out)

    async def _refuse(self, seen: FakeCall, out: Response, status: int, message: str, code: str) -> None:
        seen.error = message
        await out.whole(status, _JSON, error_body(message, code=code))

    # ---- completions

    async def _complete(self, seen: FakeCall, out: Response) -> None:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            told = self._scripts.get(seen.request.model) or self._answerer(seen.request)
            if isinstance(told, Script):
                await play(told, out)
                return
            async with self._slots:
                await self._reply(seen, out, told)
        finally:
            self.in_flight -= 1

    async def _reply(self, seen: FakeCall, out: Response, reply: Reply) -> None:
        fault = merged(reply.faults)
        out.cut_into(fault.piece_bytes)
        await asyncio.sleep(fault.header_delay_s)
        if fault.status is not None:
            message = f"fake upstream: answers {fault.status} as it was told"
            body = fault.status_body or error_body(message, code="fake_status")
            await out.whole(fault.status, {**_JSON, **dict(fault.status_headers)}, body)
            return
        if fault.html:
            await out.whole(200, {"content-type": "text/html"}, _PAGE)
            return
        try:
            dialects.check_dialect(
                self._dialect, seen.request, opens_thought=self._opens_thought, keeps_budgets=self._keeps_budgets
            )
            runs = self._begin(seen, reply)
        except (NotMyThought, NotMyDialect) as error:
            code = "not_my_thought" if isinstance(error, NotMyThought) else "not_my_dialect"
            await self._refuse(seen, out, 400, str(error), code)
            return
        completion_id = f"{'cmpl' if seen.request.is_raw else 'chatcmpl'}-fake-{seen.request.nth}"
        shape = ReplyShape(
            seen,
            reply,
            dialect=self._dialect,
            completion_id=completion_id,
            prefill_echo=self._prefill_echo or self._dialect == "mistral",
        )
        self._live[completion_id] = (seen, runs)
        try:
            streams = fault.force == "sse" or (seen.request.stream and fault.force is None)
            send = stream if streams else send_json
            async with contextlib.aclosing(generate(seen, reply, fault, runs)) as tokens:
                await send(tokens, runs, shape, fault, out)
        finally:
            del self._live[completion_id]

    def _begin(self, seen: FakeCall, reply: Reply) -> list[Completion]:
        request = seen.request
        budget = dialects.budget_of(self._dialect, request.body, keeps_budgets=self._keeps_budgets)
        n_choices = count_in(request, "n") or 1
        runs = [Completion(reply, request, index=n, budget_tokens=budget) for n in range(n_choices)]
        read = prompt.count_words(self._template(request))
        seen.prompt_tokens = max(1, len(read))
        if self._read is not None:
            seen.cached_tokens = max((_n_common(read, before) for before in self._read), default=0)
            self._read.append(read)
        return runs

    def _template(self, request: FakeRequest) -> str:
        if request.is_raw:
            return request.text
        continues = self._goes_on(request)
        return prompt.apply_template(request.messages, continue_last=continues, opens_thought=self._opens_thought)

    # ---- llama.cpp's own routes, and lists

    async def _control(self, seen: FakeCall, out: Response) -> None:
        if self._dialect != "llama.cpp":
            await self._refuse(seen, out, 404, "fake upstream: no control in this dialect", "not_found")
            return
        running = self._live.get(str(seen.body.get("id")))
        answer: dict[str, Any] = {"success": False}
        if seen.body.get("action") != "reasoning_end":
            await self._refuse(seen, out, 400, "fake upstream: action must be reasoning_end", "bad_action")
            return
        if running is None:
            answer["message"] = "no such completion is running"
        elif running[0].body.get("reasoning_control") is not True:
            answer["message"] = "the completion was started without reasoning_control"
        else:
            for run in running[1]:
                run.end_reasoning()
            answer["success"] = True
        await out.whole(200, _JSON, encode_json(answer))

    async def _apply_template(self, seen: FakeCall, out: Response) -> None:
        if self._dialect != "llama.cpp":
            await self._refuse(seen, out, 404, "fake upstream: no template in this dialect", "not_found")
            return
        await out.whole(200, _JSON, encode_json({"prompt": self._template(seen.request)}))

    async def _tokenize(self, seen: FakeCall, out: Response) -> None:
        """llama.cpp takes `content`, SGLang `prompt`, vLLM `prompt` or the chat itself."""
        body = seen.body
        key = {"llama.cpp": "content", "sglang": "prompt", "vllm": "prompt"}.get(self._dialect, "content")
        if self._dialect == "vllm" and isinstance(body.get("messages"), list):
            text = self._template(seen.request)
        elif isinstance(body.get(key), str):
            text = prompt.prompt_text(body[key])
        else:
            await self._refuse(seen, out, 400, f"fake upstream: /tokenize needs {key!r}", "bad_request")
            return
        ids = prompt.token_ids(text)
        self._texts[tuple(ids)] = text
        told = {} if self._dialect == "llama.cpp" else {"count": len(ids), "max_model_len": 32768}
        await out.whole(200, _JSON, encode_json({"tokens": ids, **told}))

    async def _detokenize(self, seen: FakeCall, out: Response) -> None:
        ids = seen.body.get("tokens")
        text = self._texts.get(tuple(ids)) if isinstance(ids, list) else None
        if text is None:
            await self._refuse(seen, out, 400, "fake upstream: these tokens stand for no text", "bad_request")
            return
        key = "content" if self._dialect == "llama.cpp" else "prompt"
        await out.whole(200, _JSON, encode_json({key: text}))

    async def _list_models(self, seen: FakeCall, out: Response) -> None:  # noqa: ARG002  a route's signature
        listed = [{"id": m, "object": "model", "created": CREATED, "owned_by": "fake"} for m in self._models]
        await out.whole(200, _JSON, encode_json({"object": "list", "data": listed}))

    async def _health(self, seen: FakeCall, out: Response) -> None:  # noqa: ARG002
        await out.whole(200, _JSON, b'{"status":"ok"}')

    async def _list_slots(self, seen: FakeCall, out: Response) -> None:  # noqa: ARG002
        n_busy = len(self._live)
        n_slots = max(self._n_slots, n_busy)
        slots = [{"id": n, "is_processing": n < n_busy} for n in range(n_slots)]
        await out.whole(200, _JSON, encode_json(slots))

    async def _metrics(self, seen: FakeCall, out: Response) -> None:  # noqa: ARG002
        counts = {
            "llamacpp:prompt_tokens_total": self.total_prompt_tokens,
            "llamacpp:tokens_predicted_total": self.total_completion_tokens,
            "llamacpp:requests_processing": len(self._live),
        }
        text = "".join(f"{name} {value}\n" for name, value in counts.items())
        await out.whole(200, {"content-type": "text/plain; version=0.0.4"}, text.encode())


def _n_common(one: Sequence[str], other: Sequence[str]) -> int:
    n_both = min(len(one), len(other))
    return next((n for n in range(n_both) if one[n] != other[n]), n_both)
