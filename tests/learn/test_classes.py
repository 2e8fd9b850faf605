"""Classes that are found in data are readable rules over the query alone, large enough to stand on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.learn.features import find_classes
from suffice.signals.features import Classes
from suffice.types import Query
from tests.drawn import examples


def traffic(n: int, seed: int) -> tuple[list[Query], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Long questions with many numbers are risky to answer early, and one model is worse at them."""
    rng = np.random.default_rng(seed)
    queries, good = [], np.empty(n, dtype=bool)
    for i in range(n):
        words, numbers = int(rng.integers(5, 60)), int(rng.integers(0, 9))
        model = "small" if rng.random() < 0.5 else "large"
        queries.append(Query(n_words=words, n_numbers=numbers, n_operators=0, metadata=(("model", model),)))
        good[i] = rng.random() < (0.95 if numbers < 4 else 0.5 if model == "small" else 0.8)
    return queries, good


CLASSES = find_classes(*traffic(2_000, 3))


def test_the_division_that_matters_is_found_and_can_be_read() -> None:
    queries, good = traffic(4_000, 1)
    classes = find_classes(queries, good)
    sizes = Counter(classes.of(query) for query in queries)
    assert min(sizes.values()) >= 200
    assert len(sizes) <= 8
    assert "" not in sizes
    risky = {name for name in sizes if "n_numbers > 3.5" in name}
    small = {name for name in risky if "not model=large" in name or ("model=small" in name and "not" not in name)}
    assert small
    assert small < risky


def test_where_nothing_divides_the_runs_there_is_one_class() -> None:
    queries = [Query(metadata=(("model", "m"),))] * 1_000
    assert find_classes(queries, np.ones(1_000, dtype=bool)).names == ("every query",)
    few, good = traffic(300, 2)
    assert len(find_classes(few, good).rules) == 1


@settings(max_examples=examples(15))
@given(words=st.none() | st.integers(0, 10**6), numbers=st.none() | st.integers(0, 50), model=st.text(max_size=5))
def test_every_query_has_a_class_and_plain_data_builds_the_same_classes(
    words: int | None, numbers: int | None, model: str
) -> None:
    classes = CLASSES
    query = Query(n_words=words, n_numbers=numbers, metadata=(("model", model),))
    assert classes.of(query) in classes.names
    assert Classes(classes.rules).of(query) == classes.of(query)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([[("agreement", True, 0.5)]], "known after the first token only"),
        ([[("no_such_field", True, 0.5)]], "unknown field"),
    ],
)
def test_what_is_no_test_of_a_query_is_refused(rules: list[list[tuple[str, bool, float]]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Classes(rules)
