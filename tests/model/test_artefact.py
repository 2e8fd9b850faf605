"""Artefacts: what is written is read back equal, and nothing that is not a model is read at all."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.model.artefact import StepCost, StopModel, TrainingRecord, dump_model, load_model
from suffice.model.ensemble import Ensemble, Linear
from tests.drawn import examples
from tests.model.forest import N_FEATURES, rows, some_trees

PROPERTY = settings(max_examples=examples(30))
FLOATS = st.floats(-1e300, 1e300, allow_nan=False)
TESTS = st.tuples(st.text(st.characters(), max_size=5), st.booleans(), FLOATS)
FEATURES = ("step", "logit(confidence)", 'model="a*b \\ud800"', "n_words", "agreement*step")


@st.composite
def models(draw: st.DrawFn) -> StopModel:
    """Models with and without each of their parts, with floats of any size and classes of any text."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    linear = Linear(tuple(draw(st.lists(FLOATS, min_size=N_FEATURES, max_size=N_FEATURES))), draw(FLOATS))
    ensemble = Ensemble((linear, some_trees(rng, 3, 8)))
    return StopModel(
        features=FEATURES,
        suffices=ensemble,
        hopeless=draw(st.none() | st.just(Ensemble((linear,)))),
        classes=tuple(draw(st.dictionaries(st.text(st.characters(), max_size=5), st.floats(0, 1_000))).items()),
        class_rules=tuple(draw(st.lists(st.lists(TESTS, max_size=3).map(tuple), max_size=3))),
        cost=draw(st.builds(StepCost, st.floats(0, 4), st.floats(1e-6, 1e6))),
        trained=TrainingRecord(
            n_episodes=draw(st.integers(0, 10**9)),
            n_questions=3,
            digest=draw(st.text(st.characters(), max_size=9)),
            target="as-good",
            seed=0,
            versions=(("b", "2"), ("a", "1")),
        ),
    )


def plain() -> dict[str, Any]:
    """A small model as JSON has it."""
    rng = np.random.default_rng(0)
    ensemble = Ensemble((Linear((0.5,) * N_FEATURES, 0.1), some_trees(rng, 2, 3)))
    model = StopModel(
        features=FEATURES,
        suffices=ensemble,
        hopeless=ensemble,
        classes=(("hard", 0.1),),
        trained=TrainingRecord(
            n_episodes=9, n_questions=3, digest="d", target="as-good", seed=0, versions=(("numpy", "2"),)
        ),
    )
    content: dict[str, Any] = json.loads(dump_model(model))
    return content


@PROPERTY
@given(model=models())
def test_a_model_survives_bytes_and_keeps_its_address(model: StopModel) -> None:
    read = load_model(dump_model(model))
    assert read == model
    assert dump_model(read) == dump_model(model)
    assert read.address == model.address == load_model(json.loads(dump_model(model))).address
    assert re.fullmatch(r"m-[0-9a-f]{12}", model.address)
    matrix = rows(np.random.default_rng(1), 20)
    assert read.suffices.scores(matrix).tolist() == model.suffices.scores(matrix).tolist()


@PROPERTY
@given(one=models(), other=models())
def test_equal_models_have_equal_addresses_and_others_have_others(one: StopModel, other: StopModel) -> None:
    assert (one.address == other.address) == (one == other)


def test_an_address_does_not_depend_on_how_the_same_model_was_put_together() -> None:
    content = plain()
    content["classes"] = [["a", 1], ["b", -0.0]]
    turned = {key: content[key] for key in reversed(content)} | {"classes": [["b", 0], ["a", 1.0]]}
    assert load_model(content) == load_model(turned)
    assert load_model(content).address == load_model(json.dumps(turned, indent=4).encode()).address


def test_addresses_in_logs_stay_what_they_were() -> None:
    model = StopModel(
        features=("step",),
        suffices=Ensemble((Linear((0.1,), -1.0),)),
        trained=TrainingRecord(n_episodes=1, n_questions=1, digest="", target="as-good", seed=0),
    )
    assert dump_model(model) == (
        b'{"class_rules":[],"classes":[],"cost":{"exponent":0.0,"scale":1.0},"features":["step"],"hopeless":null,"schema":3,'
        b'"suffices":{"parts":[{"intercept":-1.0,"kind":"linear","weights":[0.1]}]},'
        b'"trained":{"digest":"","n_episodes":1,"n_questions":1,"seed":0,"target":"as-good","versions":[]}}'
    )
    assert model.address == "m-375714b794dd"


