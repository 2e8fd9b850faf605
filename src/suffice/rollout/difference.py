"""What one version has and another has not, in lines for people.

Knows versions as plain data; refuses to know which of two is better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from suffice.model.stop import canonical
from suffice.rollout.versions import Version

_SHORT_LIST: Final = 8  # items up to which a list of numbers is written out
_MOST_CHARS: Final = 80  # of one value
_NOTHING: Final = "nothing"
_SIGNALS: Final = "signals"
_MODELS: Final = ("body.models", "body.values")


def diff_versions(before: Version, after: Version) -> tuple[str, ...]:
    """One line for each thing that differs, such as `body.threshold: 0.95 → 0.9`; (): they are the same version."""
    return diff_plain(before.plain(), after.plain())


def diff_plain(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of what versions have as plain data, such as the bodies alone."""
    old, new = (dict(_leaves("", plain)) for plain in (before, after))
    places = [*old, *(place for place in new if place not in old)]
    return tuple(
        f"{place}: {old.get(place, _NOTHING)} → {new.get(place, _NOTHING)}"
        for place in places
        if old.get(place) != new.get(place)
    )


def _leaves(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Places with what stands there. Any: it is whatever JSON holds."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{where}.{name}" if where else name, inner)
    elif where == _SIGNALS and value:
        for signal in value:
            yield f"{where}.{signal['name']}", _signal(signal)
    elif where in _MODELS and isinstance(value, list):
        for at, model in enumerate(value):
            yield f"{where}[{at}]", _model(model)
    elif isinstance(value, list) and len(value) > _SHORT_LIST and all(isinstance(one, (int, float)) for one in value):
        yield where, f"{len(value):,} numbers from {min(value):g} to {max(value):g} ({_digest(value)})"
    elif isinstance(value, list) and any(isinstance(one, (list, Mapping)) for one in value):
        for at, one in enumerate(value):
            yield from _leaves(f"{where}[{at}]", one)
    else:
        yield where, _shown(value)


def _signal(signal: Mapping[str, Any]) -> str:
    inside = ", ".join(f"{name}={value}" for name, value in sorted(signal["parameters"].items()))
    return f"read ({inside})" if inside else "read"


def _model(model: Mapping[str, Any]) -> str:
    return f"model {_digest(model)} of {len(model['features']):,} features"


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical({"": value})).hexdigest()[:8]


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return _NOTHING
    text = repr(value)
    return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 12]}… ({_digest(value)})"
