"""What reviewed runs say about all runs: only those that were drawn at random say anything, and they are weighted.

    Drawing (how many of how many), verdicts on what was drawn ──▶ EM of delivered answers, with its interval

Each drawing is a stratum: a simple random sample of one stretch of the log with known odds. The estimate is the sum of
stratum means, each weighted by its share of all runs (Horvitz and Thompson 1952, JASA 47(260)), which is unbiased
whatever the cap was and however busy the stretch. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log, sqrt

from suffice.assurance.estimate import IntervalEstimate
from suffice.review.items import ControlDraw
from suffice.review.queue import Queue

METHOD = "control share, weighted by its odds; Hoeffding"


def reviewed_correctness(queue: Queue, episode_id: str) -> bool | None:
    """Was the answer that a client got right, as far as reviewers know? None: nobody knows (yet)."""
    place = queue.places.get(episode_id)
    found = None if place is None else place.settlement
    if place is None or found is None:
        return None
    return found.early_right if place.item.shows == "early" else found.full_right


def em_of(queue: Queue, route: str, *, confidence: float = 0.95) -> IntervalEstimate | None:
    """EM of all delivered answers of a route, from the drawings that reviewers are through with; None: there are none.

    A drawing with an item that nobody has settled is left out whole: which of them are easy to settle is no accident.
    """
    return estimate_em(
        (
            (drawing, [reviewed_correctness(queue, name) for name in drawing.drawn])
            for drawing in queue.drawings.get(route, ())
        ),
        confidence=confidence,
    )


def estimate_em(
    drawings: Iterable[tuple[ControlDraw, list[bool | None]]], *, confidence: float = 0.95
) -> IntervalEstimate | None:
    """EM from drawings and what is known of each run that was drawn.

    The interval is Hoeffding's (1963, JASA 58(301), eq. 2.3 and section 6 for draws without replacement): with strata
    of n_h of N runs and k_h draws, the radius is sqrt(log(2/alpha)/2 * sum (n_h/N)^2 / k_h). It holds for every number
    of draws, and one look at it.
    """
    whole, n_pending = [], 0
    for drawing, right in drawings:
        if not drawing.drawn:
            continue
        known = [one for one in right if one is not None]
        if len(known) < len(drawing.drawn):
            n_pending += 1
        else:
            whole.append((drawing.n_candidates, known))
    n_runs = sum(n for n, _ in whole)
    if not n_runs:
        return None
    value = sum(n / n_runs * sum(known) / len(known) for n, known in whole)
    spread = sum((n / n_runs) ** 2 / len(known) for n, known in whole)
    radius = sqrt(log(2 / (1 - confidence)) / 2 * spread)
    return IntervalEstimate(
        value=value,
        low=max(0.0, value - radius),
        high=min(1.0, value + radius),
        n=sum(len(known) for _, known in whole),
        method=METHOD,
        note=f"{n_pending} drawings wait for reviewers and are left out" if n_pending else None,
    )
