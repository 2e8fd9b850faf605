"""The programs behind the claims do what they say: the loop is the product's, the score is its model, runs resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench.claims import reference
from bench.claims.around import Around
from bench.claims.course import Figures, figures, serve
from bench.claims.periods import PERIODS, Timed
from bench.claims.results import append, cell_of, code_mark, lines
from bench.claims.retraining import RETRAINING
from bench.claims.score import Logistic
from bench.claims.streams import SETTINGS, SIGNALS
from bench.claims.table import tables
from bench.claims.truth import KNOTS, Truth

from suffice.certification.certifier import Certifier
from suffice.certification.plan import Plan
from suffice.learn.version import FoldedModels, fit_served
from suffice.replay.online.stream import PERIOD, learner_of, run_stream

N = 3_000


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("period", [50, PERIOD])
def test_a_cell_is_served_by_the_loop_of_replay_and_the_truth_is_that_of_what_was_deployed(period: int) -> None:
    drawn, truth = SETTINGS["harsh"].draw(N, 3), Truth("harsh")
    plan = Plan(label_timeout=200.0, warm_up=500, burst=500)
    deployed: list[tuple[FoldedModels | None, int]] = [(None, 0)]

    def look(keeper: Certifier) -> None:
        deployed.append((keeper.served, keeper.level))

    rng = np.random.default_rng(5)
    stream = run_stream(drawn.traffic, Certifier(plan, Logistic()), rng, period=period, watch=look)
    course = serve(
        drawn.traffic, Certifier(plan, Logistic()), truth, drawn.ways, np.random.default_rng(5), period=period
    )
    assert np.array_equal(stream.level, course.level)
    assert np.array_equal(stream.audit, course.audit)
    assert np.array_equal(stream.z, course.z)
    assert np.array_equal(stream.tokens, course.tokens)
    assert course.alarms == tuple(change.at for change in stream.changes if change.kind == "alarm")
    assert stream.level.max() > 0
    assert len(course.true_drop) == N // period
    for number in (0, N // period // 2, N // period - 1):
        way = float(drawn.ways[(number + 1) * period - 1])
        assert course.true_drop[number] == truth.drop(*deployed[number], way)


def test_a_keeper_inside_a_design_that_says_nothing_is_that_keeper() -> None:
    drawn, plan = SETTINGS["harsh"].draw(N, 3), Plan(label_timeout=200.0, warm_up=500, burst=500)
    designs = Certifier(plan, Logistic()), Around(Certifier(plan, Logistic())), Timed(Certifier(plan, Logistic()))
    streams = [run_stream(drawn.traffic, design, np.random.default_rng(5)) for design in designs]
    for other in streams[1:]:
        assert other.changes == streams[0].changes
        assert np.array_equal(other.level, streams[0].level)
        assert np.array_equal(other.burst, streams[0].burst)
        assert np.array_equal(other.tokens, streams[0].tokens)
    assert isinstance(designs[2], Timed)
    assert designs[2].cpu_s > 0


def test_the_score_is_the_linear_part_of_the_stop_model() -> None:
    runs = SETTINGS["none"].draw(800, 4).traffic.runs
    good, weight = runs.z <= 0, np.random.default_rng(0).uniform(0.2, 1, len(runs.z))
    trainer = Logistic()
    ours, again = trainer(runs.x, good, weight)(runs.x), trainer(runs.x, good, weight)(runs.x)
    theirs = learner_of(SIGNALS, parts="linear")(runs.x, good, weight)(runs.x)
    assert np.abs(ours - theirs).max() < 0.003
    assert np.abs(ours - again).max() < 1e-4, "where a fit begins does not show"
    other = SETTINGS["harsh"].draw(800, 5).traffic.runs
    moved = trainer(other.x, other.z <= 0, np.ones(len(other.z)))(other.x)
    assert np.abs(moved - Logistic()(other.x, other.z <= 0, np.ones(len(other.z)))(other.x)).max() < 1e-3
    assert np.ptp(trainer(runs.x, np.ones(len(runs.z), bool), weight)(runs.x)) == 0, "one outcome: a constant"


def test_the_truth_is_the_mean_drop_of_the_world_at_that_moment() -> None:
    runs = SETTINGS["harsh"].draw(1_000, 6).traffic.runs
    served = fit_served(runs, Logistic(), now=np.inf)
    assert served is not None
    truth = Truth("harsh")
    assert truth.drop(None, 7, 0.0) == truth.drop(served, 0, 1.0) == 0.0
    assert truth.drop(served, 20, 0.0) < truth.drop(served, 20, 1.0)
    at = [truth.drop(served, 30, way) for way in KNOTS]
    assert truth.drop(served, 30, 0.1) == pytest.approx(0.6 * at[0] + 0.4 * at[1])
    fresh = SETTINGS["none"].draw(20_000, 7).traffic.runs
    seen = float(fresh.z[served.rows_at(fresh, 30)].mean())
    assert truth.drop(served, 30, 0.0) == pytest.approx(seen, abs=0.006), "measured on other runs of that world"


def test_what_the_tables_say_of_a_stream() -> None:
    drawn = SETTINGS["harsh"].draw(N, 3)
    plan = Plan(label_timeout=200.0, warm_up=500, burst=500)
    course = serve(drawn.traffic, Certifier(plan, Logistic()), Truth("harsh"), drawn.ways, np.random.default_rng(5))
    found = figures(course, max_em_drop=0.02, drift_at=N // 2)
    assert found["saved_all"] == pytest.approx(1 - course.tokens.sum() / course.full.sum())
    assert found["drop_post"] == pytest.approx(course.z[N // 2 :].mean())
    assert found["alarm_delay"] == course.alarms[0] - N // 2
    after = course.true_drop[N // 2 // PERIOD :]
    assert found["for_good"] == (np.flatnonzero(after > 0.02).max(initial=-1) + 1) * PERIOD
    at = int(found["recover"] or 0) // PERIOD
    assert (after[at : at + 10] <= 0.02).all()
    assert at == 0 or after[at - 1] > 0.02


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "claims.jsonl"
    assert list(lines(path)) == []
    append(path, {"setting": "none", "design": "fixed", "seed": 0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"setting": "none", "desi')  # a crash in the middle of a line
    append(path, {"setting": "none", "design": "fixed", "seed": 1})
    assert [cell_of(line) for line in lines(path)] == [("none", "fixed", 0), ("none", "fixed", 1)]
    assert code_mark() == code_mark()


def test_a_sweep_has_one_row_for_each_choice() -> None:
    found: list[Figures] = [
        {
            "saved_all": 0.2,
            "saved_steady": 0.3,
            "saved_last": 0.4,
            "drop_pre": 0.01,
            "drop_post": 0.02,
            "over_pre": 0.0,
            "over_post": post,
            "for_good": 100.0,
            "alarm_delay": delay,
            "cpu_ms": 1_234.0,
        }
        for post, delay in ((0.0, 300.0), (1.0, 500.0), (0.0, None))
    ]
    assert PERIODS.row("harsh", 1_000, found) == (
        "| harsh | 1,000 | 20.0 / 40.0 | 1.00 / 2.00 | 1 of 3 | 400 | 100 / 100 | 1,234 |"
    )
    assert RETRAINING.row("harsh", "never", found) == (
        "| harsh | never | 20.0 / 30.0 / 40.0 | 1.00 / 2.00 | 1 of 3 | 100 / 100 |"
    )
    assert {PERIODS.head.count("|"), PERIODS.row("none", 1, found).count("|")} == {9}
    assert {RETRAINING.head.count("|"), RETRAINING.row("none", "never", found).count("|")} == {7}


def test_a_table_has_one_row_for_each_design_with_its_exact_bound() -> None:
    line = {
        "setting": "none",
        "design": "fixed",
        "max_em_drop": 0.02,
        "drift_at": 10_000,
        "alarm_delay": None,
        "over_pre": 0.0,
        "over_post": 1.0,
        "true_pre": 0.01,
        "true_end": 0.03,
        "recover": 100.0,
        "for_good": 200.0,
        "surplus": 1.0,
        "alarms_pre": 0.0,
        "alarms_post": 0.0,
        "cpu_s": 1.0,
        "drop_pre": 0.01,
        "drop_post": 0.03,
        "saved_all": 0.1,
        "saved_steady": 0.2,
        "saved_last": 0.3,
    }
    text = "\n".join(tables([line] * 20, [("none", "fixed"), ("none", "once")], {"none": "nothing changes"}))
    assert "#### none: nothing changes" in text
    assert "| fixed | 20 | 10.0 / 20.0 / 30.0 | 1.00 / 3.00 | 0 (≤ 13.9 %) | 20 (≤ 100.0 %) | 0 % / 100 % |" in text
    assert "once" not in text


GENERATOR = """
import numpy as np
PROBE, ANS = 6.0, 30.0
PRE, POST = 0.0, 1.0
STEALTH = BENIGN = MIX_ONLY = POST

