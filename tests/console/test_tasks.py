"""Tasks of a person at the console, in a real browser from the first page: each takes three clicks at most."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from suffice.store.database.presence import switch_reason
from suffice.store.people.audit_view import entries
from suffice.wiring.keys import kill_file
from tests.console.chromium import PROGRAM, Tab, tab
from tests.console.made import fill
from tests.console.test_chromium import login, served
from tests.console.visitor import people_of, settings_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed: apt-get install chromium"),
]
MOST_CLICKS = 3


class Person:
    """Somebody at the first page, whose clicks are counted."""

    def __init__(self, page: Tab, folder: Path) -> None:
        self.page, self.folder, self.n_clicks = page, folder, 0

    async def click(self, selector: str, *, leads_on: bool = True) -> None:
        self.n_clicks += 1
        assert self.n_clicks <= MOST_CLICKS, f"{selector} would be click {self.n_clicks}"
        assert await self.page.run(f"document.querySelector({selector!r})?.getClientRects().length > 0"), selector
        await self.page.click(selector, leads_on=leads_on)

    async def fill(self, **fields: str) -> None:
        """Write into the fields of a form, which is no click."""
        for name, value in fields.items():
            await self.page.run(f"document.getElementById('field-{name}').value = {value!r}")

    async def choose(self, name: str, value: str) -> None:
        """Choose in the bar, which is a click too."""
        self.n_clicks += 1
        assert self.n_clicks <= MOST_CLICKS
        self.page._loaded.clear()
        await self.page.run(
            f"(() => {{ const one = document.querySelector('form.scope [name={name}]'); one.value = {value!r};"
            " one.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )
        await self.page.loaded()


@asynccontextmanager
async def at_home(folder: Path) -> AsyncIterator[Person]:
    settings = settings_in(folder)
    secret = people_of(settings).first() or ""
    fill(folder, settings, now_s=time.time())
    async with served(settings) as url, tab() as page:
        await page.look(width=1_280, height=900, dark=False)
        await login(page, url, secret)
        yield Person(page, folder)
        assert await page.complaints() == []


async def test_find_the_class_that_lost_most_last_week_and_what_differs_there(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.choose("days", "7")
        await person.click('table a[href^="/console/route?"][href*="route=math"]')
        first = await person.page.text("#loses tbody tr th")
        assert first in ("algebra", "geometry")
        await person.click('#loses a[href*="class="][href$="#loses"]')
        assert "days=7" in await person.page.place()
        assert f"class={first}" in await person.page.place()
        await person.page.until("!document.body.innerText.includes('Reading audits')")
        assert f"audits of {first}" in await person.page.text("#loses h3")
        assert "kept" in await person.page.text("#loses .shown")


async def test_roll_back_a_policy(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('table a[href^="/console/route?"][href*="route=math"]')
        await person.click('.top a[href="#policies"]', leads_on=False)
        told = await person.page.text("#policies")
        # Its only publication serves now, so nothing is offered that would not succeed.
        assert "serves now" in told
        assert "Roll back to this" not in told


async def test_pause_a_route(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('table a[href^="/console/route?"][href*="route=math"]')
        await person.click("#pause summary", leads_on=False)
        await person.page.run("document.querySelector('#pause textarea').focus()")
        await person.page.write("answers look wrong")
        await person.click("#pause button")
        assert "paused" in await person.page.text(".lead")
        (row,) = entries(tmp_path / "log.db", kind="enforcement_paused")
        assert (row.who, row.why) == ("admin", "answers look wrong")


async def test_compare_two_policies(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('table a[href^="/console/route?"][href*="route=math"]')
        await person.click("#compare button")
        assert "Publication 1 beside 1" in await person.page.text("#policies")
        assert "Saved on its audits" in await person.page.text("#policies")


async def test_print_the_report_of_a_month(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('.tabs a[href^="/console/report"]')
        assert "Report of" in await person.page.text("h1")
        await person.page.run("window.print = () => { window.printed = true; }")
        await person.click("[data-print]", leads_on=False)
        assert await person.page.run("window.printed")


async def test_change_the_em_budget(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('table a[href^="/console/route?"][href*="route=math"]')
        await person.click("#budget")
        fields = "Object.fromEntries([...document.querySelectorAll('main [name]')].map((one) => [one.name, one.value]))"
        form = await person.page.run(fields)
        assert (form["route"], form["kind"]) == ("math", "budget")
        await person.page.run("document.querySelector('main [name=reason]').value = 'a launch this week'")
        await person.click("main form button.main:not([name])")
        (row,) = entries(tmp_path / "log.db", kind="override_set")
        assert row.why == "a launch this week"


async def test_stop_all_stopping(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click("details.stop summary", leads_on=False)
        await person.page.run("document.querySelector('details.stop textarea').focus()")
        await person.page.write("a bad deployment")
        await person.click("details.stop button")
        assert "Stopping is off" in await person.page.text("details.stop summary")
        assert switch_reason(kill_file(settings_in(tmp_path))) == "a bad deployment (admin)"


async def test_the_palette_opens_what_it_finds_by_keyboard_alone(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        page = person.page
        await page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'k', ctrlKey: true }))")
        await page.until("document.querySelector('#palette').open")
        await page.write("ep_00001")
        await page.until("document.querySelector('#palette .found a')?.textContent.includes('Run ep_00001')")
        await page.press("Enter", leads_on=True)
        assert await page.place() == "/console/runs/ep_00001"
        await page.press("?")
        await page.until("document.querySelector('#keys').open")
        assert "Review" in await page.text("#keys")


async def test_a_setting_that_the_palette_finds_is_all_that_its_page_shows(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        page, shown = person.page, "document.querySelectorAll('.setting:not([hidden])').length"
        await page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'k', ctrlKey: true }))")
        await page.until("document.querySelector('#palette').open")
        await page.write("routes.math.max_em_drop")
        await page.until("document.querySelector('#palette .found a')?.textContent.includes('math.max_em_drop')")
        await page.press("Enter", leads_on=True)
        assert await page.place() == "/console/settings?q=routes.math.max_em_drop"
        assert await page.run(shown) == 1
        assert "max_em_drop" in await page.text("main")
        assert "host" not in await page.text(".side-cards")
        await page.run("document.querySelector('[data-filter] input').select()")
        await page.write("nothing has this")
        await page.until(f"{shown} === 0")
        assert await page.text("[data-filter] [role=status]") == "0 fit"
        assert "People with access" in await page.text("main")  # which is no setting


async def test_dragging_over_a_chart_sets_the_range_of_the_whole_page(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        page = person.page
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


async def test_why_a_run_stopped_is_found_by_its_id(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('.side a[href^="/console/runs"]')
        await person.page.press("/")
        await person.page.write("ep_00001")
        await person.page.press("Enter")
        await person.page.until("document.querySelector('#runs .plain-list a') !== null")
        await person.click('#runs a[href="/console/runs/ep_00001"]')
        assert "Stopped at step 4:" in await person.page.text(".verdict")


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


async def test_an_alert_rule_is_created_and_tested(tmp_path: Path) -> None:
    async with at_home(tmp_path) as person:
        await person.click('.side a[href^="/console/changes"]')
        await person.click('main a[href^="/console/alerts"]')
        await person.click('main a[href="/console/change/alerts/rules/set"]')
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
        assert await person.page.run("document.querySelectorAll('main form h2').length") == 4, "four steps"
        fields = {"name": "cap-two", "hypothesis": "Level 2 is enough.", "treatment_value": "2", "route": "math"}
        await person.fill(**fields, reason="a drill")
        await person.page.click("main form button.main")
        assert await person.page.place() == "/console/experiments"
        assert "cap-two" in await person.page.text("main")
