"""Features: what is written is read, both evaluators agree, and unknown is 0."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.signals.base import FOLDS, fields_of
from suffice.signals.features import (
    DERIVED,
    HAS_ANSWER,
    QUERY_FIELDS,
    FeatureSet,
    Mark,
    Number,
    mark,
    match_feature,
    parse_terms,
    product,
)
from suffice.signals.observe import Observer, observe_columns
from suffice.types import Kind, Query, Signals, Step
from tests.drawn import examples

PROPERTY = settings(max_examples=examples(40))

NUMERIC = sorted({"step", "tokens_used", *fields_of(tuple(FOLDS))} - {"query"})
FIELDS = [*NUMERIC, *DERIVED, HAS_ANSWER, *QUERY_FIELDS]
TRANSFORMS = ("", "log1p", "logit", "sqrt", "unknown")
ANY_TEXT = st.text(st.characters(), max_size=6)
QUERIES = st.none() | st.builds(
    Query,
    query_class=st.sampled_from(["", "hard", 'a"b*c']),
    metadata=st.dictionaries(st.sampled_from(["model", "class", "a=b"]), st.sampled_from(["x*y", "z", "\ud800"])).map(
        lambda declared: tuple(sorted(declared.items()))
    ),
    planned_steps=st.none() | st.integers(0, 8),
    n_chars=st.none() | st.integers(0, 10**6),
    n_words=st.none() | st.integers(0, 10**5),
    n_numbers=st.none() | st.integers(0, 50),
    n_operators=st.none() | st.integers(0, 50),
    question_type=st.none() | st.sampled_from(["number", "yes-no"]),
    script=st.none() | st.sampled_from(["latin", "han"]),
)
RUNS = st.lists(
    st.builds(
        Step,
        index=st.just(1),
        tokens=st.integers(0, 10**6),
        answer=st.none() | st.sampled_from("ab"),
        answer_source=st.just("probe"),
        confidence=st.none() | st.floats(0, 1) | st.just(math.nan),
        closed_entropy=st.none() | st.floats(0, 5),
        logprob=st.none() | st.floats(-9, 0),
        text=st.sampled_from(["", "wait, so it is so", "x " * 12]),
    ),
    max_size=8,
)
MARKS = [
    match_feature("class", 'a"b*c'),
    match_feature("class", "hard"),
    match_feature("question_type", "yes-no"),
    match_feature("script", "latin"),
    mark("model", "x*y"),
    mark("model", "\ud800"),
    mark("class", "z"),
    mark("a=b", "z"),
]


def written(field: str, transform: str) -> str:
    return f"{transform}({field})" if transform else field


EVERYTHING = [*(written(field, transform) for field in FIELDS for transform in TRANSFORMS), *MARKS]
EVERYTHING += [product(a, b) for a, b in zip(EVERYTHING, EVERYTHING[7:], strict=False)]
EVERYTHING += [product("step", "logit(confidence)", MARKS[0]), product("lead", "lead", "lead", "step")]


def steps(raw: Sequence[Step]) -> list[Step]:
    return [
        Step(**{name: getattr(step, name) for name in Step.__dataclass_fields__} | {"index": at})
        for at, step in enumerate(raw, 1)
    ]


@pytest.mark.no_cover
@PROPERTY
@given(kind=st.sampled_from(["reasoning", "samples", "rounds"]), runs=st.lists(st.tuples(QUERIES, RUNS), max_size=4))
def test_a_row_and_a_matrix_hold_the_same_numbers(kind: Kind, runs: list[tuple[Query | None, list[Step]]]) -> None:
    features = FeatureSet(EVERYTHING)
    taken = [(query, steps(raw)) for query, raw in runs]
    matrix = features.matrix(observe_columns(features.needs, kind, taken), [query for query, _ in taken])
    rows = []
    for query, run in taken:
        observer = Observer(features.needs, kind, query=query)
        rows += [features.row(observer.observe(step)) for step in run]
    assert matrix.shape == (len(rows), len(EVERYTHING))
    assert np.isfinite(matrix).all()
    np.testing.assert_allclose(np.array(rows).reshape(matrix.shape), matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("field", NUMERIC)
def test_every_number_of_signals_is_a_feature_and_asks_for_its_fold(field: str) -> None:
    features = FeatureSet([field])
    assert field in {"step", "tokens_used", *fields_of(features.needs)}
    assert len(features.needs) == (field not in {"step", "tokens_used"})
    known: dict[str, Any] = {"step": 1, "tokens_used": 1, field: 1}
    assert features.row(Signals(**known)) == (1,)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_is_unknown_is_0_behind_every_transform(value: float | None, transform: str) -> None:
    expected = 1.0 if transform == "unknown" else 0.0
    features = FeatureSet([written("confidence", transform)])
    assert features.row(Signals(step=1, tokens_used=0, confidence=value)) == (expected,)
    columns = {"step": np.ones(1), "tokens_used": np.zeros(1), "confidence": np.array([value], dtype=np.float64)}
    assert features.table(columns, [None], np.zeros(1, np.int64)).tolist() == [[expected]]


SEEN = Signals(
    step=4,
    tokens_used=1_000,
    answer="a",
    answer_streak=2,
    n_votes=3,
    top_votes=3,
    second_votes=0,
    confidence=0.9,
    step_share=0.8,
    query=Query(planned_steps=5, n_words=7, metadata=(("model", "m"),)),
)
VALUES: dict[str, float] = {
    "tokens_per_step": 250.0,
    "streak_share": 0.5,
    "vote_share": 0.75,
    "lead": 3.0,
    "remaining_steps": 1.0,
    "lead_share": 3.0,
    "settled": 1.0,
}


@pytest.mark.parametrize("field", sorted(DERIVED))
def test_a_derived_field_is_what_its_sentence_says(field: str) -> None:
    assert DERIVED[field].says.endswith(".")
    assert FeatureSet([field]).row(SEEN) == (VALUES[field],)


def inputs_of(field: str) -> set[str]:
    """The fields of Signals behind a field."""
    return set().union(*map(inputs_of, DERIVED[field].reads)) if field in DERIVED else {field}


@pytest.mark.parametrize("field", sorted(DERIVED))
def test_a_derived_field_is_unknown_where_something_in_it_is(field: str) -> None:
    features = FeatureSet([f"unknown({field})"])
    assert features.row(SEEN) == (0.0,)
    for name in inputs_of(field) - {"step", "tokens_used"}:
        assert features.row(SEEN.replace(**{name: None})) == (1.0,)


def test_the_page_has_a_row_for_each_derived_field_and_each_field_of_the_query() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text("utf-8")
    table = page.split("Derived fields:")[1].split("\n\n")[1]
    named = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    assert named.pop(HAS_ANSWER)
    assert named == {name: derived.says for name, derived in DERIVED.items()}
    sentence = page.split("Fields of the query are ")[1].split(". ")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(QUERY_FIELDS)


@pytest.mark.parametrize(
    ("top", "second", "share", "lead_share", "settled"),
    [(4, 1, 0.8, 3.0, 1.0), (3, 1, 0.5, 0.5, 0.0), (3, 2, 1.0, 3.0, 1.0), (6, 2, 0.5, 1.0, 0.0), (1, 1, 0.5, 0.0, 0.0)],
)
def test_a_lead_is_settled_once_the_planned_steps_that_remain_cannot_level_it(
    top: int, second: int, share: float, lead_share: float, settled: float
) -> None:
    seen = Signals(step=4, tokens_used=1, top_votes=top, second_votes=second, step_share=share)
    assert FeatureSet(["lead_share", "settled"]).row(seen) == (lead_share, settled)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
@pytest.mark.parametrize("field", ["remaining_steps", "lead_share", "settled"])
def test_a_share_of_a_plan_that_cannot_be_makes_what_remains_unknown(field: str, share: float) -> None:
    features = FeatureSet([f"unknown({field})", field])
    seen = Signals(step=4, tokens_used=1, top_votes=3, second_votes=1, step_share=share)
    assert features.row(seen) == (1.0, 0.0)
    columns = {name: np.array([float(getattr(seen, name))]) for name in ("step", "tokens_used", "step_share")}
    columns |= {"top_votes": np.full(1, 3.0), "second_votes": np.ones(1)}
    assert features.table(columns, [None], np.zeros(1, np.int64)).tolist() == [[1.0, 0.0]]


@PROPERTY
@given(key=ANY_TEXT, word=ANY_TEXT, declared=st.booleans(), field=st.sampled_from(FIELDS))
def test_any_word_can_be_written_and_read_back(key: str, word: str, declared: bool, field: str) -> None:
    factor = Mark(key, word, declared=True) if declared else Mark("class", word, declared=False)
    name = product(str(factor), f"sqrt({field})", str(factor))
    assert name.isascii()
    assert parse_terms("here", name) == (factor, Number(field, "sqrt"), factor)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("confidense", "features[1]: unknown field 'confidense'; did you mean 'confidence'? a number of Signals"),
        ("query", "features[1]: unknown field 'query'; "),
        ("answer", "features[1]: unknown field 'answer'; "),
        ("exp(step)", "features[1]: unknown transform 'exp'; known: log1p, logit, sqrt, unknown"),
        ("step * step", "features[1]: got 'step * step', not understood at character 5; write field, "),
        ("step**step", "features[1]: got 'step**step', not understood at character 6; write "),
        ("", "features[1]: got 0 characters; a text of 1 to 2,000 characters"),
        ('model="a', "features[1]: got 'model=\"a', not understood at character 6; "),
        ('model="\\x"', "features[1]: got '\"\\\\x\"'; a text in quotes is a JSON string"),
        ("step*step*step*step*step", "features[1]: got a product of 5; at most 4 factors"),
        ("step", "features[1]: got 'step' again; each feature once"),
        ("__class__(step)", "features[1]: got "),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        FeatureSet(["step", name])
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 300


def test_only_text_names_a_feature_and_there_are_not_too_many() -> None:
    for wrong, message in (([7], r"features\[0\]: got a int"), ([], "got 0 features"), (["step"] * 20_001, "20,001")):
        with pytest.raises(ConfigError, match=message):
            FeatureSet(wrong)  # type: ignore[arg-type]


@PROPERTY
@given(query=QUERIES)
def test_the_same_query_gives_the_same_row_whatever_came_between(query: Query | None) -> None:
    features = FeatureSet(MARKS)
    seen = Signals(step=1, tokens_used=1, query=query)
    first = features.row(seen)
    for n in range(600):
        features.row(Signals(step=1, tokens_used=1, query=Query(query_class="hard", n_words=n)))
    assert features.row(seen) == first == FeatureSet(MARKS).row(seen)


@pytest.mark.parametrize(
    ("names", "known", "informed"),
    [
        (["confidence", "answer_streak"], {}, False),
        (["confidence", "answer_streak"], {"confidence": math.nan}, False),
        (["confidence", "answer_streak"], {"answer_streak": 0}, True),
        (["confidence", "n_words", "step_share"], {"query": Query(n_words=3), "step_share": 0.5}, False),
        (["n_words"], {"query": Query(n_words=3)}, True),
        (["n_words"], {}, False),
        (["step", "tokens_per_step", "has_answer"], {"answer": "a"}, False),
    ],
)
def test_features_say_whether_anything_is_known_of_the_run(
    names: list[str], known: dict[str, Any], informed: bool
) -> None:
    features = FeatureSet(names)
    assert features.informed(Signals(step=1, tokens_used=1, **known)) is informed
    columns = {name: np.array([value]) for name, value in known.items() if name not in {"query", "answer"}}
    columns |= {"step": np.ones(1), "tokens_used": np.ones(1)}
    queries, run = [known.get("query")], np.zeros(1, np.int64)
    assert features.informed_rows(columns, queries, run).tolist() == [informed]


def test_another_packages_field_is_read_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Moon:
        fields: tuple[str, ...] = ("phase",)

        def update(self, step: Step) -> None: ...

        def values(self) -> dict[str, float | None]:
            return {"phase": 0.5}

    monkeypatch.setitem(FOLDS, "moon", Moon)
    features = FeatureSet(["phase*step"])
    assert features.needs == ("moon",)
    assert features.row(
        Observer(features.needs, "rounds").observe(Step(index=3, tokens=1, answer=None, answer_source=None))
    ) == (1.5,)


def test_a_matrix_wants_one_query_for_each_run() -> None:
    columns = observe_columns([], "rounds", [(None, [Step(index=1, tokens=1, answer="a", answer_source=None)])])
    with pytest.raises(ValueError, match="queries: got 0 for 1 runs"):
        FeatureSet(["step"]).matrix(columns, [])
