"""A difference is read by people: every line says where, what it was and what it is."""

from __future__ import annotations

from dataclasses import replace

from suffice.rollout.versions import Version, diff_plain
from tests.rollout.made import LINEAGE, learned, learned_body, rule


def diff_versions(before: Version, after: Version) -> tuple[str, ...]:
    return diff_plain(before.plain(), after.plain())


def test_a_version_does_not_differ_from_itself() -> None:
    assert diff_versions(rule(), rule()) == ()
    assert diff_versions(learned(), learned()) == ()


def test_a_moved_threshold_is_one_line() -> None:
    assert diff_versions(rule(0.95), rule(0.9)) == ("body.threshold: 0.95 → 0.9",)


def test_what_is_there_on_one_side_only_is_said_so() -> None:
    lines = diff_versions(rule(), rule(model_family="qwen3-8b", report_card={"saving": 0.2}))
    assert "model_family: nothing → 'qwen3-8b'" in lines
    assert "report_card.saving: nothing → 0.2" in lines
    assert "model_family: 'qwen3-8b' → nothing" in diff_versions(rule(model_family="qwen3-8b"), rule())


def test_models_and_long_lists_are_named_and_not_poured_out() -> None:
    long = learned_body(0.7)
    long["levels"] = [[i / 100 for i in range(1, 41)] for _ in range(2)]
    lines = diff_versions(learned(), learned(long))
    models = [line for line in lines if line.startswith("body.models[0]: model ")]
    assert all(line.endswith(" of 2 features, target as-good") for line in models)
    assert models
    assert any("40 numbers from 0.01 to 0.4" in line for line in lines)
    assert all(len(line) < 200 for line in lines)


def test_signals_are_compared_by_name() -> None:
    lines = diff_versions(rule(), rule(body={"policy": "stable-answer"}))
    assert any(line.startswith("signals.votes: read") and line.endswith("→ nothing") for line in lines)
    assert any(line.startswith("signals.stability: nothing → read") for line in lines)


def test_a_long_text_is_cut_and_still_told_apart() -> None:
    long = "because " * 100
    lines = diff_versions(
        rule(lineage=replace(LINEAGE, why=f"{long}a")), rule(lineage=replace(LINEAGE, why=f"{long}b"))
    )
    assert len(lines) == 1
    before, after = lines[0].removeprefix("lineage.why: ").split(" → ")
    assert before != after
    assert len(before) <= 90


def test_lists_of_tables_are_walked() -> None:
    before, after = rule(report_card={"classes": [{"n": 1}]}), rule(report_card={"classes": [{"n": 2}]})
    assert diff_versions(before, after) == ("report_card.classes[0].n: 1 → 2",)


def test_a_report_card_may_use_the_same_words_for_something_else() -> None:
    before = rule(report_card={"signals": ["a"], "models": [1]})
    after = rule(report_card={"signals": "b", "models": []})
    assert diff_versions(before, after) == ("report_card.signals: ['a'] → 'b'", "report_card.models: [1] → nothing")
