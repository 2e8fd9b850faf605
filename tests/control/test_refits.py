"""Where rollouts begin by themselves, a version that acts is followed by another one through a rollout alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.control.evidence.versions import fit_audited_version
from suffice.control.loop import learned
from suffice.settings import Rollout, Route
from suffice.store.database.views import newest_event
from suffice.store.routes.deployments import read_decided
from suffice.store.routes.rollouts import read_rollouts
from suffice.store.rows.events import ProposedVersion
from suffice.wiring.worker import open_worker
from tests.control.made import ROUTE, began, rows, story, traffic
from tests.control.test_learned_rollout import N, certified, once, settings_of
from tests.control.test_worker import fill

__all__ = ["certified"]  # a fixture
N_REQUESTS = 900


def levels_at_fits(route: Route, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The level that is active at each fit of the loop over some requests, from a cold start."""
    levels = list[int]()
    history = story(route, held=began(route, promise=route.promise))

    def fit(*arguments: Any, **options: Any) -> Any:
        levels.append(history.loop.certifier.level)
        return fit_audited_version(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(learned, "fit_audited_version", fit)
        history.feed(rows(traffic(N_REQUESTS, p_right=0.97)))
    assert history.loop.level > 0
    return levels


def test_the_loop_fits_beside_a_version_that_acts_only_where_no_rollout_would_bring_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert any(levels_at_fits(ROUTE, monkeypatch)), "by default it does"
    by_rollouts = msgspec.structs.replace(ROUTE, rollout=Rollout(automatic=True))
    levels = levels_at_fits(by_rollouts, monkeypatch)
    assert levels
    assert not any(levels)
    on_average = msgspec.structs.replace(by_rollouts, promise="budgeted")  # no rollout can begin there
    assert any(levels_at_fits(on_average, monkeypatch))


@pytest.mark.slow
def test_a_refit_that_was_due_before_a_rollout_began_does_not_end_it(certified: Path, tmp_path: Path) -> None:
    """The job that refits reads 200 requests first; the loop, which would refit within them, reads them afterwards."""
    shutil.copy(certified / "log.db", tmp_path / "log.db")
    log = tmp_path / "log.db"
    before = read_decided(log).of("r").publication
    fill(tmp_path, traffic(200, seed=5, first=N))
    with open_worker(settings_of(tmp_path, automatic=True)) as here:
        once(here, "retrain")
        proposed, begun = newest_event(log, ProposedVersion, route="r"), read_rollouts(log)
        assert proposed is not None
        assert bool(begun) == (proposed.verdict == "better")
        once(here, "certify")
        once(here, "advance")
    made = read_decided(log).of("r").publication
    assert before is not None
    assert made is not None
    assert made.fit == before.fit, "the loop has fitted no other version"
    assert all(not one.state.over for one in read_rollouts(log))
