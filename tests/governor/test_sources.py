"""What the steps of a loop read and wrote is kept for reviewers where their route wants it, and nowhere else."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import BadRequest
from suffice.governor import Governor
from suffice.review.items import MOST_CHARS, Source, SourceBuffer
from suffice.store.database.decisions import Decisions
from suffice.store.database.erasing import ErasureOrder, erase_words, purge, select_word_rows
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import kept_sources
from tests.governor.loops import ROUTE, local, served, settings
from tests.governor.test_decide import decide, gateway, step

CANARY = "canary-5e1f"
KEEPS: dict[str, Any] = {"review": {"keep_text": True, "text_days": 2.0}}
DAY_S = 86_400.0


def walk(gov: Governor) -> str:
    """Two rounds of retrieval; the run's name."""
    with gov.episode("which river?") as ep:
        ep.step(
            answer="",
            tokens=5,
            text=f"{CANARY} search: river",
            sources=[f"{CANARY} one", f"{CANARY} two"],
            action="search",
        )
        ep.step(answer="Danube", tokens=9, text=f"{CANARY} so it is the Danube", action="answer")
        return ep.id


def show(log: Path, name: str, *, now_s: float = 0.0) -> list[tuple[int, str, str]]:
    kept = kept_sources(log, name, now_s=now_s)
    return [] if kept is None else [(one.step, one.what, one.text.removeprefix(f"{CANARY} ")) for one in kept.sources]


WHOLE = [(1, "read", "one"), (1, "read", "two"), (1, "wrote", "search: river"), (2, "wrote", "so it is the Danube")]


def test_a_library_keeps_what_a_loop_read_only_where_its_route_says_so(tmp_path: Path) -> None:
    for name, route, expected in (("keeps", KEEPS, WHOLE), ("not", {}, [])):
        folder = tmp_path / name
        folder.mkdir()
        with local(folder, **route) as gov:
            run = walk(gov)
        assert show(folder / "log.db", run) == expected
        result = [path.name for path in folder.iterdir() if CANARY.encode() in path.read_bytes()]
        assert bool(result) == bool(expected)


def test_a_server_keeps_the_same(tmp_path: Path) -> None:
    with served(settings(tmp_path, **KEEPS)) as url, Governor.connect(url, route=ROUTE) as gov:
        run = walk(gov)
    assert show(tmp_path / "log.db", run) == WHOLE


def test_they_are_shown_for_their_time_and_erased_with_the_question(tmp_path: Path) -> None:
    with local(tmp_path, **KEEPS) as gov:
        run = walk(gov)
    log = tmp_path / "log.db"
    kept = kept_sources(log, run, now_s=0.0)
    assert kept is not None
    assert show(log, run, now_s=kept.expires_at_s - 1) == WHOLE
    assert show(log, run, now_s=kept.expires_at_s) == []
    with open_reader(log) as connection:
        rows = select_word_rows(connection, run)
    with closing(Decisions(log, now=lambda: 1.0, monotonic_s=lambda: 0.0)) as writer:
        order = ErasureOrder(erasure_id="e", what="the run", parts=("questions",), author="ann", reason="asked for")
        erase_words(writer, order, rows)
    assert purge(log)
    assert not [path.name for path in tmp_path.iterdir() if CANARY.encode() in path.read_bytes()]
    assert [text for _, _, text in show(log, run)] == ["", "", "", ""], "that there were some stays known"


def test_a_run_keeps_so_many_characters_and_says_that_there_were_more() -> None:
    shelf = SourceBuffer(until_s=1.0)
    shelf.add(1, read=["a" * (MOST_CHARS - 2), ""], wrote="bcd")
    assert shelf.is_cut
    assert [len(one.text) for one in shelf.sources] == [MOST_CHARS - 2, 2]
    shelf.add(2, read=["more"], wrote="")
    assert len(shelf.sources) == 2
    whole = SourceBuffer(until_s=1.0)
    whole.add(3, read=[], wrote="x")
    assert (whole.sources, whole.is_cut) == ([Source(step=3, what="wrote", text="x")], False)


def test_a_step_told_again_is_kept_once(tmp_path: Path) -> None:
    from suffice.episode.rounds import StepReport

    with local(tmp_path, **KEEPS) as gov, gov.episode("q") as ep:
        report = StepReport(answer="a", tokens=1, text="one")
        for _ in range(3):
            ep._run.take(1, report, done=False)  # as a client does whose call broke off
        name = ep.id
    assert show(tmp_path / "log.db", name) == [(1, "wrote", "one")]


@pytest.mark.parametrize("bad", ["one text", [1], ["fine", None]])
def test_what_is_no_list_of_texts_is_a_mistake(tmp_path: Path, bad: Any) -> None:
    with local(tmp_path) as gov, gov.episode("q") as ep, pytest.raises(BadRequest, match=r"step\.sources"):
        ep.step(answer="a", tokens=1, sources=bad)


@pytest.mark.parametrize("bad", ["one text", [1], {"a": 1}, ["x"] * 1_001])
async def test_a_server_names_the_field(tmp_path: Path, bad: Any) -> None:
    async with gateway(tmp_path) as g:
        status, output = await decide(g, {"question": "q", "step": step(1, "a") | {"sources": bad}})
        assert (status, output["error"]["param"]) == (400, "step.sources")
