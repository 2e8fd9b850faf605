"""Promises of inline thoughts: the same parts for every way the text is cut; characters stay whole."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.chain_reader import ThinkTag, safe_cut
from tests.drawn import examples

few = settings(max_examples=examples(150))

# text, opened by the template → reasoning, answer
MEANING = {
    ("<think>a</think>b", False): ("a", "b"),
    (" \n<think>a</think>\n\nb", False): ("a", "\n\nb"),
    ("<think>a<think>b</thin</think>c</think>d<think>e</think>", False): (
        "a<think>b</thin",
        "c</think>d<think>e</think>",
    ),
    ("b <think>a</think>", False): ("", "b <think>a</think>"),
    (" <thin", False): ("", " <thin"),
    ("  plain", False): ("", "  plain"),
    ("<think></think>b", False): ("", "b"),
    ("<think>北京 👩\u200d🚀 e\u0301</think>42", False): ("北京 👩\u200d🚀 e\u0301", "42"),
    ("<think>never closed</thi", False): ("never closed</thi", ""),
    ("a</think>b", True): ("a", "b"),
    (" a</think>b", True): (" a", "b"),
    ("<think>a</think>b", True): ("a", "b"),
    ("<thi</think>b", True): ("<thi", "b"),
    ("a < b", True): ("a < b", ""),
    ("   ", True): ("   ", ""),
    ("   ", False): ("", "   "),
}


def read(text: str, cuts: list[int], *, opened: bool) -> tuple[str, str]:
    tag, pieces = ThinkTag(opened=opened), []
    for start, end in itertools.pairwise([0, *sorted(cuts), len(text)]):
        pieces += tag.feed(text[start:end])
    pieces += tag.close()
    assert all(text for _, text in pieces)
    channels = [channel for channel, _ in pieces]
    assert channels == sorted(channels, reverse=True), "no reasoning may follow an answer"
    return tuple("".join(t for c, t in pieces if c == channel) for channel in ("reasoning", "answer"))  # type: ignore[return-value]


@pytest.mark.parametrize(("text", "opened"), sorted(MEANING))
def test_every_cut_gives_the_same_thought_and_answer(text: str, opened: bool) -> None:
    for cuts in ([], list(range(len(text))), *([cut] for cut in range(len(text)))):
        assert read(text, cuts, opened=opened) == MEANING[text, opened]


pieces_of_text = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think", ">", " ", "\n", "a", "北", "\u200d"]),
    max_size=10,
)


@few
@given(parts=pieces_of_text, cuts=st.lists(st.integers(0, 60), max_size=6), opened=st.booleans())
def test_no_cut_of_any_text_makes_a_difference(parts: list[str], cuts: list[int], opened: bool) -> None:
    text = "".join(parts)
    whole = read(text, [], opened=opened)
    assert read(text, [min(cut, len(text)) for cut in cuts], opened=opened) == whole
    assert "</think>" not in whole[0]


def test_where_it_stands_is_known_at_once() -> None:
    tag = ThinkTag()
    assert (tag.inside, tag.decided) == (False, False)
    assert tag.feed("<think>") == []
    assert tag.inside
    assert tag.feed("a<") == [("reasoning", "a")]
    assert tag.feed("/think>") == []
    assert (tag.inside, tag.decided) == (False, True)


def test_other_tags_can_be_used_and_empty_ones_are_refused() -> None:
    tag = ThinkTag("[T]", "[/T]")
    assert tag.feed("[T]a[/T]b") == [("reasoning", "a"), ("answer", "b")]
    with pytest.raises(ValueError, match="at least one character"):
        ThinkTag("", "x")


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("abc", "abc"),
        ("", ""),
        ("a\ud83d", "a"),
        ("a\udc00\ud83d", "a"),
        ("👩\u200d", "👩"),
        ("e\u0301", "e\u0301"),  # an accent that has its letter is complete
        ("🇩🇪", "🇩🇪"),
        ("🇩🇪🇫", "🇩🇪"),
        ("क\u094d", "क"),
        ("北京", "北京"),
    ],
)
def test_a_cut_never_leaves_an_open_character(text: str, cut: str) -> None:
    assert safe_cut(text) == cut


@pytest.mark.parametrize(
    ("text", "following", "cut"),
    [
        ("cafe", "\u0301", "caf"),
        ("a👍", "🏽", "a"),
        ("a❤", "\ufe0f", "a"),
        ("a", "b", "a"),
        ("a👩", "\u200d🚀", "a"),
        ("xe\u0302", "\u0301", "x"),
        ("\u0301", "\u0301", ""),
    ],
)
def test_a_letter_goes_with_its_accents_where_they_are_known(text: str, following: str, cut: str) -> None:
    assert safe_cut(text, following) == cut


@few
@given(
    text=st.text(st.characters() | st.sampled_from("e\u0301\u200d🇩👩\u094d\ud83d"), max_size=12),
    following=st.text(max_size=2),
)
def test_a_cut_is_a_beginning_that_is_cut_already(text: str, following: str) -> None:
    cut = safe_cut(text, following)
    assert text.startswith(cut)
    assert safe_cut(cut) == cut
    if cut:
        assert cut[-1] != "\u200d"
        assert not "\ud800" <= cut[-1] <= "\udfff"
        assert unicodedata.combining(cut[-1]) != 9
