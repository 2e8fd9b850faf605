"""What every scorer promises, whatever it is handed. A scorer added to the table is tested here."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.scoring.base import SCORERS, Spec, build_scorer, scorer_label
from suffice.scoring.scorer import Scorer
from tests.drawn import examples

# Fragments that steer random text into the scorers' own corners.
FRAGMENTS = st.sampled_from(
    [
        "answer is ",
        "Answer: ",
        "**Answer:** ",
        "####",
        r"\boxed{",
        r"\text{",
        r"\frac{1}{3}",
        "{",
        "}",
        "(b)",
        "B",
        "b.",
        "I ",
        "A",
        "the ",
        "a ",
        "Paris",
        "\n",
        ". ",
        "1,234",
        "-",
        "−",
        "0.50",
        "1/2",
        "/",
        ",",
        "50%",
        " percent",
        "1e5",
        "e",
        "× 10^3",
        "$",
        "=",
        "+",
        "٣",
        "½",
        "²",
        "ﷺ",
        "é",
        "\u0301",
        "\u0345",
        "ß",
        "İ",
        "\u200d",
        "\ud800",
        "\udfff",
        "\x00",
        "\u2028",
        "?",
        "NaN",
        "inf",
        "None",
        "Ｂ",
        "（",
        "`",
        "_",
        "*",
        "$",
        r"\(",
        r"\[",
        r"\frac12",
        r"\sqrt",
        r"^{",
        r"\text{cm}",
        "x=",
        r"\%",
        "²",
        "√",
        "{1}",
        r"\ ",
        r"\\",
        "`" * 3,
        '{"a": 1}',
        '"',
        "null",
        "Yes",
        "no.",
        "是",
        "- ",
        "1. ",
        " and ",
        "[",
        "]",
        "March ",
        r"\boxed{}",
        "$²",
        "Ω",
        "km",
        " m/s",
        "°C",
        "metres",
        "^2",
        "5, 2024",
        "3/4/2024",
        "2024-02-30",
        "2024年3月",
        "long text " + "0" * 32,
        "tool_calls: ",
        'tool_calls: [{"name":"f","arguments":{"b":1.0,"a":"x"}}]',
        "json: ",
        'json: {"b":[1e2],"a":null}',
    ]
)
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=30),  # surrogates included
    st.lists(st.one_of(FRAGMENTS, st.text(st.characters(), max_size=3)), max_size=12).map("".join),
)

# Every scorer, with and without its parameters. The first test refuses a table without a row here.
SPECS: dict[str, Spec] = {
    **{name: name for name in sorted(SCORERS) if name != "regex"},
    "date, day first": {"scorer": "date", "order": "dmy"},
    "list, ordered numbers": {"scorer": "list", "ordered": True, "compare": "number"},
    "json, one field": {"scorer": "json", "path": '$.items[-1]["final answer"]'},
    "json, a number": {"scorer": "json", "path": "$.answer", "compare": "number"},
    "number, percent as a share": {"scorer": "number", "percent": "share"},
    "number, percent dropped": {"scorer": "number", "percent": "drop"},
    "regex": {"scorer": "regex", "pattern": r"answers?(?: is|:)\s*(.+?)\.?$", "ignore_case": True},
    "regex, a number": {"scorer": "regex", "pattern": r"####\s*(?P<answer>\S+)", "compare": "number"},
    "tool-call, in any order": {"scorer": "tool-call", "ordered": False, "compare": "number"},
    "whole, as squad": {"scorer": "whole", "compare": "squad"},
}
EVERY_SCORER = pytest.mark.parametrize("name", sorted(SPECS))
PROPERTY = settings(max_examples=examples(25))


def scorer_of(name: str) -> Scorer:
    return build_scorer(SPECS[name])


def test_every_scorer_in_the_table_is_tested_here_and_goes_by_its_name_in_the_table() -> None:
    assert {build_scorer(spec).name for spec in SPECS.values()} == set(SCORERS)
    for name, spec in SPECS.items():
        assert build_scorer(spec).name == (spec if isinstance(spec, str) else spec["scorer"]), name


@EVERY_SCORER
@PROPERTY
@given(text=ANY_TEXT)
def test_extract_gives_a_normal_form_that_every_log_can_hold(name: str, text: str) -> None:
    scorer = scorer_of(name)
    answer = scorer.extract(text)
    if answer is not None:
        assert answer.strip() == answer != ""
        assert scorer.normalise(answer) == answer
        assert "\x00" not in answer
        assert answer.encode("utf-8").decode("utf-8") == answer


@EVERY_SCORER
@PROPERTY
@given(text=ANY_TEXT)
def test_normalising_twice_changes_nothing(name: str, text: str) -> None:
    scorer = scorer_of(name)
    once = scorer.normalise(text)
    assert once is None or scorer.normalise(once) == once


@EVERY_SCORER
@PROPERTY
@given(left=ANY_TEXT, right=ANY_TEXT)
def test_match_is_equality_of_normal_forms(name: str, left: str, right: str) -> None:
    scorer = scorer_of(name)
    assert scorer.match(left, right) == scorer.match(right, left)
    normal = scorer.normalise(left)
    assert scorer.match(left, left) == (normal is not None)
    if normal is not None:
        assert scorer.match(normal, left)
        assert scorer.match(left, right) == (normal == scorer.normalise(right))


@EVERY_SCORER
@PROPERTY
@given(gold=ANY_TEXT)
def test_no_answer_never_matches(name: str, gold: str) -> None:
    assert not scorer_of(name).match(None, gold)


@EVERY_SCORER
@pytest.mark.parametrize("nothing", ["", " \n\t", "?", "\u200b"])
def test_nothing_is_no_answer(name: str, nothing: str) -> None:
    assert scorer_of(name).extract(nothing) is None
    assert not scorer_of(name).match(nothing, nothing)


# One pathological text for each repetition in the patterns, repeated to about n characters.
HOSTILE = {
    "a": "a",
    "spaces": " ",
    "digits": "7",
    "groups": ",234",
    "fractions": "1/",
    "sums": "1 + 1 = ",
    "boxes": r"\boxed{",
    "braces": "{",
    "closing": "}",
    "announcements": "answer: ",
    "asked": "answer is ",
    "hashes": "#",
    "stars": "*",
    "minus": "-",
    "percents": "5 % ",
    "powers": "5 * 10 ^ ",
    "latex": r"\frac{1",
    "marks": "\u0300\u0316",
    "halves": "\ud800",
    "sentences": ". a",
    "lines": "\n",
    "options": "(",
    "dots": ".",
    "dollars": "$",
    "text": r"\text{",
    "roots": r"\sqrt",
    "objects": '{"a":',
    "fences": "```\n",
}


@pytest.mark.no_cover
@EVERY_SCORER
def test_a_hostile_text_costs_linear_time(name: str) -> None:
    # Quadratic time on forty thousand characters takes five seconds and more; linear time is a hundredth of a second.
    for unit, repeated in HOSTILE.items():
        text = "1 answer" + repeated * (40_000 // len(repeated))
        scorer, begin = scorer_of(name), time.process_time()
        scorer.extract(text)
        scorer.normalise(text)
        assert time.process_time() - begin < 1.5, unit


@pytest.mark.no_cover
@EVERY_SCORER
def test_ten_million_characters_are_survived(name: str) -> None:
    text = "The answer is 7 or (B). " + "so " * 3_400_000
    answer = scorer_of(name).extract(text)
    assert answer is None or len(answer) <= 2_000


@EVERY_SCORER
@PROPERTY
@given(text=ANY_TEXT)
def test_the_same_text_gives_the_same_answer_and_equal_specs_equal_scorers(name: str, text: str) -> None:
    assert scorer_of(name).extract(text) == scorer_of(name).extract(text)
    assert scorer_of(name) == scorer_of(name)


@EVERY_SCORER
def test_a_label_is_short_and_names_the_scorer(name: str) -> None:
    label = scorer_label(SPECS[name])
    assert label.startswith(scorer_of(name).name)
    assert label == scorer_label(json.loads(json.dumps(SPECS[name])))
    assert len({scorer_label(spec) for spec in SPECS.values()}) == len(SPECS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (7, r"scorer: got a value of type int; need a name, or a table"),
        ({}, r"scorer: unknown name a value of type NoneType; known: "),
        ({"scorer": "jason"}, r"scorer: unknown name 'jason'; did you mean 'json'\?"),
        ({"scorer": "json", "pth": "$"}, r"scorer: json has no parameter 'pth'; did you mean 'path'\?"),
        ({"scorer": "choice", "path": "$"}, r"scorer: choice has no parameter 'path'; known: it has none"),
        ({"scorer": "json", "path": "answer"}, r"scorer\.path: got 'answer', unreadable at character 1; need \$"),
        ({"scorer": "json", "path": "$.a[*]"}, r"scorer\.path: got .*, unreadable at character 4"),
        ({"scorer": "json", "path": 3}, r"scorer\.path: got a value of type int; need a text"),
        ({"scorer": "json", "compare": "jason"}, r"scorer\.compare: unknown name 'jason'"),
        ({"scorer": "json", "compare": {"scorer": "regex"}}, r"scorer\.compare\.pattern: missing; regex needs it"),
        ({"scorer": "regex"}, r"scorer\.pattern: missing"),
        ({"scorer": "regex", "pattern": "(a"}, r"scorer\.pattern: character 1: missing \)"),
        ({"scorer": "regex", "pattern": "a", "ignore_case": "yes"}, r"scorer\.ignore_case: got 'yes'; allowed: true"),
        ({"scorer": "date", "order": "ymd"}, r"scorer\.order: got 'ymd'; allowed: as-written, dmy, mdy"),
        ({"scorer": "list", "ordered": 1}, r"scorer\.ordered: got a value of type int; allowed: true, false"),
        ({"scorer": "number", "percent": "no"}, r"scorer\.percent: got 'no'; allowed: keep, drop, share"),
    ],
)
def test_a_wrong_table_says_where_and_what_is_allowed(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        build_scorer(spec)


def test_an_unknown_scorer_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"unknown name 'nubmer'; did you mean 'number'\? known: choice"):
        build_scorer("nubmer")
