"""The console in a real browser: hostile texts stay texts, a person walks through it by keyboard, pages are light."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from suffice.server import serve_in_loop
from suffice.settings import Settings
from suffice_testing import FakeUpstream
from suffice_testing.reply import Reply
from tests.console.chromium import PROGRAM, Tab, tab
from tests.console.made import HOSTILE, fill
from tests.console.visitor import people_of, settings_in

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed: apt-get install chromium")

MOST_BYTES = 300_000
N_REVIEWS = 10
PAGES = (
    "/console",
    "/console/routes",
    "/console/route?route=math",
    "/console/runs",
    "/console/runs/ep_00000",
    "/console/runs/ep_00001",
    "/console/review",
    "/console/incidents?open=math",
    "/console/alerts",
    "/console/changes",
    "/console/changes?kind=review_asked",
    "/console/policies",
    "/console/experiments",
    "/console/settings",
)

CUT = (
    "[...document.querySelectorAll('.scroll')].filter((one) =>"
    " !one.closest('details:not([open])') && one.scrollWidth > one.clientWidth + 1)"
)


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[str]:
    """A real gateway with its console; its address."""
    with FakeUpstream.in_thread(Reply(answer=("fine",))):
        async with serve_in_loop(settings) as url:
            yield url


async def login(page: Tab, url: str, secret: str) -> None:
    await page.go(f"{url}/console")
    assert await page.place() == "/console/login"
    await page.until("document.activeElement.name === 'secret'")  # one can write at once
    await page.write(secret)
    await page.press("Enter", leads_on=True)
    assert await page.place() == "/console"


@pytest.mark.slow
async def test_hostile_texts_run_nothing_and_break_no_policy_of_a_page(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    secret = people_of(settings).first() or ""
    fill(tmp_path, settings, now_s=time.time(), texts=HOSTILE)
    async with served(settings) as url, tab() as page:
        await login(page, url, secret)
        assert await page.complaints() == []
        for place in PAGES:
            await page.go(url + place)
            assert await page.complaints() == [], place
            assert await page.run("document.querySelectorAll('main h1').length") == 1, place
            # Scripts ran: what is complained of would have been heard.
            assert await page.run("!document.documentElement.classList.contains('no-js')"), place
        await page.go(f"{url}/console/review")
        await page.press("Enter")
        await page.until("document.querySelector('[name=item]') !== null")
        assert "pwned()" in await page.text("pre, .side-by")
        await page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert await page.complaints() == []
        # The listener hears what it is there for.
        await page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=pwned()>')")
        await page.until("window.complaints.length > 0")


@pytest.mark.slow
async def test_a_person_walks_from_the_overview_to_the_audit_log_by_keyboard(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    secret = people_of(settings).first() or ""
    fill(tmp_path, settings, now_s=time.time())
    async with served(settings) as url, tab() as page:
        await login(page, url, secret)
        assert "40 requests" in await page.text()
        await page.click('a[href^="/console/route?route=math"]')  # overview → a class …
        await page.click('a[href*="class=algebra"]')
        assert "class=algebra" in await page.place()
        assert await page.run("document.querySelectorAll('#runs tbody tr').length") == 20
        await page.click('#runs tbody a[href^="/console/runs/"]')  # … → an episode
        assert "Chain of" in await page.text()
        await _review(page, url)  # … reviews ten items by keyboard
        await _incident(page, url)  # … opens an incident, rolls back
        await page.go(f"{url}/console/changes")  # … and finds it in the audit log
        text = await page.text("#changes")
        for words in ("incident decided", "incident opened", "a drill of ours", "admin"):
            assert words in text, text[:2_000]
        assert await page.complaints() == []


async def _review(page: Tab, url: str) -> None:
    await page.go(f"{url}/console/review")
    waiting = await page.text(".last")
    await page.press("Enter")
    for number in range(N_REVIEWS):
        await page.until("document.querySelector('[name=item]') !== null")
        item = await page.run("document.querySelector('[name=item]').value")
        if await page.run("document.querySelector('.sources') !== null"):
            await page.press("o")
            assert await page.run("document.querySelector('.sources').open"), "sources open by a key"
            assert "The Danube." in await page.text("pre.source")
        if number == 3:
            await page.press("c")
            await page.write("12")
            await page.press("Escape")
        await page.press("yabnuabnya"[number])
        await page.until(f"document.querySelector('[name=item]')?.value !== '{item}'")
        assert "You said" in await page.text(".last")
    assert waiting != await page.text(".last")
    assert await page.run("document.querySelectorAll('section h2').length") > 1


async def _incident(page: Tab, url: str) -> None:
    await page.go(f"{url}/console/incidents?open=math")
    await page.run("document.querySelector('form[action$=open] textarea').value = 'a drill of ours'")
    await page.click("form[action='/console/incidents/open'] button")
    assert "is open" in await page.text(".told")
    offered = "Array.from(document.querySelectorAll('form[action$=decide] [name=decision]')).map((one) => one.value)"
    assert await page.run(offered) == ["resume", "tighten", "roll_back", "accept"] * 2, await page.text()
    assert "Suspect change" in await page.text("main")
    await page.run("document.querySelector('form[aria-label^=Roll] textarea').value = 'a drill of ours, rolled back'")
    await page.click("form[aria-label^=Roll] button")
    assert "roll back" in await page.text(".told"), await page.text("main")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "phone"), [(1_280, False), (390, True)])
async def test_pages_fit_their_screen_and_no_column_is_cut_off(tmp_path: Path, width: int, phone: bool) -> None:
    settings = settings_in(tmp_path)
    secret = people_of(settings).first() or ""
    fill(tmp_path, settings, now_s=time.time())
    async with served(settings) as url, tab() as page:
        await page.look(width=width, height=800, dark=False, phone=phone)
        await login(page, url, secret)
        await page.go(f"{url}/console/review")
        await page.press("Enter")
        await page.until("document.querySelector('[name=item]') !== null")
        for place in PAGES:
            await page.go(url + place)
            assert await page.run("document.documentElement.scrollWidth <= innerWidth"), place
            # Tables of numbers that are folded away may scroll; what is in sight may not.
            assert await page.run(f"{CUT}.map((one) => one.innerText.slice(0, 80))") == [], place


@pytest.mark.slow
async def test_the_first_page_is_light_and_changes_while_somebody_watches(tmp_path: Path) -> None:
    from suffice.wiring.worker import open_worker
    from tests.console.made import more

    settings = settings_in(tmp_path, console={"live_s": 0.2})
    secret = people_of(settings).first() or ""
    fill(tmp_path, settings, now_s=time.time())
    async with served(settings) as url, tab() as page:
        await login(page, url, secret)
        await page.until("document.querySelector('[data-live-said]').textContent === 'live'")
        assert 20_000 < sum(page.weight.values()) < MOST_BYTES
        assert await page.run("document.querySelectorAll('.plot canvas').length") == 3
        await page.run("new Promise((done) => setTimeout(done, 700))")
        more(settings, now_s=time.time())
        with open_worker(settings, learning=False) as here:
            here.once("rollup")
        await page.until("document.body.innerText.includes('41 requests')")
        assert await page.run("document.querySelectorAll('.plot canvas').length") == 3
        assert await page.complaints() == []
        await page.click("[data-theme-switch]", leads_on=False)
        assert await page.run("document.documentElement.dataset.theme") == "dark"


def test_the_browser_is_looked_for_where_it_is() -> None:
    assert shutil.which(PROGRAM or "") is not None
