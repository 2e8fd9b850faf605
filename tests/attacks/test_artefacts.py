"""Attacks by what is kept as data: versions, models, the last-good file. Nothing serves but what was made here."""

from __future__ import annotations

import copy
import gzip
import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suffice.control.evidence.versions import written
from suffice.errors import ConfigError, TraceError
from suffice.gateway import last_good
from suffice.gateway.last_good import LastGood
from suffice.model.artefact import StopModel, TrainingRecord, canonical, dump_model, load_model
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.folded_version import FoldedVersion as Models
from suffice.policy.folded_version import load_version, read_version
from suffice.policy.learned import LearnedPolicy
from suffice.replay.traces.read import own_traces, read_traces
from suffice.rollout.versions import check_address, open_version, seal_version
from suffice.store.database import schema
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.routes.rollouts import version_at
from suffice.types import Signals
from suffice_testing.trace_files import write_traces_parquet
from tests.model.forest import some_trees
from tests.rollout.made import SECRET, learned, learned_body, rule
from tests.rollout.test_versions import signed

CPU_S = 5.0  # of one artefact, however busy the machine is


# ---- what was signed -------------------------------------------------------------------------------------------------


def _parts(sealed: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    line, _, content = sealed.partition(b"\n")
    mark, address, signature = line.split(b" ")
    return mark, address, signature, content


def _joined(mark: bytes, address: bytes, signature: bytes, content: bytes) -> bytes:
    return b"%b %b %b\n%b" % (mark, address, signature, content)


def _unsigned(sealed: bytes) -> bytes:
    mark, address, _, content = _parts(sealed)
    return b"%b %b \n%b" % (mark, address, content)


def _no_line(sealed: bytes) -> bytes:
    return _parts(sealed)[3]


def _of_another_key(_: bytes) -> bytes:
    return seal_version(learned(), secret="another deployment's")


def _signature_of_another(sealed: bytes) -> bytes:
    mark, address, _, content = _parts(sealed)
    return _joined(mark, address, _parts(seal_version(rule(), secret=SECRET))[2], content)


def _content_of_another(sealed: bytes) -> bytes:
    mark, address, signature, _ = _parts(sealed)
    return _joined(mark, address, signature, _parts(seal_version(rule(), secret=SECRET))[3])


def _in_capitals(sealed: bytes) -> bytes:
    mark, address, signature, content = _parts(sealed)
    return _joined(mark, address, signature.upper(), content)


def _an_earlier_form(sealed: bytes) -> bytes:
    return sealed.replace(b"suffice-version/1", b"suffice-version/0", 1)


def _a_later_form(sealed: bytes) -> bytes:
    return sealed.replace(b"suffice-version/1", b"suffice-version/2", 1)


def _two_lines(sealed: bytes) -> bytes:
    return sealed.partition(b"\n")[0] + b"\n" + sealed


def _a_line_more(sealed: bytes) -> bytes:
    return sealed + b"\n"


def _carriage_return(sealed: bytes) -> bytes:
    return sealed.replace(b"\n", b"\r\n", 1)


def _a_last_good_file(_: bytes) -> bytes:
    return last_good.seal_last_good(LastGood(at_s=1.0, seq=1), secret=SECRET)


SIGNED = (
    _unsigned,
    _no_line,
    _of_another_key,
    _signature_of_another,
    _content_of_another,
    _in_capitals,
    _an_earlier_form,
    _a_later_form,
    _two_lines,
    _a_line_more,
    _carriage_return,
    _a_last_good_file,
)


@pytest.mark.parametrize("attack", SIGNED, ids=lambda attack: attack.__name__.strip("_"))
def test_a_version_that_was_not_sealed_here_is_never_opened(attack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ConfigError, match=r"^version: "):
        open_version(attack(seal_version(learned(), secret=SECRET)), secret=SECRET)


def test_a_sealed_version_of_another_address_is_not_the_one_that_was_asked_for() -> None:
    """An older, worse version of the same deployment is validly signed: only its address tells them apart."""
    older, newer = rule(0.6), rule(0.99)
    with pytest.raises(ConfigError, match="asked for was"):
        open_version(seal_version(older, secret=SECRET), secret=SECRET, address=newer.address)


@pytest.mark.parametrize(
    "address",
    [
        "../../../etc/passwd",
        "pv-../../x",
        "pv-" + "0" * 32 + "/..",
        "pv-" + "０" * 32,
        "pv-" + "0" * 32 + "\0",
        "pv-" + "A" * 32,
        " pv-" + "0" * 32,
        "pv-" + "0" * 32 + "' OR 1=1 --",
        "",
        "." * 35,
        "x" * 10**6,
    ],
    ids=lambda address: repr(address[:20]),
)
def test_nothing_but_an_address_becomes_one(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_address(address)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("attack", ["a sealed older one", "unsigned", "of another secret", "gone", "a blob"])
def test_a_row_of_artefacts_that_somebody_rewrote_does_not_serve(tmp_path: Path, attack: str) -> None:
    wanted, older = rule(0.99), rule(0.6)
    body: object = {
        "a sealed older one": seal_version(older, secret=SECRET).decode(),
        "unsigned": canonical(wanted.plain()).decode(),
        "of another secret": seal_version(wanted, secret="another").decode(),
        "a blob": seal_version(wanted, secret=SECRET)[:-1].decode(),
    }.get(attack)
    with closing(SqliteConnection(tmp_path / "log.db", isolation_level=None)) as log:
        schema.create(log, "log")
        if body is not None:
            columns = [row[1] for row in log.execute("PRAGMA table_info(artefacts)")]
            values = {"address": wanted.address, "body": body}
            log.execute(
                f"INSERT INTO artefacts ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                [values.get(name, 1) for name in columns],
            )
        with pytest.raises(ConfigError):
            version_at(log, wanted.address, secret=SECRET)


# ---- what is signed and wrong all the same ---------------------------------------------------------------------------


def _tree(**columns: list[Any]) -> dict[str, Any]:
    return {
        "feature": [0, -1, -1],
        "threshold": [0.5, 0, 0],
        "left": [1, 0, 0],
        "right": [2, 0, 0],
        "value": [0, 1, 2],
        **columns,
    }


def _chain_of(n: int) -> dict[str, Any]:
    """A tree that is as deep as it has splits."""
    feature, left, right = [0] * n + [-1] * (n + 1), [*range(1, n + 1), *[0] * (n + 1)], [*range(n + 1, 2 * n + 1)]
    right += [0] * (n + 1)
    return {
        "feature": feature,
        "threshold": [0.5] * (2 * n + 1),
        "left": left,
        "right": right,
        "value": [0.1] * (2 * n + 1),
    }


TREES: dict[str, dict[str, Any]] = {
    "a node that is its own child": _tree(left=[0, 0, 0]),
    "two nodes that are each other's": _tree(feature=[0, 0, 0], left=[1, 0, 0], right=[2, 2, 1]),
    "a child of two": _tree(left=[1, 0, 0], right=[1, 0, 0]),
    "a child beyond the end": _tree(right=[9, 0, 0]),
    "a child before the beginning": _tree(right=[-1, 0, 0]),
    "a leaf with a child": _tree(left=[1, 2, 0]),
    "a node of nobody": _tree(feature=[-1, -1, -1], left=[0, 0, 0], right=[0, 0, 0]),
    "no node": _tree(feature=[], threshold=[], left=[], right=[], value=[]),
    "columns of different lengths": _tree(value=[0, 1]),
    "a feature that there is not": _tree(feature=[7, -1, -1]),
    "a feature below all": _tree(feature=[-2, -1, -1]),
    "a feature that is true": _tree(feature=[True, -1, -1]),
    "a threshold of NaN": _tree(threshold=[math.nan, 0, 0]),
    "a threshold of infinity": _tree(threshold=[math.inf, 0, 0]),
    "a value beyond all sums": _tree(value=[0, 1e308, 2]),
    "a value of 400 digits": _tree(value=[0, 10**400, 2]),
    "a threshold as a text": _tree(threshold=["0.5", 0, 0]),
    "65 splits deep": _chain_of(65),
    "1,000 splits deep": _chain_of(1_000),
    "100,000 nodes": _chain_of(50_000),
}


def _with_part(part: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = copy.deepcopy(learned_body()["models"][0])
    plain["suffices"]["parts"] = [part]
    return plain


@pytest.mark.parametrize("attack", TREES)
def test_what_is_no_tree_is_refused_at_once(attack: str) -> None:
    plain, began_s = _with_part({"kind": "trees", "baseline": 0.0, "trees": [TREES[attack]]}), time.process_time()
    with pytest.raises(ConfigError) as refused:
        load_model(plain)
    assert time.process_time() - began_s < CPU_S
    assert len(str(refused.value)) < 300


MODELS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a kind that nobody knows": lambda plain: plain["suffices"]["parts"][0].update(kind="onnx"),
    "a kind with a path": lambda plain: plain["suffices"]["parts"][0].update(kind="../trees"),
    "17 parts": lambda plain: plain["suffices"].update(parts=plain["suffices"]["parts"] * 17),
    "2,001 trees": lambda plain: plain["suffices"].update(
        parts=[{"kind": "trees", "baseline": 0.0, "trees": [_tree()] * 2_001}]
    ),
    "20,001 features": lambda plain: plain.update(features=["confidence"] * 20_001),
    "a feature without end": lambda plain: plain.update(features=["(" * 1_999, "confidence"]),
    "code for a feature": lambda plain: plain.update(features=["__import__('os').system('true')", "confidence"]),
    "a schema of the future": lambda plain: plain.update(schema=4),
    "a schema of the past": lambda plain: plain.update(schema=0),
    "a schema that is true": lambda plain: plain.update(schema=True),
    "a schema as a fraction": lambda plain: plain.update(schema=1.0),
    "a weight of NaN": lambda plain: plain["suffices"]["parts"][0].update(weights=[math.nan, 0.0]),
    "a weight of infinity": lambda plain: plain["suffices"]["parts"][0].update(weights=[math.inf, 0.0]),
    "a weight beyond all sums": lambda plain: plain["suffices"]["parts"][0].update(weights=[1e301, 0.0]),
    "a key that no reader knows": lambda plain: plain["suffices"].update(calibration=None),
    "a cost that makes risks vanish": lambda plain: plain.update(cost={"exponent": 0.0, "scale": 1e300}),
    "a cost of nothing": lambda plain: plain.update(cost={"exponent": 0.0, "scale": 0.0}),
    "a class that always stops": lambda plain: plain.update(classes=[["easy", 1e9]]),
    "a class of NaN": lambda plain: plain.update(classes=[["easy", math.nan]]),
    "1,001 classes": lambda plain: plain.update(classes=[[str(n), 0.1] for n in range(1_001)]),
    "a training of fewer than none": lambda plain: plain["trained"].update(n_episodes=-1),
}


@pytest.mark.parametrize("attack", MODELS)
def test_what_is_no_model_is_refused_though_it_is_signed(attack: str) -> None:
    version = copy.deepcopy(learned().plain())
    for model in version["body"]["models"]:
        MODELS[attack](model)
    content = json.dumps(version, sort_keys=True, separators=(",", ":")).encode()
    began_s = time.process_time()
    with pytest.raises(ConfigError) as refused:
        open_version(signed(content), secret=SECRET)
    assert time.process_time() - began_s < CPU_S
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "body",
    [
        "[" * 200_000,
        '{"schema":1,"models":' + "[" * 100_000,
        "9" * 10_000,
        '{"schema": NaN}',
        "\ud800",
        "",
        "null",
        "[]",
        '{"schema":1,"schema":1}',
        " " * (32 * 2**20 + 1),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_kept_version_that_is_none_is_refused_in_a_sentence(body: str) -> None:
    began_s = time.process_time()
    with pytest.raises(ConfigError, match="v-0123456789ab"):
        read_version("v-0123456789ab", body)
    assert time.process_time() - began_s < CPU_S


def test_a_kept_version_with_another_level_is_another_one() -> None:
    models = load_version(learned_body())
    more = Models(models=models.models, levels=((0.1, 0.9), (0.1, 0.9)))
    with pytest.raises(ConfigError, match=f"what is kept under it is {more.address}"):
        read_version(models.address, written(more))


# ---- numbers that are allowed one by one -----------------------------------------------------------------------------


def _model(weights: tuple[float, ...], features: tuple[str, ...]) -> StopModel:
    return StopModel(
        features=features,
        suffices=Ensemble((Linear(weights, 0.0),)),
        trained=TrainingRecord(n_episodes=9, n_questions=3, digest="d", target="as-good", seed=0),
    )


@pytest.mark.parametrize("weights", [(1e300, -1e300), (-1e300, 1e300)], ids=str)
def test_weights_that_come_to_no_number_stop_no_run(weights: tuple[float, float]) -> None:
    """Each is in its range; the products overflow, and infinity less infinity is no number."""
    model = load_model(dump_model(_model((*weights, 0.0), ("tokens_used", "step", "confidence"))))
    seen = Signals(step=10**9, tokens_used=10**9, answer="7", confidence=0.95, agreement=0.9)
    assert model.suffices.score([1e9, 1e9, 0.95]) < 0.5
    assert LearnedPolicy(model=model, threshold=0.5).decide(seen).action == "continue"


def test_what_judges_the_evidence_decides_as_what_serves() -> None:
    """A model may not stop live where its own replay says that it does not: nothing would be certified."""
    rng = np.random.default_rng(0)
    for trees in (some_trees(rng, 3, 8), some_trees(rng, 30, 3)):
        model = StopModel(
            features=("step", "tokens_used", "confidence", "agreement", "unknown(confidence)"),
            suffices=Ensemble((trees, Linear((1e300, -1e300, 1e300, -1e300, 0.0), 0.0))),
            trained=TrainingRecord(n_episodes=9, n_questions=3, digest="d", target="as-good", seed=0),
        )
        policy = LearnedPolicy(model=model, threshold=0.5)
        rows = [
            Signals(step=n, tokens_used=n * 10**8, answer="7", confidence=rng.random(), agreement=rng.random())
            for n in range(1, 60)
        ]
        live = [policy.decide(one).action == "stop" for one in rows]
        table = np.array([[s.step, s.tokens_used, s.confidence, s.agreement, 0.0] for s in rows], dtype=np.float64)
        with np.errstate(all="ignore"):
            risks = 1.0 - model.suffices.scores(table)
        assert [bool(risk <= 0.5) for risk in risks] == live


# ---- the last-good file ----------------------------------------------------------------------------------------------

GOOD = LastGood(at_s=1_000.0, seq=7)


@pytest.mark.parametrize(
    ("now_s", "says"),
    [
        (1_000.0 + 3_601, "s old"),
        (1_000.0 - 61, "ahead"),
        (1e18, "s old"),
        (0.0, "ahead"),
    ],
)
def test_an_old_copy_put_back_is_served_for_its_hour_and_no_longer(now_s: float, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        last_good.open_sealed(last_good.seal_last_good(GOOD, secret=SECRET), secret=SECRET, now_s=now_s, most_s=3_600.0)


@pytest.mark.parametrize("attack", ["younger", "unsigned", "another secret", "a version", "deep", "cut", "a folder"])
def test_a_last_good_file_that_was_not_written_here_is_not_served(tmp_path: Path, attack: str) -> None:
    file, sealed = tmp_path / "log.db.good", last_good.seal_last_good(GOOD, secret=SECRET)
    if attack == "a folder":
        file.mkdir()
    else:
        line, _, content = sealed.partition(b"\n")
        file.write_bytes(
            {
                "younger": line + b"\n" + content.replace(b"1000.0", b"9000.0"),
                "unsigned": content,
                "another secret": last_good.seal_last_good(GOOD, secret="another"),
                "a version": seal_version(rule(), secret=SECRET),
                "deep": line + b"\n" + b"[" * 100_000,
                "cut": sealed[:-3],
            }[attack]
        )
    with pytest.raises(ConfigError, match=r"log\.db\.good"):
        last_good.read_last_good(file, secret=SECRET, now_s=1_001.0, most_s=3_600.0)


def test_recorded_runs_with_a_damaged_column_are_refused_and_end_no_process(tmp_path: Path) -> None:
    lines, runs = tmp_path / "runs.jsonl", tmp_path / "runs.parquet"
    with gzip.open(own_traces("reasoning")) as file:
        lines.write_bytes(b"".join(islice(file, 3)))
    write_traces_parquet(runs, read_traces([lines]))
    raw = runs.read_bytes()
    at = raw.rfind(b"<)6") + 2  # the histogram of a column's repetition levels: a list of three numbers
    runs.write_bytes(raw[:at] + b"\x13" + raw[at + 1 :])  # … that now has one
    with pytest.raises(TraceError, match="Repetition level histogram size mismatch"):
        list(read_traces([runs]))
