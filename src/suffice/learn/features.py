"""Which features a stop model is given, by kind of run: a table, and nothing that depends on labels.

Two parts: *dense* features, numbers of the run so far, read by both parts of the model; and *marks* of what was
known before the first token (which model, which task) with a few products, read by the linear part alone,
because trees over dozens of rare marks learn slowly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from suffice.signals.features import found, mark, product
from suffice.types import Kind, Query

MIN_RUNS = 10  # a mark that fewer runs carry says nothing that can be learned
MAX_MARKS = 200
MARKED = ("model", "task")

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
        "said_done",
        "unknown(said_done)",
        "action_code",
        "draft_distance",
        "logit(stated_confidence)*log1p(answer_streak)",
    ),
}

# What a mark may change the weight of: how much agreement, or confidence, is worth with this model or task.
_MARKED_PRODUCTS: Mapping[Kind, tuple[str, ...]] = {
    "samples": ("logit(p_majority)", "agreement"),
    "reasoning": ("logit(p_majority)", "agreement", "logit(confidence)"),
    "rounds": ("logit(p_majority)", "agreement"),
}
_OF_THE_QUESTION = ("log1p(n_words)", "log1p(n_numbers)", "log1p(n_operators)")


@dataclass(frozen=True, slots=True)
class FeatureSelection:
    """The features of a model."""

    dense: tuple[str, ...]  # read by every part
    marks: tuple[str, ...]  # read by the linear part

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, the dense ones first."""
        return (*self.dense, *self.marks)


def choose_features(kind: Kind, queries: Iterable[Query], *, query_signals: bool = True) -> FeatureSelection:
    """The default features of a kind, with marks for the models, tasks and classes that enough runs carry.

    query_signals  False leaves out everything that was known before the first token
    """
    dense = DENSE[kind]
    if not query_signals:
        return FeatureSelection(dense, ())
    queries = list(queries)
    counts: Counter[str] = Counter()
    for query in queries:
        counts.update(mark(key, value) for key, value in query.metadata if key in MARKED)
        if query.query_class and ("task", query.query_class) not in query.metadata:
            counts[found("class", query.query_class)] += 1
    common = [name for name, n in counts.most_common(MAX_MARKS) if MIN_RUNS <= n < len(queries)]
    marks = [*common, *(product(name, other) for name in common for other in _MARKED_PRODUCTS[kind])]
    if sum(query.n_words is not None for query in queries) >= MIN_RUNS:
        marks += _OF_THE_QUESTION
    return FeatureSelection(dense, tuple(marks))
