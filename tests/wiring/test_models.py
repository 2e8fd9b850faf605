"""A route names a learned model by its file: it is read beside the settings, and every mistake has its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.errors import ConfigError
from suffice.model.artefact import StopModel, TrainingRecord, dump_model
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.compose import AnyOf, RunBounds
from suffice.policy.learned import LearnedPolicy
from suffice.policy.protocol import Policy
from suffice.wiring.files import load_settings
from suffice.wiring.routes import build_route

MODEL = StopModel(
    features=("logit(confidence)",),
    suffices=Ensemble((Linear((1.0,), 0.0),)),
    trained=TrainingRecord(n_episodes=9, n_questions=3, digest="", target="suffices", seed=0),
)
LEARNED = '{ policy = "learned", model = "models/stop.json", threshold = 0.1 }'
NEVER = '{ policy = "never" }'
NESTED = f'{{ policy = "guarded", inner = {{ policy = "any-of", policies = [{NEVER}, {LEARNED}] }} }}'


def write(folder: Path, policy: str, model: bytes | None = None) -> Path:
    """A settings file with the policy on its only route, and the model in a folder beside it."""
    (folder / "models").mkdir(exist_ok=True)
    if model is not None:
        (folder / "models" / "stop.json").write_bytes(model)
    file = folder / "suffice.toml"
    file.write_text(f'[upstreams.up]\nurl = "http://127.0.0.1:1"\n[routes.r]\nupstream = "up"\npolicy = {policy}\n')
    return file


def built(file: Path) -> Policy:
    return build_route("r", load_settings(file).routes["r"]).serving.policy


def test_a_model_is_read_beside_the_settings_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")  # not relative to where the program runs
    expected = LearnedPolicy(model=MODEL, threshold=0.1)
    assert built(write(tmp_path, LEARNED, dump_model(MODEL))) == expected
    nested = built(write(tmp_path, NESTED))
    assert isinstance(nested, RunBounds)
    assert isinstance(nested.inner, AnyOf)
    assert nested.inner.policies[1] == expected
    assert built(write(tmp_path, LEARNED.replace("models/", f"{tmp_path}/models/"))) == expected


def test_settings_are_shown_with_the_models_address_in_place_of_its_numbers(tmp_path: Path) -> None:
    displayed = CliRunner().invoke(main, ["config", "show", str(write(tmp_path, NESTED, dump_model(MODEL)))])
    assert displayed.exit_code == 0, displayed.output
    learned = json.loads(displayed.stdout)["routes"]["r"]["policy"]["inner"]["policies"][1]
    assert learned == {"policy": "learned", "model": MODEL.address, "threshold": 0.1}


@pytest.mark.parametrize(
    ("policy", "model", "place", "message"),
    [
        (LEARNED, None, "policy.learned.model", "cannot be read (No such file or directory)"),
        (LEARNED, b"\x00", "policy.learned.model", "cannot be read as JSON"),
        (
            LEARNED,
            dump_model(MODEL).replace(b'"seed":0', b'"seed":-1'),
            "policy.learned.model",
            "model.trained.seed: got -1",
        ),
        (
            NESTED,
            b"{}",
            "policy.guarded.inner.any-of.policies[1].learned.model",
            "model: Object missing required",
        ),
        (LEARNED.replace("stop.json", ""), None, "policy.learned.model", "cannot be read (Is a directory)"),
        (LEARNED.replace("stop", "st\\u0000op"), None, "policy.learned.model", "cannot be read ("),
    ],
)
def test_a_model_that_cannot_be_used_is_named_with_its_file_and_both_places(
    tmp_path: Path, policy: str, model: bytes | None, place: str, message: str
) -> None:
    file = write(tmp_path, policy, model)
    checked = CliRunner().invoke(main, ["config", "check", str(file)])
    assert checked.exit_code == 2
    assert checked.stderr.startswith(f"suffice config check: {file}: routes.r.{place}: {tmp_path / 'models'}")
    assert message in checked.stderr


@pytest.mark.parametrize(
    "policy",
    [
        '"beta"',
        "[1]",
        "{ policy = 3 }",
        '{ policy = "learned" }',
        '{ policy = "learned", model = 3 }',
        '{ policy = "any-of", policies = 3 }',
        '{ policy = "guarded", inner = "learned" }',
    ],
)
def test_what_is_no_policy_at_all_is_refused_as_before(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ConfigError, match=r"routes\.r\.policy"):
        built(write(tmp_path, policy))


def test_policies_inside_policies_without_end_are_refused_and_read_no_file(tmp_path: Path) -> None:
    deep = LEARNED
    for _ in range(40):
        deep = f'{{ policy = "guarded", inner = {deep} }}'
    with pytest.raises(ConfigError, match="at most 8 deep"):
        built(write(tmp_path, deep))
