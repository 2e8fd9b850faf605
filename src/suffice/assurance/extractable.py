"""May a route be enforced at all? Only if its full runs give answers that its scorer can read.

Where the answer of a full run cannot be read, nobody can say whether a stop changed it. Pure: it
knows counts and refuses to know where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence

MIN_SHARE = 0.80  # of full runs with an answer that can be read
MIN_RUNS = 30  # fewer say nothing yet
WINDOW_RUNS = 500  # the latest that count


def extractability_refusal(extracted: Sequence[bool], scorer: str) -> str | None:
    """Why a route must not be enforced; None: it may, or too little is known.

    extracted  for each full run, oldest first: could its answer be read?
    scorer     that read them, for the sentence
    """
    latest = extracted[-WINDOW_RUNS:]
    n, n_read = len(latest), sum(latest)
    if n < MIN_RUNS or n_read >= MIN_SHARE * n:
        return None
    return (
        f"scorer {scorer!r} could read the answer of {n_read} of the last {n} full runs ({n_read / n:.1%});"
        f" at least {MIN_SHARE:.0%} are needed to enforce"
    )
