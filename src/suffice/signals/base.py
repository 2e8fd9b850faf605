"""The table of folds, which holds the classes declared in `suffice.signals.folds`, and how needs become folds."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from suffice.errors import ConfigError, name_hint
from suffice.signals import folds
from suffice.signals.fold import Fold, SignalField, Value, parse_need
from suffice.types import SIGNAL_FIELDS

ALWAYS_FILLED = ("step", "tokens_used", "answer")  # by the observer, whatever folds run


def _declared_folds() -> dict[str, Any]:
    modules = (importlib.import_module(f"{folds.__name__}.{m.name}") for m in pkgutil.iter_modules(folds.__path__))
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    declared = [one for one in classes if hasattr(one, "fields") and hasattr(one, "name")]
    return {one.name: one for one in sorted(declared, key=lambda one: str(one.name))}


_DECLARED = _declared_folds()
FOLDS: dict[str, Callable[..., Fold]] = dict(_DECLARED)  # other packages add theirs, see `suffice.plugins`
FIELDS: dict[str, SignalField] = {name: field for fold in _DECLARED.values() for name, field in fold.fields.items()}
SIGNAL_FIELDS.update(FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSpec:
    need: str  # as written
    name: str
    build: Callable[[], Fold]
    parameters: tuple[tuple[str, Value], ...]  # with their defaults, sorted by name
    fields: tuple[str, ...]


FROM_THE_STREAM = frozenset(  # they read what was generated anyway, never a trial answer
    {"plan", "query", "wording", "hedges", "loops", "pattern", "end-of-thought", "said"}
)


def reads_answers(needs: Iterable[str]) -> bool:
    """Return whether any of these needs reads trial answers, so that every step has to be probed for it."""
    return any(need.partition("(")[0] not in FROM_THE_STREAM for need in needs)


def fields_of(needs: Iterable[str]) -> tuple[str, ...]:
    """Return the fields of Signals that these needs fill, in order. Raise ConfigError as `resolve_needs` does."""
    return tuple(field for spec in resolve_needs(tuple(needs)) for field in spec.fields)


@lru_cache(maxsize=1024)
def resolve_needs(needs: tuple[str, ...]) -> tuple[FoldSpec, ...]:
    """Return the folds for all needs, each once. Raise ConfigError as `check_need` does, and for conflicting needs."""
    filled: dict[str, FoldSpec] = {}
    specs = []
    for need in needs:
        spec = check_need(need)
        rival = next((filled[field] for field in spec.fields if field in filled), None)
        if rival is None:
            filled.update(dict.fromkeys(spec.fields, spec))
            specs.append(spec)
        elif (rival.name, rival.parameters) != (spec.name, spec.parameters):
            raise ConfigError(
                f"needs: {rival.need!r} and {spec.need!r} fill the same fields of Signals; "
                "ask for one of them, or for both with the same parameters"
            )
    return tuple(specs)


def check_need(need: str) -> FoldSpec:
    """Validate a need such as `closing(alpha=0.2)`. Raise ConfigError for an unknown name or a bad parameter."""
    name, given = parse_need(need)
    if name not in FOLDS:
        raise ConfigError(f"needs: unknown signal {name!r:.100}; {name_hint(name, FOLDS)}")
    factory = FOLDS[name]
    declared = inspect.signature(factory).parameters
    for key in given:
        if key not in declared:
            raise ConfigError(f"needs: {name}: unknown parameter {key!r:.80}; {name_hint(key, declared)}")
    missing = [key for key, p in declared.items() if p.default is inspect.Parameter.empty and key not in given]
    if missing:
        raise ConfigError(f"needs: {name}.{missing[0]}: missing; write {name}({missing[0]}=…)")
    build = partial(factory, **given) if given else factory
    try:
        fields = tuple(build().fields)
    except ConfigError as error:
        raise ConfigError(f"needs: {error}") from None
    except Exception as error:  # another package's fold may fail in any way
        raise ConfigError(f"needs: {name}: cannot be built: {type(error).__name__}: {error}") from error
    bound = {key: given.get(key, parameter.default) for key, parameter in declared.items()}
    return FoldSpec(need=need, name=name, build=build, parameters=tuple(sorted(bound.items())), fields=fields)
