"""The traces that this project recorded itself, with a model that fits on any machine.

They ship with the package, as sample data of docs and tests: Qwen2.5-Coder-0.5B-Instruct (Q4_K_M) on
questions drawn from a seed, recorded by `bench/own_traces.py`. They may be used freely.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from suffice.types import Kind

FILES: dict[Kind, str] = {"reasoning": "own_reasoning.jsonl.gz", "samples": "own_samples.jsonl.gz"}


def own_traces(kind: Kind) -> Path:
    """The file of a kind: `reasoning`, chains with a trial answer at every step, or `samples`, votes of 16.

    Raises ValueError for a kind that was not recorded.
    """
    if kind not in FILES:
        raise ValueError(f"own traces: got kind {kind!r}; recorded: {', '.join(FILES)}")
    with as_file(files("suffice") / "data" / FILES[kind]) as path:
        return Path(path)
