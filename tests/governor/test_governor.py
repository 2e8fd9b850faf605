"""The library's promises in one process: audits never stop, every end has one outcome, failures cost tokens only."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suffice import Episode, Governor
from suffice.errors import BadRequest, ClosedError, ConfigError, StoreError
from suffice.governor.backends import LocalBackend
from suffice.store.database.views import read_events
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import kind_of
from suffice.types import Usage
from tests.governor.loops import ROUTE, Broken, adrive, drive, episodes, local, outcome, settings

SAME = ["Vienna", "Danube", "Danube", "Danube", "Danube"]


def test_a_loop_ends_when_its_answer_stands_and_says_which_answer_to_use(tmp_path: Path) -> None:
    with local(tmp_path) as gov, gov.episode("which river?") as ep:
        decisions = drive(ep, SAME)
    assert [d.stop for d in decisions] == [False, False, True]
    assert (ep.answer, ep.return_step, ep.stopped, ep.tokens) == ("Danube", 3, True, 30)
    ended = outcome(tmp_path)
    assert (ended.end_reason, ended.stopped, ended.stop_step, ended.stop_reason) == ("stopped", True, 3, "suffices")
    assert ended.answer == ended.would_answer == "danube"
    assert ended.usage == Usage(prompt_tokens=0, completion_tokens=30)


def test_the_answer_comes_back_as_it_was_told_not_as_it_is_compared(tmp_path: Path) -> None:
    with local(tmp_path) as gov, gov.episode("q") as ep:
        drive(ep, ["The  Danube.", "the danube", "the danube"])
    assert len(ep.history) == 2
    assert ep.answer == "the danube"


@pytest.mark.parametrize(
    "route",
    [{"mode": "observe"}, {"mode": "off"}, {"audit_share": 1.0}, {"uncertified": False}],
    ids=["observe", "off", "audit", "not certified"],
)
def test_where_the_policy_may_not_act_nothing_stops_and_the_loop_keeps_its_own_answer(
    tmp_path: Path, route: dict[str, Any]
) -> None:
    with local(tmp_path, **route) as gov, gov.episode("q") as ep:
        decisions = drive(ep, ["a", "a", "a", "b", None])
    assert len(decisions) == 5
    assert not any(d.stop or d.stop_reason for d in decisions)
    assert (ep.answer, ep.return_step, ep.stopped) == ("b", 4, False)
    request, ended = episodes(tmp_path, 1)[0].episode.request, outcome(tmp_path)
    assert (ended.end_reason, ended.stopped, ended.answer) == ("done", False, "b")
    if route == {"mode": "off"}:
        assert (request.ungoverned, ended.steps, ended.stop_step) == ("off", (), None)
    else:
        assert (ended.stop_step, ended.would_answer, len(ended.steps)) == (2, "a", 5)
        assert [s.action for s in ended.steps][:2] == ["continue", "stop"]


def test_an_audit_is_not_told_what_the_policy_would_have_done(tmp_path: Path) -> None:
    with local(tmp_path, audit_share=1.0) as gov, gov.episode("q") as ep:
        decisions = drive(ep, ["a"] * 4)
    assert {d.reason for d in decisions[1:]} == {"the run goes on"}
    assert all(d.score is None for d in decisions[1:])


def test_the_request_is_written_before_the_first_step_with_its_lot(tmp_path: Path) -> None:
    with local(tmp_path, audit_share=0.3) as gov:
        for number in range(40):
            with gov.episode(f"question {number}", metadata={"task": "rivers"}, planned_steps=5) as ep:
                assert gov.flush()
                assert gov_log(gov)[-1] == ("request", ep.id)
    requests = [e.episode.request for e in episodes(tmp_path, 40)]
    assert 0 < sum(r.audit for r in requests) < 40
    assert {r.propensity for r in requests} == {0.3, 0.7}
    assert all((r.propensity == 0.3) == r.audit for r in requests)
    assert {(r.policy_version[:2], r.kind, r.endpoint) for r in requests} == {("p-", "rounds", "library")}
    assert all(r.query is not None and r.query.metadata == (("task", "rivers"),) for r in requests)
    assert all(r.query is not None and r.query.planned_steps == 5 for r in requests)


def gov_log(gov: Governor) -> list[tuple[str, str | None]]:
    service = gov._state.backend
    assert isinstance(service, LocalBackend)
    assert isinstance(service.gateway.log, LogWriter)
    events = [stored.event for stored in read_events(service.gateway.log.path)]
    return [(kind_of(event).name, kind_of(event).episode(event)) for event in events]


def test_each_run_of_a_conversation_is_drawn_by_itself_and_a_repeated_one_runs_in_full(tmp_path: Path) -> None:
    with local(tmp_path, audit_share=0.5, server={"retry_window_s": 600.0}) as gov:
        for number in range(30):
            for question in (f"question {number}", f"question {number}"):
                with gov.episode(question, key="conversation") as ep:
                    drive(ep, ["a", "a", "a"])
    runs = [result.episode for result in episodes(tmp_path, 60)]
    first, again = runs[::2], runs[1::2]
    assert {one.request.audit for one in first} == {True, False}
    assert all(one.outcome.stopped is not one.request.audit for one in first)
    assert [(one.request.audit, one.request.unit, one.request.delivery, one.outcome.stopped) for one in again] == [
        (one.request.audit, one.request.unit, 2, False) for one in first
    ]
    assert len({one.request.conversation for one in runs}) == 1


# how a block is left ──▶ the outcome
def _exception(_ep: Episode) -> None:
    raise ValueError("the caller's own")


def _interrupt(_ep: Episode) -> None:
    raise KeyboardInterrupt


def _done(ep: Episode) -> None:
    ep.step(answer="z", tokens=1, done=True)


def _stopped(ep: Episode) -> None:
    drive(ep, ["a", "a", "a"])


def _disobeyed(ep: Episode) -> None:
    for answer in "aab":
        ep.step(answer=answer, tokens=1)


def _stopped_then_failed(ep: Episode) -> None:
    drive(ep, ["a", "a", "a"])
    raise ValueError("after the loop, inside the block")


def _done_then_failed(ep: Episode) -> None:
    _done(ep)
    raise ValueError("after its end")


ENDS: list[tuple[Callable[[Episode], None], str, bool, str | None]] = [
    (lambda ep: None, "done", False, None),
    (_done, "done", False, "z"),
    (_stopped, "stopped", True, "a"),
    (_disobeyed, "done", False, "b"),
    (_exception, "client_left", False, None),
    (_interrupt, "client_left", False, None),
    (_stopped_then_failed, "client_left", False, "a"),
    (_done_then_failed, "done", False, "z"),
]


@pytest.mark.parametrize(("leave", "end", "stopped", "answer"), ENDS)
def test_every_end_has_exactly_one_outcome(
    tmp_path: Path, leave: Callable[[Episode], None], end: str, stopped: bool, answer: str | None
) -> None:
    with local(tmp_path) as gov:
        try:
            with gov.episode("q") as ep:
                leave(ep)
        except (ValueError, KeyboardInterrupt):
            pass
    ended = outcome(tmp_path)
    assert (ended.end_reason, ended.stopped, ended.answer) == (end, stopped, answer)


def test_an_audit_that_is_broken_off_counts_as_a_disagreement(tmp_path: Path) -> None:
    from suffice.assurance.runs import measure_run

    with local(tmp_path, audit_share=1.0) as gov:
        with pytest.raises(ValueError, match="own"), gov.episode("q") as ep:
            drive(ep, ["a", "a", "a"])
            _exception(ep)
        with gov.episode("r") as ep:
            drive(ep, ["a", "a", "a"])
    broken, whole = (measure_run(e, lambda a, b: a == b) for e in episodes(tmp_path, 2))
    assert (broken.disagrees, broken.drop) == (True, 1)
    assert whole.disagrees is False


def test_a_run_that_is_over_takes_no_step_and_says_why(tmp_path: Path) -> None:
    with local(tmp_path) as gov:
        with gov.episode("q") as ep:
            ep.step(answer="a", tokens=1, done=True)
            with pytest.raises(ClosedError, match="step 1 was its last"):
                ep.step(answer="a", tokens=1)
        with gov.episode("q") as ep:
            pass
        with pytest.raises(ClosedError, match="its block has ended"):
            ep.step(answer="a", tokens=1)
        opened = gov.episode("q")
        with opened:
            pass
        with pytest.raises(ClosedError, match="begun before"), opened:
            pass


def test_closing_ends_what_is_open_and_a_closed_governor_says_so(tmp_path: Path) -> None:
    gov = local(tmp_path)
    with gov.episode("q") as ep:
        ep.step(answer="a", tokens=1)
        gov.close()
        gov.close()
        for use in (
            lambda: ep.step(answer="a", tokens=1),
            lambda: gov.episode("r").__enter__(),
            gov.flush,
            lambda: gov.feedback(ep.id, correct=True, source="user"),
        ):
            with pytest.raises(ClosedError, match="is closed; open another one"):
                use()
    assert outcome(tmp_path).end_reason == "client_left"  # the caller broke it off


def test_a_governor_that_is_let_go_of_writes_what_it_knows(tmp_path: Path) -> None:
    gov = local(tmp_path)
    with gov.episode("q") as ep:
        drive(ep, SAME)
    del gov, ep
    gc.collect()
    assert outcome(tmp_path).stopped


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from pathlib import Path
from suffice.errors import ClosedError
from tests.governor.loops import local
gov = local(Path(sys.argv[1]))
with gov.episode("q") as ep:
    ep.step(answer="a", tokens=1)
    child = os.fork()
    if child == 0:
        said = []
        for use in (lambda: ep.step(answer="a", tokens=1), lambda: gov.episode("r").__enter__()):
            try:
                use()
            except ClosedError as error:
                said.append("after the fork" in str(error))
        gov.close()
        os._exit(0 if said == [True, True] else 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ep.step(answer="b", tokens=1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_is_told_and_its_parent_goes_on(tmp_path: Path) -> None:
    # The script never closes its governor: the end of the process does.
    subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], check=True, timeout=120)
    ended = outcome(tmp_path)
    assert (ended.end_reason, len(ended.steps)) == ("done", 2)


CRASH = """
import os, sys
from pathlib import Path
from tests.governor.loops import local
gov = local(Path(sys.argv[1]))
ep = gov.episode("q").__enter__()
ep.step(answer="a", tokens=1)
assert gov.flush()
os._exit(7)
"""


def test_a_process_that_dies_leaves_a_run_that_is_lost(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], check=False, timeout=120)
    assert died.returncode == 7
    local(tmp_path).close()
    assert outcome(tmp_path).end_reason == "lost"


def test_many_threads_share_a_governor(tmp_path: Path) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(8):
            with gov.episode(f"q {number} {turn}") as ep:
                decisions = drive(ep, ["x", f"{number}", f"{number}", "y"])
            if ep.answer != str(number) or len(decisions) != 3:
                wrong.append(f"{number} {turn}: {ep.answer} {len(decisions)}")

    with local(tmp_path) as gov:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(e.episode.outcome.stopped for e in episodes(tmp_path, 128))


async def test_many_tasks_share_a_governor_and_cancelling_one_is_an_abort(tmp_path: Path) -> None:
    async def work(number: int) -> str | None:
        async with gov.episode(f"q {number}") as ep:
            for answer in ("x", f"{number}", f"{number}", "y"):
                await asyncio.sleep(0)
                if (await ep.step(answer=answer, tokens=10)).stop:
                    break
        return ep.answer

    async def hang() -> None:
        async with gov.episode("hangs") as ep:
            await adrive(ep, ["a"])
            await asyncio.sleep(60)

    async with local(tmp_path) as gov:
        hanging = asyncio.create_task(hang())
        assert await asyncio.gather(*(work(n) for n in range(50))) == [str(n) for n in range(50)]
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        receipt = await gov.afeedback("ep_unknown", correct=True, source="user")
        assert not receipt.joined
    ends = [e.episode.outcome.end_reason for e in episodes(tmp_path, 51)]
    assert ends.count("stopped") == 50
    assert ends.count("client_left") == 1


def test_feedback_joins_its_run_and_counts_once_by_its_id(tmp_path: Path) -> None:
    with local(tmp_path) as gov:
        with gov.episode("q") as ep:
            drive(ep, SAME)
        first = gov.feedback(ep.id, gold="Danube", source="exact-match", feedback_id="f1")
        again = gov.feedback(ep.id, gold="Danube", source="exact-match", feedback_id="f1")
        gov.feedback(ep.id, correct=False, source="reviewer")
        with pytest.raises(BadRequest, match="feedback: is empty"):
            gov.feedback(ep.id, source="user")
    assert (first.duplicate, first.joined, again.duplicate) == (False, True, True)
    labels = episodes(tmp_path, 1)[0].labels
    assert [(label.feedback.source, label.feedback.correct) for label in labels] == [
        ("exact-match", None),
        ("reviewer", False),
    ]


# ── failures of ours ────────────────────────────────────────────────────────────────────────────────


def put_into(gov: Governor, **parts: Any) -> None:
    """Replace parts of the route, or of what serves it: how faults are put in."""
    service = gov._state.backend
    assert isinstance(service, LocalBackend)
    (route,) = service.gateway.deployment.routes
    serving = {name: parts.pop(name) for name in ("policy", "needs") if name in parts}
    service.gateway.deployment.routes = (replace(route, serving=replace(route.serving, **serving), **parts),)


class BrokenScorer:
    """A scorer that raises."""

    name = "text"

    def extract(self, _text: str) -> str | None:
        raise ZeroDivisionError

    normalise = extract

    def match(self, _answer: str | None, _gold: str) -> bool:
        raise ZeroDivisionError


FAULTS: dict[str, dict[str, Any]] = {
    "policy": {"policy": Broken()},
    "signals": {"needs": ("no-such-signal",)},
    "scorer": {"scorer": BrokenScorer()},
}


@pytest.mark.parametrize("site", FAULTS)
def test_what_fails_continues_the_loop_and_is_counted(tmp_path: Path, site: str) -> None:
    with local(tmp_path) as gov:
        put_into(gov, **FAULTS[site])
        with gov.episode("q") as ep:
            decisions = drive(ep, ["a"] * 5)
        assert not any(d.stop for d in decisions)
        assert ep.degraded == (site,)
        assert gov.failed_open == {site: 1}
    assert outcome(tmp_path).degraded == (site,)


def test_a_route_that_fails_again_and_again_is_left_alone(tmp_path: Path) -> None:
    with local(tmp_path) as gov:
        put_into(gov, policy=Broken())
        for number in range(7):
            with gov.episode(f"q{number}") as ep:
                drive(ep, ["a"] * 3)
    reasons = [e.episode.request.ungoverned for e in episodes(tmp_path, 7)]
    assert reasons == [None] * 5 + ["breaker"] * 2


def test_a_log_that_is_full_costs_the_record_and_not_the_loop(tmp_path: Path) -> None:
    gov = local(tmp_path)
    service = gov._state.backend
    assert isinstance(service, LocalBackend)
    service.gateway.log.close()
    with gov.episode("q") as ep:
        assert len(drive(ep, SAME)) == 3
    assert ep.answer == "Danube"
    assert service.gateway.metrics.value("suffice_events_dropped_total") == 2
    with pytest.raises(StoreError):
        gov.feedback(ep.id, correct=True, source="user")
    gov.close()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"tokens": -1}, "step.tokens: got -1; a whole number, at least 0"),
        ({"tokens": 1.5}, "step.tokens"),
        ({"tokens": 1, "ctx_tokens": True}, "step.ctx_tokens"),
        ({"tokens": 1, "answer": 42}, "step.answer: must be a string, got int"),
        ({"tokens": 1, "text": None}, "step.text"),
    ],
)
def test_a_mistake_of_the_caller_is_named(tmp_path: Path, step: dict[str, Any], message: str) -> None:
    with local(tmp_path) as gov, gov.episode("q") as ep:
        with pytest.raises(BadRequest, match=message):
            ep.step(**step)
        assert ep.step(answer="a", tokens=1).action == "continue"
    assert [s.index for s in outcome(tmp_path).steps] == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 2.0, "much"])
def test_a_number_that_is_no_probability_is_unknown(tmp_path: Path, value: Any) -> None:
    with local(tmp_path, policy={"policy": "confidence-threshold", "threshold": 0.5}) as gov, gov.episode("q") as ep:
        assert not ep.step(answer="a", tokens=1, confidence=value, stated_confidence=value).stop
        assert not ep.step(answer="a", tokens=1, logprobs=[value]).stop or value == -1.0
    assert outcome(tmp_path).steps[0].stated_confidence is None
    assert outcome(tmp_path).degraded == ()


HOSTILE = ["", "\x00", "\ud800", "a" * 1_000_000, "١٢٣", "\u202e", "\n\n", "?"]


def test_no_answer_breaks_a_loop(tmp_path: Path) -> None:
    with local(tmp_path) as gov, gov.episode("\ud800", metadata={"x": "\ud800"}) as ep:
        for answer in HOSTILE:
            assert ep.step(answer=answer, tokens=1, text=answer).action == "continue"
        assert ep.answer in HOSTILE
    assert outcome(tmp_path).end_reason == "done"


def test_a_run_may_be_long_and_its_record_stays_small(tmp_path: Path) -> None:
    with local(tmp_path, policy={"policy": "never"}) as gov, gov.episode("q") as ep:
        for number in range(2_100):
            assert not ep.step(answer=f"{number}", tokens=1).stop
    ended = outcome(tmp_path)
    assert (len(ended.steps), ended.degraded) == (2_000, ("steps",))
    assert ended.usage == Usage(prompt_tokens=0, completion_tokens=2_100)


def test_what_a_step_told_is_recorded_and_its_text_is_not(tmp_path: Path) -> None:
    report: dict[str, Any] = {
        "confidence": 0.75,
        "logprob": -0.5,
        "stated_confidence": 0.9,
        "reported_done": True,
        "action": "search",
        "ctx_tokens": 700,
        "entropy": 0.25,
        "text": "SECRET words of the step",
    }
    with local(tmp_path) as gov, gov.episode("SECRET question") as ep:
        ep.step(answer="a", tokens=12, **report)
    step = outcome(tmp_path).steps[0]
    assert (step.tokens, step.ctx_tokens, step.logprob, step.stated_confidence) == (12, 700, -0.5, 0.9)
    assert step.confidence == 0.75
    assert (step.reported_done, step.caller_action, step.answer_source, step.entropy) == (
        True,
        "search",
        "caller",
        0.25,
    )
    assert b"SECRET" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_checkpoints_of_a_thought_are_steps_like_any_other(tmp_path: Path) -> None:
    with local(tmp_path, kind="reasoning") as gov, gov.episode("q") as ep:
        drive(ep, SAME, logprobs=[-0.1, -0.3])
    assert (ep.answer, ep.return_step) == ("Danube", 3)
    steps = outcome(tmp_path).steps
    assert steps[0].logprobs == (-0.1, -0.3)
    assert steps[0].confidence == pytest.approx(0.8187, abs=1e-4)  # exp(-0.2)


def test_samples_are_voted_on_whoever_draws_them(tmp_path: Path) -> None:
    route: dict[str, Any] = {"kind": "samples", "samples": 9, "policy": {"policy": "beta", "threshold": 0.9}}
    with local(tmp_path, **route) as gov, gov.episode("q") as ep:
        drive(ep, ["B", "A", "A", "A", "A", "A", "A", "A", "A"])
    assert (ep.answer, ep.return_step) == ("A", 2)
    ended = outcome(tmp_path)
    assert ended.stopped
    assert ended.vote[0][0] == "a"
    assert 2 < len(ended.steps) < 9


def test_a_stop_is_worth_what_longer_full_runs_took(tmp_path: Path) -> None:
    with local(tmp_path, mode="observe") as gov:
        for number in range(25):
            with gov.episode(f"q{number}") as ep:
                drive(ep, ["a"] * 6)
    with local(tmp_path) as gov, gov.episode("q") as ep:
        drive(ep, ["a"] * 6)
    ended = episodes(tmp_path, 26)[-1].episode.outcome
    assert (ended.stopped, ended.tokens_saved_estimate) == (True, 40)


def test_settings_that_cannot_work_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown route 'lop'; known: loop"):
        Governor.open(settings(tmp_path), route="lop")
    with pytest.raises(ConfigError, match="cannot be read"):
        Governor.open(tmp_path / "none.toml", route=ROUTE)
    for url in ("localhost:8400", "ftp://x", "http://"):
        with pytest.raises(ConfigError, match="need http"):
            Governor.connect(url, route=ROUTE)
    assert not list(tmp_path.glob("*.db"))


def test_importing_suffice_loads_nothing_until_it_is_asked() -> None:
    code = (
        "import sys, suffice\n"
        "assert not [m for m in sys.modules if m.startswith('suffice.')], sys.modules\n"
        "assert suffice.Governor and suffice.Decision and set(suffice.__all__) <= set(dir(suffice))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ── which round's answer ────────────────────────────────────────────────────────────────────────────

BEST = {"policy": "guarded", "inner": {"policy": "never"}, "max_steps": 4, "returns": "most-confident"}
ROUNDS = [("a", 0.5), ("b", 0.9), ("c", 0.2), ("d", 0.1), ("e", 0.8)]


def revise(ep: Episode, n: int) -> None:
    for answer, confidence in ROUNDS[:n]:
        if ep.step(answer=answer.upper(), tokens=1, confidence=confidence).stop:
            break


def test_the_policy_chooses_whose_answer_is_used_and_it_is_what_counts(tmp_path: Path) -> None:
    with local(tmp_path, policy=BEST) as gov, gov.episode("q") as ep:
        revise(ep, 5)
    assert (len(ep.history), ep.return_step, ep.answer) == (4, 2, "B")
    ended = outcome(tmp_path)
    assert (ended.stop_step, ended.stop_reason, ended.answer, ended.would_answer) == (4, "budget", "b", "b")


def test_a_run_that_nothing_governs_has_no_shadow(tmp_path: Path) -> None:
    with local(tmp_path, policy=BEST, mode="off") as gov, gov.episode("q") as ep:
        revise(ep, 5)
    ended = outcome(tmp_path)
    assert (ep.answer, ended.answer, ended.stop_step, ended.would_answer) == ("E", "e", None, None)


@pytest.mark.parametrize("n", [5, 3])
def test_a_full_run_keeps_its_own_answer_and_records_what_the_policy_would_have_returned(
    tmp_path: Path, n: int
) -> None:
    with local(tmp_path, policy=BEST, audit_share=1.0) as gov, gov.episode("q") as ep:
        revise(ep, n)
    assert ep.answer == ROUNDS[n - 1][0].upper()
    ended = outcome(tmp_path)
    # Where the policy lets the loop come to its end, the other answer counts as a stop there.
    assert (ended.stop_step, ended.answer, ended.would_answer) == (min(n, 4), ROUNDS[n - 1][0], "b")
    assert ended.stopped is False
