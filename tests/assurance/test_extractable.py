"""A route whose full runs cannot be read is not enforced; too few runs say nothing."""

from __future__ import annotations

import pytest

from suffice.assurance.guarantee import MIN_RUNS, WINDOW_RUNS, extractability_refusal


@pytest.mark.parametrize(
    ("n_read", "n_runs", "refused"),
    [
        (0, MIN_RUNS - 1, False),  # too few to say anything
        (23, 30, True),  # 76.7 %
        (24, 30, False),  # exactly 80 %
        (30, 30, False),
        (399, 500, True),
        (400, 500, False),
    ],
)
def test_under_eighty_percent_of_at_least_thirty_runs_is_refused(n_read: int, n_runs: int, *, refused: bool) -> None:
    output = extractability_refusal([True] * n_read + [False] * (n_runs - n_read), "number")
    assert (output is not None) == refused
    if output is not None:
        assert f"{n_read} of the last {n_runs}" in output
        assert "'number'" in output


def test_only_the_latest_runs_count() -> None:
    assert extractability_refusal([False] * 1_000 + [True] * WINDOW_RUNS, "text") is None
    assert extractability_refusal([True] * 1_000 + [False] * WINDOW_RUNS, "text") is not None
