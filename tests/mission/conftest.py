"""A gateway on a mission, whose requests are counted for the table of `python -m tests.mission`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from suffice_testing.world import World
from tests.mission.harness import Mission, on_mission

Begin: TypeAlias = Callable[..., AbstractAsyncContextManager[Mission]]


@pytest.fixture
def begin(tmp_path: Path, record_property: Callable[[str, object], None]) -> Begin:
    @asynccontextmanager
    async def start(
        simulation: World, routes: Mapping[str, Mapping[str, Any]] | None = None, **tables: Any
    ) -> AsyncIterator[Mission]:
        async with on_mission(simulation, tmp_path, routes, **tables) as mission:
            try:
                yield mission
            finally:
                record_property("requests", len(mission.served))
                record_property("figures", ", ".join(f"{name} {value}" for name, value in mission.figures.items()))

    return start
