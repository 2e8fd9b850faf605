"""Whatever becomes of requests, each publication of a log is rebuilt to the bit, and the verifier comes to the same."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tools import verify_bundle as verifier

from suffice.assurance.sampling import UnloggedRequests
from suffice.cli.main import main
from suffice.errors import ConfigError, StoreError
from suffice.settings import Settings
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import Event, FeedbackEvent, RequestCount, key_of
from suffice.types import Outcome, Request
from suffice.wiring.evidence import write_bundle
from tests.audit_bundle.made import BURST, ROUTE, SHARE, events, fill, made_log, settings_of

OWNED = {"policy": {"policy": "beta", "threshold": 0.9}}


def plain() -> Iterator[Event]:
    yield from events()


def observed() -> Iterator[Event]:
    """Some time after the burst nothing acts any more: every run is seen in full, whatever was drawn for it."""
    for number, event in enumerate(events()):
        if isinstance(event, Request) and number > 4 * BURST:
            yield replace(event, mode="observe")
        else:
            yield event


def sampled() -> Iterator[Event]:
    """Of live runs a third has no rows, and is counted now and then."""
    rng, gone, n_waiting, n_counts = random.Random(1), set[str](), 0, 0
    for event in events():
        if isinstance(event, Request):
            if not event.audit and rng.random() < 1 / 3:
                gone.add(event.episode_id)
                n_waiting += 1
            else:
                yield replace(event, keep_rate=2 / 3, kept_by="" if event.audit else "lot")
        elif key_of(event) not in gone:
            yield event
        if n_waiting > 9:
            n_counts += 1
            yield counted(n_counts, n_waiting)
            n_waiting = 0


def counted(number: int, n: int) -> RequestCount:
    cell = UnloggedRequests(query_class="", version="", ungoverned="", n=n, ends=(("done", n),))
    return RequestCount(count_id=f"c{number}", route="r", n_requests=n, n_governed=n, cells=(cell,), audit_share=SHARE)


def repeated() -> Iterator[Event]:
    """Every tenth request is delivered twice, and every tenth passes through untouched."""
    for event in events():
        yield event
        if isinstance(event, Request) and event.episode_id.endswith("7"):
            yield replace(event, episode_id=f"{event.episode_id}-2", delivery=2)
            yield replace(event, episode_id=f"{event.episode_id}-3", ungoverned="images")


def thoughts() -> Iterator[Event]:
    """Chains of thought. Audits compare what a finish delivers, and one in fifty changes the answer."""
    for n, event in enumerate(events()):
        if isinstance(event, Request):
            yield replace(event, kind="reasoning", n_samples=1)
        elif isinstance(event, Outcome) and event.end_reason == "done":
            answer = event.steps[3].answer if n % 50 else "another"
            yield replace(event, finish_step=4, finish_answer=answer)
        else:
            yield event


def named_by_response() -> Iterator[Event]:
    """Labels name their run by the id of the response."""
    for event in events():
        if isinstance(event, FeedbackEvent):
            given = replace(event.feedback, response_id=f"r-{event.feedback.episode_id}", episode_id=None)
            yield FeedbackEvent(given)
        else:
            yield event


WORLDS: dict[str, tuple[Callable[[], Iterator[Event]], dict[str, Any]]] = {
    "plain": (plain, {}),
    "observed": (observed, {}),
    "sampled": (sampled, {}),
    "repeated": (repeated, {}),
    "thoughts": (thoughts, {"kind": "reasoning", "samples": 1, "max_em_drop": 0.5}),
    "named by response": (named_by_response, {}),
    "owned": (plain, OWNED),
}


def bundles(settings: Settings, folder: Path) -> Iterator[tuple[list[dict[str, Any]], Path]]:
    """The bundle of each publication that rests on audits, and its file."""
    for number in range(1, read_decided(folder / "log.db").of("r").n_publications + 1):
        try:
            lines = write_bundle(settings, "r", number, where="b", author="ann", reason="")
        except ConfigError:
            continue
        (folder / "bundle.jsonl").write_bytes(b"".join(lines))
        yield [json.loads(line) for line in lines], folder / "bundle.jsonl"


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("case", WORLDS)
def test_every_publication_is_rebuilt_and_verified(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, route = WORLDS[case]
    settings, n, seen = made_log(tmp_path, None if log is plain else log(), **route), 0, set[str]()
    for lines, file in bundles(settings, tmp_path):
        code = verifier.main([str(file), "--head", str(tmp_path / "heads.jsonl")])
        reported = capsys.readouterr().out
        assert code == 0, reported
        n += lines[0]["level"] > 0
        seen |= {name for line in lines for name in line} | {line["type"] for line in lines}
        seen |= {"finish"} if lines[0]["charges"]["finish"] else set()
    assert n > 0, "no level was ever certified"
    marks = {
        "observed": "mode",
        "sampled": "unrecorded",
        "repeated": "delivery",
        "thoughts": "finish",
        "named by response": "response_id",
        "owned": "end_seq",
    }
    assert marks.get(case, "label") in seen, "the world has not happened"


@pytest.mark.slow
def test_audits_that_a_change_of_promise_gave_up_count_as_lost_whatever_they_came_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = list(events())
    half = next(
        n
        for n, event in enumerate(log, 1)
        if isinstance(event, Request) and event.audit and event.episode_id >= "ep_00400"
    )
    made_log(tmp_path, log[:half])
    settings = settings_of(tmp_path, max_em_drop=0.12)
    fill(settings, ())  # the promise changes while audits are on their way
    fill(settings, log[half:])
    held = read_decided(tmp_path / "log.db").of("r")
    assert held.epoch is not None
    given_up = {number for number, _ in held.epoch.pending}
    assert (held.n_epochs, len(given_up) > 0) == (2, True)
    lines = write_bundle(settings, "r", held.n_publications, where="b", author="ann", reason="")
    (tmp_path / "bundle.jsonl").write_bytes(b"".join(lines))
    code = verifier.main([str(tmp_path / "bundle.jsonl"), "--head", str(tmp_path / "heads.jsonl")])
    assert code == 0, capsys.readouterr().out
    report = {line["n"]: line["status"] for line in map(json.loads, lines) if "status" in line}
    assert {report[number] for number in given_up} == {"pending"}


@pytest.mark.slow
def test_no_answer_and_no_question_leaves_the_log(tmp_path: Path) -> None:
    settings = made_log(tmp_path)
    lines = write_bundle(settings, "r", None, where="b", author="ann", reason="")
    known = {
        "type",
        "n",
        "id",
        "seq",
        "digest",
        "at",
        "unit",
        "audit",
        "p",
        "end_seq",
        "end_digest",
        "status",
        "why",
        "d",
        "z",
        "label",
        "right",
        "clusters",
    }
    for line in map(json.loads, lines):
        if line["type"] == "request":
            assert set(line) <= known
        if line["type"] == "row":
            assert json.loads(line["kept"]).get("feedback", {}).get("gold") is None


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    made_log(folder)
    route = "\n".join(f"{name} = {json.dumps(value)}" for name, value in ROUTE.items())
    (folder / "suffice.toml").write_text(
        f"""
