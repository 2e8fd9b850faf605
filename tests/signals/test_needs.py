from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.signals.base import FOLDS, check_need, fields_of
from suffice.signals.fold import need, parse_need
from suffice.signals.observe import Observer
from suffice.types import Step
from tests.drawn import examples
from tests.signals.steps import step

PROPERTY = settings(max_examples=examples(150))
VALUES = (
    st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,20}", fullmatch=True).filter(lambda w: w not in {"true", "false"})
)


@PROPERTY
@given(parameters=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), VALUES, max_size=4))
def test_what_is_written_is_read_back(parameters: dict[str, bool | int | float | str]) -> None:
    name, read = parse_need(need("a-fold", **parameters))
    assert (name, read) == ("a-fold", parameters)
    assert {key: type(value) for key, value in read.items()} == {k: type(v) for k, v in parameters.items()}


@pytest.mark.parametrize("text", ["closing(alpha=0.2)", "closing( alpha = 2e-1 )", "closing(alpha=.2)", "closing()"])
def test_white_space_and_the_way_a_number_is_written_do_not_matter(text: str) -> None:
    assert fields_of([text, "closing"]) == ("closed_entropy", "entropy_ema", "entropy_emv")


@PROPERTY
@given(text=st.text(max_size=40) | st.text("closing(alph=.,0) -", max_size=30))
def test_whatever_is_written_a_need_is_read_or_refused_with_a_way_out(text: str) -> None:
    try:
        check_need(text).build()
    except ConfigError as error:
        message = str(error)
    else:
        message = "known: "
    assert any(way in message for way in ("known: ", "such as closing(alpha=0.2)", "a number", "once"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs: got ''; write name or name"),
        ("Votes", "needs: got 'Votes'; write name or name"),
        ("closing(alpha)", "closing: got 'alpha'; write name"),
        ("closing(alpha=0.1,)", "closing: got ''; write name"),
        ("closing(alpha=0.1, alpha=0.2)", "closing.alpha: given twice; write it once"),
        ("closing(alpha=import os)", "closing: got 'alpha=import os'; write name"),
        ("closing(alpha=[1])", r"closing.alpha: got '\[1\]'; a number, a word, true or false"),
        ("closing(alpha=1e999)", "closing.alpha: got '1e999'; a number, a word"),
        ("closing(alpha=0)", "closing.alpha: got 0; a number above 0 and at most 1"),
        ("closing(alpha=true)", "closing.alpha: got True; a number above 0 and at most 1"),
        ("closing(alpha=" + "9" * 400 + ")", "closing.alpha: got 999"),
        ("closing(alhpa=0.5)", "closing: unknown parameter 'alhpa'; did you mean 'alpha'"),
        ("votes(alpha=0.5)", "votes: unknown parameter 'alpha'; known: it has none"),
        ("a" * 600, "needs: got 'aaa"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Observer([text], "reasoning")


def test_a_fold_that_must_be_told_something_or_cannot_be_built_is_refused_by_name() -> None:
    class Parametrised:
        fields: tuple[str, ...] = ("told.value",)

        def __init__(self, *, model: str) -> None:
            self._model = {"known": 1.0}[model]

        def update(self, step: Step) -> None:
            pass

        def values(self) -> dict[str, float]:
            return {"told.value": self._model}

    FOLDS["told"] = Parametrised
    try:
        signals = Observer(["told(model=known)"], "rounds").observe(step())
        assert signals.values == {"told.value": 1.0}
        with pytest.raises(ConfigError, match=r"needs: told\.model: missing; write told\(model=…\)"):
            check_need("told").build()
        with pytest.raises(ConfigError, match="needs: told: cannot be built: KeyError: 'other'"):
            check_need("told(model=other)").build()
    finally:
        del FOLDS["told"]


@pytest.mark.parametrize(("name", "value"), [("Votes", 1), ("votes", "no good"), ("votes", float("nan"))])
def test_a_need_that_could_not_be_read_back_is_not_written(name: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match=r"write name|a number, a word|cannot be read back"):
        need(name, alpha=value)


def test_a_fold_asked_for_twice_runs_once_and_differently_not_at_all() -> None:
    observer = Observer(["closing", "closing(alpha=0.2)", "votes", "closing(alpha=.2)"], "samples")
    assert len(observer.readers) == 2
    with pytest.raises(ConfigError, match=r"'closing' and 'closing\(alpha=0.5\)' fill the same fields of Signals; ask"):
        Observer(["closing", "closing(alpha=0.5)"], "reasoning")
