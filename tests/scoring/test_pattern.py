"""The matcher for the owner's patterns gives what Python's own gives, in time that is linear."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from suffice.scoring.pattern import READ_CHARS, BadPattern, compile_pattern
from tests.drawn import examples

ATOMS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        "[ab]",
        "[^a]",
        r"\d",
        r"\w",
        r"\s",
        r"\n",
        "1",
        " ",
        "^",
        "$",
        r"\b",
        r"\B",
        r"\.",
    ]
)
QUANTIFIERS = st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "+?", "??", "{1,2}?"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, QUANTIFIERS).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        inner.map(lambda one: f"({one})"),
    ),
    max_leaves=8,
)


@pytest.mark.no_cover
@settings(max_examples=examples(600))
@given(pattern=PATTERNS, text=st.text("aab1. \n", max_size=10))
def test_it_finds_what_python_finds(pattern: str, text: str) -> None:
    try:
        ours = compile_pattern(pattern)
    except BadPattern:
        assume(False)  # it repeats something that can be empty
    theirs, last, at = re.compile(pattern, re.MULTILINE), None, 0
    while at <= len(text) and (result := theirs.search(text, at)) is not None:
        last = result.group(1 if theirs.groups else 0) if result.group(1 if theirs.groups else 0) is not None else last
        at = max(result.end(), result.start() + 1)
    assert ours.last(text) == last


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "pattern", ["(?:a+)+b", "(?:a|a)*b", "(?:a|aa)+$", ".*.*.*.*x", "(?:a.*z|a)", "(?:.{1,30}){1,3}x", r"(?:\w+\s?)*!"]
)
def test_patterns_that_hang_a_backtracker_take_linear_time(pattern: str) -> None:
    matcher, text = compile_pattern(pattern), "a" * 1_000_000
    begin = time.process_time()
    matcher.last(text)
    assert time.process_time() - begin < 2.0


def test_the_last_match_counts_and_the_named_group() -> None:
    assert compile_pattern(r"answer: (\w+)").last("answer: one, answer: two") == "two"
    assert compile_pattern(r"(the|an) answer: (?P<answer>\w+)").last("the answer: six") == "six"
    assert compile_pattern(r"\d+").last("1 22 333") == "333"
    assert compile_pattern("ANSWER (.)", ignore_case=True).last("answer B") == "B"
    assert compile_pattern("x").last("x" + " " * READ_CHARS) is None, "too far from the end"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(a)\1", r"character 4: \\1 is not among"),
        ("(?=a)", r"character 1: of groups with \(\?"),
        ("(?i)a", r"character 1: of groups with \(\?"),
        ("(?>a)", r"character 1: of groups with \(\?"),
        ("a**", "multiple repeat"),
        ("a++", "character 3: repeats a repetition"),
        ("(a*)*", "character 5: repeats something that can be empty"),
        ("^*", "nothing to repeat"),
        ("*a", "character 1: nothing to repeat"),
        ("a{3,2}", "character 3: min repeat greater than max"),
        ("a{0}", "repeats at most 0 times"),
        ("a{9999999999}", "repetition number is too large"),
        ("a{,3}", "a { that repeats nothing"),
        ("a)", "character 2: unbalanced parenthesis"),
        ("(a", r"character 1: missing \)"),
        ("(" * 490 + ")" * 490, "recursion|groups inside"),
        ("[a", "character 1: unterminated character set"),
        ("[b-a]", "character 2: bad character range"),
        ("[a--b]", "set difference at position 2"),
        ("a\\", "character 2: bad escape"),
        ("(?P<x>a)(?P<x>b)", "redefinition of group name 'x'"),
        ("(" * 30 + "a" + ")" * 30, "more than 20 groups"),
        ("(?:(?:a{50}){50}){50}", "too long once repetitions"),
        ("a" * 1_001, "1,001 characters; at most 1,000"),
    ],
)
def test_what_cannot_be_matched_safely_is_refused_with_its_place(pattern: str, message: str) -> None:
    with pytest.raises(BadPattern, match=message):
        compile_pattern(pattern)
