"""Drifts that no signal shows: which requests lose at every early stop, how many, and what a judge makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suffice.arrays import Bools, Ints
from suffice.errors import ConfigError
from suffice.learn.version import FoldedModels
from suffice.replay.online.drift import order_requests, parse_drift, relabel
from suffice.replay.online.protocol import OnlineOptions, TrueDrop, run_seed
from suffice.replay.online.stream import RecordedTraffic
from tests.learn.runs_made import audits
from tests.replay.online.made import made_up, traffic_of

N = 8_000
AT = N // 2


@pytest.fixture(scope="module")
def harmless() -> RecordedTraffic:
    """Requests whose stops never lose, each of two steps or more, 40 of each question; half of them are hard."""
    traffic = made_up(2 * N, 0)
    traffic = traffic.take(np.flatnonzero(np.diff(traffic.runs.starts) > 1)[:N])
    runs = replace(traffic.runs, z=np.zeros_like(traffic.runs.z), d=np.zeros_like(traffic.runs.d))
    return replace(
        traffic,
        runs=runs,
        question=tuple(f"q{i // 40}" for i in range(N)),
        query_class=tuple("hard" if i % 2 else "easy" for i in range(N)),
    )


def losers(traffic: RecordedTraffic, text: str, at: int = AT) -> Bools:
    """Which requests lose somewhere, shape (N,)."""
    runs = relabel(traffic, parse_drift(text), at).runs
    return np.isin(np.arange(len(runs)), runs.run_of_row[runs.z == 1])


def drawn(traffic: RecordedTraffic, text: str, seed: int = 0) -> tuple[Ints, int]:
    drift = parse_drift(text)
    return order_requests(traffic, drift, np.random.default_rng(seed))


def is_near(hits: Bools, share: float) -> bool:
    """Within four standard errors."""
    return abs(float(hits.mean()) - share) < 4 * float(np.sqrt(share * (1 - share) / len(hits)))


@pytest.mark.slow
def test_silent_loses_its_share_from_then_on_and_nothing_before(harmless: RecordedTraffic) -> None:
    hit = losers(harmless, "silent=0.06@0.5")
    assert not hit[:AT].any()
    assert is_near(hit[AT:], 0.06)
    assert not losers(harmless, "silent=0@0.5").any()
    assert losers(harmless, "silent=1@0.5").tolist() == [False] * AT + [True] * AT


def test_ramp_rises_evenly_from_nothing_to_its_share_at_the_end(harmless: RecordedTraffic) -> None:
    hit = losers(harmless, "ramp=0.8@0.5")
    assert not hit[:AT].any()
    for part, share in zip(np.split(hit[AT:], 4), (0.1, 0.3, 0.5, 0.7), strict=True):
        assert is_near(part, share)
    assert is_near(hit[-200:], 0.8 * (1 - 100 / AT))
    assert not is_near(hit[AT:], 0.8)


def test_oscillate_takes_turns_in_eight_phases_and_begins_with_its_share(harmless: RecordedTraffic) -> None:
    phases = np.split(losers(harmless, "oscillate=1@0.5")[AT:], 8)
    assert [set(phase.tolist()) for phase in phases] == [{True}, {False}] * 4
    assert not losers(harmless, "oscillate=1@0.5")[:AT].any()
    phases = np.split(losers(harmless, "oscillate=0.08@0.5")[AT:], 8)
    assert is_near(np.concatenate(phases[::2]), 0.08)
    assert not np.concatenate(phases[1::2]).any()


def test_turns_lose_behind_the_first_of_each_conversation_from_the_start(harmless: RecordedTraffic) -> None:
    first = np.arange(N) % 5 == 0
    assert np.array_equal(losers(harmless, "turns=5:1", 0), ~first)
    hit = losers(harmless, "turns=5:0.06", 0)
    assert not hit[first].any()
    assert is_near(hit[~first], 0.06)
    assert not losers(harmless, "turns=5", 0).any()


@pytest.mark.parametrize("text", ["silent=0.3@0.5", "ramp=0.6@0.5", "oscillate=0.6@0.5", "turns=5:0.3"])
def test_a_request_that_loses_does_so_at_every_early_stop_and_nothing_else_changes(text: str) -> None:
    traffic = made_up(2_000, 1)
    at = 0 if text.startswith("turns") else 1_000
    before, after = traffic.runs, relabel(traffic, parse_drift(text), at).runs
    changed = np.isin(np.arange(2_000), before.run_of_row[(after.z != before.z) | (after.d != before.d)])
    inner = ~np.isin(np.arange(len(before.x)), before.last)
    rows = changed[before.run_of_row]
    assert changed.any()
    assert (after.z[rows & inner] == 1).all()
    assert after.d[rows & inner].all(), "what is lost is another answer than the full run's"
    assert not after.z[before.last].any(), "the full run is right"
    assert not after.d[before.last].any()
    assert np.array_equal(after.z[~rows], before.z[~rows])
    assert np.array_equal(after.d[~rows], before.d[~rows])
    for name in ("x", "cost", "full", "may_stop", "at", "label_at", "fold"):
        assert np.array_equal(getattr(after, name), getattr(before, name)), name


@pytest.mark.parametrize("text", ["silent=0.06@0.5", "ramp=0.08@0.5", "oscillate=0.08@0.5", "turns=5:0.06"])
def test_the_seed_decides_which_requests_lose(harmless: RecordedTraffic, text: str) -> None:
    def stream(seed: int) -> tuple[Ints, Bools]:
        which, at = drawn(harmless, text, seed)
        assert sorted(which.tolist()) == list(range(N)), "each request comes once"
        hit = losers(harmless.take(which), text, at)
        return which, hit

    (which, hit), (again, hit_again), (other, other_hit) = stream(0), stream(0), stream(1)
    assert np.array_equal(which, again)
    assert np.array_equal(hit, hit_again)
    assert set(which[hit].tolist()) != set(other[other_hit].tolist())


def test_turns_of_a_conversation_ask_one_question_and_follow_each_other(harmless: RecordedTraffic) -> None:
    which, at = drawn(harmless, "turns=5:0.06")
    assert at == 0
    asked = np.array(harmless.question)[which].reshape(-1, 5)
    assert (asked == asked[:, :1]).all()
    assert (asked[1:, 0] != asked[:-1, 0]).mean() > 0.9, "conversations come in a random order"


def test_questions_that_have_too_few_requests_share_a_conversation_and_the_last_may_be_shorter() -> None:
    traffic = replace(made_up(103, 2), question=tuple(f"q{i // 3}" for i in range(103)))
    which, _ = drawn(traffic, "turns=20")
    assert sorted(which.tolist()) == list(range(103))
    asked = np.array(traffic.question)[which]
    assert (asked[1:] == asked[:-1]).mean() > 0.5, "requests of one question stay together"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.85, 1.0])
def test_mix_swaps_the_shares_of_two_classes(harmless: RecordedTraffic, share: float) -> None:
    third = tuple("other" if i % 3 == 0 else name for i, name in enumerate(harmless.query_class))
    traffic = replace(harmless, query_class=third)
    which, at = drawn(traffic, f"mix=easy>hard:{share:g}@0.4")
    name = np.array(third)[which]
    assert len(set(which.tolist())) == len(which)
    assert set(name.tolist()) == {"easy", "hard"}, "no other class comes"
    assert at / len(which) == pytest.approx(0.4, abs=0.01)
    assert (name[:at] == "easy").mean() == pytest.approx(share, abs=0.01)
    assert (name[at:] == "hard").mean() == pytest.approx(share, abs=0.01)
    most = max((name == "easy").sum(), (name == "hard").sum())
    assert most > 0.99 * third.count("easy"), "as many requests as the scarcer class allows"
    if share == 0.85:
        assert set(name[: at // 10].tolist()) == set(name[-at // 10 :].tolist()) == {"easy", "hard"}, "mixed"


def test_mix_names_the_classes_that_there_are(harmless: RecordedTraffic) -> None:
    with pytest.raises(ConfigError, match="no request is of class 'hrad'; known: easy, hard"):
        drawn(harmless, "mix=easy>hrad:0.8@0.5")
    with pytest.raises(ConfigError, match="no request is of class 'easy'; known: none"):
        drawn(replace(harmless, query_class=("",) * N), "mix=easy>hard:0.8@0.5")
    with pytest.raises(ConfigError, match="no request is of class 'easy'; known: none"):
        drawn(made_up(20, 0), "mix=easy>hard:0.8@0.5")
    few = replace(made_up(2, 0), query_class=("easy", "hard"))
    with pytest.raises(ConfigError, match="leaves no requests before it"):
        drawn(few, "mix=easy>hard:0.8@0.5")


BAD = (
    "silent=0.06",
    "silent=1.5@0.5",
    "silent=-0.1@0.5",
    "silent=often@0.5",
    "ramp=0.08@1",
    "ramp=@0.5",
    "oscillate=2@0.5",
    "oscillate=0.08@0",
    "mix=a:0.8@0.5",
    "mix=a>b@0.5",
    "mix=a>b:2@0.5",
    "mix=a>a:0.8@0.5",
    "mix=a>b>c:0.8@0.5",
    "mix=a>b:0.8",
    "turns=1:0.06",
    "turns=0",
    "turns=5:2",
    "turns=5:0.06@0.5",
    "turns=five",
    "turns=-5",
    "turns=5@0.0",
)


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_read_is_answered_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--drift: got .*; allowed: .*mix=CLASS>OTHER:SHARE@AT.*silent=SHARE@AT"):
        parse_drift(text)


# ---- what a judge makes of it ------------------------------------------------------------------


class _Level:
    """A keeper as the judge of a drift sees it."""

    def __init__(self, now: float, level: int) -> None:
        self.now, self.served, self.level = now, SERVED, level


SERVED = FoldedModels(models=(lambda x: x[:, 0],) * 5, levels=np.tile([-np.inf, 0.5], (5, 1)), cost_exponent=0.0)


def judged(text: str, *looks: tuple[float, int]) -> TrueDrop:
    """400 requests: level 1 stops the half whose score is high, a tenth of which lose anyway."""
    stopped = [[0.9, 0.9], [0.1, 0.1]] * 200
    runs = audits(stopped, z=[[int(i % 20 == 0), 0] for i in range(400)])
    truth = TrueDrop(traffic_of(runs), parse_drift(text), 0 if text.startswith("turns") else 200)
    for now, level in looks:
        truth.observe(_Level(now, level))  # type: ignore[arg-type]  # what it reads of a certifier
    return truth


EVERY = np.ones(400, dtype=bool)


def test_the_true_drop_of_a_silent_loss_is_its_share_of_the_stopped_requests() -> None:
    truth = judged("silent=0.2@0.5", (100, 1), (400, 1))
    assert truth.drop.tolist() == pytest.approx([0.0] * 200 + [0.8 * 0.05 + 0.2 * 0.5] * 200)
    assert judged("silent=0.2@0.5", (100, 1), (300, 0), (400, 0)).drop[300:].tolist() == [0.0] * 100
    turns = judged("turns=5:0.2", (100, 1), (400, 1)).drop
    assert turns[:100].tolist() == [0.0] * 100, "nothing was stopped before the first look"
    assert turns[100:].tolist() == pytest.approx([0.84 * 0.05 + 0.16 * 0.5] * 300), "the mean of five turns"
    ramp = judged("ramp=0.2@0.5", (100, 1), (400, 1)).drop
    assert ramp[200] == pytest.approx(0.05)
    assert ramp[300] == pytest.approx(0.9 * 0.05 + 0.1 * 0.5)


def test_loss_above_the_budget_is_points_times_served_requests() -> None:
    truth = judged("silent=0.2@0.5", (100, 1), (300, 0), (400, 0))
    assert truth.loss_above_budget(EVERY, 0.02) == pytest.approx(100 * 12)
    assert truth.loss_above_budget(np.arange(400) % 2 == 0, 0.02) == pytest.approx(50 * 12), "audits lose nothing"
    assert truth.loss_above_budget(EVERY, 0.14) == pytest.approx(0.0)
    swinging = judged("oscillate=1@0.5", (100, 1), (400, 1))
    assert swinging.loss_above_budget(EVERY, 0.1) == pytest.approx(4 * 25 * 40)


def test_recovery_is_counted_by_request() -> None:
    assert judged("silent=0.2@0.5", (100, 1), (300, 0), (400, 0)).recovery(0.02) == 100
    assert judged("silent=0.2@0.5", (100, 1), (300, 0), (400, 1)).recovery(0.02) is None, "it would break it again"
    assert judged("ramp=0.2@0.5", (100, 1), (400, 0)).recovery(0.1) == 200
    assert judged("ramp=0.2@0.5", (100, 0), (400, 0)).recovery(0.1) == 0


@pytest.mark.slow
def test_a_seed_tells_what_a_silent_loss_cost() -> None:
    traffic = traffic_of(audits([[0.9, 0.9]] * 1_200), question=tuple(f"q{i // 20}" for i in range(1_200)))
    asked = OnlineOptions(max_em_drop=0.2, n_seeds=1, warm_up=100, period=50)

    def found(text: str) -> tuple[float | None, float | None, float]:
        one = run_seed(replace(asked, drift=parse_drift(text)), traffic, 0)
        assert one.alarms == 0 or (one.false_alarms is not None and one.false_alarms <= one.alarms)
        return one.loss_above_budget, one.recovery, one.drop_late

    assert found("silent=0@0.5")[:2] == (0.0, 0)
    loss, recovery, drop = found("silent=0.6@0.5")
    assert loss is not None
    assert recovery is not None
    assert 0 < recovery < 600, "it is noticed"
    assert loss == pytest.approx(40 * recovery, rel=0.5), "0.6 lose, and a few requests are audits"
    assert drop > 0
    assert run_seed(asked, traffic, 0).loss_above_budget is None
