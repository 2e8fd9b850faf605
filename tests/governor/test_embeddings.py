"""A route's embedder: drafts are compared by meaning where it answers, by words where not, and no loop notices."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from suffice import Governor
from suffice.errors import ConfigError
from suffice.governor.backends import LocalBackend
from suffice.settings import parse_settings
from tests.edge.embeddings import Reply, letters, served
from tests.governor import loops
from tests.governor.loops import ROUTE, adrive, drive, local, outcome, settings

SAME = ["ab ca", "baca", "ac ba", "zzzzz", "zzz"]  # the first three are one vector and share no word
NEAR = {"policy": "semantic-distance", "epsilon": 0.05, "patience": 2}


def table(url: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "model": "m", **more}


def distances(folder: Path) -> list[float | None]:
    return [step.draft_distance for step in outcome(folder).steps]


def test_a_loop_stops_at_drafts_that_say_the_same_in_other_words(tmp_path: Path) -> None:
    seen: list[Any] = []
    with served(letters, seen) as url, local(tmp_path, policy=NEAR, embeddings=table(url)) as gov:
        with gov.episode("q") as ep:
            decisions = drive(ep, SAME)
        assert gov.failed_open == {}
    assert [d.stop for d in decisions] == [False, False, True]
    assert distances(tmp_path) == [None, pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12)]
    assert [body["input"] for body, _ in seen] == [[text] for text in SAME[:3]]
    ended = outcome(tmp_path)
    assert (ended.overhead.n_extra_calls, ended.degraded) == (3, ())
    assert ended.usage is not None
    assert ended.usage.completion_tokens == 30  # what the loop told: an embedder's tokens are not the model's


def test_the_text_of_a_step_comes_before_its_answer_and_the_same_text_is_asked_for_once(tmp_path: Path) -> None:
    seen: list[Any] = []
    with served(letters, seen) as url, local(tmp_path, embeddings=table(url, api_key_env="")) as gov:
        for _ in range(2):
            with gov.episode("q") as ep:
                ep.step(tokens=1, answer="a", text="so it is a")
                ep.step(tokens=1, answer=None)
    assert [body["input"] for body, _ in seen] == [["so it is a"]]
    assert [e.episode.outcome.overhead.n_extra_calls for e in loops.episodes(tmp_path, 2)] == [1, 0]


@pytest.mark.parametrize(
    "reply", [lambda _: web.Response(status=500), lambda _: {"data": []}, lambda _: 20.0], ids=["500", "none", "silent"]
)
def test_a_dead_embedder_costs_one_wait_and_words_are_compared(tmp_path: Path, reply: Reply) -> None:
    seen: list[Any] = []
    with served(reply, seen) as url, local(tmp_path, embeddings=table(url, timeout_s=0.1)) as gov:
        with gov.episode("q") as ep:
            decisions = drive(ep, ["red fox", "blue fox", "blue fox"])
        assert gov.failed_open == {"embedder": 1}
        assert ep.degraded == ("embedder",)
    assert [d.stop for d in decisions] == [False, False, True]
    assert distances(tmp_path) == [None, pytest.approx(2 / 3), 0.0]
    assert len(seen) == 1


def test_an_address_where_nobody_listens_governs_on(tmp_path: Path) -> None:
    with local(tmp_path, embeddings=table("http://127.0.0.1:9")) as gov, gov.episode("q") as ep:
        assert [d.stop for d in drive(ep, ["a", "a"])] == [False, True]
    assert outcome(tmp_path).degraded == ("embedder",)


def test_vectors_are_extra_calls_and_stay_within_their_limit(tmp_path: Path) -> None:
    seen: list[Any] = []
    with served(letters, seen) as url, local(tmp_path, embeddings=table(url), max_extra_calls=2) as gov:
        service = gov._state.backend
        assert isinstance(service, LocalBackend)
        with gov.episode("q") as ep:
            for answer in ("a", "b", "c", "d"):
                ep.step(answer=answer, tokens=1)
        metrics = service.gateway.metrics
        assert metrics.value("suffice_upstream_calls_total", route=ROUTE, purpose="embedding") == 2
        assert metrics.value("suffice_extra_calls_skipped_total", route=ROUTE, reason="max_extra_calls") == 2
    assert len(seen) == outcome(tmp_path).overhead.n_extra_calls == 2
    assert outcome(tmp_path).degraded == ()  # a limit that was set is no failure


def test_many_loops_at_once_and_an_event_loop_share_one_embedder(tmp_path: Path) -> None:
    def loop(number: int) -> None:
        with gov.episode(f"q{number}") as ep:
            stops.append([d.stop for d in drive(ep, SAME)])

    async def both() -> None:
        async with gov.episode("awaited") as one, gov.episode("too") as two:
            both_answers = await asyncio.gather(adrive(one, SAME), adrive(two, SAME))
            stops.extend([d.stop for d in output] for output in both_answers)

    stops: list[list[bool]] = []
    with served(letters, []) as url, local(tmp_path, policy=NEAR, embeddings=table(url)) as gov:
        threads = [threading.Thread(target=loop, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        asyncio.run(both())
    assert stops == [[False, False, True]] * 10
    assert not [thread for thread in threading.enumerate() if thread.name == "suffice-background"]


def test_a_server_asks_its_embedder_and_decides_as_the_library_does(tmp_path: Path) -> None:
    seen: list[Any] = []
    with served(letters, seen) as url:
        where = settings(tmp_path, policy=NEAR, embeddings=table(url))
        with loops.served(where) as server, Governor.connect(server, route=ROUTE) as gov, gov.episode("q") as ep:
            assert [d.stop for d in drive(ep, SAME)] == [False, False, True]
    assert len(seen) == outcome(tmp_path).overhead.n_extra_calls == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "localhost:1"}, "url"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"pause_s": float("inf")}, "pause_s"),
        ({"modell": "m"}, "did you mean 'model'"),
    ],
)
def test_what_no_embedder_can_be_is_refused_with_its_path(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"routes\.loop\.embeddings.*{says}"):
        settings(tmp_path, embeddings={**table("http://h"), **wrong})


def test_a_key_that_the_environment_lacks_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"routes\.loop\.embeddings\.api_key_env: the environment has no NO_SUCH_KEY"):
        local(tmp_path, embeddings=table("http://h", api_key_env="NO_SUCH_KEY"))
    raw = {
        "upstreams": {"u": {"url": "http://h"}},
        "routes": {"r": {"upstream": "u", "kind": "samples", "embeddings": table("http://h")}},
    }
    with pytest.raises(ConfigError, match="no drafts of each other"):
        parse_settings(raw)
