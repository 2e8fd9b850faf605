"""An effort is in force when pairs prove it and not before, and full runs come back with whatever ends the proof."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from suffice.assurance.certify import restart_share
from suffice.assurance.paired import WINDOW
from suffice.cli.main import main
from suffice.control.loop.paired import MOST_KEPT, PairedEvidence, is_pair
from suffice.rollout.assign import FIRST_SHARE
from suffice.settings import Route, Settings, parse_settings
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Epoch, Feedback, LabelRequest, Outcome, Publication, Request, Usage
from suffice.wiring.worker import open_worker
from tests.control.made import CONTROL, Story, began, rows, story
from tests.control.test_worker import decided, fill, only
from tests.records import plain_request

BUDGET = 0.05
ROUTE = Route(upstream="up", effort="low", mode="enforce", max_em_drop=BUDGET, confidence=0.95)


def settings_for(folder: Path) -> Settings:
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
        }
    )


def pairs(n: int, *, first: int = 0, lost_each: int = 0, labelled: bool = True, arm: str = "effort=low") -> list[Event]:
    """Audits that were asked twice, half as long with the arm; every so many lose the right answer."""
    events = list[Event]()
    for number in range(first, first + n):
        name, lost = f"ep_{number:05}", bool(lost_each) and number % lost_each == 0
        events += [
            plain_request(
                name,
                mode="enforce",
                audit=True,
                policy_version="",
                question_key=f"q{number}",
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


def armed(route: Route = ROUTE, *, expected: tuple[Publication, ...] | list[Publication] = (), **options: Any) -> Story:
    """A loop at the beginning of its epoch."""
    held = replace(began(route, burst=0), n_publications=len(expected))
    return story(route, held=held, expected=expected, **options)


def alarmed(here: Story) -> list[str]:
    return [event.reason for event in here.decided if isinstance(event, Epoch)]


def test_nothing_acts_until_pairs_prove_it_and_then_the_very_arm_does() -> None:
    here = armed().feed(rows(pairs(80))).settle()
    assert (here.decided, here.loop.level) == ([], 0), "eighty pairs prove no twentieth"
    here.feed(rows(pairs(400))).settle()
    (made,) = here.published
    assert (made.level, made.n_levels, made.certified, made.arm) == (1, 2, True, "effort=low")
    assert (made.version, made.fit) == ("effort=low", "")
    assert made.evidence.e_value is not None
    assert made.evidence.e_value >= 20
    assert made.pairs is not None
    assert (made.pairs.n, made.pairs.n_disagree, made.pairs.n_repeats) == (made.evidence.n_audits, 0, 0)
    assert made.evidence.share == pytest.approx(0.5)
    assert made.at % CONTROL.tick_requests == 0
    assert made.reason.startswith("effort=low: EM lower by 0.00 points")


@pytest.mark.parametrize(("labelled", "proved"), [(True, True), (False, False)])
def test_a_difference_is_lost_until_somebody_says_otherwise(labelled: bool, proved: bool) -> None:
    here = armed().feed(rows(pairs(400, lost_each=10, labelled=labelled))).settle()  # labels say: the arm was right
    assert bool(here.published) is proved
    wanted = [event for event in here.decided if isinstance(event, LabelRequest)]
    assert len(wanted) == (0 if labelled else 40)
    assert all((one.would_answer, one.answer) == ("7", "4") for one in wanted)


def test_second_full_runs_other_arms_and_audits_that_asked_once_prove_nothing() -> None:
    once = [
        replace(event, pair_arm=None, pair_propensity=None) if isinstance(event, Outcome) else event
        for event in pairs(400, first=800)
    ]
    log = [*pairs(400, arm="full"), *pairs(400, first=400, arm="effort=minimal"), *once]
    here = armed().feed(rows(log)).settle()
    assert here.decided == []
    assert len(here.loop.state.audits) == 400


def pairs_with(n: int, **changes: Any) -> list[Event]:
    """The log of n pairs whose requests say something else of themselves."""
    return [replace(event, **changes) if isinstance(event, Request) else event for event in pairs(n)]


def test_each_turn_of_a_conversation_is_a_witness_and_a_repeated_delivery_is_none() -> None:
    turns = armed().feed(rows(pairs_with(400, conversation="talk"))).settle()
    assert turns.published == armed().feed(rows(pairs(400))).settle().published != []
    assert armed().feed(rows(pairs_with(400, unit="one", delivery=2))).settle().decided == []


@pytest.mark.parametrize(("end", "n_lost"), [("client_left", 80), ("timeout", 0)])
def test_an_audit_that_is_left_counts_as_lost_and_a_full_run_without_an_answer_does_not(end: Any, n_lost: int) -> None:
    log = list[Event]()
    for event in pairs(400):
        log.append(event)
        if isinstance(event, Outcome) and int(event.episode_id[3:]) % 5 == 0:
            log[-1] = replace(event, end_reason=end, pair_arm=None, pair_answer=None)
    here = armed().feed(rows(log)).settle()
    assert bool(here.published) == (not n_lost)
    assert isinstance(here.loop.source, PairedEvidence)
    lost = [pair for pair in here.loop.source.pairs(here.loop.state.audits) if pair.z == 1]
    assert len(lost) == n_lost


def test_losses_that_nobody_announced_end_the_epoch_and_full_runs_come_back() -> None:
    here = armed().feed(rows([*pairs(400), *pairs(200, first=400, lost_each=2, labelled=False)])).settle()
    assert here.published[0].level == 1
    assert here.loop.held.level == 0
    (reason,) = alarmed(here)
    assert reason.startswith(("audits lose more", "audits disagree more often"))
    assert here.loop.state.epoch.number == 2
    assert here.loop.state.epoch.burst == 0, "nobody wants a thousand requests asked twice"
    earned = restart_share(here.loop.state.epoch.at, window=WINDOW, share=FIRST_SHARE)
    assert here.loop.state.epoch.delta_share == earned < 0.03, "a window of pairs is used for long"


def test_another_model_behind_the_name_ends_the_proof_at_once() -> None:
    def by(model: str, log: list[Event]) -> list[Event]:
        return [replace(event, model=model) if isinstance(event, Outcome) else event for event in log]

    here = armed().feed(rows([*by("m-1", pairs(400)), *by("m-2", pairs(20, first=400))])).settle()
    assert here.published[0].upstream == (("m", "m-1", ""),)
    assert (here.loop.held.level, len(alarmed(here))) == (0, 1)
    assert "model changed from 'm-1' to 'm-2'" in alarmed(here)[0]


@pytest.mark.slow
def test_a_worker_that_was_killed_is_followed_by_one_that_decides_the_same() -> None:
    log = rows([*pairs(600, lost_each=50, labelled=False), *pairs(400, first=600, lost_each=18, labelled=False)])
    whole = armed().feed(log).settle()
    assert {one.level for one in whole.published} == {0, 1}, "proved, and not any more"
    assert whole.published[1].reason.startswith("effort=low is no longer proved")
    for cut in (900, 1_700):
        before = armed().feed(log[:cut])
        after = armed(expected=before.published).feed(log).settle()
        assert before.published + after.published == whole.published


def test_an_arm_at_the_edge_of_its_budget_does_not_flap() -> None:
    """F51: three streams whose loss is the budget itself; who fell once needs a stronger proof to come back."""
    rng, published = np.random.default_rng(51), 0
    for seed in range(3):
        lost = rng.random(1_000) < BUDGET
        log = list[Event]()
        for number, one in enumerate(lost.tolist()):
            log += pairs(1, first=seed * 10_000 + number, lost_each=0)
            if one:
                ended = log[-1]
                assert isinstance(ended, Outcome)
                log[-1] = replace(ended, pair_answer="7")
        here = armed().feed(rows(log)).settle()
        published += len(here.published)
    assert published <= 6, "no more than a rise and a fall a stream"


def test_an_arm_that_fell_counts_for_the_fleet_with_the_proof_that_it_needs_now() -> None:
    proved, lost = (pairs(n, first=at, lost_each=e, labelled=False) for n, at, e in ((600, 0, 50), (400, 600, 18)))
    here = armed().feed(rows(proved))
    assert (here.loop.level, here.loop.source.delta_part) == (1, 1.0)
    here.feed(rows(lost, first=1 + len(proved)))
    assert here.loop.level == 0
    assert here.loop.source.delta_part == pytest.approx(0.1)


def test_what_is_kept_is_bounded_and_is_more_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_KEPT > WINDOW
    monkeypatch.setattr("suffice.control.loop.paired.MOST_KEPT", 300)
    here = armed().feed(rows(pairs(500)))
    assert 300 <= len(here.loop.state.audits) <= 300 + CONTROL.tick_requests


def test_a_changed_promise_keeps_the_pairs() -> None:
    here = armed().feed(rows(pairs(400))).settle()
    route = Route(upstream="up", effort="low", mode="enforce", max_em_drop=0.2, confidence=0.9)
    here.loop.state.context = replace(here.loop.context, route=route)
    here.settle()
    (began_again,) = [event for event in here.decided if isinstance(event, Epoch)]
    assert len(began_again.kept) == 400
    here.feed(rows(pairs(20, first=400), first=5_000))
    assert here.published[-1].evidence.max_em_drop == 0.2


def test_a_changed_promise_does_not_forget_the_pairs_that_have_not_returned() -> None:
    """Every fifth call never returns: without these, what did return would certify the arm."""
    log = [one for at, one in enumerate(pairs(100)) if isinstance(one, Request) or at % 10 != 1]
    here = armed().feed(rows(log)).settle()
    route = Route(upstream="up", effort="low", mode="enforce", max_em_drop=0.2, confidence=0.9)
    here.loop.state.context = replace(here.loop.context, route=route)
    here.settle().feed(rows(pairs(20, first=100), first=5_000))
    assert isinstance(here.loop.source, PairedEvidence)
    assert (here.loop.source.pending.at <= 100).sum() == 20
    assert (here.published, here.loop.level) == ([], 0)


# --------------------------------------------------------------------------- words


def reviewed(**word: Any) -> FeedbackEvent:
    fields = {"feedback_id": "f", "episode_id": "ep_00000", "source": "reviewer", **word}
    return FeedbackEvent(Feedback(**fields))


@pytest.mark.parametrize(
    ("word", "z"),
    [
        ({"gold": "4"}, 1),
        ({"gold": "7"}, -1),
        ({"gold": "5"}, 0),
        ({"correct": True}, 1),
        ({"correct": False}, 0),
        ({"rating": 1}, None),
        ({"correct": False, "source": "judge"}, None),
    ],
)
def test_what_a_word_makes_of_a_pair(word: dict[str, Any], z: int | None) -> None:
    """The full run said 4 and the arm 7. A word on the full run alone never says that the arm was right."""
    here = armed().feed(rows([*pairs(1, lost_each=1, labelled=False), reviewed(**word)]))
    assert isinstance(here.loop.source, PairedEvidence)
    (pair,) = here.loop.source.pairs(here.loop.state.audits)
    assert (pair.disagrees, pair.z) == (True, z)


def test_a_scorer_is_asked_once_for_the_same_two_answers() -> None:
    compared = list[str]()

    def match(answer: str | None, gold: str) -> bool:
        compared.append(f"{answer} {gold}")
        return answer == gold

    here = armed().feed(rows(pairs(30, lost_each=1)))
    here.loop.state.context = replace(here.loop.context, match=match)
    source = PairedEvidence(here.loop.state)
    assert source.pairs(source.state.audits) == source.pairs(source.state.audits)
    assert sorted(set(compared)) == sorted(compared)


def test_only_audits_can_be_pairs() -> None:
    request, ended = pairs(1)[:2]
    assert isinstance(request, Request)
    assert isinstance(ended, Outcome)
    assert is_pair(request, ended, ROUTE.arms)
    for change in ({"audit": False}, {"ungoverned": "tools"}):
        assert not is_pair(replace(request, **change), ended, ROUTE.arms)


# --------------------------------------------------------------------------- as a job, and for people


def test_the_job_puts_it_in_force_and_a_second_worker_adds_nothing(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with open_worker(settings) as here:
        fill(tmp_path, pairs(100))
        assert only(here).summary == "epoch 1 begins (cold start)"
        fill(tmp_path, pairs(300, first=100))
        assert only(here).summary.startswith("level 1 published (effort=low: EM lower by")
    held = read_decided(tmp_path / "log.db").of("r")
    assert (held.level, held.publication and held.publication.arm) == (1, "effort=low")
    before = decided(tmp_path)
    with open_worker(settings) as later:
        assert only(later).summary == ""
    assert decided(tmp_path) == before
    assert sum("policy_published" in one for one in before) == 1


CONFIG = """
[upstreams.up]
url = "http://127.0.0.1:1"
[routes.r]
upstream = "up"
effort = "low"
max_em_drop = 0.05
mode = "enforce"
[routes.r.probe]
[store]
url = "sqlite:///{database}"
"""


def test_people_read_pairs_what_is_missing_and_the_models_own_noise(tmp_path: Path) -> None:
    config, database = tmp_path / "suffice.toml", tmp_path / "log.db"
    config.write_text(CONFIG.format(database=database), "utf-8")

    def lines() -> dict[str, str]:
        result = CliRunner().invoke(main, ["status", "--all", "--config", str(config)])
        assert result.exit_code == 0, result.output
        return {line[2:24].strip(): line[25:] for line in result.output.splitlines()[1:]}

    repeats = [
        replace(event, pair_answer="7") if isinstance(event, Outcome) and int(event.episode_id[3:]) % 4 == 0 else event
        for event in pairs(20, first=900, arm="full")
    ]
    fill(tmp_path, [*pairs(60), *repeats])
    lines_of_status = lines()
    assert lines_of_status["phase"] == "all in full: effort=low is not proved"
    assert lines_of_status["pairs"].startswith("60 audits run again with effort=low: EM drop +0.00 points, below ")
    assert lines_of_status["pairs"].endswith("0.0% of the answers differ")
    assert lines_of_status["pairs missing"].startswith("about ")
    assert lines_of_status["two full runs"] == "25.0% of 20 answered otherwise: so much is the model's own noise"
    assert lines_of_status["promise"].startswith("none is needed: ")
    assert lines_of_status["promise"].endswith("every request runs in full")

    fill(tmp_path, pairs(400, first=60))
    with open_worker(settings_for(tmp_path)) as here:
        only(here)
    lines_of_status = lines()
    assert lines_of_status["phase"] == "certified, effort=low: a drop below 5 points at 95%"
    assert lines_of_status["pairs missing"] == "none: these prove a drop below 5 points"
    promise = lines_of_status["promise"]
    assert "asked with effort=low all requests of the window would have lost less than 5 points of EM" in promise
    assert "with 95 % confidence" in promise
    result = CliRunner().invoke(main, ["status", "--config", str(config), "--json"])
    plain = json.loads(result.stdout)
    assert (plain["pairs"][0]["n"], plain["pairs"][0]["n_missing"], plain["control"]["arm"]) == (460, 0, "effort=low")


def test_a_certificate_is_a_row_that_people_can_read(tmp_path: Path) -> None:
    fill(tmp_path, pairs(400))
    with open_worker(settings_for(tmp_path)) as here:
        only(here)
    rows_of = [json.loads(one) for one in decided(tmp_path) if "policy_published" in one]
    ((kind, body),) = rows_of
    assert kind == "policy_published"
    assert body["publication"]["pairs"]["n"] == body["publication"]["evidence"]["n_audits"]
