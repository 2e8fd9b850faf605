"""Computes a reviewer verdict's effect on the certificate, over the latest 5,000 requests of the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from suffice.assurance.certify import certified_level
from suffice.assurance.clusters import log_wealth_by_cluster, missing_clustered_audits
from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.guarantee import audits_needed
from suffice.assurance.labels import find_first_disagreements
from suffice.assurance.runs import Match, measure_run
from suffice.control.evidence.audits import Audit, is_evidence, recorded_audit, verdicts
from suffice.control.evidence.versions import active_version, version_rows
from suffice.learn.version import ServedVersion
from suffice.review.agreement import LabelEffect, VerdictEffect, em_of
from suffice.review.queue import label_of
from suffice.settings import Route
from suffice.store.database.views import EpisodeWithLabels, LogSource, open_reader, place_before, read_episodes
from suffice.store.people.deciding import read_reviews
from suffice.store.routes.deployments import RouteDeployment, read_decided

MOST_REQUESTS: Final = 5_000  # of the route that are read
_BY_REVIEW: Final = "review:"  # prefix of the ids of labels that come of verdicts


def verdict_effect(path: LogSource, item: str, route: Route, match: Match, *, window: int) -> VerdictEffect | None:
    """The effect of an item's verdicts so far; None: the run was never queued for review. Raises StoreError."""
    with open_reader(path) as log:
        queue = read_reviews(log).queue
        place = queue.places.get(item)
        if place is None:
            return None
        name = place.item.route
        held = read_decided(log).of(name)
        since = place_before(log, name, MOST_REQUESTS)
        since = since if held.epoch is None else max(since, held.epoch.since_seq)
        episodes = list(read_episodes(log, name, since))
        served = active_version(log, held)  # None: it cannot be read, and does not act either
    evaluation = _Evaluation(route, held, served, match, window)
    unlabelled = replace(queue, places={**queue.places, item: replace(place, verdicts=())})
    return VerdictEffect(
        item=item,
        route=name,
        label=label_of(place),
        before=evaluation.effect([_without(one, item) for one in episodes], em_of(unlabelled, name)),
        after=evaluation.effect(episodes, em_of(queue, name)),
        active_level=held.level if held.publication is not None else 0,
        is_drawn=any(item in drawing.drawn for drawing in queue.drawings.get(name, ())),
        waits=served is None and route.is_learned,
        in_window=any(audit.id == item for audit in evaluation.audits(episodes)),
    )


def _without(one: EpisodeWithLabels, item: str) -> EpisodeWithLabels:
    if one.episode.request.episode_id != item:
        return one
    labels = (label for label in one.labels if not label.feedback.feedback_id.startswith(_BY_REVIEW))
    return replace(one, labels=tuple(labels))


@dataclass(frozen=True, slots=True)
class _Evaluation:
    route: Route
    held: RouteDeployment
    served: ServedVersion | None
    match: Match
    window: int

    def effect(self, episodes: Sequence[EpisodeWithLabels], em: IntervalEstimate | None) -> LabelEffect:
        return self._by_policy(episodes, em) if self.served is None else self._by_version(self.served, episodes, em)

    def audits(self, episodes: Sequence[EpisodeWithLabels]) -> list[Audit]:
        probes = self.route.probe is not None
        return [
            recorded_audit(one, at)
            for at, one in enumerate(episodes, 1)
            if is_evidence(one.episode.request, one.episode.outcome, probes=probes)
        ][-self.window :]

    def _by_version(
        self, served: ServedVersion, episodes: Sequence[EpisodeWithLabels], em: IntervalEstimate | None
    ) -> LabelEffect:
        audits = self.audits(episodes)
        route = self.route
        made = self.held.publication
        counts = verdicts([one for one in audits if one.labels], self.match)
        runs = version_rows(served, audits, match=self.match, wave=route.wave, counts=counts)
        rows = served.rows(runs)
        tested, delta = (runs.losses(rows), np.ones(len(runs)), runs.clusters), 1 - route.confidence
        budget = (None if made is None else made.evidence.max_em_drop) or route.max_em_drop
        level = certified_level(log_wealth_by_cluster(*tested, max_em_drop=budget), delta=delta)
        waits = (find_first_disagreements(runs.d[rows], deployed=level) > 0) & np.isinf(runs.label_at)
        return LabelEffect(
            n_audits=len(runs),
            n_pending=int(waits.sum()),
            level=level,
            n_missing=missing_clustered_audits(*tested, level + 1, max_em_drop=budget, delta=delta, most=self.window),
            em=em,
        )

    def _by_policy(self, episodes: Sequence[EpisodeWithLabels], em: IntervalEstimate | None) -> LabelEffect:
        runs = [measure_run(one, self.match) for one in episodes if one.episode.request.ungoverned is None]
        known = [run for run in runs if run.disagrees is not None]
        n_lost = sum(run.drop if run.drop is not None else int(bool(run.disagrees)) for run in known)
        n_needed = audits_needed(self.route.max_em_drop, self.route.confidence, max(0, n_lost))
        return LabelEffect(
            n_audits=len(known),
            n_pending=sum(run.drop is None and run.disagrees is True for run in known),
            level=0,
            n_missing=None if n_needed is None else max(0, n_needed - len(known)),
            em=em,
        )
