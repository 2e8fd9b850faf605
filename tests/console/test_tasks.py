"""What people come to the console for, each from Home, with the clicks counted: three at most."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.console.chromium import PROGRAM, Tab, tab
from tests.console.made import fill
from tests.console.test_chromium import login, served
from tests.console.visitor import people_of, settings_in

pytestmark = [pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"), pytest.mark.slow]
MOST_CLICKS = 3


@dataclass
class Person:
    """Clicks, and counts them."""

    page: Tab
    n_clicks: int = 0

    async def click(self, selector: str, *, leads_on: bool = True) -> None:
        self.n_clicks += 1
        await self.page.click(selector, leads_on=leads_on)

    async def fill(self, **fields: str) -> None:
        """Write into the fields of a form, which is no click."""
        for name, value in fields.items():
            await self.page.run(f"document.getElementById('field-{name}').value = {value!r}")


@asynccontextmanager
async def at_home(folder: Path) -> AsyncIterator[Person]:
    settings = settings_in(folder)
    secret = people_of(settings).first() or ""
    fill(folder, settings, now_s=time.time())
    async with served(settings) as url, tab() as page:
        await page.look(width=1_280, height=800, dark=False)
        await login(page, url, secret)
        yield Person(page)
        assert await page.complaints() == []


async def test_why_a_run_stopped_is_found_by_its_id(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('.side a[href^="/console/runs"]')
        await person.page.press("/")
        await person.page.write("ep_00001")
        await person.page.press("Enter")
        await person.page.until("document.querySelector('#runs .plain-list a') !== null")
        await person.click('#runs a[href="/console/runs/ep_00001"]')
        assert "Stopped at step 4:" in await person.page.text(".verdict")
        assert person.n_clicks <= MOST_CLICKS


async def test_ten_runs_are_reviewed_by_keyboard_in_under_twenty_seconds(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        page = person.page
        await page.press("5", leads_on=True)
        assert await page.place() == "/console/review"
        began_s, loads = time.monotonic(), await page.run("performance.timeOrigin")
        await page.press("Enter")
        tops = set[float]()
        for number in range(10):
            await page.until("document.querySelector('[name=item]') !== null")
            item = await page.run("document.querySelector('[name=item]').value")
            text = await page.text("#desk > .card")
            assert "full run" not in text, "which is which is not said"
            assert "early" not in text, "which is which is not said"
            tops.add(await page.run("Math.round(document.querySelector('.verdict-bar').getBoundingClientRect().top)"))
            await page.press("yabnuabnya"[number])
            await page.until(f"document.querySelector('[name=item]')?.value !== {item!r}")
        assert time.monotonic() - began_s < 20
        assert await page.run("performance.timeOrigin") == loads, "no page was loaded"
        assert len(tops) == 1, f"the bar of verdicts moved: {tops}"
        assert "was the early stop's answer" in await page.text(".last")
        await page.until("document.querySelector('.last').innerText.includes('verdicts of the last hour')")
        await page.press("z")
        await page.until(f"document.querySelector('[name=item]')?.value === {item!r}")
        assert person.n_clicks == 0


async def test_who_changed_a_threshold_is_two_clicks(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('.side a[href^="/console/changes"]')
        await person.click('.chips a[href*="group=thresholds"]')
        told = await person.page.text("#changes")
        assert "policy published" in told
        assert "as it came out" in told, "its author, and its reason"
        assert person.n_clicks <= MOST_CLICKS


async def test_an_alert_rule_is_created_and_tested(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('.side a[href^="/console/changes"]')
        await person.click('main a[href^="/console/alerts"]')
        await person.click('main a[href="/console/change/alerts/rules/set"]')
        assert person.n_clicks <= MOST_CLICKS, "at the form"
        await person.fill(name="drop", measure="em_drop", limit="0.01", reason="a drill")
        await person.page.click("main form button[name=preview]")
        told = await person.page.text(".preview")
        assert "In the last 14 days it would have been broken in" in told
        await person.page.click("main form button.main")
        assert await person.page.place() == "/console/alerts"
        assert "drop" in await person.page.text("main")


async def test_an_experiment_is_created(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('.side a[href^="/console/changes"]')
        await person.click('main a[href^="/console/experiments"]')
        await person.click('main a[href="/console/change/experiments/create"]')
        assert person.n_clicks <= MOST_CLICKS, "at the form"
        assert await person.page.run("document.querySelectorAll('main form h2').length") == 4, "four steps"
        fields = {"name": "cap-two", "hypothesis": "Level 2 is enough.", "treatment_value": "2", "route": "math"}
        await person.fill(**fields, reason="a drill")
        await person.page.click("main form button.main")
        assert await person.page.place() == "/console/experiments"
        assert "cap-two" in await person.page.text("main")
