"""`suffice export finetune` as people call it: from traces, and from a log with its owner's texts."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.model.artefact import StopModel, TrainingRecord, canonical
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.folded_version import FoldedVersion
from suffice.replay.traces.read import own_traces
from suffice.settings import Store
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Epoch, Publication
from suffice.wiring.files import load_settings
from suffice.wiring.worker import open_decisions
from tests.learn.made import Simulation, episodes
from tests.simulators.contrib import install_contrib

STABLE = json.dumps({"policy": "stable-answer", "streak": 2})
CONFIG = """
[upstreams.local]
url = "http://127.0.0.1:9"
think_open = "[THINK]"
think_close = "[/THINK]"
[routes.r]
upstream = "local"
kind = "reasoning"
scorer = "number"
[routes.votes]
upstream = "local"
kind = "samples"
[store]
url = "sqlite:///{database}"
"""


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", "finetune", *map(str, arguments)])


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    install_contrib("suffice-finetune", tmp_path_factory.mktemp("site"), monkeypatch)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def log(folder: Path) -> Path:
    """A log of 120 runs, its settings beside it, and texts of all of them in which every other one agrees."""
    runs = episodes(120, seed=9, simulation=Simulation(audit_share=0.5))
    database = LogWriter(Store(url=f"sqlite:///{folder}/log.db"), now=lambda: 0.0)
    texts = []
    for n, item in enumerate(runs):
        request, outcome = item.episode.request, item.episode.outcome
        database.append(request)
        database.append(outcome)
        for label in item.labels:
            database.append(FeedbackEvent(replace(label.feedback, episode_id=request.episode_id)))
        texts.append(
            {
                "episode_id": request.episode_id,
                "prompt": f"question {n}",
                "answer": f"It is {outcome.answer}.",
                "steps": [f"step {step.index}. " for step in outcome.steps],
                "consent": n % 2 == 0,
            }
        )
    database.close()
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), "utf-8")
    (folder / "suffice.toml").write_text(CONFIG.format(database=folder / "log.db"), "utf-8")
    return folder


def test_recorded_traces_become_two_files_and_a_manifest_that_names_them(folder: Path) -> None:
    result = export(own_traces("reasoning"), "--policy", STABLE, "--consented", "--uncertified", "--out", "set")
    assert result.exit_code == 0, result.output
    train, val = lines(folder / "set/train.jsonl"), lines(folder / "set/val.jsonl")
    manifest = json.loads((folder / "set/manifest.json").read_text("utf-8"))
    assert (len(train), len(val)) == (manifest["n_train"], manifest["n_val"])
    assert not {line["prompt_group"] for line in train} & {line["prompt_group"] for line in val}
    assert manifest["cuts"]["kept"] > manifest["cuts"]["lost"] > 0
    assert manifest["n_uncertified"] == len(train) + len(val)
    for name, digest in manifest["files"].items():
        assert sha256((folder / "set" / name).read_bytes()).hexdigest() == digest
    assert manifest["sources"].keys() == {"own_reasoning.jsonl.gz"}
    assert str(folder) not in json.dumps(manifest)
    assert "of them not certified" in result.stdout
    assert sorted(path.name for path in (folder / "set").iterdir()) == ["manifest.json", "train.jsonl", "val.jsonl"]


def test_the_same_call_writes_the_same_bytes(folder: Path) -> None:
    arguments = (own_traces("reasoning"), "--policy", STABLE, "--consented", "--uncertified", "--format", "preference")
    first, second = (export(*arguments, "--out", out, "--json") for out in ("a", "b"))
    assert first.exit_code == second.exit_code == 0
    for name in ("train.jsonl", "val.jsonl", "manifest.json"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
    assert json.loads(first.stdout)["shape"]["format"] == "preference"
    assert {"prompt", "chosen", "rejected"} <= set(lines(folder / "a/train.jsonl")[0])


def test_a_log_with_texts_gives_the_certified_stops_of_those_who_agreed(log: Path) -> None:
    result = export("--texts", "texts.jsonl", "--route", "r", "--out", "set")
    assert result.exit_code == 0, result.output
    results = [*lines(log / "set/train.jsonl"), *lines(log / "set/val.jsonl")]
    assert results
    for line in results:
        question, answer = line["messages"][0]["content"], line["messages"][-1]["content"]
        assert int(question.split()[1]) % 2 == 0
        assert answer.startswith("[THINK]\nstep 1. ")
        assert "[/THINK]" in answer
        assert line["stop"]["certified"]
        assert line["stop"]["policy_version"] == "p-1"
    assert "no consent" in result.stdout
    # The owner's word does not speak for who refused.
    again = export("--texts", "texts.jsonl", "--route", "r", "--out", "again", "--consented", "--json")
    assert json.loads(again.stdout)["n_train"] == len(lines(log / "set/train.jsonl"))


def test_consent_may_be_listed_and_withdrawn_later(log: Path) -> None:
    stripped = [json.loads(line) for line in (log / "texts.jsonl").read_text("utf-8").splitlines()]
    text = "".join(json.dumps({k: v for k, v in one.items() if k != "consent"}) + "\n" for one in stripped)
    (log / "texts.jsonl").write_text(text, "utf-8")
    (log / "agreed.txt").write_text("".join(f"{one['episode_id']}\n" for one in stripped), "utf-8")
    whole = json.loads(export("--texts", "texts.jsonl", "--route", "r", "--consent", "agreed.txt", "--json").stdout)
    with (log / "agreed.txt").open("a") as file:
        file.writelines(json.dumps({"key": one["episode_id"], "consent": False}) + "\n" for one in stripped[:60])
    fewer = json.loads(export("--texts", "texts.jsonl", "--route", "r", "--consent", "agreed.txt", "--json").stdout)
    assert whole["left_out"].get("no consent") is None
    assert 0 < fewer["n_prompts"] < whole["n_prompts"]
    assert fewer["left_out"]["no consent"] + fewer["n_prompts"] == whole["n_prompts"]


def test_traces_are_cut_at_the_certified_level_that_is_in_force(log: Path) -> None:
    """By the model of the prompt's fold, at its threshold; of another model nothing is certified."""
    model = StopModel(
        features=("logit(confidence)", "log1p(answer_streak)"),
        suffices=Ensemble((Linear((0.8, 1.5), -1.0),)),
        trained=TrainingRecord(n_episodes=1, n_questions=1, digest="", target="as-good", seed=0),
    )
    version = FoldedVersion(models=(model,) * 5, levels=((0.05, 0.2),) * 5)
    epoch = Epoch(route="r", number=1, at=0, since_seq=0, reason="cold start", author="worker")
    made = Publication(
        route="r",
        number=1,
        epoch=1,
        at=9,
        version=version.address,
        fit=version.address,
        level=2,
        n_levels=3,
        certified=True,
        share=0.1,
        reason="the test has accepted it",
        author="worker",
        upstream=(("qwen2.5-coder-0.5b-instruct-q4_k_m", "qwen", "f"),),
    )
    kept = {version.address: canonical(version.plain()).decode()}
    with open_decisions(load_settings(log / "suffice.toml")) as writer:
        writer.write(None, [epoch, made], kept)
    result = export(own_traces("reasoning"), "--route", "r", "--consented", "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert results["stops"] == {f"{version.address}@2": results["n_train"] + results["n_val"]}
    assert results["n_uncertified"] == 0
    strange = export(own_traces("reasoning"), "--route", "r", "--consented", "--policy", STABLE)
    assert "stopped by what was not certified" in strange.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs recorded TRACES, or --texts"),
        (("TRACES",), "Name a --policy, or settings"),
        (("TRACES", "--policy", "stable-answer"), "--uncertified takes them all the same"),
        (("TRACES", "--policy", "stable-answer", "--uncertified"), "list ids that agreed with --consent"),
        (("TRACES", "--policy", "{", "--consented"), "--policy: is not JSON"),
        (("TRACES", "--policy", "nonsense", "--consented"), "unknown name 'nonsense'"),
        (("TRACES", "--policy", "never", "--consented", "--uncertified"), "300 never stopped"),
        (("TRACES", "--policy", "never", "--answer", "so"), "--answer: must hold {answer}"),
        (("--texts", "missing.jsonl", "--db", "missing.db"), "missing.jsonl: cannot be read"),
        (("missing.jsonl", "--policy", "never"), "missing.jsonl"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence_and_nothing_is_written(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = export(*(own_traces("reasoning") if one == "TRACES" else one for one in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(folder.iterdir())


def test_a_route_must_be_plain(log: Path) -> None:
    both = CONFIG.replace('kind = "samples"', 'kind = "reasoning"')
    (log / "suffice.toml").write_text(both.format(database=log / "log.db"), "utf-8")
    result = export("--texts", "texts.jsonl")
    assert result.exit_code == 2
    assert "--route: name one; of kind reasoning are: r, votes" in result.stderr
    assert "unknown route 'x'" in export("--texts", "texts.jsonl", "--route", "x").stderr


def test_help_lists_the_command_once_it_is_there() -> None:
    listed = CliRunner().invoke(main, ["export", "--help"]).stdout
    assert "finetune" in listed
    assert "contrib/suffice-finetune" not in listed
