"""The link that the first start prints: it fills the secret in, and leaves none in the address."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.console.chromium import PROGRAM, tab
from tests.console.test_chromium import served
from tests.console.visitor import people_of, settings_in

pytestmark = [pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"), pytest.mark.slow]


async def test_the_first_link_leads_home_by_one_key(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    secret = people_of(settings).first()
    async with served(settings) as url, tab() as page:
        await page.go(f"{url}/console/login#secret={secret}")
        assert await page.run("document.querySelector('input[name=secret]').value") == secret
        assert await page.run("location.href") == f"{url}/console/login", "no secret stays in the history"
        await page.press("Enter", leads_on=True)
        assert await page.place() == "/console"
        assert await page.complaints() == []


async def test_a_link_logs_nobody_in_by_itself(tmp_path: Path) -> None:
    """Otherwise any page could log its visitors in as somebody else."""
    settings = settings_in(tmp_path)
    secret = people_of(settings).first()
    async with served(settings) as url, tab() as page:
        await page.go(f"{url}/console/login#secret={secret}")
        assert await page.place() == "/console/login"
        assert await page.run("document.activeElement.tagName") == "BUTTON"
