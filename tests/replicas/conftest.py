"""The secret of the clusters, for the length of a test: their programs set it for the whole process."""

from __future__ import annotations

import pytest

from tests.replicas.cluster import SECRET


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUFFICE_SALT", SECRET)
