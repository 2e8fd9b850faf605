"""Pictures of every page, light on a desktop and dark on a phone, for `docs/console/`.

    python -m tests.console.pictures URL SECRET [FOLDER] [PAGE …]

URL is a console that runs, such as that of `make demo-console`, and SECRET an admin's. Needs chromium.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from PIL import Image

from tests.console.chromium import ARRIVED, PROGRAM, Tab, tab

PLACES: Final[Mapping[str, str]] = {
    "home": "/console",
    "report": "/console/report",
    "routes": "/console/routes",
    "route": "/console/route?route=math",
    "runs": "/console/runs?route=math",
    "run": "",
    "policies": "/console/policies",
    "experiments": "/console/experiments",
    "review": "/console/review",
    "incidents": "/console/incidents",
    "alerts": "/console/alerts",
    "changes": "/console/changes",
    "settings": "/console/settings",
    "find": "/console/find?q=math",
}
SCREENS: Final = {"desktop": (1_280, 800, 1_500), "phone": (390, 780, 1_700)}
MOST_BYTES: Final = 150_000


def small(png: bytes) -> bytes:
    """The picture in as few colours and bytes as do."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colors in (256, 128, 64, 32, 16):
        written = io.BytesIO()
        picture.quantize(colors, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
        if written.tell() < MOST_BYTES:
            break
    return written.getvalue()


async def login(page: Tab, url: str, secret: str) -> None:
    """As a person does it."""
    await page.go(f"{url}/console/login")
    await page.run("document.querySelector('input[name=secret]').focus()")
    await page.write(secret)
    await page.press("Enter", leads_on=True)
    assert await page.place() == "/console", await page.text()


async def in_hand(page: Tab) -> None:
    """An item in hand, with its sources if it has any: what the page is there for."""
    if await page.run("document.querySelector('[name=item]') === null"):
        await page.press("Enter")
        await asyncio.sleep(1.0)
    await page.press("o")


async def take(url: str, secret: str, folder: Path, names: list[str]) -> None:
    """All pictures."""
    async with tab() as page:
        await page.look(width=1_280, height=800, dark=False)
        if not names or "login" in names:
            for dark in (False, True):
                await page.look(width=390, height=600, dark=dark)
                await page.go(f"{url}/console/login")
                (folder / f"login-{'dark' if dark else 'light'}-phone.png").write_bytes(small(await page.picture()))
        await page.look(width=1_280, height=800, dark=False)
        await login(page, url, secret)
        await page.go(f"{url}/console/runs?route=math")
        first = await page.run("document.querySelector('#runs a[href^=\"/console/runs/\"]')?.getAttribute('href')")
        for name, place in PLACES.items():
            if names and name not in names:
                continue
            for screen, (width, height, most) in SCREENS.items():
                for dark in (screen == "phone",):
                    await page.look(width=width, height=height, dark=dark, phone=screen == "phone")
                    await page.go(url + (place or str(first)))
                    if name == "review":
                        await in_hand(page)
                    await asyncio.sleep(0.4)
                    await page.until(ARRIVED)
                    file = folder / f"{name}-{'dark' if dark else 'light'}-{screen}.png"
                    file.write_bytes(small(await page.picture(most_height=most)))
                    complaints = await page.complaints()
                    assert not complaints, f"{name}: {complaints}"
                    wide = await page.run(f"document.documentElement.scrollWidth - {width}")
                    print(f"{file.name}: {file.stat().st_size:,} bytes{f', {wide} px too wide' if wide > 0 else ''}")


if __name__ == "__main__":
    if PROGRAM is None:
        sys.exit("pictures: chromium is not installed; on Debian: apt-get install chromium")
    target = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("docs/console")
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(sys.argv[1], sys.argv[2], target, sys.argv[4:]))
