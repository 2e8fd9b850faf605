"""Query classes learned from data: readable rules on what is known before the first token; the first match counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from suffice.errors import ConfigError
from suffice.signals.features import FeatureSet
from suffice.types import Query, Signals

MOST_RULES = 64
MOST_TESTS = 16
_MOST_QUERIES = 256  # in the cache


@dataclass(frozen=True, slots=True)
class FeatureTest:
    feature: str  # of the query only, as `signals.features` names it
    above: bool  # False: at most the value
    value: float

    def __str__(self) -> str:
        if "=" in self.feature:  # a mark is 0 or 1
            return self.feature if self.above else f"not {self.feature}"
        return f"{self.feature} {'>' if self.above else '≤'} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Rule:
    tests: tuple[FeatureTest, ...]

    @property
    def name(self) -> str:
        return " and ".join(map(str, self.tests)) or "every query"


class Classes:
    """Assigns queries to classes. Raises ConfigError for an unknown feature or one that is not of a query."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        if not 0 < len(rules) <= MOST_RULES or any(len(rule.tests) > MOST_TESTS for rule in rules):
            raise ConfigError(f"classes: got {len(rules)} rules; 1 to {MOST_RULES}, of at most {MOST_TESTS} tests each")
        self.rules = tuple(rules)
        names = dict.fromkeys(test.feature for rule in rules for test in rule.tests)
        self._features = FeatureSet(tuple(names), where="classes") if names else None
        if self._features is not None and set(self._features.needs) - {"query"}:
            raise ConfigError(f"classes: {', '.join(self._features.needs)} are known after the first token only")
        self._index = {name: at for at, name in enumerate(names)}
        self._remembered: dict[int, tuple[Query, str]] = {}

    def of(self, query: Query | None) -> str:
        """Return the name of the first rule that matches; "" if none does. Recent queries are cached."""
        if query is None:
            return self._classify(None)
        known = self._remembered.get(id(query))
        if known is None or known[0] is not query:
            if len(self._remembered) >= _MOST_QUERIES:
                self._remembered.clear()
            known = self._remembered[id(query)] = (query, self._classify(query))
        return known[1]

    def _classify(self, query: Query | None) -> str:
        row = () if self._features is None else self._features.row(Signals(step=0, tokens_used=0, query=query))
        for rule in self.rules:
            if all((row[self._index[test.feature]] > test.value) == test.above for test in rule.tests):
                return rule.name
        return ""

    def plain(self) -> tuple[tuple[tuple[str, bool, float], ...], ...]:
        """Return the rules as plain data for `classes_from`: each rule's tests as (feature, above, value)."""
        return tuple(tuple((test.feature, test.above, test.value) for test in rule.tests) for rule in self.rules)


def classes_from(described: Sequence[Sequence[Sequence[Any]]]) -> Classes:
    """Build classes from plain data. Raise ConfigError that names the invalid place."""
    rules = []
    for r, rule in enumerate(described):
        tests = []
        for t, test in enumerate(rule):
            where = f"classes[{r}][{t}]"
            if len(test) != 3 or not isinstance(test[0], str) or not isinstance(test[1], bool):
                raise ConfigError(f"{where}: got {str(list(test))[:80]}; need [feature, true or false, number]")
            if isinstance(test[2], bool) or not isinstance(test[2], (int, float)) or test[2] != test[2]:
                raise ConfigError(f"{where}: got {str(test[2])[:40]}; need a number")
            tests.append(FeatureTest(test[0], test[1], float(test[2])))
        rules.append(Rule(tuple(tests)))
    return Classes(rules)
