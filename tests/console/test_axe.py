"""Every page, by axe-core in a real browser: no violation of its rules, and nothing scrolls sideways.

On a desktop and on a phone, light and dark, with everything that folds open.
"""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from suffice.console import render
from suffice.console.actions import ACTIONS
from suffice.console.app import VIEWS
from suffice.console.views.report import format_month
from suffice.replay.report.page import write_report
from tests.console.chromium import ARRIVED, PROGRAM, Tab, tab
from tests.console.made import HOSTILE, fill
from tests.console.test_chromium import login, served
from tests.console.visitor import people_of, settings_in
from tests.replay.report.sample import a_report

pytest.importorskip("axe_core_python", reason="axe-core is not installed: pip install axe-core-python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed: apt-get install chromium"),
]
SCREENS: Final = [
    pytest.param(width, dark, id=f"{width}-{'dark' if dark else 'light'}")
    for width in (1_280, 390)
    for dark in (False, True)
]
AXE: Final = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
UNFOLD: Final = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
# Not whether it can be scrolled, which the browser of a phone hides by zooming out, but how far things reach.
TOO_WIDE: Final = """(() => {
  const width = document.documentElement.clientWidth;
  const held = (one) => one.closest('.scroll, [role=region][tabindex], .skip');
  return [...document.body.querySelectorAll('*')].filter((one) => !held(one) && one.getClientRects().length
    && one.getBoundingClientRect().right > width + 1).map((one) => one.outerHTML.slice(0, 120)).slice(0, 3);
})()"""
VIOLATIONS: Final = """axe.run({ resultTypes: ['violations'] }).then((found) => found.violations.flatMap((rule) =>
  rule.nodes.slice(0, 3).map((node) => `${rule.id}: ${node.html.slice(0, 160)} ${node.failureSummary}`)))"""
WITH_VALUES: Final = {"/report": f"?month={format_month(time.time())}", "/route": "?route=math", "/find": "?q=math"}
NO_SUCH: Final = ("/console/nowhere", "/console/route?route=none", "/console/runs/none", "/console?days=never")


def pages() -> list[str]:
    """Of the table of the console itself, so that no page is forgotten."""
    views = [f"/console{view.path}{WITH_VALUES.get(view.path, '')}".replace("{id}", "ep_00000") for view in VIEWS]
    return [*views, *(f"/console/change{action.path}" for action in ACTIONS if action.title)]


class Examination:
    """Pages on one screen, and what is wrong with them."""

    def __init__(self, page: Tab, width: int) -> None:
        self.page, self.width = page, width
        self.wrong: list[str] = []

    async def examine(self, name: str) -> None:
        """The page as it is shown now."""
        page = self.page
        await page.until(ARRIVED)
        await page.run(UNFOLD)
        await page.run(f"typeof axe === 'undefined' && (() => {{ {AXE} }})()")
        too_wide = await page.run(TOO_WIDE)
        if await page.run("document.documentElement.scrollWidth") > self.width:
            too_wide.append("the page scrolls sideways")
        self.wrong += [f"{name}: {one}" for one in (*await page.run(VIOLATIONS), *too_wide)]

    async def visit(self, url: str, places: list[str]) -> None:
        for place in places:
            await self.page.go(url + place)
            await self.examine(place)


async def on_screen(page: Tab, width: int, *, dark: bool) -> Examination:
    await page.look(width=width, height=800, dark=dark, phone=width < 1_000)
    return Examination(page, width)


@pytest.mark.parametrize(("width", "dark"), SCREENS)
async def test_every_page_and_form(tmp_path: Path, width: int, dark: bool) -> None:
    settings = settings_in(tmp_path)
    secret, rita = people_of(settings).first() or "", people_of(settings).add("rita", "reviewer")
    fill(tmp_path, settings, now_s=time.time())
    async with served(settings) as url, tab() as page:
        seen = await on_screen(page, width, dark=dark)
        await page.go(f"{url}/console/login")
        await seen.examine("the login")
        await page.write("no secret")
        await page.press("Enter", leads_on=True)
        await seen.examine("a login refused")
        await login(page, url, secret)
        await seen.visit(url, [*pages(), *NO_SUCH])
        await page.go(f"{url}/console/change/people/add")
        for name in ("name", "reason"):
            await page.run(f"document.querySelector('main form [name={name}]').value = 'axe'")
        await page.click("main form button.main")
        assert "Shown once" in await page.text("main")
        await seen.examine("a new person's secret")
        await page.go(f"{url}/console/review")
        await page.press("Enter")
        await page.until("document.querySelector('[name=item]') !== null")
        await seen.examine("an item to review")
        signed_in = render.page("signed_in.html", {"title": "Logged in", "back": "/console"}).decode()
        kept = signed_in.replace('<meta http-equiv="refresh"', '<meta name="was-refresh"')  # the page leads on at once
        (tmp_path / "signed-in.html").write_text(kept.replace("<head>", f'<head><base href="{url}">'))
        await page.go((tmp_path / "signed-in.html").as_uri())
        await seen.examine("logged in by a provider")
        await page.send("Network.clearBrowserCookies")
        await login(page, url, rita)
        await page.go(f"{url}/console/settings")
        assert "403" in await page.text("main")
        await seen.examine("a page for others")
        await page.send("Network.clearBrowserCookies")
        await login(page, url, secret)
        for dialog in ("palette", "keys"):
            await page.go(f"{url}/console")
            await page.run(f"document.getElementById('{dialog}').showModal()")
            await seen.examine(f"the dialog {dialog}")
    assert seen.wrong == []


@pytest.mark.parametrize(("width", "dark"), SCREENS)
async def test_an_empty_log_and_long_texts_of_others(tmp_path: Path, width: int, dark: bool) -> None:
    for name, texts in (("empty", None), ("hostile", HOSTILE)):
        settings = settings_in(tmp_path / name)
        (tmp_path / name).mkdir()
        async with tab() as page:
            seen = await on_screen(page, width, dark=dark)
            if texts is None:
                async with served(settings) as url:
                    await page.go(f"{url}/console/login")
                    await seen.examine("a login without accounts")
            secret = people_of(settings).first() or ""
            if texts is not None:
                fill(tmp_path / name, settings, now_s=time.time(), texts=texts)
            async with served(settings) as url:
                await login(page, url, secret)
                await seen.visit(url, [place for place in pages() if "/change/" not in place])
        assert seen.wrong == [], name


@pytest.mark.parametrize(("width", "dark"), SCREENS)
async def test_the_report_of_a_replay(tmp_path: Path, width: int, dark: bool) -> None:
    written = write_report([a_report()], tmp_path, command="suffice replay runs.jsonl")
    async with tab() as page:
        seen = await on_screen(page, width, dark=dark)
        await page.go(written[0].as_uri())
        await seen.examine("the report")
    assert seen.wrong == []


async def test_a_fault_is_found(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<img src=x><p style='color:#ccc;width:500px'>pale and wide")
    async with tab() as page:
        seen = await on_screen(page, 390, dark=False)
        await page.go((tmp_path / "bad.html").as_uri())
        await seen.examine("bad")
    for fault in ("image-alt", "color-contrast", "html-has-lang", "scrolls sideways"):
        assert any(fault in one for one in seen.wrong), (fault, seen.wrong)
