"""Cuts from logs and traces: at the stop, with the right answer, only with consent, and nothing that a stop hides."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.policy.base import build_policy
from suffice.replay.traces.read import own_traces
from suffice.store.database.views import EpisodeWithLabels, StoredLabel
from suffice.types import Feedback, Outcome
from suffice_finetune.cuts import (
    Consent,
    StoppingPolicy,
    Terms,
    Text,
    Texts,
    cut_log,
    cut_traces,
    read_consent,
    read_texts,
)
from suffice_finetune.pairs import CutRun
from tests.learn.made import GOLD, Simulation, episodes, match

ALL = Terms(consent=Consent(everybody=True))


def texts_for(items: list[EpisodeWithLabels], **fields: Any) -> Texts:
    """A text for each run, its thought cut as the log's steps are."""
    texts = Texts()
    for item in items:
        outcome = item.episode.outcome
        steps = tuple(f"step {step.index}. " for step in outcome.steps)
        text = Text(
            messages=({"role": "user", "content": f"question {item.seq}"},), steps=steps, answer=f"So: {outcome.answer}"
        )
        texts.by_id[f"episode_id {outcome.episode_id}"] = replace(text, **fields)
    return texts


def cut_all(items: list[EpisodeWithLabels], texts: Texts, terms: Terms = ALL) -> tuple[dict[str, CutRun], Counter[str]]:
    """Cuts by their question, and why others were left out."""
    left = Counter[str]()
    cuts = list(cut_log(items, texts, terms, match=match, left_out=left))
    return {str(cut.messages[0]["content"]): cut for cut in cuts}, left


LIVE = episodes(300, seed=4)


def test_a_cut_is_what_the_stop_saw_and_is_called_kept_or_lost_as_the_labels_say() -> None:
    cuts, left = cut_all(LIVE, texts_for(LIVE))
    assert len(cuts) + left.total() == len(LIVE)
    kinds = Counter[str]()
    for item in LIVE:
        cut, outcome = cuts.get(f"question {item.seq}"), item.episode.outcome
        if cut is None:
            continue
        assert outcome.stop_step is not None
        assert cut.thought == "".join(f"step {n}. " for n in range(1, outcome.stop_step + 1))
        assert cut.stop.step == outcome.stop_step
        right = outcome.would_answer == GOLD
        if outcome.stopped:
            assert (cut.kept, cut.rest, cut.full_answer, right) == (True, None, None, True)
        else:
            assert cut.kept == right
            assert cut.rest is not None
            assert GOLD in cut.answer
        kinds[f"{cut.stop.seen} {'kept' if cut.kept else 'lost'}"] += 1
    assert set(kinds) == {"stopped kept", "audit kept", "audit lost"}
    assert left["stopped and wrong: what the full run would have said is hidden"] > 5
    assert left["never stopped, nor would have been"] > 50


def run(**outcome: Any) -> EpisodeWithLabels:
    """An audit of five steps that would have been stopped at its second."""
    item = episodes(1, seed=0, simulation=Simulation(audit_share=1.0, labels="none", p_astray=0.0, p_fails=0.0))[0]
    steps = tuple(replace(item.episode.outcome.steps[0], index=n, answer=GOLD) for n in range(1, 6))
    report: dict[str, Any] = {"steps": steps, "stop_step": 2, "would_answer": GOLD, "answer": GOLD} | outcome
    return replace(item, episode=replace(item.episode, outcome=replace(item.episode.outcome, **report)))


def labelled(item: EpisodeWithLabels, **what: Any) -> EpisodeWithLabels:
    return replace(item, labels=(StoredLabel(seq=99, feedback=Feedback(feedback_id="f", **what)),))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (run(would_answer="7"), "stop and full run differ, and nobody said which is right"),
        (labelled(run(would_answer="7", answer="8"), gold=GOLD), "wrong both ways"),
        (labelled(run(), correct=False), "wrong both ways"),
        (run(answer=None, would_answer=None), "wrong both ways"),
        (run(stop_reason="hopeless"), "stopped as hopeless"),
        (run(stop_step=None), "never stopped, nor would have been"),
        (run(stop_step=5), "the stop is at the end of the thought"),
        (run(end_reason="client_left"), "the run is of no use (abandoned)"),
        (run(end_reason="timeout"), "the run is of no use (broken)"),
        (run(stopped=True, end_reason="stopped"), "stopped, and nobody said whether it was right"),
    ],
)
def test_what_is_not_known_is_not_taught(item: EpisodeWithLabels, why: str) -> None:
    cuts, left = cut_all([item], texts_for([item]))
    assert not cuts
    assert dict(left) == {why: 1}


