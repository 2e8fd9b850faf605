"""The settings of the demonstration: what a user would write in suffice.toml, as data.

The policies are fixed here, before any question is asked: their published or plain defaults, tuned on
nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from suffice.settings import Settings, parse_settings
from suffice.types import Mode

SAMPLES_POLICY: dict[str, Any] = {"policy": "beta", "threshold": 0.95}
REASONING_POLICY: dict[str, Any] = {"policy": "confidence-threshold", "threshold": 0.95}
ALSO_REPLAYED: dict[str, Any] = {"policy": "stable-answer", "streak": 2}
WAVE = 4
STEPS: dict[str, Any] = {"boundary": "line", "min_tokens": 16, "growth": 1.2}
# The server in the box was verified to continue a text and to cache prefixes.
PROBE: dict[str, Any] = {"max_tokens": 6, "verified_by": "owner"}
MAX_EXTRA_CALLS = 48


def settings(
    kind: str, *, upstream: str, slots: int, mode: Mode, database: Path, n_samples: int, driver: str = "llama.cpp"
) -> Settings:
    governed: dict[str, Any] = {"upstream": "local", "kind": kind, "mode": mode, "match": {"header": kind}}
    governed["max_extra_calls"] = max(MAX_EXTRA_CALLS, n_samples - 1)
    if mode == "enforce":
        governed["uncertified"] = True  # nothing has certified these policies, and every reply says so
    if kind == "samples":
        governed |= {"scorer": "text", "samples": n_samples, "wave": WAVE, "policy": SAMPLES_POLICY}
    else:
        governed |= {"scorer": "number", "policy": REASONING_POLICY, "steps": STEPS, "probe": PROBE}
        if mode == "observe":
            governed["audit_share"] = 1.0  # every request is a probing audit, so that all can be replayed
    return parse_settings(
        {
            "upstreams": {
                "local": {"url": upstream, "driver": driver, "slots": slots, "finish": ["raw"]}
                if driver == "llama.cpp"
                else {"url": upstream, "driver": driver, "slots": slots}
            },
            "routes": {
                kind: governed,
                "plain": {"upstream": "local", "mode": "off", "match": {"header": "plain"}},
            },
            "store": {"url": f"sqlite:///{database}"},
        }
    )
