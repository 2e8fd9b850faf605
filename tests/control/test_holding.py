"""What people hold and decide, as the control loop of a route keeps it: incidents, an accepted EM, a smaller budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice.review.decide import OverrideForm
from suffice.review.holds import NO_HOLDS, Incident, IncidentDecision, Override, RouteHolds
from suffice.store.database.decisions import Decisions
from suffice.store.people.deciding import set_override
from suffice.store.routes.deployments import read_decided, read_holds
from suffice.types import Epoch, Pause, Resumption
from suffice.wiring.worker import open_worker
from tests.control.made import ROUTE, Story, label, rows, story, traffic
from tests.control.test_certify import replace_route
from tests.control.test_worker import fill, settings_for
from tests.review.test_override import override

STRICT = replace_route(critical_em=0.8)
LONG = 200  # full runs


@pytest.fixture(scope="module")
def whole() -> Story:
    return story().feed(rows(traffic(LONG))).settle()


def low(whole: Story, *, request_reason: str = "", holds: RouteHolds = NO_HOLDS, at_s: float = 0.0) -> Story:
    """A route of whose last sixty labelled answers half were right."""
    labels = [label(n, correct=n % 2 == 0, request_reason=request_reason) for n in range(60)]
    history = story(STRICT, expected=whole.published, artefacts=whole.artefacts)
    history.loop.holds, history.loop.at_s = holds, at_s
    return history.feed(rows([*traffic(LONG), *labels])).settle()


def test_a_critical_em_opens_an_incident_with_its_evidence(whole: Story) -> None:
    history = low(whole)
    paused, opened = history.decided[-2:]
    assert isinstance(paused, Pause)
    assert isinstance(opened, Incident)
    incident = opened
    assert (incident.incident, incident.pause, incident.cause) == ("r:p1", 1, "critical_em")
    assert incident.summary == paused.reason
    assert f"level {whole.loop.level} of publication" in incident.evidence[0]
    assert incident.evidence[1] == "30 of the last 60 labelled answers were right"


@pytest.mark.parametrize(("request_reason", "opens"), [("", 1), ("control", 1), ("disagreement", 0), ("uncertain", 0)])
def test_labels_of_what_was_picked_on_purpose_say_nothing_of_the_average(
    whole: Story, request_reason: str, opens: int
) -> None:
    history = low(whole, request_reason=request_reason)
    assert sum(isinstance(event, Incident) for event in history.decided) == opens


def accepting(until_s: float) -> RouteHolds:
    from suffice.review.holds import incident_of_pause
    from suffice.types import Pause

    pause = Pause(route="r", number=1, cause="critical_em", reason="low", author="w")
    decision = IncidentDecision(
        incident="r:p1",
        route="r",
        decision="accept",
        reason="known outage",
        author="ann",
        decided_at_s=0.0,
        until_s=until_s,
    )
    return NO_HOLDS.after(incident_of_pause(pause, opened_at_s=0.0), 0.0).after(decision, 0.0)


def test_an_accepted_em_opens_no_incident_until_its_date(whole: Story) -> None:
    quiet = low(whole, holds=accepting(100.0), at_s=99.0)
    assert not any(isinstance(event, Pause) for event in quiet.decided)
    late = low(whole, holds=accepting(100.0), at_s=100.0)
    assert isinstance(late.decided[-1], Incident)


def test_resuming_counts_anew(whole: Story) -> None:
    history = low(whole)
    over = Resumption(route="r", number=1, reason="labels were wrong", author="ann")
    history.feed(rows([over], first=2 * LONG + 61)).settle()
    assert history.loop.held.pause is None
    assert history.loop.critical_em.verdicts == {}


def test_a_smaller_budget_keeps_the_audits_and_ends_by_itself(whole: Story) -> None:
    history = story(expected=whole.published, artefacts=whole.artefacts)
    history.feed(rows(traffic(LONG)))
    held = NO_HOLDS.after(override(1, "budget", max_em_drop=0.02, expires_at_s=500.0), 0.0)
    history.loop.holds, history.loop.at_s = held, 499.0
    history.settle()
    (event,) = history.decided
    assert isinstance(event, Epoch)
    assert (event.max_em_drop, event.burst, len(event.kept)) == (0.02, 0, LONG)
    assert history.loop.settle() is None, "once is enough"
    history.loop.at_s = 500.0
    history.settle()
    again = history.decided[-1]
    assert isinstance(again, Epoch)
    assert (again.max_em_drop, len(again.kept)) == (ROUTE.max_em_drop, LONG)


def test_the_job_follows_what_is_held(tmp_path: Path) -> None:
    fill(tmp_path, traffic(LONG))
    settings = settings_for(tmp_path)
    with open_worker(settings) as here:
        assert here.once("certify")
        with Decisions(tmp_path / "log.db", now=lambda: 2.0, monotonic_s=lambda: 0.0) as writer:
            wanted = OverrideForm(kind="budget", reason="exams", author="ann", days=1.0, max_em_drop=0.02)
            override = set_override(writer, "r", settings.routes["r"], wanted, now_s=2.0)
            assert isinstance(override, Override)
        assert here.once("certify")
    epoch = read_decided(tmp_path / "log.db").of("r").epoch
    assert epoch is not None
    assert (epoch.max_em_drop, read_holds(tmp_path / "log.db").of("r").n_overrides) == (0.02, 1)


def test_a_cold_start_under_a_smaller_budget_keeps_its_burst(tmp_path: Path) -> None:
    fill(tmp_path, traffic(20))
    settings = settings_for(tmp_path)
    with Decisions(tmp_path / "log.db", now=lambda: 2.0, monotonic_s=lambda: 0.0) as writer:
        wanted = OverrideForm(kind="budget", reason="exams", author="ann", days=1.0, max_em_drop=0.02)
        assert isinstance(set_override(writer, "r", settings.routes["r"], wanted, now_s=2.0), Override)
    with open_worker(settings) as here:
        assert here.once("certify")
    held = read_decided(tmp_path / "log.db").of("r")
    assert held.epoch is not None
    assert (held.n_epochs, held.epoch.max_em_drop, held.epoch.burst) == (1, 0.02, 160)