def changed(path: str, value: object) -> dict[str, Any]:
    """The small model with another value at a path such as `suffices.parts.0.weights`."""
    content: dict[str, Any] = copy.deepcopy(plain())
    *way, last = path.split(".")
    place: Any = content
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 4, "model.schema: Invalid enum value 4"),
        ("schema", True, "model.schema: Expected `int`, got `bool`"),
        ("schema", None, "model.schema: Expected `int`, got `null`"),
        ("features", "step", "model.features: Expected `array`, got `str`"),
        ("features", [], "model.features: got 0; 1 to 20,000"),
        ("features.1", 7, "model.features[1]: Expected `str`, got `int`"),
        ("features.1", "x" * 2_001, "model.features[1]: Expected `str` of length <= 2000"),
        ("features", ["step"] * 4, "model.suffices.parts[0].weights: got 5; one for each of 4 features"),
        ("extra", 1, "model: Object contains unknown field `extra`"),
        ("x" * 1_000, 1, "model: Object contains unknown field `xxx"),
        ("\ud800", 1, "model: "),
        ("suffices", None, "model.suffices: Expected `object`, got `null`"),
        ("suffices.parts", [], "model.suffices.parts: got 0; 1 to 16"),
        ("suffices.parts.0.kind", "pickle", "model.suffices.parts[0].kind: Invalid value 'pickle'"),
        ("suffices.parts.0.kind", 1, "model.suffices.parts[0].kind: Expected `str`"),
        ("suffices.parts.0.weights.2", math.nan, "model.suffices.parts[0].weights[2]: got nan; a finite number"),
        ("suffices.parts.0.weights.2", "1", "model.suffices.parts[0].weights[2]: Expected `float`, got `str`"),
        ("suffices.parts.0.code", "x", "model.suffices.parts[0]: Object contains unknown field `code`"),
        ("suffices.parts.1.trees", {}, "model.suffices.parts[1].trees: Expected `array`, got `object`"),
        ("suffices.parts.1.trees.1.left.0", 0, "model.suffices.parts[1].trees[1].left[0]: got 0; a whole number"),
        ("suffices.parts.1.trees.1.left.0", 10**30, "model.suffices.parts[1].trees[1].left[0]: got a whole number"),
        ("hopeless", [], "model.hopeless: Expected `object | null`, got `array`"),
        ("hopeless.parts.0.intercept", math.inf, "model.hopeless.parts[0].intercept: got inf"),
        ("classes", {}, "model.classes: Expected `array`, got `object`"),
        ("classes", [["easy", 0.1, 0.2]], "model.classes[0]: Expected `array` of length 2"),
        ("class_rules", {}, "model.class_rules: Expected `array`, got `object`"),
        ("class_rules", [[]] * 65, "model.class_rules: got 65 rules; at most 64"),
        ("class_rules", [7], "model.class_rules[0]: Expected `array`, got `int`"),
        ("class_rules", [[["n_words", True, 2.0]] * 17], "model.class_rules[0]: got 17 tests; at most 16"),
        ("class_rules", [[["n_words", 1, 2.0]]], "model.class_rules[0][0][1]: Expected `bool`, got `int`"),
        ("class_rules", [[["n_words", True, None]]], "model.class_rules[0][0][2]: Expected `float`, got `null`"),
        ("class_rules", [[["n_words", True, math.inf]]], "model.class_rules[0][0][2]: got inf; a finite number"),
        ("classes", [["hard", -1]], "model.classes.hard: got -1.0; a number from 0 to 1000"),
        ("classes", [["hard", 10**400]], "model.classes[0][1]: Number out of range"),
        ("cost.exponent", 5, "model.cost.exponent: got 5.0; a number from 0 to 4"),
        ("cost.scale", 0, "model.cost.scale: got 0.0; a number from 1e-12 to 1e+36"),
        ("trained.n_episodes", -1, "model.trained.n_episodes: got -1; a whole number from 0"),
        ("trained.seed", 1.5, "model.trained.seed: Expected `int`, got `float`"),
        ("trained.versions", [["numpy", 2]], "model.trained.versions[0][1]: Expected `str`, got `int`"),
        ("trained.target", None, "model.trained.target: Expected `str`, got `null`"),
    ],
)
def test_what_may_not_stand_at_a_place_is_refused_with_it(path: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_model(changed(path, value))
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "path",
    [
        "features",
        "suffices",
        "trained",
        "suffices.parts",
        "suffices.parts.0.kind",
        "suffices.parts.0.intercept",
        "suffices.parts.1.baseline",
        "suffices.parts.1.trees.0.value",
        "trained.digest",
    ],
)
def test_what_is_missing_is_named(path: str) -> None:
    content: Any = plain()
    *way, last = path.split(".")
    place = content
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place[key]
    del place[last]
    where = re.sub(r"\.(\d+)", r"[\1]", ".".join(("model", *way)))
    with pytest.raises(ConfigError, match=f"^{re.escape(where)}: Object missing required field `{last}`$"):
        load_model(content)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "model: cannot be read as JSON: "),
        (b"\xff\xfe\x00", "model: cannot be read as JSON: "),
        (b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", "model: cannot be read as JSON: "),
        (b"[" * 200_000, "model: cannot be read as JSON: "),
        (b"1" * 10_000, "model: cannot be read as JSON: "),
        (b"[]", "model: Expected `object`, got `array`"),
        (b'{"schema": NaN}', "model: got NaN; finite numbers only"),
        (b'{"schema": 1, "schema": 1}', "model: a table has a key twice; each key once"),
        (b" " * (32 * 2**20 + 1), "model: got 33,554,433 bytes; at most 33,554,432"),
    ],
)
def test_bytes_that_are_no_model_are_refused(source: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_model(source)
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        "schema",
        "features",
        "suffices",
        "classes",
        "cost",
        "trained",
        "suffices.parts",
        "suffices.parts.0",
        "suffices.parts.1.trees.0",
        "suffices.parts.1.trees.0.feature",
        "trained.versions",
    ]
)


