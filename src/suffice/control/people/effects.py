"""Counts what a reviewer's verdict changed: the route's latest audits without its label and with it.

    log, version in force ──▶ audits as its levels end them ──▶ counts without, counts with ──▶ Effect

The same rows, the same rules as the certificate (`control.evidence.audits`, `assurance.certify`), over the latest
5,000 requests of the epoch: near what the worker finds at its next look, and at once. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from suffice.assurance.certify import certified_level, count_outcomes, log_wealth
from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.guarantee import evidence
from suffice.assurance.labels import AHEAD
from suffice.assurance.ledger import next_level
from suffice.assurance.runs import Match, measure_run
from suffice.control.evidence.audits import Audit, GivenLabel, audits_to_rows, is_evidence, verdicts
from suffice.control.evidence.versions import ServedVersion, read_back
from suffice.errors import ConfigError
from suffice.learn.features import FeatureSelection
from suffice.review.agreement import Effect, LabelEffect, em_of
from suffice.review.queue import ItemState, Queue, label_of
from suffice.settings import Route
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import EpisodeWithLabels, LogReader, open_reader, read_episodes
from suffice.store.people.reviews import read_reviews
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.windows import place_before
from suffice.types import Feedback

MOST_REQUESTS: Final = 5_000  # of the route that are read
_BY_REVIEW: Final = "review:"  # how the ids of labels that come of verdicts begin


def what_it_changed(path: Path | str, item: str, route: Route, match: Match, *, window: int) -> Effect | None:
    """What the verdicts on an item have changed so far; None: nobody was asked about such a run.

    route   settings of the item's route
    match   does an answer equal a reference?
    window  audits that a certificate looks back on

    Raises StoreError.
    """
    with open_reader(path) as connection:
        queue = read_reviews(connection).queue
        place = queue.places.get(item)
        if place is None:
            return None
        name = place.item.route
        held = read_decided(connection).of(name)
        since = place_before(connection, name, MOST_REQUESTS)
        since = since if held.epoch is None else max(since, held.epoch.since_seq)
        episodes = list(read_episodes(connection, name, since))
        served = _served(held, connection)
    with_it, without = episodes, [_without(one, item) for one in episodes]
    made = held.publication
    return Effect(
        item=item,
        route=name,
        label=label_of(place),
        before=_look(without, route, held, served, match, window, em=em_of(_unsaid(queue, place), name)),
        after=_look(with_it, route, held, served, match, window, em=em_of(queue, name)),
        level_in_force=held.level if made is not None else 0,
        is_drawn=_is_drawn(queue, place),
        waits=served is None and route.is_learned,
        in_window=any(audit.id == item for audit in _audits(episodes, route)[-window:]),
    )


def _served(held: InForce, connection: LogReader) -> ServedVersion | None:
    made = held.publication
    if made is None or not made.fit:
        return None
    try:
        return read_back(made.fit, read_artefact(connection, made.fit))
    except ConfigError:  # gone, or another one: then nothing of it acts either
        return None


def _is_review(given: Feedback) -> bool:
    return given.feedback_id.startswith(_BY_REVIEW)


def _without(one: EpisodeWithLabels, item: str) -> EpisodeWithLabels:
    """The run without what reviewers' verdicts say of it; another run is as it is."""
    if one.episode.request.episode_id != item:
        return one
    return replace(one, labels=tuple(label for label in one.labels if not _is_review(label.feedback)))


def _unsaid(queue: Queue, place: ItemState) -> Queue:
    """The queue as it is without the verdicts on one item."""
    return replace(queue, places={**queue.places, place.item.episode_id: replace(place, verdicts=())})


def _is_drawn(queue: Queue, place: ItemState) -> bool:
    drawings = queue.drawings.get(place.item.route, ())
    return any(place.item.episode_id in drawing.drawn for drawing in drawings)


def _look(
    episodes: Sequence[EpisodeWithLabels],
    route: Route,
    held: InForce,
    served: ServedVersion | None,
    match: Match,
    window: int,
    *,
    em: IntervalEstimate | None,
) -> LabelEffect:
    if served is None:
        return replace(_by_policy(episodes, route, match), em=em)
    audits = _audits(episodes, route)[-window:]
    counts, _ = verdicts([one for one in audits if one.labels], match)
    chosen = FeatureSelection(tuple(served.version.models[0].features), ())
    runs = audits_to_rows(audits, chosen=chosen, match=match, wave=route.wave, counts=counts)
    if runs is None:
        return LabelEffect(n_audits=0, n_pending=0, level=0, n_missing=None, em=em)
    rows = served.rows(runs)
    labelled = np.isfinite(runs.label_at)
    z = np.where(labelled[:, None], runs.z[rows], runs.d[rows].astype(np.int8))
    z = np.where(runs.abandoned[:, None], np.int8(1), z).astype(np.int8)
    z[:, 0] = 0
    made = held.publication
    budget = (None if made is None else made.evidence.max_em_drop) or route.max_em_drop
    delta, sums = 1 - route.confidence, count_outcomes(z)
    level = certified_level(log_wealth(sums, max_em_drop=budget), delta=delta)
    following = next_level(sums, max_em_drop=budget, delta=delta, window=window)
    in_play = runs.d[rows][:, 1 : level + AHEAD + 1].any(axis=1)
    return LabelEffect(
        n_audits=len(runs),
        n_pending=int((in_play & ~labelled).sum()),
        level=level,
        n_missing=None if following is None else following.n_missing,
        em=em,
    )


def _audits(episodes: Sequence[EpisodeWithLabels], route: Route) -> list[Audit]:
    """Runs that stand for the traffic, with what was said of them."""
    audits = list[Audit]()
    for at, one in enumerate(episodes, 1):
        request, outcome = one.episode.request, one.episode.outcome
        if not is_evidence(request, outcome, probes=route.probe is not None):
            continue
        audit = Audit(seq=one.seq, at=at, ended_at_s=0.0, episode=one.episode)
        for label in one.labels:
            audit = audit.with_label(GivenLabel(label.seq, label.feedback), at)
        audits.append(audit)
    return audits


def _by_policy(episodes: Sequence[EpisodeWithLabels], route: Route, match: Match) -> LabelEffect:
    """The same where the owner wrote the policy, or nothing is published: by what the policy itself asked for."""
    runs = [measure_run(one, match) for one in episodes if one.episode.request.ungoverned is None]
    telling = [run for run in runs if run.disagrees is not None]
    n_lost = sum(run.drop if run.drop is not None else int(bool(run.disagrees)) for run in telling)
    summary = evidence(
        max_em_drop=route.max_em_drop,
        confidence=route.confidence,
        n_audits=len(telling),
        n_disagreements=max(0, n_lost),
    )
    n_pending = sum(run.drop is None and run.disagrees is True for run in telling)
    return LabelEffect(n_audits=len(telling), n_pending=n_pending, level=0, n_missing=summary.n_missing, em=None)
