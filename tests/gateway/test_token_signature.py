"""A token opens its own answer until its time is over, and nothing else is a token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import BadRequest
from suffice.gateway.auth import read_token, sign_token, token_header
from tests.drawn import examples

PROPERTY = settings(max_examples=examples(150))
IDS = st.from_regex(r"ep_[0-9a-f]{27}", fullmatch=True)
SALTS = st.text(max_size=40)


@PROPERTY
@given(episode=IDS, salt=SALTS, until=st.integers(1, 2**40), early=st.floats(0, 1))
def test_it_names_its_answer_until_its_time_is_over_and_fits_into_a_header(
    episode: str, salt: str, until: int, early: float
) -> None:
    token = sign_token(episode, until_s=until, salt=salt)
    assert read_token(token, now_s=until * early, salt=salt) == episode
    assert read_token(token, now_s=float(until), salt=salt) == episode
    assert token.isascii()
    assert len(token) < 100
    assert token == sign_token(episode, until_s=until, salt=salt)
    with pytest.raises(BadRequest, match="has expired") as refused:
        read_token(token, now_s=until + 0.5, salt=salt)
    assert (refused.value.status, refused.value.code) == (401, "expired_feedback_token")


@PROPERTY
@given(episode=IDS, salt=SALTS, data=st.data())
def test_whatever_is_changed_about_it_it_opens_nothing(episode: str, salt: str, data: st.DataObject) -> None:
    token = sign_token(episode, until_s=2**31, salt=salt)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != token[at]))
    changed = token[:at] + other + token[at + 1 :]
    for forged in (changed, token[:at], token + other, token.upper() if token.upper() != token else other):
        with pytest.raises(BadRequest, match="not issued by this gateway") as refused:
            read_token(forged, now_s=0.0, salt=salt)
        assert (refused.value.status, refused.value.code) == (401, "invalid_feedback_token")


@PROPERTY
@given(episode=IDS, salt=SALTS, other=SALTS)
def test_another_deployment_cannot_read_it(episode: str, salt: str, other: str) -> None:
    token = sign_token(episode, until_s=2**31, salt=salt)
    if salt != other:
        with pytest.raises(BadRequest, match="not issued by this gateway"):
            read_token(token, now_s=0.0, salt=other)


@pytest.mark.parametrize("nothing", ["", ".", "...", "v1.ep.ff.", "x" * 5_000, "ü.\ud800", "v1.ep_1.7fffffff.0"])
def test_what_is_no_token_is_refused_in_the_same_words(nothing: str) -> None:
    with pytest.raises(BadRequest, match="not issued by this gateway"):
        read_token(nothing, now_s=0.0, salt="s")


def test_the_header_is_there_where_a_token_is() -> None:
    assert token_header("t") == [("x-suffice-feedback-token", "t")]
    assert token_header("") == []