def refusal_of(source: bytes | dict[str, Any]) -> str:
    """Why it is no model; "" if it is one, which then survives bytes."""
    try:
        model = load_model(source)
    except ConfigError as refused:
        return str(refused)
    assert load_model(dump_model(model)) == model
    return ""


@PROPERTY
@given(path=PATHS, value=JSON)
def test_anything_at_any_place_gives_a_model_or_a_readable_refusal(path: str, value: object) -> None:
    refusal = refusal_of(changed(path, value))
    assert re.match(r"$|model[.:]", refusal)
    assert len(refusal) < 300


@PROPERTY
@given(cut=st.integers(0, 5_000), at=st.integers(0, 5_000), byte=st.integers(0, 255))
def test_damaged_bytes_give_a_model_or_a_readable_refusal(cut: int, at: int, byte: int) -> None:
    written = json.dumps(plain()).encode()
    damaged = bytearray(written[: max(1, len(written) - cut % 3)])
    damaged[at % len(damaged)] = byte
    assert re.match(r"$|model[.:]", refusal_of(bytes(damaged)))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_a_cost_is_a_power_of_tokens_a_step_for_one_and_for_many(exponent: float) -> None:
    cost, per_step = StepCost(exponent, 10.0), np.array([0.0, 0.5, 1.0, 100.0, 1e6])
    expected = [max(1.0, tokens) ** exponent / 10 for tokens in per_step.tolist()]
    assert cost.of_many(per_step) == pytest.approx(expected, rel=1e-12)
    assert [cost.of(tokens) for tokens in per_step.tolist()] == pytest.approx(expected, rel=1e-12)


def test_classes_are_each_there_once() -> None:
    build: Callable[..., StopModel] = load_model(plain()).__class__
    content = {name: getattr(load_model(plain()), name) for name in ("features", "suffices", "trained")}
    with pytest.raises(ConfigError, match=r"^classes: got 2; at most 1,000, each once$"):
        build(**content, classes=(("a", 0.1), ("a", 0.2)))
