"""The embedder over a real socket, and what becomes of drafts when its server misbehaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from suffice.edge import embedder as embedder_module
from suffice.edge.embedder import HttpEmbedder
from suffice.errors import ConfigError
from suffice.signals.observe import Observer
from suffice.types import Step
from tests.edge.embeddings import Reply, letters, server


async def with_vector(embedder: HttpEmbedder, step: Step) -> Step:
    vector = await embedder.embed(step.text or step.answer or "")
    return step if vector is None else replace(step, vector=vector)


async def test_each_text_gets_its_vector_and_is_asked_for_once() -> None:
    seen: list[Any] = []
    async with server(letters, seen) as url, HttpEmbedder(url + "/v1/", model="m", api_key="k") as embedder:
        vectors = [await embedder.embed(text) for text in ("ab", "", "cc", "ab", " \n")]
        assert vectors == [(1, 1, 0), None, (0, 0, 2), (1, 1, 0), None]
    assert [body["input"] for body, _ in seen] == [["ab"], ["cc"]]
    assert seen[0][0] == {"model": "m", "input": ["ab"], "encoding_format": "float"}
    assert seen[0][1]["Authorization"] == "Bearer k"


async def test_the_least_used_vectors_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder_module, "N_KEPT", 2)
    seen: list[Any] = []
    async with server(letters, seen) as url, HttpEmbedder(url, model="m") as embedder:
        for text in ("a", "b", "a", "c", "a", "b"):
            await embedder.embed(text)
    assert [body["input"] for body, _ in seen] == [["a"], ["b"], ["c"], ["b"]]


async def test_half_a_character_does_not_break_a_request() -> None:
    async with server(letters, []) as url, HttpEmbedder(url, model="m") as embedder:
        assert await embedder.embed("a\ud800") == (1, 0, 0)


@pytest.mark.parametrize(
    "reply",
    [
        lambda _: web.Response(status=503),
        lambda _: web.Response(text="not JSON"),
        lambda _: web.Response(text="[" * 200_000),
        lambda _: {"data": []},
        lambda _: [],
        lambda _: {"data": [{"index": 7, "embedding": [1]}]},
        lambda _: {"data": [{"embedding": []}]},
        lambda _: {"data": [{"embedding": "AAAA"}]},
        lambda _: {"data": [{"embedding": [1, None]}]},
        lambda _: {"data": [{"embedding": [float("nan")]}]},
        lambda _: {"data": [{"embedding": [10**400]}]},
        lambda _: {"data": ["x"]},
        lambda _: 30.0,
    ],
)
async def test_a_server_that_fails_costs_one_wait_and_the_drafts_are_compared_by_words(reply: Reply) -> None:
    seen: list[Any] = []
    observer = Observer(["drafts"], "rounds")
    async with server(reply, seen) as url, HttpEmbedder(url, model="m", timeout_s=2.0) as embedder:
        for index, text in enumerate(["four cats", "four dogs"], 1):
            step = Step(index=index, tokens=2, answer=None, answer_source=None, text=text)
            signals = observer.observe(await with_vector(embedder, step))
    assert signals.draft_distance == pytest.approx(2 / 3)
    assert (len(seen), embedder.n_failures) == (1, 1)


async def test_after_the_pause_it_is_asked_again() -> None:
    answers = iter([web.Response(status=500), letters(["a"])])
    async with server(lambda _: next(answers), []) as url, HttpEmbedder(url, model="m", pause_s=0.0) as embedder:
        assert await embedder.embed("a") is None
        assert await embedder.embed("a") == (1, 0, 0)


async def test_a_vector_of_another_length_is_of_another_model_and_not_used() -> None:
    lengths = iter([3, 2, 3])
    reply = lambda texts: {"data": [{"embedding": [1.0] * next(lengths)} for _ in texts]}
    async with server(reply, []) as url, HttpEmbedder(url, model="m") as embedder:
        assert [await embedder.embed(text) for text in "abc"] == [(1, 1, 1), None, (1, 1, 1)]


async def test_drafts_that_say_the_same_in_other_words_are_near_with_vectors() -> None:
    observer = Observer(["drafts"], "rounds")
    async with server(letters, []) as url, HttpEmbedder(url, model="m") as embedder:
        steps = [Step(index=i, tokens=1, answer=a, answer_source="caller") for i, a in enumerate(["ab", "ba", ""], 1)]
        seen = [observer.observe(await with_vector(embedder, step)) for step in steps]
    assert [signals.draft_distance for signals in seen] == [None, pytest.approx(0.0, abs=1e-12), 1.0]
    assert [signals.draft_patience for signals in seen] == [0, 1, 0]


async def test_an_address_without_http_is_refused_and_one_without_a_server_gives_no_vectors() -> None:
    with pytest.raises(ConfigError, match="embedder"):
        HttpEmbedder("localhost", model="m")
    assert await HttpEmbedder("http://127.0.0.1:9", model="m").embed("a") is None
