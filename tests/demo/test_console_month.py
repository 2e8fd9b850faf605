"""The made-up month of the console's demonstration: its log is a real one, and its pages show it."""

from __future__ import annotations

import time
from pathlib import Path

from suffice.demo.console.month import DAY_S, DAYS, ROUTE, live, month, settings_for
from suffice.demo.console.people import MATH, SUPPORT
from suffice.store import rollups
from suffice.store.views import read_episodes, reading
from tests.console.visitor import Visitor, people_of, site

N = 120


def test_a_short_month_is_a_log_like_any_other_and_all_of_it_is_summed_up(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "console.db")
    now_s = time.time()
    began_s = now_s - DAYS * DAY_S
    seen: list[int] = []
    with month(settings, tmp_path / "console.db", begin_s=began_s, seed=1, monotonic_s=time.monotonic) as made:
        live(made, n=N, until_s=now_s, told=lambda n, _held: seen.append(n))
        assert made.held.in_burst, "so few runs certify nothing"
    assert seen == [60, 120]
    runs = list(read_episodes(tmp_path / "console.db", ROUTE))
    assert len(runs) == N
    assert all(one.episode.request.audit for one in runs), "the burst runs in full"
    with reading(tmp_path / "console.db") as connection:
        days = rollups.read(connection, ("day",), route=ROUTE)
        total = rollups.read(connection, ())[()]
        kinds = {str(key[0]) for key in rollups.read(connection, ("query_class",))}
    assert len(days) > DAYS - 3, "they are spread over the month"
    assert (total.n_requests, total.n_governed) == (N + N // 3 + N // 20, N + N // 3)
    assert kinds >= {one.name for one in (*MATH, *SUPPORT)}
    with site(settings) as app:
        visitor = Visitor(app)
        assert visitor.login(people_of(settings).reset("admin")).status == 303
        page = visitor.get("/console?days=all").text
        assert f"{total.n_requests:,} requests" in page
        assert "cold start" in page
