"""Embeddings from any server with OpenAI's `/v1/embeddings`, with which the fold `drafts` compares drafts."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Self

import msgspec

from suffice.errors import ConfigError, UpstreamError, UpstreamProtocol
from suffice.telemetry import LOG
from suffice.upstream.client import helper_client
from suffice.upstream.wire import encode_json

_BATCH = 64  # texts in one request
_MOST_BYTES = 64 * 2**20  # of one reply
_MOST_NUMBERS = 65_536  # of one vector
N_KEPT = 4_096  # cached vectors; the least recently used are dropped first

Vector = tuple[float, ...]


class EmbeddingEntry(msgspec.Struct):
    embedding: Annotated[list[float], msgspec.Meta(min_length=1, max_length=_MOST_NUMBERS)]
    index: int | None = None


class EmbeddingReply(msgspec.Struct):
    data: list[EmbeddingEntry]


class HttpEmbedder:
    """An `Embedder` inside `async with`. A vector of another length comes from another model and is dropped."""

    def __init__(
        self, url: str, *, model: str, api_key: str | None = None, timeout_s: float = 10.0, pause_s: float = 30.0
    ) -> None:
        """Raise ConfigError for an invalid address. After a failure there are no calls for `pause_s`."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"embedder.url: got {url!r:.200}; need http://host[:port][/path]")
        self._client = helper_client("embedder", url, timeout_s=timeout_s, api_key=api_key, retries=1)
        self._model, self._timeout_s, self._pause_s = model, timeout_s, pause_s
        self._n_numbers: int | None = None  # length of each vector, as of the first one
        self._kept: OrderedDict[bytes, Vector] = OrderedDict()
        self._again_at_s = 0.0
        self.n_requests = self.n_failures = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    @property
    def rests(self) -> bool:
        return asyncio.get_running_loop().time() < self._again_at_s

    def recall(self, text: str) -> Vector | None:
        return self._recall(_key(text))

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """Return one vector for each text, None if the text is blank or the server failed."""
        keys = [_key(text) for text in texts]
        known: dict[bytes, Vector | None] = {key: self._recall(key) for key in keys}
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if known[key] is None and text.strip()}
        missing = list(wanted.items())
        for begin in range(0, len(missing), _BATCH):
            batch = missing[begin : begin + _BATCH]
            vectors = await self._ask([text for _, text in batch])
            for (key, _), vector in zip(batch, vectors, strict=True):
                known[key] = vector
                self._keep(key, vector)
        return [known[key] for key in keys]

    async def _ask(self, texts: list[str]) -> list[Vector | None]:
        if self.rests:
            return [None] * len(texts)
        try:
            return self._checked(await self._post(texts), len(texts))
        except UpstreamError as error:
            self.n_failures += 1
            self._again_at_s = asyncio.get_running_loop().time() + self._pause_s
            LOG.warning("embedder: %s: drafts are compared by words for %g s", error, self._pause_s)
            return [None] * len(texts)

    async def _post(self, texts: list[str]) -> list[EmbeddingEntry]:
        self.n_requests += 1
        # Lone surrogates are not valid UTF-8.
        readable = [text.encode("utf-8", "replace").decode() for text in texts]
        body = encode_json({"model": self._model, "input": readable, "encoding_format": "float"})
        status, raw, _ = await self._client.fetch(
            "/v1/embeddings", body, timeout_s=self._timeout_s, most_bytes=_MOST_BYTES
        )
        if status != 200:
            raise UpstreamProtocol(f"status {status}")
        try:
            return msgspec.json.decode(raw, type=EmbeddingReply).data
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UpstreamProtocol(f"a reply without vectors: {error}") from None

    def _checked(self, entries: list[EmbeddingEntry], n_texts: int) -> list[Vector | None]:
        """Return the vectors in the order of their texts, None for one of another length. Raise UpstreamProtocol."""
        if len(entries) != n_texts:
            raise UpstreamProtocol(f"a reply without one entry for each of {n_texts} texts in `data`")
        vectors: list[Vector | None] = [None] * n_texts
        for at, entry in enumerate(entries):
            index, vector = at if entry.index is None else entry.index, tuple(entry.embedding)
            if not 0 <= index < n_texts:
                raise UpstreamProtocol(f"an entry with the index {index}")
            self._n_numbers = self._n_numbers or len(vector)
            if len(vector) == self._n_numbers:
                vectors[index] = vector
                continue
            self.n_failures += 1
            LOG.warning("embedder: a vector of %d numbers where others have %d", len(vector), self._n_numbers)
        return vectors

    def _recall(self, key: bytes) -> Vector | None:
        vector = self._kept.get(key)
        if vector is not None:
            self._kept.move_to_end(key)
        return vector

    def _keep(self, key: bytes, vector: Vector | None) -> None:
        if vector is not None:
            self._kept[key] = vector
            if len(self._kept) > N_KEPT:
                self._kept.popitem(last=False)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
