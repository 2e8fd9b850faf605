"""A learned candidate acts as far as its own certificate reaches, earned on audits that came after it was made."""

from __future__ import annotations

from math import pi
from pathlib import Path

import msgspec
import pytest

from suffice.assurance.certify import spent_delta
from suffice.control.compare.assessment import RolloutAssessor
from suffice.control.compare.counterfactual import AuditReplay
from suffice.store.database.views import label_requests, open_reader
from suffice.store.people.audit_view import entries
from suffice.store.routes.deployments import read_decided
from suffice.store.routes.rollouts import read_rollouts
from suffice.types import EvidenceSummary
from tests.control.made import label
from tests.control.tried import (
    BOLDER,
    CONTROL,
    FIVE,
    ROUTE,
    RULES,
    SECRET,
    TIMID,
    Trial,
    began,
    matches,
    proposed,
    published,
)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path / "log.db")


def test_nothing_of_it_acts_before_audits_that_came_after_it_have_certified_it(trial: Trial) -> None:
    trial.audits(300)
    trial.begin()
    assert trial.look() == [""], "what came before it was made, it may have learned from"
    trial.audits(40)
    assert trial.look() == [""]
    assert trial.held.state.level == 0
    assert "no level passes on 40 audits" in "; ".join(trial.assess().standing.missing)
    trial.audits(60)
    (summary,) = trial.look()
    assert "level 2 of the candidate may act: level 2 passes on 100 audits against the full run, 0 lost" in summary
    assert (trial.held.state.level, trial.held.state.stage) == (2, "shadow")
    assert trial.held.moves[-1].by == "evidence"


def test_what_it_is_compared_at_is_what_it_could_have_served_when_the_run_came(trial: Trial) -> None:
    trial.begin()
    trial.audits(100)
    trial.look()
    assert trial.assess().evidence.n_audits == 0, "before that it would have stopped nobody, which is no comparison"
    trial.audits(20)
    evidence = trial.assess().evidence
    assert evidence.n_audits == 20
    assert 0 < evidence.kept.candidate < evidence.kept.active < evidence.kept.full


def test_a_harmless_one_leaves_shadow_and_stays_in_its_steps(trial: Trial) -> None:
    trial.begin()
    for _ in range(3):
        trial.audits(100)
        summaries = trial.look()
    assert "promote, canary at 10%" in summaries[0]
    assert (trial.held.state.share, trial.held.state.level) == (0.1, 2)
    assert [move.move for move in trial.held.moves] == ["certify", "promote"]


def test_harm_takes_its_levels_back_and_then_the_rollout(trial: Trial) -> None:
    trial.begin()
    trial.audits(100)
    trial.look()
    trial.step("promote")
    trial.wrong(20)
    (summary,) = trial.look()
    assert "roll back" in summary
    held = trial.held
    assert (held.state.stage, held.state.level, held.state.share) == ("rolled_back", 0, 0.0)
    assert "its certificate is gone: even its safest level surely loses more than" in held.moves[-1].reason


def test_the_audit_log_says_what_was_tried_what_could_act_and_why_it_went_back(trial: Trial) -> None:
    trial.begin()
    trial.audits(100)
    trial.look()
    trial.step("promote")
    trial.wrong(20)
    trial.look()
    rows_of_rollout = [
        (one.who, one.before, one.after, one.why) for one in entries(trial.path) if one.kind.startswith("rollout_")
    ]
    assert [who for who, *_ in rows_of_rollout] == ["ann", "w", "person:ann", "w"]
    assert rows_of_rollout[0][1] == f"{FIVE.address} serves"
    assert f"({BOLDER.address}) is tried, in shadow" in rows_of_rollout[0][2]
    assert rows_of_rollout[1][2].endswith("level 2 of the candidate may act")
    assert rows_of_rollout[2][2].endswith("promote, canary at 10% of new units")
    assert rows_of_rollout[3][2].endswith("roll back, rolled back at 0% of new units")
    assert "its certificate is gone" in rows_of_rollout[3][3]


def test_a_disagreement_counts_as_lost_until_somebody_says_otherwise(trial: Trial) -> None:
    trial.begin()
    trial.audits(100, labels=False)
    first = trial.n
    trial.wrong(20, labels=False)
    before = trial.assess().certificate
    assert before is not None
    trial.write(*(label(number, correct=False) for number in range(first, trial.n)))
    after = trial.assess().certificate
    assert after is not None
    assert (before.n, before.level) == (after.n, 0)
    assert after.level == 2, "a full run that was wrong itself cannot be lost"


def test_one_whose_safest_level_surely_breaks_the_budget_goes_back_and_one_without_labels_does_not(
    trial: Trial,
) -> None:
    trial.begin()
    trial.wrong(60, labels=False)
    trial.look()
    assert trial.held.state.stage == "shadow", "nobody knows"
    trial.write(*(label(number, correct=False) for number in range(10)))
    trial.look()
    assert trial.held.state.stage == "shadow", "a full run that was wrong itself cannot be lost"
    trial.write(*(label(number, correct=True) for number in range(10, 40)))
    (summary,) = trial.look()
    assert "roll back" in summary
    assert (trial.held.state.stage, trial.held.state.level) == ("rolled_back", 0)
    assert "even its safest level surely loses more than 8.00%: of 60 audits" in trial.held.moves[-1].reason


