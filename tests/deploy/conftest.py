from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from tests.deploy.haproxy import Start, fetched


@pytest.fixture(scope="session")
def haproxy(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts haproxy with arguments; further options are those of Popen."""
    installed = shutil.which("haproxy")
    installation = (installed, dict[str, str]()) if installed else fetched(tmp_path_factory.mktemp("haproxy"))
    if installation is None:
        pytest.skip("haproxy is not installed, and Debian's cannot be fetched here")
    program, needed = installation

    def start(*words: str, variables: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([program, *words], env={**os.environ, **needed, **(variables or {})}, **options)

    return start
