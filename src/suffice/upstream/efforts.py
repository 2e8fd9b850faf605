"""The efforts that each model of a hosted API accepts: tables in `data/models.toml`, and those of the settings."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Final

import msgspec

from suffice.settings import Driver, Effort, ModelFacts, Upstream

# How a router writes whose model it is: "anthropic/claude-opus-5".
_VENDORS: Final[Mapping[str, Driver]] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "gemini",
    "deepseek": "deepseek",
    "mistralai": "mistral",
}


@cache
def packaged_models() -> Mapping[Driver, Mapping[str, ModelFacts]]:
    text = files("suffice").joinpath("data", "models.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, dict[str, ModelFacts]])


def model_facts(upstream: Upstream, model: str) -> ModelFacts | None:
    """Return what is written about a model, the settings first; None: nothing is."""
    stated = _first_match(upstream.models, model)
    if stated is not None:
        return stated
    vendor, _, name = model.rpartition("/")
    routed = _VENDORS.get(vendor)
    if routed is None:
        return _first_match(packaged_models().get(upstream.driver, {}), name)
    own = _first_match(packaged_models()[routed], name)
    # A router has fields of its own, and translates them.
    return None if own is None else ModelFacts(efforts=own.efforts, takes_budget=own.takes_budget)


def _first_match(tables: Mapping[str, ModelFacts], model: str) -> ModelFacts | None:
    return next((facts for pattern, facts in tables.items() if model and fnmatchcase(model, pattern)), None)


def effort_refusal(facts: ModelFacts | None, model: str, level: Effort) -> str | None:
    """Why the model takes no such level; None: it does, or nothing is known of it."""
    if facts is None or level in facts.efforts:
        return None
    return f"effort: {model} does not take {level!r}; it takes {', '.join(facts.efforts) or 'none at all'}"


def filled(template: Mapping[str, Any], level: Effort) -> dict[str, Any]:
    """Return a copy of a template of fields in which "{effort}" is replaced by the level."""
    return {
        key: filled(value, level) if isinstance(value, Mapping) else level if value == "{effort}" else value
        for key, value in template.items()
    }
