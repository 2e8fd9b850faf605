from __future__ import annotations

import math

import pytest

from suffice.episode.extra_calls import margin_of
from suffice.upstream.wire import TokenLogprob

LOG_6, LOG_3 = math.log(0.6), math.log(0.3)


@pytest.mark.parametrize(
    ("token", "margin"),
    [
        (TokenLogprob("7", LOG_6, (("7", LOG_6), ("8", LOG_3), ("9", -9.0))), 0.3),
        (TokenLogprob("7", LOG_6, (("8", LOG_3),)), 0.3),
        (TokenLogprob("7", 0.0, (("7", 0.0), ("8", -math.inf))), 1.0),
        (TokenLogprob("7", 1e-4, (("8", LOG_3),)), 0.7),
        (TokenLogprob("7", LOG_3, (("7", LOG_3), ("8", LOG_6))), None),  # drawn by chance: there is a stronger one
        (TokenLogprob("7", LOG_6, (("7", LOG_6),)), None),
        (TokenLogprob("7", LOG_6), None),
        (TokenLogprob("7", math.nan, (("8", LOG_3),)), None),
        (TokenLogprob("7", LOG_6, (("8", math.nan),)), None),
        (TokenLogprob("7", 0.5, (("8", LOG_3),)), None),
    ],
)
def test_the_margin_is_over_the_strongest_rival_that_was_listed(token: TokenLogprob, margin: float | None) -> None:
    assert margin_of(token) == (None if margin is None else pytest.approx(margin))
