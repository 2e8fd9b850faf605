"""A walk through the console: twelve tasks from its first page, and a picture of every page.

    python -m tests.console.walkthrough [--out FOLDER] [--visible] [PAGE …]

Draws a made-up month, decided by the real control loop, serves the console on it, and does every task in a browser,
with a caption each. `--visible` opens a window and goes slowly: about two minutes. With names of pages, only their
pictures are taken. Needs chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

from PIL import Image
from rich.console import Console

from suffice.server import serve_in_loop
from suffice_demo.month import WEBHOOK, settings_for, webhook
from suffice_demo.program import made_up_month
from tests.console.chromium import ARRIVED, PROGRAM, Tab, tab
from tests.console.tasks import TASKS, Person
from tests.console.test_chromium import login
from tests.console.visitor import people_of

PLACES: Final[Mapping[str, str]] = {
    "home": "/console",
    "report": "/console/report",
    "routes": "/console/routes",
    "route": "/console/route?route=math",
    "runs": "/console/runs?route=math",
    "run": "/console/runs/{run}",
    "live": "/console/runs/live",
    "policies": "/console/policies",
    "experiments": "/console/experiments",
    "review": "/console/review",
    "incidents": "/console/incidents",
    "alerts": "/console/alerts",
    "changes": "/console/changes",
    "change": "/console/change",
    "settings": "/console/settings",
    "find": "/console/find?q=math",
    "no-such-page": "/console/nowhere",
}
SCREENS: Final = {"desktop": (1_280, 800, 1_500), "phone": (390, 780, 1_700)}
MOST_BYTES: Final = 150_000
ATTENDED_S: Final = 180.0  # a worker imports what it learns with, and leases its jobs
SLOW_S: Final = 3.0  # each of the three looks at a task, when somebody watches
CAPTION: Final = """((text) => {
  const old = document.getElementById('walkthrough');
  const one = old ?? document.body.appendChild(Object.assign(document.createElement('div'), { id: 'walkthrough' }));
  one.textContent = text;
  Object.assign(one.style, { position: 'fixed', left: '0', right: '0', bottom: '0', zIndex: '99', padding: '10px 24px',
    background: '#10202f', color: '#fff', font: '600 15px/1.4 system-ui, sans-serif', textAlign: 'center' });
})"""
MARK: Final = """((selector) => {
  const one = document.querySelector(selector);
  one.scrollIntoView({ block: 'center' });
  Object.assign(one.style, { outline: '3px solid #e0721b', outlineOffset: '3px' });
})"""


def small(png: bytes) -> bytes:
    """The picture in as few colours and bytes as do."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colors in (256, 128, 64, 32, 16):
        written = io.BytesIO()
        picture.quantize(colors, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
        if written.tell() < MOST_BYTES:
            break
    return written.getvalue()


async def in_hand(page: Tab) -> None:
    """An item in hand, with its sources if it has any: what the page is there for."""
    if await page.run("document.querySelector('[name=item]') === null"):
        await page.press("Enter")
        await page.until("document.querySelector('[name=item]') !== null")
    await page.press("o")


class Album:
    """Pictures in a folder, in the order in which they were taken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, list[Path]()

    def keep(self, name: str, png: bytes) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(small(png))
        self.made.append(file)
        print(f"{file}: {file.stat().st_size:,} bytes", flush=True)


async def picture_logins(page: Tab, url: str, album: Album) -> None:
    for dark in (False, True):
        await page.look(width=390, height=600, dark=dark)
        await page.go(f"{url}/console/login")
        album.keep(f"login-{'dark' if dark else 'light'}-phone.png", await page.picture())
    await page.look(width=1_280, height=800, dark=False)


async def until_attended(page: Tab, url: str) -> None:
    """Wait until the worker looks after the routes, which the first page says."""
    async with asyncio.timeout(ATTENDED_S):
        while "no control loop looks after" in await page.text("main"):
            await asyncio.sleep(2.0)
            await page.go(f"{url}/console")
    page.errors.clear()  # a console that begins may be busy


async def picture_pages(page: Tab, url: str, album: Album, names: Sequence[str]) -> None:
    """Each page, light on a desktop and dark on a phone."""
    await page.go(f"{url}/console/runs?route=math&end=stopped")
    run = await page.run("document.querySelector('#runs table a').getAttribute('href').split('/').pop()")
    for name in names:
        for screen, (width, height, most) in SCREENS.items():
            dark = screen == "phone"
            await page.look(width=width, height=height, dark=dark, phone=dark)
            await page.go(url + PLACES[name].format(run=run))
            if name == "review":
                await in_hand(page)
            await asyncio.sleep(0.4)  # charts are drawn
            await page.until(ARRIVED)
            album.keep(f"{name}-{'dark' if dark else 'light'}-{screen}.png", await page.picture(most_height=most))
            if name != "no-such-page":  # whose 404 the browser notes
                complaints = await page.complaints()
                assert not complaints, f"{name}: {complaints}"
            page.errors.clear()
    await page.look(width=1_280, height=800, dark=False)


async def walk(person: Person, album: Album, *, slow_s: float = 0.0) -> None:
    """Do every task, with a caption each."""
    page = person.page

    async def say(text: str) -> None:
        await page.run(f"{CAPTION}({json.dumps(text)})")
        await asyncio.sleep(slow_s)

    for number, task in enumerate(TASKS, 1):
        title = f"{number} of {len(TASKS)} · {task.title}"

        async def mark(selector: str, title: str = title) -> None:
            if slow_s and not person.is_there:
                await page.run(f"{MARK}({json.dumps(selector)})")
                await say(title)

        async def arrive(_: Person, number: int = number, title: str = title) -> None:
            task = TASKS[number - 1]
            await page.until(ARRIVED)
            await asyncio.sleep(0.4)
            clicks = f"{person.n_clicks} click{'' if person.n_clicks == 1 else 's'}" if person.n_clicks else "keys only"
            await say(f"{title} ({clicks}). {task.caption}")
            album.keep(f"walkthrough/{number:02}-{task.name}.png", await page.screenshot())

        person.before_click, person.on_arrival = mark, arrive
        await person.start()
        await say(title)
        await task.do(person)
        assert await page.complaints() == [], task.title


@asynccontextmanager
async def served_month(
    folder: Path, *, headless: bool = True, works: bool = False
) -> AsyncIterator[tuple[Person, str]]:
    """A browser before the login of a console on the month in the folder, and the admin's secret.

    works  whether a worker looks after the routes, as it does beside `suffice serve`
    """
    settings = settings_for(folder / "console.db")
    secret = people_of(settings).reset("admin")
    with webhook(lambda _: None) as sink, patch.dict(os.environ, {WEBHOOK: sink}):
        serving = serve_in_loop(settings, worker_after_s=0.0 if works else None)
        async with serving as url, tab(headless=headless) as page:
            await page.look(width=1_280, height=800, dark=False)
            yield Person(page=page, url=url, settings=settings, log=folder / "console.db"), secret


async def take_pictures(
    month: Path,
    folder: Path,
    *,
    pages: Sequence[str] = tuple(PLACES),
    walks: bool = True,
    visible: bool = False,
    works: bool = False,
) -> list[Path]:
    """Serve the console on the month, take the pictures and do the tasks, which change the month's log."""
    album = Album(folder)
    async with served_month(month, headless=not visible, works=works) as (person, secret):
        page, url = person.page, person.url
        if not visible:
            await picture_logins(page, url, album)
        await login(page, url, secret)
        if works:
            await until_attended(page, url)
        if not visible:
            await picture_pages(page, url, album, pages)
        if walks:
            await walk(person, album, slow_s=SLOW_S if visible else 0.0)
    return album.made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("walkthrough-out"), help="folder of the pictures")
    parser.add_argument("--visible", action="store_true", help="open a window, and go slowly")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"only pictures of these: {', '.join(PLACES)}")
    options = parser.parse_args()
    if PROGRAM is None:
        sys.exit("walkthrough: chromium is not installed; on Debian: apt-get install chromium")
    if unknown := set(options.pages) - set(PLACES):
        sys.exit(f"walkthrough: no page {', '.join(sorted(unknown))}; there are {', '.join(PLACES)}")
    with tempfile.TemporaryDirectory() as folder:
        made_up_month(Console(), Path(folder))
        made = asyncio.run(
            take_pictures(
                Path(folder),
                options.out,
                pages=options.pages or tuple(PLACES),
                walks=not options.pages,
                visible=options.visible,
                works=True,
            )
        )
    print(f"{len(made)} pictures in {options.out}")


if __name__ == "__main__":
    main()
