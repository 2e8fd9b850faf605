"""Fetches model weights with a progress bar; used by `suffice demo`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def fetched(console: Console, name: str) -> Path:
    """The GGUF file of a model, fetched if it is not in the cache. Raises LocalModelError."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    from suffice.local import weights

    own = os.environ.get("SUFFICE_MODEL")
    if own and name != "smol":
        return Path(own)
    with Progress(
        TextColumn("{task.description:<26}"), BarColumn(28), DownloadColumn(), TimeElapsedColumn(), console=console
    ) as bars:
        task = bars.add_task(f"weights: {name}", total=None)
        return weights.fetch(name, progress=lambda done, total: bars.update(task, completed=done, total=total))
