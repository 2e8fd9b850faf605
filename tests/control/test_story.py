"""A whole story over real sockets and a real log: full runs, a certificate, stops, another model behind the name."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.control.evidence.versions import read_back
from suffice.control.jobs.base import JobReport
from suffice.serving.deploy import deploy_route
from suffice.settings import Settings, parse_settings
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import open_reader, read_episodes
from suffice.store.routes.deployments import read_decided
from suffice.wiring.routes import build_route
from suffice.wiring.worker import open_worker
from suffice_testing import FakeRequest, FakeUpstream, Reply, cut
from tests.gateway.served import Served, chat, served

N = 120
CONTROL = {"tick_requests": 20, "burst_requests": N, "refit_requests": 1_000, "window_audits": 400}
ROUTE = {
    "kind": "samples",
    "samples": 6,
    "wave": 2,
    "scorer": "number",
    "mode": "enforce",
    "max_em_drop": 0.12,
    "confidence": 0.8,
    "audit_share": 0.1,
}


class Model:
    """Four questions in five are easy: all samples agree. `name` is what it calls itself."""

    def __init__(self) -> None:
        self.name = "m-1"

    def __call__(self, seen: FakeRequest) -> Reply:
        digest = hashlib.blake2b(seen.text.encode(), digest_size=8).digest()
        answer = digest[0] if digest[1] % 5 else digest[0] + seen.nth_same % 2
        return Reply(answer=cut(f"it is {answer}"), extra={"model": self.name})


def settings_of(g: Served) -> Settings:
    """What a worker beside this gateway reads."""
    return parse_settings(
        {
            "upstreams": {"up": {"url": g.fake.url, "driver": "llama.cpp"}},
            "routes": {"r": {"upstream": "up", **ROUTE}},
            "store": {"url": f"sqlite:///{g.database}"},
            "control": CONTROL,
        }
    )


async def ask(g: Served, first: int, n: int) -> None:
    """Ask so many questions, eight at once."""
    for begin in range(first, first + n, 8):
        answers = await asyncio.gather(
            *(g.ask(chat(f"question {at}?")) for at in range(begin, min(begin + 8, first + n)))
        )
        assert {answer.status for answer in answers} == {200}


async def work(g: Served, settings: Settings) -> list[JobReport]:
    """One run of the worker, in a thread, as if in a process of its own; the gateway is told at once."""
    log: Any = g.gateway.log
    await asyncio.to_thread(log.drain)

    def run() -> list[JobReport]:
        with open_worker(settings) as here:
            reports = here.once("certify")
        assert reports is not None
        return reports

    reports = await asyncio.to_thread(run)
    g.gateway.deployment.notify()
    return reports


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


async def test_from_observe_to_certified_stops_to_another_model_to_full_runs(tmp_path: Path) -> None:
    model = Model()
    async with served(tmp_path, model, route=ROUTE) as g:
        settings = settings_of(g)
        assert [report.summary for report in await work(g, settings)] == ["epoch 1 begins (cold start)"]
        await until(lambda: g.gateway.deployment.routes[0].in_burst)
        await ask(g, 0, N)  # a cold start behaves as observe, and every run is evidence
        assert 3 * N < len(g.fake.completions) < 6 * N, "a vote that is decided draws no further sample"
        burst = [item.episode for item in await g.episodes(N)]
        assert all(episode.request.audit and episode.request.propensity == 1.0 for episode in burst)
        assert not any(episode.outcome.stopped or episode.request.certified for episode in burst)

        (report,) = await work(g, settings)
        assert report.ok
        await until(lambda: g.gateway.deployment.routes[0].certified)
        level = g.gateway.deployment.routes[0].active.level
        assert level > 0
        assert g.gateway.metrics.value("suffice_certified_level", route="r") == level

        before = len(g.fake.completions)
        await ask(g, N, 60)
        live = [item.episode for item in (await g.episodes(N + 60))[N:]]
        stopped = [episode for episode in live if episode.outcome.stopped]
        assert len(stopped) > 30
        assert len(g.fake.completions) - before < 6 * 60
        assert all(episode.request.certified for episode in live)
        version = f"{g.gateway.deployment.routes[0].serving.version}@{level}"
        assert {episode.request.policy_version for episode in live} == {version}
        assert not any(episode.outcome.stopped for episode in live if episode.request.audit)
        answer = await g.ask(chat("one more?", suffice={}))
        assert answer.report["certified"] is True
        assert answer.headers["x-suffice-policy-version"] == answer.report["policy_version"] == version

        model.name = "m-2"
        await ask(g, N + 61, 1)
        await g.quiet()
        assert not g.gateway.deployment.routes[0].certified, (
            "suspended by the first answer, before the control loop knows"
        )
        (report,) = await work(g, settings)
        assert "model changed from 'm-1' to 'm-2'" in report.summary
        held = read_decided(g.database).of("r")
        assert (held.n_epochs, held.in_burst, held.alarm and held.alarm.cause) == (2, True, "change")
        await until(lambda: g.gateway.deployment.routes[0].active.n_epochs == 2)
        before = len(g.fake.completions)
        await ask(g, 1_000, N + 30)
        assert 3 * (N + 30) < len(g.fake.completions) - before < 6 * (N + 30), "only what is decided ends"
        await work(g, settings)
        await until(lambda: g.gateway.deployment.routes[0].certified)
        again = read_decided(g.database).of("r")
        assert again.publication is not None
        assert (again.publication.epoch, again.publication.upstream) == (2, (("m", "m-2", "fake-1"),))

        await g.gateway.log.append_durable(again.publication)  # written twice, it counts once
        assert read_decided(g.database).of("r").n_publications == again.n_publications


async def test_what_cannot_be_loaded_runs_in_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path, Model(), route=ROUTE) as g:
        settings = settings_of(g)
        await work(g, settings)
        await until(lambda: g.gateway.deployment.routes[0].in_burst)
        await ask(g, 0, N + 5)
        await work(g, settings)
        await until(lambda: g.gateway.deployment.routes[0].certified)
        file = await g.kept('"versions":{"v-')
    with closing(sqlite3.connect(g.database)) as connection:
        connection.execute("UPDATE artefacts SET body = replace(body, '\"seed\":0', '\"seed\":1')")
        connection.commit()
    file.unlink()  # which has the version whole
    async with served(tmp_path, Model(), route=ROUTE) as g:
        await until(lambda: "what is kept under it is v-" in caplog.text)
        assert not g.gateway.deployment.routes[0].certified
        await ask(g, 2_000, 4)
        assert not any(item.episode.outcome.stopped for item in (await g.episodes(N + 9))[N + 5 :])
        (report,) = await work(g, settings)
        assert "epoch 2 begins (version v-" in report.summary
    assert len(list(read_episodes(tmp_path / "log.db"))) == N + 9


async def test_a_certificate_for_another_promise_or_setup_is_not_acted_on(tmp_path: Path) -> None:
    fake = FakeUpstream(Model())
    async with served(tmp_path, fake, route=ROUTE) as g:
        settings = settings_of(g)
        await work(g, settings)
        await until(lambda: g.gateway.deployment.routes[0].in_burst)
        await ask(g, 0, N + 5)
        await work(g, settings)
        route, url = g.gateway.deployment.routes[0].settings, g.fake.url
    upstream = settings.upstreams["up"]

    def certified(**changes: Any) -> bool:
        """The route as a gateway with these settings builds it from the same log."""
        changed = msgspec.structs.replace(route, **changes)
        base = build_route("r", changed, upstream=msgspec.structs.replace(upstream, url=url))
        held = read_decided(tmp_path / "log.db").of("r")
        assert held.publication is not None
        with open_reader(tmp_path / "log.db") as connection:
            version = read_back(held.publication.fit, read_artefact(connection, held.publication.fit)).version
        return deploy_route(base, held, version).certified

    assert certified()
    assert certified(max_em_drop=0.2, confidence=0.7, audit_share=0.5), "it proves more than that"
    for change in ({"max_em_drop": 0.05}, {"confidence": 0.9}, {"samples": 7}, {"scorer": "text"}):
        assert not certified(**change), change
