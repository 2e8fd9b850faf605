"""The one fixture of these rooms: a gateway over a real socket, in front of a fake upstream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.gateway.served import Served, served

Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(says, route={…}) as gateway:`; see `served`."""
    return partial(served, tmp_path)
