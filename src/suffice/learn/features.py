"""Chooses the features of a stop model, by kind of run, and finds query classes. Features depend on no labels.

*Dense* features are numbers of the run so far; both parts of the model read them. *Marks* are known before the first
token (model, task), with a few products. Only the linear part reads them: trees over dozens of rare marks learn slowly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.signals.features import Classes, FeatureSet, FeatureTest, Rule, mark, match_feature, product
from suffice.types import Kind, Query

MIN_RUNS = 10  # of a mark
MAX_MARKS = 200
MARKED = ("model", "task")
MIN_CLASS_RUNS = 200  # below it a class is pooled
MAX_CLASSES = 8

_EVERY = (
    "has_answer",
    "log1p(step)",
    "step_share",
    "log1p(tokens_used)",
    "log1p(tokens_per_step)",
    "log1p(answer_streak)",
    "streak_share",
    "log1p(n_flips)",
    "log1p(n_distinct)",
    "agreement",
    "vote_share",
    "log1p(top_votes)",
    "log1p(second_votes)",
    "log1p(third_votes)",
    "logit(p_majority)",
    "vote_entropy",
)
_PROBED = (
    "logit(confidence)",
    "unknown(confidence)",
    "logit(mass)",
    "unknown(mass)",
    "log1p(entropy)",
    "unknown(entropy)",
    "confidence_slope",
    "logit(confidence_ema)",
)
_PRODUCTS = (
    "agreement*step_share",
    "logit(p_majority)*step_share",
    "log1p(answer_streak)*step_share",
    "log1p(answer_streak)*agreement",
)

DENSE: Mapping[Kind, tuple[str, ...]] = {
    "samples": (*_EVERY, "settled", "lead_share", *_PRODUCTS),
    "reasoning": (
        *_EVERY,
        *_PROBED,
        *_PRODUCTS,
        "logit(confidence)*log1p(answer_streak)",
        "logit(confidence)*step_share",
        "sqrt(hedges)",
        "sqrt(hedge_rate)",
        "log1p(closed_entropy)",
        "unknown(closed_entropy)",
    ),
    "rounds": (
        *_EVERY,
        *_PROBED,
        *_PRODUCTS,
        "logit(stated_confidence)",
        "unknown(stated_confidence)",
        "step_logprob",
        "unknown(step_logprob)",
        "reported_done",
        "unknown(reported_done)",
        "action_code",
        "draft_distance",
        "logit(stated_confidence)*log1p(answer_streak)",
    ),
}

# Features whose weight may depend on a mark (model, task).
_MARKED_PRODUCTS: Mapping[Kind, tuple[str, ...]] = {
    "samples": ("logit(p_majority)", "agreement"),
    "reasoning": ("logit(p_majority)", "agreement", "logit(confidence)"),
    "rounds": ("logit(p_majority)", "agreement"),
}
_OF_THE_QUESTION = ("log1p(n_words)", "log1p(n_numbers)", "log1p(n_operators)")


@dataclass(frozen=True, slots=True)
class FeatureSelection:
    dense: tuple[str, ...]  # read by every part
    marks: tuple[str, ...]  # read by the linear part

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.dense, *self.marks)


def choose_features(kind: Kind, queries: Iterable[Query], *, query_signals: bool = True) -> FeatureSelection:
    dense = DENSE[kind]
    if not query_signals:
        return FeatureSelection(dense, ())
    queries = list(queries)
    counts: Counter[str] = Counter()
    for query in queries:
        counts.update(mark(key, value) for key, value in query.metadata if key in MARKED)
        if query.query_class and ("task", query.query_class) not in query.metadata:
            counts[match_feature("class", query.query_class)] += 1
    common = [name for name, n in counts.most_common(MAX_MARKS) if MIN_RUNS <= n < len(queries)]
    marks = [*common, *(product(name, other) for name in common for other in _MARKED_PRODUCTS[kind])]
    if sum(query.n_words is not None for query in queries) >= MIN_RUNS:
        marks += _OF_THE_QUESTION
    return FeatureSelection(dense, tuple(marks))


def sklearn(module: str) -> Any:
    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise ConfigError(f"learn: needs scikit-learn: {how_to_install('train')}") from None


def find_classes(queries: Sequence[Query], good: NDArray[np.bool_], *, max_classes: int = MAX_CLASSES) -> Classes:
    """Find classes of MIN_CLASS_RUNS or more with similar shares of `good` first answers, shape (runs,), or one class.

    Raise ConfigError without scikit-learn, ValueError for unequal lengths.
    """
    if len(queries) != len(good):
        raise ValueError(f"find_classes: {len(queries)} queries and {len(good)} outcomes; one for each")
    names = _candidates(queries)
    if not names or len(queries) < 2 * MIN_CLASS_RUNS or max_classes < 2:
        return Classes([()])
    x = FeatureSet(names).table({"step": np.zeros(len(queries))}, queries, np.arange(len(queries)))
    grow = sklearn("tree").DecisionTreeClassifier
    tree = grow(max_leaf_nodes=max_classes, min_samples_leaf=MIN_CLASS_RUNS, random_state=0)
    return Classes([_merged(tests) for tests in _leaves(tree.fit(x, good).tree_, names, 0, ())])


def _candidates(queries: Sequence[Query]) -> list[str]:
    marks: Counter[str] = Counter()
    for query in queries:
        marks.update(mark(key, value) for key, value in query.metadata if key in ("task", "model"))
        if query.question_type:
            marks[match_feature("question_type", query.question_type)] += 1
        if query.script:
            marks[match_feature("script", query.script)] += 1
    names = [name for name, n in marks.items() if 10 <= n <= len(queries) - 10]
    counts = ("n_words", "n_numbers", "n_operators")
    return [*names, *(name for name in counts if sum(getattr(q, name) is not None for q in queries) > 10)]


def _leaves(tree: Any, names: Sequence[str], node: int, tests: Rule) -> Iterator[Rule]:
    left, right = tree.children_left[node], tree.children_right[node]
    if left == right:
        yield tests
        return
    name, value = names[tree.feature[node]], float(tree.threshold[node])
    yield from _leaves(tree, names, left, (*tests, FeatureTest(name, above=False, value=value)))
    yield from _leaves(tree, names, right, (*tests, FeatureTest(name, above=True, value=value)))


def _merged(tests: Rule) -> Rule:
    kept: dict[tuple[str, bool], FeatureTest] = {}
    for test in tests:
        other = kept.setdefault((test.feature, test.above), test)
        if (test.value > other.value) == test.above:
            kept[test.feature, test.above] = test
    return tuple(kept.values())
