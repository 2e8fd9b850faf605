"""The console on an empty log, with an admin and a reviewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from suffice.console.app import ConsoleApp
from suffice.settings import Settings
from suffice.wiring.people import People
from tests.console.visitor import Visitor, people_of, settings_in, site


@dataclass
class Site:
    """One console with its people."""

    app: ConsoleApp
    settings: Settings
    people: People
    secrets: dict[str, str]

    def visitor(self, name: str = "") -> Visitor:
        """Somebody who has logged in; "": who has not."""
        made = Visitor(self.app)
        if name:
            assert made.login(self.secrets[name]).status == 303
        return made


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    settings = settings_in(tmp_path)
    people = people_of(settings)
    first = people.first()
    assert first is not None
    secrets = {"admin": first, "rita": people.add("rita", "reviewer")}
    with site(settings) as app:
        yield Site(app, settings, people, secrets)
