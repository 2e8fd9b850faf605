"""All settings, in one frozen tree. Pure: files and environment are read in `wiring`.

    Settings
    ├── server      our HTTP edge: address, limits, keys
    ├── upstreams   model servers by name: address, driver, time-outs, ways to finish
    ├── routes      what is governed and how: match, kind, mode, scorer, policy, budgets
    ├── store       where events go
    └── control     the loop that certifies, watches and brakes

Every field has a unit in its name or comment and a safe default. `parse` refuses what it does
not know, with the path of the key and the nearest key that exists.
"""

from __future__ import annotations

from suffice.settings.parsing import parse
from suffice.settings.tables import (
    Control,
    Driver,
    Effort,
    Embeddings,
    Extra,
    FinishMethod,
    Judge,
    Match,
    OnFallback,
    Pressure,
    Prices,
    Probe,
    Route,
    Server,
    Settings,
    Steps,
    Store,
    Template,
    Upstream,
    VerifiedBy,
)

__all__ = [
    "Control",
    "Driver",
    "Effort",
    "Embeddings",
    "Extra",
    "FinishMethod",
    "Judge",
    "Match",
    "OnFallback",
    "Pressure",
    "Prices",
    "Probe",
    "Route",
    "Server",
    "Settings",
    "Steps",
    "Store",
    "Template",
    "Upstream",
    "VerifiedBy",
    "parse",
]
