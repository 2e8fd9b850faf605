"""The weights that tests of the real model need, looked for in one place. Fetches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice_demo.local import weights


def cached(name: str) -> Path:
    """The model's file; where it was never fetched, the test is skipped and says why.

    A file of the right size is taken for the pinned one: a damaged one has to fail the test, not skip it.
    """
    hits = weights.find_weights(name)
    file = weights.cached_file(hits)
    if not file.is_file() or file.stat().st_size != hits.n_bytes:
        pytest.skip(
            f"{hits.title} is not in the cache {file.parent}; `python -m suffice_demo.local.weights {name}` fetches it"
        )
    pytest.importorskip("xllamacpp")
    return file
