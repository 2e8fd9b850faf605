"""The job `tune` on real logs: off by default; proposes what pairs prove, once, and takes it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice.control.jobs.base import JobReport, Worker
from suffice.settings import Settings, parse_settings
from suffice.store.routes.windows import newest_arm
from suffice.store.rows.events import Event
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Feedback, Outcome, Request, Usage
from suffice.wiring import open_worker
from tests.control.test_worker import fill
from tests.control.test_worker import only as report_of

BUDGET = 0.05


def settings_for(folder: Path, *, tune: bool = True) -> Settings:
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {
                "r": {
                    "upstream": "up",
                    "kind": "reasoning",
                    "effort": "low",
                    "max_em_drop": BUDGET,
                    "mode": "enforce",
                }
            },
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
            "control": {"tune": tune},
        }
    )


def pairs(n: int, *, first: int = 0, lost_each: int = 0, labelled: bool = True, arm: str = "effort=low") -> list[Event]:
    """Audits that were asked twice, half as long with the arm; every so many lose the right answer."""
    events = list[Event]()
    for number in range(first, first + n):
        name, lost = f"ep_{number:05}", bool(lost_each) and number % lost_each == 0
        events += [
            Request(
                episode_id=name,
                route="r",
                kind="reasoning",
                mode="enforce",
                model="m",
                stream=False,
                n_samples=1,
                audit=True,
                propensity=0.1,
                policy_version="",
                certified=False,
                question_key=f"q{number}",
                ungoverned=None,
                received_at_s=float(number),
                unit=f"u{number}",
            ),
            Outcome(
                episode_id=name,
                end_reason="done",
                status=200,
                answer="4",
                response_id=f"r-{name}",
                usage=Usage(prompt_tokens=5, completion_tokens=800),
                pair_arm=arm,
                pair_propensity=0.9,
                pair_answer="7" if lost else "4",
                pair_tokens=400,
            ),
        ]
        if lost and labelled:
            events.append(
                FeedbackEvent(Feedback(feedback_id=f"f{number}", episode_id=name, gold="7", source="reviewer"))
            )
    return events


def only(here: Worker) -> JobReport:
    """What became of the one route; asked as by a worker that has just begun."""
    return report_of(here, "tune", anew=True)


def test_it_is_off_by_default(tmp_path: Path) -> None:
    fill(tmp_path, pairs(400))
    assert not Settings().control.tune
    with open_worker(settings_for(tmp_path, tune=False)) as here:
        assert here.once("tune") == []
    assert newest_arm(tmp_path / "log.db", "r") is None


def test_what_pairs_prove_is_proposed_once_and_taken_back_when_they_do_not_any_more(tmp_path: Path) -> None:
    with open_worker(settings_for(tmp_path)) as here:
        fill(tmp_path, pairs(150))
        assert only(here).said == "", "too few"
        fill(tmp_path, pairs(250, first=150))
        assert only(here).said.startswith("effort=low proposed: proved and worth more")
        found = newest_arm(tmp_path / "log.db", "r")
        assert found is not None
        assert (found.arm, found.before, found.n_pairs) == ("effort=low", "full", 400)
        assert found.gain is not None
        assert found.gain > 0
        assert only(here).said == "", "said once"
        # From here on a third of the answers are lost: nobody says so, which counts as lost.
        fill(tmp_path, pairs(300, first=400, lost_each=3, labelled=False))
        assert only(here).said.startswith("full proposed: not proposed on 700 pairs")


@pytest.mark.parametrize(("labelled", "proposed"), [(True, True), (False, False)])
def test_a_difference_is_a_loss_until_somebody_says_otherwise(tmp_path: Path, labelled: bool, proposed: bool) -> None:
    fill(tmp_path, pairs(400, lost_each=10, labelled=labelled))  # labels say: the arm was right
    with open_worker(settings_for(tmp_path)) as here:
        said = only(here).said
    assert said.startswith("effort=low proposed") is proposed


def test_second_full_runs_and_other_arms_prove_nothing(tmp_path: Path) -> None:
    fill(tmp_path, [*pairs(400, arm="full"), *pairs(400, first=400, arm="effort=minimal")])
    with open_worker(settings_for(tmp_path)) as here:
        assert only(here).said == ""
    assert newest_arm(tmp_path / "log.db", "r") is None
