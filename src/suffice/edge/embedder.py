"""Embeddings from any server with OpenAI's `/v1/embeddings`, with which the fold `drafts` compares drafts."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Annotated, Literal, Self

import msgspec

from suffice.errors import ConfigError, UpstreamError, UpstreamProtocol
from suffice.telemetry import LOG
from suffice.upstream.client import helper_client
from suffice.upstream.wire import encode_json

N_KEPT = 4_096  # cached vectors; the least recently used are dropped first
_MOST_BYTES = 4 * 2**20  # of one reply
_MOST_NUMBERS = 65_536  # of one vector

Vector = tuple[float, ...]


class EmbeddingEntry(msgspec.Struct):
    embedding: Annotated[Vector, msgspec.Meta(min_length=1, max_length=_MOST_NUMBERS)]
    index: Literal[0] | None = None


class EmbeddingReply(msgspec.Struct):
    data: tuple[EmbeddingEntry]


class HttpEmbedder:
    """An `Embedder` inside `async with`. A vector of another length comes from another model and is dropped."""

    def __init__(
        self, url: str, *, model: str, api_key: str | None = None, timeout_s: float = 10.0, pause_s: float = 30.0
    ) -> None:
        """Raise ConfigError for an invalid address. After a failure there are no calls for `pause_s`."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"embedder.url: got {url!r:.200}; need http://host[:port][/path]")
        self._client = helper_client("embedder", url, timeout_s=timeout_s, api_key=api_key, retries=1)
        self._model = model
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._n_numbers: int | None = None  # length of each vector, as of the first one
        self._kept: OrderedDict[bytes, Vector] = OrderedDict()
        self._again_at_s = 0.0
        self.n_failures = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    @property
    def rests(self) -> bool:
        return asyncio.get_running_loop().time() < self._again_at_s

    def recall(self, text: str) -> Vector | None:
        key = _key(text)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    async def embed(self, text: str) -> Vector | None:
        """Return the vector of a text, None if it is blank or the server failed."""
        if not text.strip():
            return None
        if (known := self.recall(text)) is not None or self.rests:
            return known
        try:
            vector = await self._ask(text)
        except UpstreamError as error:
            self.n_failures += 1
            self._again_at_s = asyncio.get_running_loop().time() + self._pause_s
            LOG.warning("embedder: %s: drafts are compared by words for %g s", error, self._pause_s)
            return None
        self._n_numbers = self._n_numbers or len(vector)
        if len(vector) != self._n_numbers:
            self.n_failures += 1
            LOG.warning("embedder: a vector of %d numbers where others have %d", len(vector), self._n_numbers)
            return None
        self._kept[_key(text)] = vector
        if len(self._kept) > N_KEPT:
            self._kept.popitem(last=False)
        return vector

    async def _ask(self, text: str) -> Vector:
        readable = text.encode("utf-8", "replace").decode()  # lone surrogates are not valid UTF-8
        body = encode_json({"model": self._model, "input": [readable], "encoding_format": "float"})
        status, raw, _ = await self._client.fetch(
            "/v1/embeddings", body, timeout_s=self._timeout_s, most_bytes=_MOST_BYTES
        )
        if status != 200:
            raise UpstreamProtocol(f"status {status}")
        try:
            return msgspec.json.decode(raw, type=EmbeddingReply).data[0].embedding
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UpstreamProtocol(f"a reply without a vector: {error}") from None


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
