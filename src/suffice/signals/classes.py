"""Query classes learned from data: readable rules on what is known before the first token; the first match counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from suffice.errors import ConfigError
from suffice.signals.features import FeatureSet, QueryMemory
from suffice.types import Query, Signals


class FeatureTest(NamedTuple):
    feature: str  # of the query only, as `signals.features` names it
    above: bool  # False: at most the value
    value: float

    def __str__(self) -> str:
        if "=" in self.feature:  # a mark is 0 or 1
            return self.feature if self.above else f"not {self.feature}"
        return f"{self.feature} {'>' if self.above else '≤'} {self.value:g}"


Rule: TypeAlias = tuple[FeatureTest, ...]


class Classes:
    """Assigns queries to classes. Raises ConfigError for an unknown feature or one that is not of a query."""

    def __init__(self, rules: Iterable[Iterable[tuple[str, bool, float]]]) -> None:
        self.rules: tuple[Rule, ...] = tuple(tuple(FeatureTest(*test) for test in rule) for rule in rules)
        self.names = tuple(" and ".join(map(str, rule)) or "every query" for rule in self.rules)
        features = tuple(dict.fromkeys(test.feature for rule in self.rules for test in rule))
        self._features = FeatureSet(features, where="classes") if features else None
        if self._features is not None and set(self._features.needs) - {"query"}:
            raise ConfigError(f"classes: {', '.join(self._features.needs)} are known after the first token only")
        self._place = {name: at for at, name in enumerate(features)}
        self._recent = QueryMemory(self._classify)

    def of(self, query: Query | None) -> str:
        """Return the name of the first rule that matches; "" if none does. Recent queries are cached."""
        return self._recent.of(query)

    def _classify(self, query: Query) -> str:
        row = () if self._features is None else self._features.row(Signals(step=0, tokens_used=0, query=query))
        for name, rule in zip(self.names, self.rules, strict=True):
            if all((row[self._place[test.feature]] > test.value) == test.above for test in rule):
                return name
        return ""
