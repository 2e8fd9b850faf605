"""Reads evidence as a deployment's settings say: the standing of a rollout, and the effect of a reviewer's verdict."""

from __future__ import annotations

import time

from suffice.control.compare.assessment import Assessment, standing_of
from suffice.control.evidence.cold_start import window_size
from suffice.control.evidence.label_effects import verdict_effect
from suffice.edge.math import open_match
from suffice.review.agreement import VerdictEffect
from suffice.settings import Settings
from suffice.store.database.sqlite import database_path
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import read_reviews
from suffice.store.routes.rollouts import RolloutRun
from suffice.wiring.keys import deployment_salt


def read_assessment(settings: Settings, held: RolloutRun) -> Assessment:
    """Raises ConfigError for a version that cannot be read, and StoreError."""
    secret, now_s = deployment_salt(settings), time.time()
    with open_reader(database_path(settings.store.url)) as connection:
        return standing_of(connection, held, settings, open_match, secret=secret, now_s=now_s)


def read_verdict_effect(settings: Settings, item: str) -> VerdictEffect | None:
    """Return the effect of an item's verdicts so far; None: it was never queued, or its route is in no settings."""
    path = database_path(settings.store.url)
    place = read_reviews(path).queue.places.get(item)
    route = settings.routes.get(place.item.route) if place is not None else None
    if route is None:
        return None
    with open_match(route) as match:
        return verdict_effect(path, item, route, match, window=window_size(settings.control, route.max_em_drop))