def test_labels_are_asked_for_where_one_would_tell_something_and_once(trial: Trial) -> None:
    trial.begin()
    trial.audits(30, labels=False)
    trial.wrong(4, labels=False)
    assert trial.look() == ["rollout r-0: 4 labels wanted"]
    with open_reader(trial.path) as connection:
        wanted = label_requests(connection, "r")
    assert {(one.would_answer, one.level) for one in wanted.values()} == {("77", 1)}
    assert sorted(wanted) == [f"ep_{number:05}" for number in range(30, 34)], "not where all levels agree"
    trial.wrong(2)
    assert trial.look() == [""]


def test_every_version_that_a_route_tries_has_less_of_delta(trial: Trial) -> None:
    trial.begin()
    trial.audits(10)
    first = trial.assess().certificate
    trial.step("rollback")
    trial.begin()
    trial.audits(10)
    second = trial.assess().certificate
    assert first is not None
    assert second is not None
    assert [first.delta, second.delta] == pytest.approx([spent_delta(0.1, 2), spent_delta(0.1, 3)])
    assert second.n == 10, "and begins with audits of its own"


def test_its_part_of_delta_is_no_smaller_for_what_the_loop_publishes_with_its_own_part_while_it_is_tried(
    trial: Trial,
) -> None:
    trial.begin()
    trial.audits(60)
    before = trial.assess().certificate
    loops_part = EvidenceSummary(max_em_drop=0.08, confidence=1 - spent_delta(0.1, 1))
    trial.write(published(number=2, level=2, version=f"{FIVE.address}@2", evidence=loops_part))
    assert trial.assess().certificate == before
    assert before is not None
    assert before.delta + spent_delta(0.1, 1) == pytest.approx(0.1 * (1 + 1 / 4) * 6 / pi**2), "both together"


def test_one_that_saves_less_than_what_is_in_force_goes_no_further(trial: Trial) -> None:
    trial.begin(TIMID)
    for _ in range(3):
        trial.audits(100)
        trial.look()
    assert (trial.held.state.stage, trial.held.state.level) == ("shadow", 2)
    (missing,) = trial.assess().standing.missing
    assert "tokens a run, the active version" in missing


def test_where_a_saving_is_all_that_is_missing_it_does_not_wait_as_long_as_for_a_proof(trial: Trial) -> None:
    trial.begin(TIMID, msgspec.structs.replace(RULES, most_idle_requests=301))
    for _ in range(3):
        trial.audits(100)
        trial.look()
    assert trial.held.state.stage == "shadow"
    trial.audits(1)
    (summary,) = trial.look()
    assert read_rollouts(trial.path)[-1].state.stage == "rolled_back"
    assert "all that is missing is a saving: it keeps" in summary


def test_another_version_in_force_ends_it_and_another_level_does_not(trial: Trial) -> None:
    trial.begin()
    trial.write(published(number=2, level=2, version=f"{FIVE.address}@2"))
    assert trial.look() == [""]
    trial.write(published(TIMID, number=3))
    (summary,) = trial.look()
    assert "publication 3 came in between; this one follows 1" in summary
    assert trial.held.state.stage == "rolled_back"


def test_a_new_epoch_takes_its_certificate_away(trial: Trial) -> None:
    trial.begin()
    trial.audits(100)
    trial.look()
    trial.write(began(2, since_seq=10_000))
    (summary,) = trial.look()
    assert "level 0 of the candidate may act: nothing can be tested now" in summary
    assert "epoch 2 began during the rollout" in "; ".join(trial.assess().standing.missing)


def test_a_route_with_less_budget_left_certifies_less(trial: Trial) -> None:
    trial.begin()
    trial.audits(100)
    strict = msgspec.structs.replace(ROUTE, max_em_drop=0.02)
    with open_reader(trial.path) as connection:
        seen, less = trial.standing(connection), trial.standing(connection, strict)
    assert seen.certificate is not None
    assert less.certificate is not None
    assert (seen.certificate.level, less.certificate.level, less.certificate.max_em_drop) == (2, 0, 0.02)


@pytest.mark.slow
def test_whoever_goes_on_looking_finds_what_a_new_reader_finds(trial: Trial) -> None:
    trial.begin()
    with matches(ROUTE) as match, open_reader(trial.path) as connection:
        kept = RolloutAssessor(connection, trial.held, AuditReplay(route=ROUTE, match=match), CONTROL, secret=SECRET)
    for at in range(6):
        trial.audits(40, labels=at % 2 == 0, sure=None, p_right=0.9)
        if at > 1:
            trial.write(*(label(number, correct=True) for number in range(trial.n - 70, trial.n - 40)))
        with open_reader(trial.path) as connection:
            held = read_rollouts(connection)[-1]
            seen = kept.see(connection, held, read_decided(connection).of("r"), now_s=1_000.0)
            fresh = trial.standing(connection)
        assert (seen.evidence, seen.certificate, seen.moves) == (fresh.evidence, fresh.certificate, fresh.moves)
        trial.look()


def test_what_cannot_be_compared_is_not_tried(trial: Trial) -> None:
    assert "was never proposed" in str(trial.candidate())
    trial.write(proposed(FIVE))
    assert "is already active on route r" in str(trial.candidate(FIVE))
    trial.write(proposed(BOLDER, read_to_seq=2))
    average = msgspec.structs.replace(ROUTE, promise="budgeted")
    assert "keeps its promise on average" in str(trial.candidate(route=average))
    owned = msgspec.structs.replace(ROUTE, policy={"policy": "beta"})
    assert "its owner wrote down" in str(trial.candidate(route=owned))
    trial.write(began(2, since_seq=3))
    assert "nothing is certified on route r now" in str(trial.candidate())
    trial.write(published(number=2, epoch=2))
    assert "was learned before epoch 2 began" in str(trial.candidate())
