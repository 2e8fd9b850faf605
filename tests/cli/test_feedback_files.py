"""Labels from files and to files: all of a file or nothing, once or twice alike; and a Label Studio round trip."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click import Abort
from click.testing import CliRunner, Result
from tests.records import plain_request
from tests.simulators.contrib import install_contrib
from tests.simulators.label_studio import FakeLabelStudio

from suffice.cli.main import main
from suffice.review.imported_feedback import full_is_a
from suffice.settings import Store
from suffice.store.database.views import read_episodes, read_events
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Feedback, LabelRequest, Outcome, Request
from suffice.wiring.files import load_settings

SHAPES = Path(__file__).parents[1] / "review" / "shapes"
CONFIG = """
[upstreams.local]
url = "http://127.0.0.1:9"
[routes.r]
upstream = "local"
[store]
url = "sqlite:///{folder}/log.db"
[metrics.solved]
type = "boolean"
[metrics.clear]
type = "rating"
survey = "after"
[metrics.tone]
type = "category"
values = ["warm", "cold"]
[feedback]
park_days = 10
[feedback.langfuse.scores]
helpful = "thumbs"
"""


def write(folder: Path, *events: Event, at_s: float = 1.0) -> None:
    log = LogWriter(Store(url=f"sqlite:///{folder}/log.db"), now=lambda: at_s)
    for event in events:
        assert log.append(event)
    assert log.drain(10)
    log.close()


def ran(number: int, *, answer: str = "4", would: str | None = "5", mode: str = "observe") -> list[Event]:
    name = f"ep_{number}"
    request = plain_request(name, mode=mode, policy_version="", question_key=f"q{number}")
    outcome = Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer=answer,
        response_id=f"resp-{number}",
        usage=None,
        stop_step=2,
        would_answer=would,
    )
    return [request, outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUFFICE_SALT", "s")
    (tmp_path / "suffice.toml").write_text(CONFIG.replace("{folder}", str(tmp_path)), "utf-8")
    write(tmp_path, *(event for number in range(4) for event in ran(number)))
    return tmp_path


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def report_of(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json").stdout)


def kept(folder: Path) -> list[Feedback]:
    return [one.event.feedback for one in read_events(folder / "log.db") if isinstance(one.event, FeedbackEvent)]


TABLE = '''ticket,run,right,stars,metrics.solved,metrics.clear,metrics.tone,who,note
t1,ep_0,yes,4,true,5,warm,ann,"said ""hm"""
t2,ep_1,no,,false,,,bob,=HYPERLINK(1)
t3,ep_9,,1.0,,2,cold,,
'''
MAPPED = (
    "--map",
    "feedback_id=ticket",
    "--map",
    "episode_id=run",
    "--map",
    "correct=right",
    "--map",
    "rating=stars",
    "--map",
    "user=who",
    "--set",
    "source=reviewer",
)


def test_a_table_is_read_by_its_owners_columns_and_counts_once(folder: Path) -> None:
    (folder / "labels.csv").write_text(TABLE, "utf-8")
    first = report_of("feedback", "import", "labels.csv", *MAPPED)
    assert first == {
        "source": "labels.csv",
        "dry_run": False,
        "n_rows": 3,
        "n_ignored": 0,
        "n_new": 3,
        "n_known": 0,
        "n_conflicts": 0,
        "n_joined": 2,
        "unused": ["note"],
    }
    assert report_of("feedback", "import", "labels.csv", *MAPPED)["n_known"] == 3
    one, two, three = kept(folder)
    assert (one.correct, one.rating, one.metrics, one.satisfaction, one.source, one.door) == (
        True,
        4,
        (("clear", 5.0), ("solved", True), ("tone", "warm")),
        1.0,
        "reviewer",
        "import",
    )
    assert (two.correct, two.rating, two.metrics) == (False, None, (("solved", False),))
    assert (three.rating, three.satisfaction, three.user) == (1, 0.25, "")
    assert one.user != two.user
    assert len(one.user) == 16


def test_a_dry_run_says_the_same_and_writes_nothing(folder: Path) -> None:
    (folder / "labels.csv").write_text(TABLE + "t3,ep_9,,2,,,,,\n", "utf-8")
    dry = report_of("feedback", "import", "labels.csv", *MAPPED, "--dry-run")
    assert kept(folder) == []
    wet = report_of("feedback", "import", "labels.csv", *MAPPED)
    assert {**dry, "dry_run": False} == wet
    again = report_of("feedback", "import", "labels.csv", *MAPPED, "--dry-run")
    assert (again["n_new"], again["n_known"]) == (0, 4)
    assert [one["n_conflicts"] for one in (dry, wet, again)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ("t4,ep_2,perhaps,,,,,,", "row 4, right: correct: must be true or false"),
        ("t4,ep_2,,9,,,,,", "row 4, stars: rating: must be a whole number from 1 to 5"),
        ("t4,ep_2,,four,,,,,", "row 4, stars: rating: must be a number"),
        ("t4,,yes,,,,,,", "row 4, run: episode_id or response_id"),
        ("t4,ep_2,,,,9,,,", "row 4, metrics.clear: metrics.clear: must be a whole number from 1 to 5"),
        ("t4,ep_2,,,,,grim,,", "row 4, metrics.tone: metrics.tone: must be one of warm, cold"),
        ("t4,ep_2,,,,,,ann,", "row 4: feedback: is empty"),
        ("t4,ep_2,yes", "row 4: has 3 cells, and the header 9"),
    ],
)
def test_one_mistake_and_nothing_of_the_file_is_written(folder: Path, row: str, place: str) -> None:
    (folder / "labels.csv").write_text(TABLE + row + "\n", "utf-8")
    for more in ((), ("--dry-run",)):
        result = call("feedback", "import", "labels.csv", *MAPPED, *more, code=2)
        assert f"labels.csv, {place}" in result.stderr
    assert kept(folder) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--map", "colour=run"), "unknown field 'colour'; known: feedback_id"),
        (("--map", "gold=truth"), "there is no column 'truth'; there are: ticket, run"),
        (("--map", "gold"), "it is written FIELD=…"),
        (("--set", "source="), "it is written FIELD=…"),
        (("--form", "langfuse", "--set", "source=user"), "belong to the form suffice"),
        (("--config", "none.toml"), "none.toml: cannot be read"),
    ],
)
def test_an_option_that_cannot_be_is_a_sentence(folder: Path, options: tuple[str, ...], says: str) -> None:
    (folder / "labels.csv").write_text(TABLE, "utf-8")
    assert says in call("feedback", "import", "labels.csv", *options, code=2).stderr


def test_json_lines_and_parquet_say_the_same_as_a_table(folder: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = [
        {"feedback_id": "j1", "episode_id": "ep_0", "gold": 408, "rating": 5, "source": "exact-match"},
        {"feedback_id": "j2", "response_id": "resp-1", "gold": None, "rating": 2, "source": "user"},
    ]
    (folder / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    others = [{"response_id": None, "episode_id": None, **row, "feedback_id": f"p{n}"} for n, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(others), folder / "l.parquet")
    assert report_of("feedback", "import", "l.jsonl")["n_joined"] == 2
    assert report_of("feedback", "import", "l.parquet")["n_new"] == 2
    lines, parquet = kept(folder)[:2], kept(folder)[2:]
    assert (
        [(one.gold, one.rating) for one in lines]
        == [(one.gold, one.rating) for one in parquet]
        == [
            ("408", 5),
            (None, 2),
        ]
    )
    (folder / "m.jsonl").write_text('{"episode_id": "ep_0", "source": "user", "metrics": {"solved": true}}\n', "utf-8")
    assert report_of("feedback", "import", "m.jsonl")["n_new"] == 1
    assert report_of("feedback", "import", "m.jsonl")["n_known"] == 1, "a row without an id is known by what it says"


def test_what_was_written_before_a_kill_is_known_the_next_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suffice.cli.labels.feedback.BATCH_ROWS", 10)
    rows = [{"feedback_id": f"k{n}", "episode_id": f"ep_{n}", "thumbs": "up", "source": "user"} for n in range(35)]
    (folder / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    real, calls = LogWriter.append_durable, []

    async def dies(self: LogWriter, event: Event) -> Any:
        calls.append(event)
        if len(calls) > 25:
            raise KeyboardInterrupt
        return await real(self, event)

    monkeypatch.setattr(LogWriter, "append_durable", dies)
    with pytest.raises(Abort):
        CliRunner().invoke(main, ["feedback", "import", "l.jsonl"], catch_exceptions=False, standalone_mode=False)
    monkeypatch.setattr(LogWriter, "append_durable", real)
    n_before = len(kept(folder))
    assert 20 <= n_before < 35
    after = report_of("feedback", "import", "l.jsonl")
    assert (after["n_new"], after["n_known"]) == (35 - n_before, n_before)
    assert len({one.feedback_id for one in kept(folder)}) == len(kept(folder)) == 35


def test_scores_of_langfuse_are_imported_in_each_of_their_shapes(folder: Path) -> None:
    page = json.loads((SHAPES / "langfuse_scores_v3.json").read_text())
    (folder / "page.json").write_text(json.dumps({**page, "data": page["data"][:4]}), "utf-8")
    lines = (SHAPES / "langfuse_scores_export.jsonl").read_text("utf-8")
    (folder / "export.jsonl").write_text(lines, "utf-8")
    assert report_of("feedback", "import", "page.json", "--form", "langfuse")["n_new"] == 4
    assert report_of("feedback", "import", "export.jsonl", "--form", "langfuse")["n_new"] == 3
    rows = [json.loads(line) for line in lines.splitlines()]
    with (folder / "export.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert report_of("feedback", "import", "export.csv", "--form", "langfuse")["n_known"] == 3
    (folder / "page.json").write_text(json.dumps(page), "utf-8")
    refused = call("feedback", "import", "page.json", "--form", "langfuse", code=2)
    assert "page.json, row 5, name: name: unknown score 'toxicity'" in refused.stderr


# --------------------------------------------------------------------------- what waits


def test_feedback_on_ids_that_never_come_is_listed_and_becomes_a_dead_letter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 86_400.0
    monkeypatch.setattr("suffice.cli.labels.feedback.time.time", lambda: 12 * day)
    for name, at_s, episode, response in (
        ("old", day, "ep_never", None),
        ("new", 11.5 * day, None, "=cmd"),
        ("joined", day, "ep_0", None),
    ):
        given = Feedback(feedback_id=name, episode_id=episode, response_id=response, source="user", thumbs="up")
        write(folder, FeedbackEvent(given), at_s=at_s)
    displayed = call("feedback", "parked").stdout
    assert "1 wait for their request; 1 are dead letters, older than 10 days" in displayed
    assert "old  episode ep_never  user  11.0 days  dead letter" in displayed
    assert "new  response =cmd  user  0.5 days\n" in displayed
    rows = [json.loads(line) for line in call("feedback", "parked", "--json", "--days", "20").stdout.splitlines()]
    assert [(row["feedback_id"], row["dead"]) for row in rows] == [("old", False), ("new", False)]
    call("feedback", "parked", "--out", "parked.csv")
    cells = list(csv.DictReader(io.StringIO((folder / "parked.csv").read_text("utf-8"))))
    assert [row["response_id"] for row in cells] == ["", "'=cmd"]
    request, _ = ran(8)
    assert isinstance(request, Request)
    write(folder, replace(request, episode_id="ep_never"))
    assert "0 are dead letters" in call("feedback", "parked").stdout, "whenever its request comes, it joins"


def test_what_was_exported_is_imported_as_it_was(folder: Path) -> None:
    (folder / "labels.csv").write_text(TABLE.replace("note", "comment"), "utf-8")
    call("feedback", "import", "labels.csv", *MAPPED)
    assert report_of("export", "feedback", "out.csv") == {"file": "out.csv", "n_rows": 3}
    assert report_of("export", "feedback", "out.jsonl", "--route", "r")["n_rows"] == 2
    cells = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text("utf-8"))))
    assert [row["comment"] for row in cells] == ['said "hm"', "'=HYPERLINK(1)", ""]
    noted = [
        json.loads(row["event"])["export"]
        for row in csv.DictReader(io.StringIO(call("audit", "export", "--format", "csv").stdout))
        if row["kind"] == "exported"
    ]
    assert [(one["what"], one["where"], one["n_rows"]) for one in noted] == [
        ("feedback", "out.csv", 3),
        ("feedback", "out.jsonl", 2),
    ], "what left the log is said in it"
    before = kept(folder)
    (folder / "log.db").unlink()
    for name in ("log.db-wal", "log.db-shm"):
        (folder / name).unlink(missing_ok=True)
    write(folder)
    call("feedback", "import", "out.csv")
    fields = ("feedback_id", "episode_id", "correct", "rating", "comment", "metrics", "satisfaction", "source")
    assert [[getattr(one, name) for name in fields] for one in kept(folder)] == [
        [getattr(one, name) for name in fields] for one in before
    ]
    assert "unknown format" in call("export", "feedback", "out.xlsx", code=2).stderr


# --------------------------------------------------------------------------- Label Studio, there and back


def wanted(number: int, would: str) -> LabelRequest:
    return LabelRequest(
        episode_id=f"ep_{number}",
        route="r",
        level=3,
        would_answer=would,
        answer="4",
        why="a stop at level 3 differs",
    )


def right(task: dict[str, Any], which: str) -> str:
    """The choice which says that the full run's, or the other, answer is right."""
    full_a = full_is_a(task["data"]["suffice_episode"])
    return "A is right" if (which == "full") == full_a else "B is right"


@pytest.fixture
def review_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_contrib("suffice-label-studio", tmp_path_factory.mktemp("site"), monkeypatch)
    write(folder, wanted(0, "5"), wanted(1, "6"), wanted(3, "7"))
    reported = Feedback(feedback_id="x", episode_id="ep_3", correct=True, source="reviewer")
    write(folder, FeedbackEvent(reported))
    (folder / "questions.jsonl").write_text('{"question": "How much is 2 + 2?"}\n', "utf-8")
    return folder


def test_a_round_trip_through_plain_files(review_folder: Path) -> None:
    out = report_of("export", "label-studio", "--route", "r", "--out", "tasks.json", "--label-config", "view.xml")
    assert (out["n_runs"], out["n_added"], out["n_without_question"]) == (2, 2, 2)
    assert (review_folder / "view.xml").read_text("utf-8").startswith("<View>")
    tasks = json.loads((review_folder / "tasks.json").read_text("utf-8"))
    assert [task["data"]["suffice_episode"] for task in tasks] == ["ep_0", "ep_1"]
    with FakeLabelStudio(token="t") as studio:
        assert studio.answer("POST", "/api/projects/1/import", "Token t", tasks)[0] == 201
        studio.annotate(1, {"verdict": [right(tasks[0], "full")]})
        studio.annotate(2, {"verdict": [right(tasks[1], "other")], "comment": "hm"}, by=2)
        status, exported = studio.answer("GET", "/api/projects/1/export?exportType=JSON", "Token t", None)
    assert status == 200
    (review_folder / "export.json").write_text(json.dumps(exported), "utf-8")
    back = report_of("feedback", "import", "export.json", "--form", "label-studio")
    assert (back["n_new"], back["n_joined"]) == (2, 2)
    labels = {item.episode.request.episode_id: item.labels for item in read_episodes(review_folder / "log.db", "r")}
    (first,), (second,) = labels["ep_0"], labels["ep_1"]
    assert (first.feedback.correct, first.feedback.gold) == (True, "4")
    assert (second.feedback.correct, second.feedback.gold, second.feedback.comment) == (False, "6", "hm")
    again = report_of("export", "label-studio", "--route", "r", "--out", "tasks.json")
    assert again["n_runs"] == 0, "nothing is asked twice"


@pytest.mark.parametrize("key", ["legacy", "head.body.signature"])
def test_a_round_trip_over_its_interface(review_folder: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
    with FakeLabelStudio(token="legacy", refresh="head.body.signature") as studio:
        where = ("--url", studio.url, "--project", "1")
        sent = report_of("export", "label-studio", "--route", "r", *where, "--which", "differing")
        assert (sent["n_runs"], sent["n_added"]) == (3, 3)
        again = report_of("export", "label-studio", "--route", "r", *where, "--which", "differing")
        assert (again["n_runs"], again["n_added"]) == (3, 0), "tasks that are there are not added again"
        assert report_of("feedback", "label-studio", *where)["n_rows"] == 0
        tasks = studio.projects[1].tasks
        for number in (1, 2):
            studio.annotate(number, {"verdict": [right(tasks[number], "other")]})
        studio.annotate(3, {}, skipped=True)
        pulled = report_of("feedback", "label-studio", *where, "--dry-run")
        assert (pulled["n_rows"], pulled["n_new"], pulled["n_ignored"]) == (2, 2, 1)
        assert report_of("feedback", "label-studio", *where)["n_new"] == 2
        assert report_of("feedback", "label-studio", *where)["n_known"] == 2
        studio.annotate(1, {"verdict": ["Neither is right"], "gold": "42"}, annotation=1, when="2026-02-01T00:00:00Z")
        assert report_of("feedback", "label-studio", *where)["n_new"] == 1, "a changed mind is another word"
    given = [one for one in kept(review_folder) if one.feedback_id.startswith("label-studio:")]
    assert [(one.correct, one.gold) for one in given] == [(False, "5"), (False, "6"), (False, "42")]
    assert len({one.user for one in given}) == 1


def test_a_webhook_and_an_export_of_the_same_annotation_count_once(review_folder: Path) -> None:
    from suffice.review.imported_feedback import read_event, read_export

    call("export", "label-studio", "--route", "r", "--out", "tasks.json")
    with FakeLabelStudio(token="t") as studio:
        studio.answer(
            "POST", "/api/projects/1/import", "Token t", json.loads((review_folder / "tasks.json").read_text())
        )
        event = studio.annotate(1, {"verdict": ["Both are right"], "rating_a": 3})
        _, exported = studio.answer("GET", "/api/projects/1/export", "Token t", None)
    assert read_event(event).rows == read_export(exported).rows


@pytest.mark.parametrize(
    ("project", "key", "says"),
    [
        ("1", "wrong", "answered 401; check the key"),
        ("9", "t", "answered 404; check the address"),
        ("1", "", "the environment has no LABEL_STUDIO_API_KEY"),
    ],
)
def test_a_server_that_refuses_is_a_sentence(
    review_folder: Path, monkeypatch: pytest.MonkeyPatch, project: str, key: str, says: str
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
    with FakeLabelStudio(token="t") as studio:
        for command in (("export", "label-studio", "--route", "r"), ("feedback", "label-studio")):
            result = call(*command, "--url", studio.url, "--project", project, code=2)
            assert says in result.stderr
            assert "wrong" not in result.stderr, "no message carries a key"


def test_a_server_that_is_gone_is_a_sentence(review_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "t")
    with FakeLabelStudio(token="t") as studio:
        url = studio.url
    result = call("feedback", "label-studio", "--url", url, "--project", "1", code=2)
    assert "could not be asked" in result.stderr


def test_tasks_need_somewhere_to_go(review_folder: Path) -> None:
    for more in ((), ("--out", "t.json", "--url", "http://x", "--project", "1"), ("--url", "http://x")):
        assert "where to?" in call("export", "label-studio", "--route", "r", *more, code=2).stderr
    assert "unknown route 'q'; known: r" in call("export", "label-studio", "--route", "q", "--out", "t", code=2).stderr


def test_questions_are_shown_where_their_owner_brings_them(review_folder: Path) -> None:
    from suffice.wiring.files import question_texts

    settings = load_settings(review_folder / "suffice.toml")
    key = next(key for key, text in question_texts(review_folder / "questions.jsonl", settings).items() if text)
    request, outcome = ran(11)
    assert isinstance(request, Request)
    write(review_folder, replace(request, question_key=key), outcome, wanted(11, "5"))
    call("export", "label-studio", "--route", "r", "--out", "tasks.json", "--questions", "questions.jsonl")
    tasks = json.loads((review_folder / "tasks.json").read_text("utf-8"))
    displayed = {task["data"]["suffice_episode"]: task["data"]["question"] for task in tasks}
    assert displayed["ep_11"] == "How much is 2 + 2?"
    assert "the log keeps no question" in displayed["ep_0"]