def test_agreement_needs_no_label_and_a_gain_teaches_the_stops_own_answer() -> None:
    (agreed,) = cut_all([run()], texts_for([run()]))[0].values()
    assert (agreed.kept, agreed.labelled, agreed.answer) == (True, False, "So: 42")
    gained = labelled(run(answer="8"), gold=GOLD)
    (cut,) = cut_all([gained], texts_for([gained]), replace(ALL, answer="It is {answer}."))[0].values()
    assert (cut.kept, cut.labelled, cut.answer, cut.full_answer) == (True, True, "It is 42.", "So: 8")


def test_only_certified_stops_are_taken_unless_the_owner_takes_others_which_then_say_so() -> None:
    item = run()
    bare = replace(item, episode=replace(item.episode, request=replace(item.episode.request, certified=False)))
    assert cut_all([bare], texts_for([bare]))[1] == {"stopped by what was not certified": 1}
    (cut,) = cut_all([bare], texts_for([bare]), replace(ALL, uncertified=True))[0].values()
    assert not cut.stop.certified


def test_the_level_in_force_stands_in_the_provenance() -> None:
    item = run()
    request = replace(item.episode.request, policy_version="v-abc@12")
    levelled = replace(item, episode=replace(item.episode, request=request))
    (cut,) = cut_all([levelled], texts_for([levelled]))[0].values()
    assert (cut.stop.policy_version, cut.stop.level) == ("v-abc", 12)


def test_without_steps_a_cut_is_estimated_only_where_that_is_allowed_and_says_so() -> None:
    thought = "one two three\nfour five six\nseven eight nine\nten eleven twelve\nthe end of it\n"
    texts = texts_for([run()], steps=None, thought=thought)
    assert "estimated cuts" in next(iter(cut_all([run()], texts)[1]))
    (cut,) = cut_all([run()], texts, replace(ALL, estimate_cuts=True))[0].values()
    assert not cut.stop.exact
    assert cut.rest is not None
    assert cut.thought + cut.rest == thought
    assert cut.thought.endswith("\n")
    assert 0.3 < len(cut.thought) / len(thought) < 0.7  # two steps of five


def test_steps_that_are_too_few_are_another_runs() -> None:
    texts = texts_for([run()], steps=("one", "two"))
    assert cut_all([run()], texts)[1] == {"its text has fewer steps than the run": 1}


# --------------------------------------------------------------------------- consent


@pytest.mark.parametrize(
    ("consent", "reported", "given"),
    [
        (Consent(), None, False),  # silence is no consent
        (Consent(), True, True),
        (Consent(), False, False),
        (Consent(everybody=True), None, True),
        (Consent(everybody=True), False, False),  # who refuses is heard
        (Consent(listed={"e1": True}), None, True),
        (Consent(listed={"e1": False}), True, False),  # a withdrawal beats an agreement …
        (Consent(everybody=True, listed={"q1": False}), True, False),  # … by whichever id it names the run
        (Consent(listed={"e2": True}), None, False),
    ],
)
def test_only_who_agreed_is_learned_from(consent: Consent, reported: bool | None, given: bool) -> None:
    assert consent.given(reported, ("e1", None, "q1")) is given


def test_lists_of_consent_are_ids_or_objects_and_the_last_word_counts(tmp_path: Path) -> None:
    file = tmp_path / "agreed.txt"
    file.write_text('e1\n\ne2\n{"key": "e3", "consent": false}\n{"key": "e1", "consent": "no"}\n', "utf-8")
    assert read_consent(file) == {"e1": False, "e2": True, "e3": False}
    file.write_text('e1\n{"key": "e3"}\n', "utf-8")
    with pytest.raises(ConfigError, match=r"agreed.txt:2: needs"):
        read_consent(file)


def test_a_run_without_consent_is_left_out() -> None:
    assert cut_all([run()], texts_for([run()]), Terms(consent=Consent()))[1] == {"no consent": 1}
    assert len(cut_all([run()], texts_for([run()], consent=True), Terms(consent=Consent()))[0]) == 1


# --------------------------------------------------------------------------- texts


def write(folder: Path, *items: dict[str, Any]) -> Path:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return file