def gen(n, rng, p=PRE):
    L = rng.integers(2, 5, n)
    valid = np.arange(1, 5) <= L[:, None]
    corr = rng.random((n, 4)) < 0.5
    cL = corr[np.arange(n), L - 1]
    drop = cL[:, None].astype(np.int8) - corr.astype(np.int8)
    cum = np.cumsum(np.full((n, 4), 100.0), 1)
    return dict(cls=np.zeros(n, int), L=L, X=rng.random((n, 4, 7)) + p, drop=drop, dis=(drop != 0).astype(np.int8),
                cum=cum, valid=valid, full=cum[np.arange(n), L - 1] + ANS, corr=corr, cL=cL)

def stream(T, t0, rng, post=POST):
    a, b = gen(t0, rng, PRE), gen(T - t0, rng, post)
    return {k: np.concatenate([a[k], b[k]]) for k in a}
"""


def test_another_generator_is_taken_from_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUFFICE_SIM", raising=False)
    reference.settings.cache_clear()
    assert reference.settings() == {}
    (tmp_path / "generator.py").write_text(GENERATOR, encoding="utf-8")
    monkeypatch.setenv("SUFFICE_SIM", str(tmp_path))
    reference.settings.cache_clear()
    try:
        assert list(reference.settings())[:2] == ["reference: none", "reference: harsh"]
        drawn = reference.settings()["reference: harsh"].draw(200, 1)
    finally:
        reference.settings.cache_clear()
    runs = drawn.traffic.runs
    assert len(runs) == 200
    last = runs.last
    assert not runs.d[last].any()
    assert np.array_equal(runs.cost[last], runs.full + 6 * np.diff(runs.starts)), "probes are paid at every step"
    assert drawn.traffic.early[:100].mean() < 0.6 < drawn.traffic.early[100:].mean()
