"""Closing a thought: who is asked, in which order, and what happens when that fails.

`Continuer` is one request's access to the ways to finish (`upstream/continuation` has the shapes).
The probe uses the same object, so a trial answer is asked for exactly as a real one would be.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import msgspec

from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.reading import Piece, pieces
from suffice.errors import UpstreamProtocol
from suffice.settings import FinishMethod, Probe, Upstream
from suffice.types import Purpose
from suffice.upstream import continuation
from suffice.upstream.client import Headers, UpstreamClient, governed_headers
from suffice.upstream.continuation import Continuation, Prompt
from suffice.upstream.wire import encode_json

CONTROL_TIMEOUT_S = 2.0
TEMPLATE_TIMEOUT_S = 5.0


class Continuer:
    """The ways to close this request's thought."""

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
        self._client, self._probe, self._body = client, probe, body
        self._own_headers, self._headers = list(headers), governed_headers(headers)
        self._ledger, self._max_extra_calls = ledger, max_extra_calls
        self._prompt: Prompt | None = None

    @property
    def settings(self) -> Upstream:
        """The upstream's settings."""
        return self._client.settings

    @property
    def methods(self) -> tuple[FinishMethod, ...]:
        """Ways to finish, best first; empty: this upstream offers none, so nothing can be stopped."""
        return self.settings.finish or continuation.DRIVER_METHODS[self.settings.driver]

    @property
    def second_call(self) -> FinishMethod | None:
        """The way that asks again with the thought so far; probes need one."""
        return next((m for m in self.methods if m != "native"), None)

    def may_call(self, *, keep: int) -> bool:
        """May one more extra call be made, with `keep` of them left over for what may have to follow?"""
        return len(self._ledger.calls) - 1 + keep < self._max_extra_calls

    @property
    def is_paused(self) -> bool:
        """Has the upstream asked for fewer calls? Then an original that still runs is left to go on."""
        return self._client.is_paused

    def why_no_probe(self, *, keep: int) -> str | None:
        """What speaks against a probe now; None: nothing does."""
        return self._client.extra_refusal() if self.may_call(keep=keep) else "max_extra_calls"

    async def end_reasoning(self, completion_id: str) -> bool:
        """llama.cpp's own control: end the running thought in place. True when it said it did."""
        body = encode_json({"id": completion_id, "action": "reasoning_end"})
        status, answer = await self._client.post_json(
            "/v1/chat/completions/control", body, timeout_s=CONTROL_TIMEOUT_S, headers=self._headers
        )
        if status != 200:
            return False
        try:
            return bool(msgspec.json.decode(answer).get("success"))
        except (msgspec.DecodeError, AttributeError):
            return False

    async def prompt(self) -> Prompt | None:
        """The prompt as the engine's template writes it, with its token count; asked for once."""
        if self._prompt is None and self.settings.driver == "llama.cpp":
            self._prompt = await self._ask_template()
        return self._prompt

    async def _ask_template(self) -> Prompt:
        wanted = ("messages", "tools", "chat_template_kwargs", "reasoning_effort")
        body = encode_json({k: self._body[k] for k in wanted if k in self._body})
        text = await self._json("/apply-template", body, "prompt")
        if not isinstance(text, str):
            raise UpstreamProtocol("/apply-template: gave no prompt")
        body = encode_json({"content": text, "add_special": True, "parse_special": True})
        tokens = await self._json("/tokenize", body, "tokens")
        return Prompt(text=text, n_tokens=len(tokens) if isinstance(tokens, list) else None)

    async def _json(self, path: str, body: bytes, key: str) -> Any:
        status, answer = await self._client.post_json(
            path, body, timeout_s=TEMPLATE_TIMEOUT_S, headers=self._headers
        )
        if status != 200:
            raise UpstreamProtocol(f"{path}: the upstream answered {status}")
        try:
            return msgspec.json.decode(answer).get(key)
        except (msgspec.DecodeError, AttributeError):
            raise UpstreamProtocol(f"{path}: the upstream's answer is no JSON object") from None

    async def prepare(
        self, method: FinishMethod, thought: str, *, purpose: Purpose, max_tokens: int | None
    ) -> Continuation:
        """Write the request that answers after `thought`. Raises UpstreamError where the upstream cannot."""
        trial = purpose == "probe"
        prompt = await self.prompt() if method == "raw" else None
        if method == "raw" and prompt is None:
            raise UpstreamProtocol(f"raw continuation: driver {self.settings.driver!r} writes no template")
        closed = continuation.closed_thought(
            thought,
            closing=self._probe.closing,
            think_close=self.settings.think_close,
            answer_prefix=self._probe.answer_prefix,
        )
        return continuation.build(
            method,
            self._body,
            closed,
            prompt=prompt,
            think_open=self.settings.think_open,
            max_tokens=max_tokens,
            stop=self._probe.stop if trial else (),
            logprobs=1 if trial else 0,
        )

    @asynccontextmanager
    async def open(
        self, request: Continuation, *, thought_tokens: int, purpose: Purpose
    ) -> AsyncIterator[tuple[AsyncGenerator[Piece, None], CallAccount]]:
        """Send a prepared request; give the pieces of its reply and their account.

        thought_tokens  of the thought in it, as they were counted when it was generated
        Raises UpstreamError when the upstream refuses, is down or speaks another protocol, and UpstreamBusy
        when there is no room for the call now: a probe is sent now or not at all.
        """
        account = CallAccount(purpose)
        account.context_tokens = thought_tokens
        async with AsyncExitStack() as stack:
            trial = purpose == "probe"
            stack.enter_context(self._client.extra_call(lambda: account.fresh_tokens, may_be_refused=trial))
            self._ledger.calls.append(account)
            headers = governed_headers(self._own_headers, nth=len(self._ledger.calls))
            call = await stack.enter_async_context(
                self._client.open(request.path, encode_json(request.body), headers, extra=True)
            )
            self._ledger.n_refused += call.asks_for_less
            if call.status != 200 or call.content_type != "text/event-stream":
                answered = f"{call.status} {call.content_type}"
                raise UpstreamProtocol(f"{request.path}: the upstream answered {answered} to a continuation")
            account.began = True
            async with aclosing(pieces(call, account, prefill=request.prefill)) as reply:
                yield reply, account

    @property
    def answer_prefix(self) -> str:
        """Words that Suffice writes at the start of a forced answer; the client must see them."""
        return self._probe.answer_prefix

    @property
    def trial_tokens(self) -> int:
        """Cap of a trial answer, in tokens."""
        return self._probe.max_tokens