def test_texts_are_found_by_episode_by_response_and_prompts_by_their_key(tmp_path: Path) -> None:
    texts = read_texts(
        [
            write(
                tmp_path,
                {"episode_id": "e1", "thought": "t", "answer": "a", "consent": True},
                {"question_key": "q1", "prompt": "How many?"},
                {
                    "request": {"messages": [{"role": "user", "content": "Why?"}], "metadata": {"consent": "true"}},
                    "response": {"id": "r9", "choices": [{"message": {"content": "So.", "reasoning_content": "hmm"}}]},
                },
            )
        ]
    )
    own = texts.of(episode_id="e1", response_id=None, question_key="q1")
    assert own == Text(messages=({"role": "user", "content": "How many?"},), thought="t", answer="a", consent=True)
    logged = texts.of(episode_id="e2", response_id="r9", question_key="")
    assert logged is not None
    assert (logged.thought, logged.answer, logged.consent) == ("hmm", "So.", True)
    assert texts.of(episode_id="e3", response_id="r1", question_key="q2") is None
    assert texts.n_lines == 3


def test_a_refusal_of_the_prompt_or_of_the_run_is_a_refusal(tmp_path: Path) -> None:
    texts = read_texts(
        [
            write(
                tmp_path,
                {"episode_id": "e1", "thought": "t", "consent": True},
                {"question_key": "q1", "prompt": "p", "consent": False},
            )
        ]
    )
    own = texts.of(episode_id="e1", response_id=None, question_key="q1")
    assert own is not None
    assert own.consent is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "is not an object"),
        ("{", "is not JSON"),
        ('{"prompt": "p"}', "has none of episode_id, response_id, question_key"),
        ('{"episode_id": "e", "thought": 3}', "thought: must be a text"),
        ('{"episode_id": "e", "steps": "ab"}', "steps: must be a list"),
        ('{"episode_id": "e", "messages": ["hi"]}', "messages: must be"),
        ('{"episode_id": "e", "consent": "perhaps"}', "consent: must be true or false"),
        ('{"request": {}, "response": {"id": "r", "choices": []}}', "response: must hold one choice"),
    ],
)
def test_a_line_that_says_nothing_is_refused_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"episode_id": "e0"}}\n{line}\n', "utf-8")
    with pytest.raises(ConfigError, match=f"texts.jsonl:2: .*{message}"):
        read_texts([file])


# --------------------------------------------------------------------------- traces


def of_traces(terms: Terms, acting: StoppingPolicy | None = None) -> tuple[list[CutRun], Counter[str]]:
    stable = acting or StoppingPolicy(build_policy({"policy": "stable-answer", "streak": 2}), "p-1", None, None)
    left = Counter[str]()
    cuts = cut_traces([own_traces("reasoning")], lambda _: stable, terms, where=None, left_out=left)
    return list(cuts), left


def test_recorded_chains_are_cut_where_the_policy_stops_them_and_judged_by_their_gold() -> None:
    cuts, left = of_traces(replace(ALL, uncertified=True))
    assert len(cuts) + left.total() == 300
    assert {cut.kept for cut in cuts} == {True, False}
    for cut in cuts:
        assert cut.stop.seen == "recorded"
        assert cut.rest is not None
        assert cut.kept == (cut.stopped_answer == cut.answer)
        assert not cut.rest.rstrip().endswith(f"\n{cut.full_answer}")  # the answer is told apart from the thought


def test_a_recorded_run_is_certified_only_on_the_model_that_the_evidence_speaks_of() -> None:
    policy = build_policy({"policy": "stable-answer", "streak": 2})
    none, left = of_traces(ALL, StoppingPolicy(policy, "v-1", 3, frozenset({"another"})))
    assert not none
    assert set(left) == {"stopped by what was not certified"}
    cuts, _ = of_traces(ALL, StoppingPolicy(policy, "v-1", 3, frozenset({"qwen2.5-coder-0.5b-instruct-q4_k_m"})))
    assert cuts
    assert all(cut.stop.certified and cut.stop.level == 3 for cut in cuts)


def test_votes_cannot_be_cut() -> None:
    stable = StoppingPolicy(build_policy({"policy": "never"}), "p", None, None)
    with pytest.raises(ConfigError, match="only chains of thought"):
        list(cut_traces([own_traces("samples")], lambda _: stable, ALL, where=None, left_out=Counter()))


def test_an_outcome_is_all_that_is_read_of_a_run() -> None:
    """Nothing of the log but ids, places and answers comes into a cut: it has no text to give."""
    cut = next(iter(cut_all([run()], texts_for([run()]))[0].values()))
    assert isinstance(run().episode.outcome, Outcome)
    assert "q1" not in json.dumps([cut.thought, cut.rest, cut.answer, list(cut.messages)])
