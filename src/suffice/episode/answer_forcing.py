"""Closes a thought for a stop or a probe; both build the same request, so a trial answer predicts the real one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import msgspec

from suffice.episode.chunk_parsing import Piece, pieces
from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.settings import FinishMethod, Probe
from suffice.types import Purpose
from suffice.upstream.client import Headers, UpstreamClient, governed_headers
from suffice.upstream.continuation import Continuation, Prompt, build_continuation, write_prompt
from suffice.upstream.drivers import DRIVERS, find_verdict
from suffice.upstream.wire import encode_json

CHARS_A_TOKEN = 4.5  # of English text; only to estimate the prompt of a call that was cut off before it counted
CONTROL_TIMEOUT_S = 2.0
TEMPLATE_TIMEOUT_S = 5.0


class Continuer:
    def __init__(
        self,
        *,
        client: UpstreamClient,
        probe: Probe,
        max_extra_calls: int,
        body: Mapping[str, Any],
        headers: Headers,
        ledger: Ledger,
    ) -> None:
        self.client, self.settings, self.facts = client, client.settings, DRIVERS[client.settings.driver]
        self.probe, self._body, self._headers = probe, body, list(headers)
        self._ledger, self._max_extra_calls = ledger, max_extra_calls
        self._prompt: Prompt | None = None
        # Whether the running thought is in the content. A server that separates it does so in a second
        # call too, and no content begins inside a thought, whatever the template opens.
        self.thinks_inline: Callable[[], bool] = lambda: True

    @property
    def methods(self) -> tuple[FinishMethod, ...]:
        """Ways to finish, best first; empty if this upstream offers none, so that nothing can be stopped."""
        return self.settings.finish or self.facts.methods

    @property
    def second_call(self) -> FinishMethod | None:
        """The method that sends the thought so far in a second request; probes need one."""
        return next((m for m in self.methods if m != "native"), None)

    @property
    def has_free_slot(self) -> bool:
        return self.client.n_open < self.settings.slots

    def may_call(self, *, keep: int) -> bool:
        """Return whether one more extra call is allowed, with `keep` calls left for what may have to follow."""
        return self._ledger.n_extra_calls + keep < self._max_extra_calls

    def probe_refusal(self, *, keep: int) -> str | None:
        return self.client.extra_refusal() if self.may_call(keep=keep) else "max_extra_calls"

    async def end_reasoning(self, completion_id: str) -> bool:
        """End the running thought in place by llama.cpp's control endpoint; return True if it confirms."""
        fields = {"id": completion_id, "action": "reasoning_end"}
        try:
            return bool(await self._ask("/v1/chat/completions/control", fields, "success", CONTROL_TIMEOUT_S))
        except UpstreamProtocol:
            return False

    async def prompt(self, *, text: bool) -> Prompt | None:
        """Return the rendered prompt and its token count; without `text`, maybe only the count. Raise UpstreamError."""
        if self._prompt is None or (text and self._prompt.text is None):
            self._prompt = await self._render_prompt(text=text)
        return self._prompt

    async def _render_prompt(self, *, text: bool) -> Prompt | None:
        if self.settings.template is not None:
            return await self._own_prompt()
        wanted = ("messages", "tools", "chat_template_kwargs", "reasoning_effort")
        fields = {k: self._body[k] for k in wanted if k in self._body}
        if self.facts.writes_prompt == "apply-template":
            prompt = await self._ask("/apply-template", fields, "prompt")
            if not isinstance(prompt, str):
                raise UpstreamProtocol("/apply-template: the upstream returned no prompt")
            whole = {"content": prompt, "add_special": True, "parse_special": True}
            tokens = await self._ask("/tokenize", whole, "tokens")
            return Prompt(text=prompt, n_tokens=len(tokens) if isinstance(tokens, list) else None)
        if self.facts.writes_prompt == "tokenize":
            fields.pop("reasoning_effort", None)
            return await self._vllm_prompt(fields, text=text)
        return None

    async def _vllm_prompt(self, fields: dict[str, Any], *, text: bool) -> Prompt:
        """Use `/detokenize`: `return_token_strs` would write spaces and bytes in the tokenizer's own symbols."""
        model = {"model": self._body.get("model")}
        tokens = await self._ask("/tokenize", model | fields | {"add_generation_prompt": True}, "tokens")
        if not isinstance(tokens, list):
            raise UpstreamProtocol("/tokenize: the upstream returned no tokens")
        written = await self._ask("/detokenize", model | {"tokens": tokens}, "prompt") if text else None
        if text and not isinstance(written, str):
            raise UpstreamProtocol("/detokenize: the upstream returned no prompt")
        return Prompt(text=written, n_tokens=len(tokens))

    async def _own_prompt(self) -> Prompt:
        assert self.settings.template is not None
        try:
            text = write_prompt(self.settings.template, self._body["messages"])
        except ValueError as error:
            raise UpstreamProtocol(str(error)) from None
        count = None
        if self.facts.counts_prompts:
            fields = {"model": self._body.get("model"), "prompt": text, "add_special_tokens": False}
            with suppress(UpstreamError):
                count = await self._ask("/tokenize", fields, "count")
        return Prompt(text=text, n_tokens=count if isinstance(count, int) else None)

    async def _ask(self, path: str, fields: Mapping[str, Any], key: str, timeout_s: float = TEMPLATE_TIMEOUT_S) -> Any:
        body = encode_json(fields)
        status, answer, _ = await self.client.fetch(path, body, self._headers, timeout_s=timeout_s)
        if status != 200:
            raise UpstreamProtocol(f"{path}: the upstream answered {status}")
        try:
            return msgspec.json.decode(answer).get(key)
        except (msgspec.DecodeError, AttributeError):
            raise UpstreamProtocol(f"{path}: the upstream's answer is not a JSON object") from None

    async def prepare(
        self, method: FinishMethod, thought: str, *, purpose: Purpose, max_tokens: int | None
    ) -> Continuation:
        """Build the request that answers after `thought`. Raise UpstreamError if the upstream cannot serve it."""
        prompt = await self.prompt(text=True) if method == "raw" else None
        if method == "raw" and prompt is None:
            raise UpstreamProtocol(f"raw continuation: driver {self.settings.driver!r} cannot render a chat template")
        try:
            request = build_continuation(
                method,
                self._body,
                thought,
                upstream=self.settings,
                probe=self.probe,
                prompt=prompt,
                max_tokens=max_tokens,
                trial=purpose == "probe",
            )
        except ValueError as error:
            raise UpstreamProtocol(str(error)) from None
        if find_verdict(self.client.findings, "stream_usage") == "no":
            del request.body["stream_options"]  # as for the client's own call
        return replace(request, opened=request.opened and self.thinks_inline())

    @asynccontextmanager
    async def open(
        self, request: Continuation, *, thought_tokens: int, purpose: Purpose
    ) -> AsyncIterator[tuple[AsyncGenerator[Piece, None], CallAccount]]:
        """Send a request; yield its pieces and its account.

        Raise UpstreamError, or UpstreamBusy for a probe without room.
        """
        account = CallAccount(purpose)
        account.context_tokens = thought_tokens + round(request.added_chars / CHARS_A_TOKEN)
        account.is_open = True
        is_beta = request.path.startswith("/beta/") and self.settings.url.rstrip("/").endswith("/beta")
        path = request.path.removeprefix("/beta") if is_beta else request.path
        async with AsyncExitStack() as stack:
            may_be_refused = purpose == "probe"
            stack.enter_context(self.client.extra_call(lambda: account.fresh_tokens, may_be_refused=may_be_refused))
            stack.callback(setattr, account, "is_open", False)
            self._ledger.calls.append(account)
            headers = governed_headers(self._headers, nth=len(self._ledger.calls))
            call = await stack.enter_async_context(
                self.client.open(path, encode_json(request.body), headers, extra=True)
            )
            self._ledger.extra.n_refused += call.asks_for_less
            if call.status != 200 or call.content_type != "text/event-stream":
                answer = f"{call.status} {call.content_type}"
                raise UpstreamProtocol(f"{request.path}: the upstream answered {answer} to a continuation")
            account.began = True
            tags = (self.settings.think_open, self.settings.think_close)
            reply = pieces(call, account, tags=tags, prefill=request.prefill, opened=request.opened)
            async with aclosing(reply):
                yield reply, account
