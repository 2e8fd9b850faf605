"""The page of benchmarks: every rule is on it, every figure comes from a cell, and a run goes on where it was."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from bench.nested import nest
from bench.page import cells, competitor, reference, streams
from bench.page.__main__ import main
from bench.page.found import NOT_RUN, Found
from bench.page.ladders import build_all_ladders, published_rungs
from bench.page.papers import CLAIMS
from bench.page.render import PAGE, render
from bench.page.sets import Case
from bench.page.store import Cell, Line, read_cells, write_cell

from suffice.control.evidence.versions import FIXED
from suffice.policy.base import POLICIES
from suffice.policy.columns import SUFFICES
from suffice.replay.online.protocol import OnlineOptions, run_seed
from suffice.replay.study.policies import LEFT_OUT, halts_of
from suffice.replay.study.sets import family_of
from suffice.replay.study.study import LadderPool, ReplayOptions, Study
from suffice.replay.study.sums import sum_halts
from suffice.types import Kind
from suffice_testing.traces import Synthetic
from tests.learn.runs_made import audits
from tests.replay.online.made import traffic_of

COMPOSED = {"learned", "guarded", "all-of", "any-of"}  # no rules of a paper by themselves


def made_set(folder: Path, **fields: Any) -> Case:
    file = folder / "votes.dev.parquet"
    Synthetic(**{"kind": "samples", "n_runs": 120, "n_questions": 40, "seed": 1, **fields}).write(file)
    return Case(file=file)


# ---- what is on it


def test_every_published_rule_is_on_the_page() -> None:
    kinds: tuple[Kind, ...] = get_args(Kind)
    known = [build_all_ladders(kind, longest=40, full_tokens=[100.0, 4_000.0], votes=[[3, 1]]) for kind in kinds]
    missing = (
        set(POLICIES) - {family_of(ladder.name) for of_kind in known for ladder in of_kind} - {*COMPOSED, *LEFT_OUT}
    )
    ours = {name for name in missing if POLICIES[name].__module__.startswith("suffice.")}
    assert not ours, f"{ours}: give it a ladder in bench/page/ladders.py, or say here why it is no rule by itself"


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_rule_as_published_is_one_that_is_judged(kind: Kind) -> None:
    ladders = build_all_ladders(kind, longest=40, full_tokens=[100.0])
    assert set(published_rungs(kind)) <= {family_of(ladder.name) for ladder in ladders}
    assert "beta" in published_rungs(kind)


@pytest.mark.parametrize("name", ["sprt", "msprt"])
def test_the_rungs_of_a_sequential_test_take_one_equal_sample_less_each(name: str) -> None:
    (ladder,) = (one for one in build_all_ladders("samples", longest=40, full_tokens=[9.0]) if one.name == name)
    for rung, n in zip(ladder.rungs, range(12, 0, -1), strict=True):
        votes = np.arange(1.0, 13.0)
        columns = {"answer": np.zeros(12), "top_votes": votes, "second_votes": np.zeros(12), "step": votes}
        assert np.flatnonzero(rung.policy.stops(columns) == SUFFICES)[0] + 1 == n  # type: ignore[attr-defined]


def test_a_figure_comes_from_a_cell_and_what_was_not_run_says_so() -> None:
    page = "kept\n<!-- figures: papers -->\nold\n<!-- end -->\nkept, too\n"
    without = render(page, Found({}))
    assert "old" not in without
    assert without.startswith("kept\n")
    assert without.endswith("kept, too\n")
    assert without.count(f"| {NOT_RUN} |") == len(CLAIMS)
    study = {"as_published": {"esc": {"saved": 0.123, "drop": 0.0456}}, "never": []}
    displayed = render(page, Found({Cell("sc_lastletters_gpt35", "study"): study}))
    assert "12.3\N{NO-BREAK SPACE}% | +4.56 |" in displayed
    assert render(displayed, Found({})) == without, "writing it again leaves nothing behind"


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(KeyError):
        render("<!-- figures: nothing -->\n<!-- end -->", Found({}))


def test_the_page_shows_the_cells_that_are_kept() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(page, Found(read_cells())), "run make benchmarks ARGS=--table"


# ---- how it is made


class Noting:
    """Makes nothing, and remembers what it was asked for; a part may be missing."""

    def __init__(self, missing: str = "") -> None:
        self.made: list[Cell] = []
        self.missing = missing

    def make(self, cell: Cell) -> Line | None:
        if cell.part == self.missing:
            return None
        self.made.append(cell)
        return {"saved": 0.5}


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    results, wanted = tmp_path / "page.jsonl", cells.list_cells(["a", "b"], n_seeds=7, n_again=1)
    assert len(set(wanted)) == len(wanted)

    def write(cell: Cell, line: Line, cpu_s: float) -> None:
        write_cell(cell, line, cpu_s, results)

    first: Any = Noting(missing="e-valuator")
    left = cells.compute(wanted, first, write, until=time.monotonic() + 60)
    there = read_cells(results)
    assert set(there) == set(first.made) == {cell for cell in wanted if cell.part != "e-valuator"}
    assert left == len(wanted) - len(there)
    results.write_text(results.read_text() + '{"set": "a", "part', encoding="utf-8")  # killed while it wrote
    assert read_cells(results) == there
    again: Any = Noting()
    assert cells.compute([c for c in wanted if c not in there], again, write, until=time.monotonic() + 60) == 0
    assert set(read_cells(results)) == set(wanted)
    assert all(cell.part == "e-valuator" for cell in again.made)
    assert cells.compute(wanted, again, write, until=time.monotonic()) == len(wanted), "no time, no cell"


def test_every_set_gets_some_streams_before_any_gets_more() -> None:
    order = cells.list_cells(["a", "b"], n_seeds=10, n_again=2)
    assert [cell.part for cell in order[:6]] == ["study", "e-valuator", "bargain"] * 2
    place = {cell: at for at, cell in enumerate(order)}
    ours = [Cell(name, "ours", "once", 0.01, seed) for name in "ab" for seed in range(10)]
    early, late = (
        [place[cell] for cell in ours if (cell.seed < cells.SEEDS_AT_ONCE) == first] for first in (True, False)
    )
    assert max(early) < min(late)


@pytest.mark.slow
def test_without_traces_the_sets_in_the_box_are_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("SUFFICE_TRACES", raising=False)
    page, results = tmp_path / "page.md", tmp_path / "page.jsonl"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    given = ["--only", "own_samples", "--seeds", "1", "--again", "0", "--results", str(results), "--page", str(page)]
    assert main(given) == 0
    assert "only the sets in the box" in capsys.readouterr().err
    assert {cell.part for cell in read_cells(results)} >= {"study", "ours", "rules", "reference"}
    displayed = page.read_text(encoding="utf-8")
    assert "[own_samples](#own_samples)" in displayed
    assert "[sc_epoch_gpqa]" not in displayed, "a set that was not run is not shown"
    assert main(given) == 0
    assert "0 cells computed" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == displayed


# ---- what a cell is


def test_a_vote_ends_where_it_is_decided_although_no_rule_stops_it(tmp_path: Path) -> None:
    runs = streams.OpenSet(made_set(tmp_path)).runs
    nested = nest(Study(runs, (), ReplayOptions(scores=())))
    rule, none = nested.hindsight(LadderPool("none", ()), 0.01)
    assert rule == "never"
    assert none.of("tokens").sum() == runs.cost[runs.last].sum() < runs.full_tokens.sum()


def test_ours_is_what_suffice_replay_online_says(tmp_path: Path) -> None:
    opened = streams.OpenSet(made_set(tmp_path, n_runs=400))
    mine = streams.serve_ours(opened, "once", 0.02, 3)
    theirs = run_seed(OnlineOptions(max_em_drop=0.02), opened.traffic, 3)
    assert (mine["saved"], mine["saved_late"]) == (theirs.reduction, theirs.reduction_late)
    assert (mine["drop_late"], mine["audits"], mine["alarms"]) == (theirs.drop_late, theirs.audits, theirs.alarms)
    assert mine["in_force"] <= mine["best_level"] or mine["in_force"] == 0


def test_a_fixed_policy_costs_and_loses_online_what_replay_says(tmp_path: Path) -> None:
    opened = streams.OpenSet(made_set(tmp_path))
    runs, rungs = opened.runs, published_rungs("samples")
    assert set(opened.rules) == set(rungs)
    for name, rung in rungs.items():
        traffic = opened.rules[name].runs
        row = FIXED.rows_at(traffic, 1)
        replayed = sum_halts(runs, [halts_of(rung, runs)])
        assert traffic.cost[row].sum() == pytest.approx(replayed.of("tokens").sum())
        assert traffic.z[row].sum() == replayed.drop.sum()


def test_a_harmful_policy_is_never_used(tmp_path: Path) -> None:
    opened = streams.OpenSet(made_set(tmp_path))
    harmful = streams.OpenSet.__new__(streams.OpenSet)
    always = traffic_of(audits([[0.9, 0.9]] * 2_000, z=[[1, 0]] * 2_000))
    harmful.traffic, harmful.rules = always, {"first": replace(always, runs=stop_at_once(always.runs))}
    harmful.runs, harmful.data = opened.runs, opened.data
    served = streams.serve_rules(harmful, "once", 0.02, 0)["rules"]["first"]
    assert served["drop_late"] == 0


def stop_at_once(runs: Any) -> Any:
    return replace(runs, x=np.ones((len(runs.x), 1)))


def test_the_reference_stops_where_nothing_is_lost_and_never_where_all_is() -> None:
    n = 1_200
    safe = traffic_of(audits([[0.9, 0.9]] * n))
    harmful = traffic_of(audits([[0.9, 0.9]] * n, z=[[1, 0]] * n))
    half = streams.late_half(safe, *reference.reference_rows(safe, np.random.default_rng(0), 0.02))
    assert half["saved_late"] == pytest.approx(0.5 * 0.95 - 5 / 200, abs=0.02), "all but the audits stop at half"
    assert half["drop_late"] == 0
    never = streams.late_half(harmful, *reference.reference_rows(harmful, np.random.default_rng(0), 0.02))
    assert (never["saved_late"], never["drop_late"]) == (pytest.approx(-5 / 200), 0)


def test_a_step_without_a_score_keeps_the_last_one() -> None:
    runs: Any = SimpleNamespace(
        kind="reasoning",
        columns=SimpleNamespace(values={"confidence": np.array([np.nan, 0.8, np.nan, np.nan, 0.3])}),
        starts=np.array([0, 3, 5]),
        n_steps=np.array([3, 2]),
    )
    assert competitor.verifier_score(runs) == pytest.approx([0.5, 0.8, 0.8, 0.5, 0.3])
    runs.columns.values["confidence"][:] = np.nan
    assert competitor.verifier_score(runs) is None


@pytest.mark.slow
def test_e_valuator_gives_up_few_runs_that_succeed(tmp_path: Path) -> None:
    pytest.importorskip("evaluator", reason="needs requirements/bench.txt")
    opened = streams.OpenSet(made_set(tmp_path, n_runs=3_000, n_questions=1_500))
    rng, runs = np.random.default_rng(0), opened.runs
    score = np.clip(np.where(runs.full_ok, 0.8, 0.2)[runs.run_of_row] + rng.normal(0, 0.1, len(runs.cost)), 0, 1)
    which = rng.permutation(len(runs))
    rejected, note = competitor.reject(runs, score, which[:2_000], which[2_000:], [0.05])[0.05]
    given_up = np.unique(runs.run_of_row[rejected])
    assert not note
    assert runs.full_ok[given_up].sum() / 1_000 <= 0.05
    assert len(given_up) > 0.5 * (~runs.full_ok[which[2_000:]]).sum()


def test_e_values_are_those_of_the_package(tmp_path: Path) -> None:
    evaluator = pytest.importorskip("evaluator", reason="needs requirements/bench.txt")
    runs = streams.OpenSet(made_set(tmp_path, n_runs=300)).runs
    score = np.random.default_rng(0).random(len(runs.cost))
    frame = competitor._frame(runs, score, np.arange(300))
    theirs, ours = evaluator.EValuator(alphas=[0.3]), competitor.build_test()(alphas=[0.3])
    for test in (theirs, ours):
        test.fit(frame)
    assert ours.thresholds == pytest.approx(theirs.thresholds)
    assert ours.apply(frame)["PAC_e_val"].to_numpy() == pytest.approx(theirs.apply(frame)["PAC_e_val"].to_numpy())
