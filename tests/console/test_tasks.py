"""Tasks of a person at the console, in a real browser from the first page: each takes three clicks at most."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from rich.console import Console

from suffice_demo.program import made_up_month
from tests.console.chromium import PROGRAM, Tab, tab
from tests.console.made import fill
from tests.console.tasks import MOST_CLICKS, TASKS, Task
from tests.console.test_chromium import login, served
from tests.console.visitor import people_of, settings_in
from tests.console.walkthrough import served_month, take_pictures

REVIEW_S = 20.0  # for ten verdicts
PAGE = Path(__file__).parents[2] / "docs" / "console" / "README.md"
Test = TypeVar("Test", bound=Callable[..., Any])
NO_BROWSER = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed: apt-get install chromium")


def in_a_browser(test: Test) -> Test:
    return cast(Test, pytest.mark.slow(NO_BROWSER(test)))


@pytest.fixture(scope="session")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up month, decided by the real control loop; copied by each test that changes it."""
    folder = tmp_path_factory.mktemp("month")
    made_up_month(Console(quiet=True), folder)
    return folder


@in_a_browser
@pytest.mark.parametrize("task", TASKS, ids=[one.name for one in TASKS])
async def test_a_task_takes_three_clicks_at_most(month: Path, tmp_path: Path, task: Task) -> None:
    shutil.copytree(month, tmp_path / "month")
    async with served_month(tmp_path / "month") as (person, secret):
        await login(person.page, person.url, secret)
        await person.start()
        await task.do(person)
        assert person.spent_s < REVIEW_S
        assert await person.page.complaints() == []
        assert person.is_there, "its answer or form was reached"
        assert person.n_clicks == task.n_clicks <= MOST_CLICKS


def test_the_page_of_the_tasks_says_what_was_counted() -> None:
    rows = dict(re.findall(r"^\| \d+\. (.+?) \| (\d) \|", PAGE.read_text("utf-8"), re.MULTILINE))
    assert rows == {one.title: str(one.n_clicks) for one in TASKS}
    assert len(rows) == 12


# ---- what serves all tasks, on a small log


@asynccontextmanager
async def small_log(folder: Path) -> AsyncIterator[Tab]:
    settings = settings_in(folder)
    secret = people_of(settings).first() or ""
    fill(folder, settings, now_s=time.time())
    async with served(settings) as url, tab() as page:
        await page.look(width=1_280, height=900, dark=False)
        await login(page, url, secret)
        yield page
        assert await page.complaints() == []


@in_a_browser
async def test_the_palette_opens_what_it_finds_by_keyboard_alone(tmp_path: Path) -> None:
    async with small_log(tmp_path) as page:
        await page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'k', ctrlKey: true }))")
        await page.until("document.querySelector('#palette').open")
        await page.write("ep_00001")
        await page.until("document.querySelector('#palette .found a')?.textContent.includes('Run ep_00001')")
        await page.press("Enter", leads_on=True)
        assert await page.place() == "/console/runs/ep_00001"
        await page.press("?")
        await page.until("document.querySelector('#keys').open")
        assert "Review" in await page.text("#keys")


@in_a_browser
async def test_a_setting_that_the_palette_finds_is_all_that_its_page_shows(tmp_path: Path) -> None:
    async with small_log(tmp_path) as page:
        displayed = "document.querySelectorAll('.setting:not([hidden])').length"
        await page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'k', ctrlKey: true }))")
        await page.until("document.querySelector('#palette').open")
        await page.write("routes.math.max_em_drop")
        await page.until("document.querySelector('#palette .found a')?.textContent.includes('math.max_em_drop')")
        await page.press("Enter", leads_on=True)
        assert await page.place() == "/console/settings?q=routes.math.max_em_drop"
        assert await page.run(displayed) == 1
        assert "max_em_drop" in await page.text("main")
        assert "host" not in await page.text("#file")
        await page.run("document.querySelector('[data-filter] input').select()")
        await page.write("nothing has this")
        await page.until(f"{displayed} === 0")
        assert await page.text("[data-filter] [role=status]") == "0 fit"
        assert "People with access" in await page.text("main")  # which is no setting


@in_a_browser
async def test_dragging_over_a_chart_sets_the_range_of_the_whole_page(tmp_path: Path) -> None:
    async with small_log(tmp_path) as page:
        await page.until("document.querySelectorAll('.plot canvas').length === 3")
        await page.run("document.querySelector('.u-over').scrollIntoView({ block: 'center' })")
        box = await page.run(
            "(() => { const one = document.querySelector('.u-over').getBoundingClientRect();"
            " return [one.left, one.top, one.width, one.height]; })()"
        )
        left, top, width, height = box
        at = {"y": top + height / 2, "button": "left", "clickCount": 1}
        await page.send("Input.dispatchMouseEvent", type="mouseMoved", x=left + width * 0.3, y=at["y"])
        await page.send("Input.dispatchMouseEvent", type="mousePressed", x=left + width * 0.3, **at)
        await page.send("Input.dispatchMouseEvent", type="mouseMoved", x=left + width * 0.6, buttons=1, **at)
        page._loaded.clear()
        await page.send("Input.dispatchMouseEvent", type="mouseReleased", x=left + width * 0.6, **at)
        await page.loaded()
        place = await page.place()
        assert "from=" in place
        assert "to=" in place


@in_a_browser
async def test_the_walkthrough_shows_each_task_with_its_caption(month: Path, tmp_path: Path) -> None:
    shutil.copytree(month, tmp_path / "month")
    made = await take_pictures(tmp_path / "month", tmp_path / "pictures", pages=("home",))
    names = [one.relative_to(tmp_path / "pictures").as_posix() for one in made]
    assert names[-12:] == [f"walkthrough/{n:02}-{one.name}.png" for n, one in enumerate(TASKS, 1)]
    assert {"home-light-desktop.png", "home-dark-phone.png"} < set(names)
    assert all(one.read_bytes().startswith(b"\x89PNG") for one in made)