[upstreams.up]
url = "http://127.0.0.1:9"
[routes.r]
{route}
[routes.idle]
upstream = "up"
[store]
url = "sqlite:///{folder / "log.db"}"
[audit]
file = "{folder / "heads.jsonl"}"
[control]
tick_requests = 20
burst_requests = {BURST}
refit_requests = 200
window_audits = 400
""",
        encoding="utf-8",
    )
    return folder / "suffice.toml"


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.slow
def test_a_bundle_is_written_to_a_file_and_told_in_the_audit_log(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, heads = config.with_name("b.jsonl"), config.with_name("heads.jsonl")
    done = call("audit", "bundle", "r", "--config", config, "--out", out, "--author", "ann", "--reason", "year end")
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"[\d,]+ lines written to .*b\.jsonl\n", done.output)
    assert verifier.main([str(out), "--head", str(heads)]) == 0, capsys.readouterr().out
    last = json.loads(call("audit", "show", "--config", config, "-n", "1", "--json").output)
    assert (last["kind"], last["who"], last["why"]) == ("exported", "ann", "year end")
    assert last["after"].startswith("evidence of publication ")
    assert call("audit", "verify", "--config", config).exit_code == 0, "the head behind the bundle is signed"


def test_standard_output_holds_the_bundle_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call("audit", "bundle", "r", "--config", config, "--publication", "1")
    assert done.exit_code == 0, done.output
    out = config.with_name("one.jsonl")
    out.write_bytes(done.stdout_bytes)
    assert verifier.main([str(out)]) == 2
    assert "no head was kept elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nobody",), "route 'nobody' is not in the settings; there are idle, r"),
        (("idle",), "route idle: publications: none yet"),
        (("r", "--publication", "99"), "got 99"),
    ],
)
def test_what_cannot_be_bundled_is_said_and_leaves_no_row(config: Path, words: tuple[str, ...], says: str) -> None:
    before = call("audit", "show", "--config", config, "-n", "1", "--json").output
    done = call("audit", "bundle", "--config", config, *words)
    assert done.exit_code == 2
    assert says in done.output
    assert call("audit", "show", "--config", config, "-n", "1", "--json").output == before


@pytest.mark.slow
def test_a_log_that_was_rewritten_before_the_export_does_not_lead_to_its_publications(tmp_path: Path) -> None:
    settings = made_log(tmp_path)
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as connection:
        connection.execute(
            "UPDATE events SET body = json_set(body, '$.outcome.steps', json('[]')) WHERE kind = 'outcome'"
        )
    with pytest.raises(StoreError, match="cannot be rebuilt"):
        write_bundle(settings, "r", None, where="b", author="ann", reason="")
