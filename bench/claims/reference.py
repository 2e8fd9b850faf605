"""Scenarios of another generator, `generator.py` in the folder that SUFFICE_SIM names, as settings of ours."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from bench.claims.streams import Setting
from tests.simulators import traffic_worlds as simulated

EARLY_COLUMNS: Final = (0, 1, 5, 6)  # confidence, entropy, same as last, difficulty
AFTER: Final = {"none": "PRE", "harsh": "POST", "stealth": "STEALTH", "benign": "BENIGN", "mix": "MIX_ONLY"}


def where() -> Path | None:
    """The generator's file; None: SUFFICE_SIM names none."""
    folder = os.environ.get("SUFFICE_SIM")
    path = Path(folder or "") / "generator.py"
    return path if folder and path.exists() else None


@lru_cache(maxsize=1)
def settings() -> Mapping[str, Setting]:
    """Its five scenarios, named "reference: …"; none without SUFFICE_SIM."""
    path = where()
    if path is None:
        return {}
    module = _load(path)
    return {f"reference: {name}": _setting(module, name, after) for name, after in AFTER.items()}


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_generator", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _setting(module: ModuleType, name: str, after: str) -> Setting:
    new = getattr(module, after)

    def simulate(n: int, seed: int) -> simulated.SimulatedTraffic:
        return _traffic(module, module.stream(n, n // 2, np.random.default_rng(seed), new))

    def in_world(way: float, n: int, seed: int) -> simulated.SimulatedTraffic:
        return _traffic(module, module.gen(n, np.random.default_rng(seed), new if way >= 0.5 else module.PRE))

    return Setting(name=f"reference: {name}", simulate=simulate, in_world=in_world)


def _traffic(module: ModuleType, made: Mapping[str, Any]) -> simulated.SimulatedTraffic:
    valid, lengths = made["valid"], made["L"].astype(np.int64)
    n = len(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    step = np.broadcast_to(np.arange(1, valid.shape[1] + 1), valid.shape)
    x = made["X"].astype(np.float64)
    return simulated.SimulatedTraffic(
        x=x[valid],
        starts=starts,
        z=made["drop"][valid],
        d=made["dis"][valid].astype(bool),
        cost=(made["cum"] + module.PROBE * step + module.ANS)[valid].astype(np.float64),
        full=made["full"].astype(np.float64),
        right=made["cL"].astype(bool),
        query_class=made["cls"].astype(np.int64),
        early=x[np.arange(n), 1][:, EARLY_COLUMNS],
    )
