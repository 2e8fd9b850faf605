"""People are told once of what matters, in plain text, whatever a sink does meanwhile."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.forecast import CrossingForecast, Forecast, RouteForecast
from suffice.assurance.forecast_grades import Of
from suffice.assurance.served import ServedLoss
from suffice.cli.main import main
from suffice.control.jobs.base import Worker
from suffice.control.jobs.notify import MailSink, Notify, Sink, WebhookSink
from suffice.edge.notification import MailServer, send_mail
from suffice.errors import ConfigError
from suffice.rollout.stages import Transition
from suffice.settings import Alerts, Settings, parse_settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import read_events
from suffice.store.people.alerts import Notice, alerts_of, plain, sent_notices
from suffice.store.routes.rollups import add_rollups
from suffice.store.rows.events import Event, FailOpenCount, KillSwitchState, RolloutMove
from suffice.store.rows.sums import RollupKey, RollupSums
from suffice.types import Alarm, Pause, Resumption
from suffice.wiring.startup import sinks_of
from tests.control.test_upkeep import Clock, append, receiver
from tests.edge import mail_server

HOSTILE = "<!channel> <http://evil|click>\r\nBcc: all@example.org\u202e\x1b[2J & 'x'"


def alarm(epoch: int, route: str = "math", reason: str = "signals moved") -> Alarm:
    return Alarm(route=route, epoch=epoch, at=10, cause="signals", reason=reason)


def killed(stamp: int) -> KillSwitchState:
    return KillSwitchState(on=True, reason="fire", stamp=stamp)


def paused(number: int) -> Pause:
    return Pause(route="math", number=number, cause="critical_em", reason="EM is low", author="w")


def resumed(number: int) -> Resumption:
    return Resumption(route="math", number=number, author="ann", reason="mended")


def moved(move: str, by: str) -> RolloutMove:
    transition = Transition(
        rollout="r1",
        number=1,
        move=move,  # type: ignore[arg-type]
        stage="canary",
        step=1,
        share=0.0,
        audit_share=None,
        at=1,
        now_s=1.0,
        by=by,
        reason="why",
    )
    return RolloutMove(route="math", transition=transition, author=by, reason="why")


@contextmanager
def working(
    database: Path,
    *sinks: Sink,
    clock: Clock | None = None,
    alerts: Alerts | None = None,
    patience_s: float = 5.0,
    now_s: float = 1_000.0,
) -> Iterator[Worker]:
    """A worker with the one job, from its start to its end."""
    ticks = clock or Clock()
    job = Notify(
        settings=Settings(alerts=alerts or Alerts()),
        path=database,
        sinks=sinks,
        now=lambda: now_s,
        monotonic_s=ticks,
        patience_s=patience_s,
    )
    with_ids = iter(range(10**6))
    writer = Decisions(database, now=lambda: now_s, monotonic_s=ticks)
    try:
        yield Worker(
            decisions=writer,
            jobs=(job,),
            author="w",
            now=lambda: now_s,
            monotonic_s=ticks,
            new_id=lambda: f"{id(writer)}-{next(with_ids)}",
        )
    finally:
        writer.close()


class Kept:
    """A sink that fails when it is told to."""

    name = "kept"

    def __init__(self) -> None:
        self.down: Callable[[], str | None] = lambda: None
        self.came: list[str] = []

    def send(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        problem = self.down()
        if problem is None:
            self.came.append(f"{'over: ' if notice.over else ''}{notice.kind} {link}")
        return problem


def test_an_old_log_is_not_told_and_a_restart_tells_nothing_twice(tmp_path: Path) -> None:
    database, kept = tmp_path / "s.db", Kept()
    append(database, alarm(1), at_s=10.0)
    with working(database, kept) as worker:
        worker.round()
        assert kept.came == []
        append(database, alarm(2), at_s=20.0)
        worker.round()
        worker.round()
    assert kept.came == ["drift None"]
    append(database, killed(1), at_s=30.0)  # while no worker runs
    with working(database, kept, alerts=Alerts(link="https://h/")) as worker:
        worker.round()
    assert kept.came == ["drift None", "kill_switch https://h/console"]
    assert [(one.sink, one.notice.kind) for one in sent_notices(database, 9)] == [
        ("kept", "drift"),
        ("kept", "kill_switch"),
    ]


def test_the_same_alert_is_told_once_in_a_while_also_by_another_worker(tmp_path: Path) -> None:
    database, kept = tmp_path / "s.db", Kept()
    append(database)
    with working(database, kept) as worker:
        worker.round()
        append(database, alarm(1), at_s=100.0)
        worker.round()
    append(database, alarm(2), at_s=3_699.0)
    with working(database, kept) as worker:
        worker.round()
        assert len(kept.came) == 1
        append(database, alarm(3, route="law"), at_s=3_699.0)
        append(database, alarm(3), at_s=3_700.0)
        worker.round()
    assert len(kept.came) == 3


def test_who_was_told_is_told_once_that_it_is_over_and_at_once_that_it_is_back(tmp_path: Path) -> None:
    database, kept = tmp_path / "s.db", Kept()
    append(database)
    with working(database, kept) as worker:
        worker.round()
        append(database, monitored(0.017, at=1), at_s=100.0)
        worker.round()
        append(database, monitored(0.001, at=2), at_s=701.0)  # the worker's clock says 1,000
        worker.round()
        assert kept.came == ["budget_nearly_spent None"]  # it has not been over for five minutes
    with working(database, kept, now_s=1_001.0) as worker:
        worker.round()
        worker.round()
    assert kept.came == ["budget_nearly_spent None", "over: budget_nearly_spent None"]
    with working(database, kept, now_s=1_001.0) as worker:
        worker.round()  # nor by another worker
        append(database, monitored(0.017, at=3), at_s=1_001.0)
        worker.round()
    assert kept.came[2:] == ["budget_nearly_spent None"]  # an hour has not passed
    assert [one.notice.over for one in sent_notices(database, 9)] == [False, True, False]


@pytest.mark.parametrize(
    ("ends", "kind", "later_s"),
    [
        ([killed(1)], "kill_switch", 500.0),  # a release is told by itself
        ([alarm(1), alarm(2, reason="worse")], "drift", 500.0),  # a later alarm is told by itself
        ([paused(1), resumed(1)], "incident", 100_000.0),  # it has been over for more than a day
    ],
)
def test_an_end_that_says_nothing_new_is_not_told(tmp_path: Path, ends: list[Event], kind: str, later_s: float) -> None:
    database, kept = tmp_path / "s.db", Kept()
    append(database)
    with working(database, kept) as worker:
        worker.round()
    append(database, ends[0], at_s=100.0)
    with working(database, kept) as worker:
        worker.round()
    append(database, *(ends[1:] or [KillSwitchState(on=False, reason="out", stamp=2)]), at_s=101.0)
    with working(database, kept, now_s=101.0 + later_s) as worker:
        worker.round()
    assert not [one for one in kept.came if one.startswith("over: ")]
    assert kept.came[0] == f"{kind} None"


def test_only_the_ends_that_are_wanted_are_told(tmp_path: Path) -> None:
    database, kept, other = tmp_path / "s.db", Kept(), Kept()
    other.name = "other"
    append(database)
    with working(database, kept) as worker:
        worker.round()
        append(database, paused(1), at_s=100.0)
        worker.round()
        append(database, resumed(1), at_s=200.0)
    with working(database, kept, other, alerts=Alerts(tell_over=False)) as worker:
        worker.round()
    assert kept.came == ["incident None"]
    with working(database, kept, other) as worker:
        worker.round()
    assert kept.came == ["incident None", "over: incident None"]
    assert other.came == []  # who was not told of it is not told of its end


def test_only_the_kinds_that_are_wanted_are_told(tmp_path: Path) -> None:
    database, kept = tmp_path / "s.db", Kept()
    append(database)
    with working(database, kept, alerts=Alerts(kinds=("kill_switch",))) as worker:
        worker.round()
        append(database, alarm(1), killed(1))
        worker.round()
    assert kept.came == ["kill_switch None"]


def test_a_sink_that_is_down_loses_nothing_and_holds_up_no_other(tmp_path: Path) -> None:
    database, kept, other, clock = tmp_path / "s.db", Kept(), Kept(), Clock()
    other.name = "other"
    append(database)
    with working(database, kept, other, clock=clock) as worker:
        worker.round()
        kept.down = lambda: "no"
        append(database, killed(1), killed(2), killed(3))
        reports = worker.round()
        assert [one.ok for one in reports] == [False, True]
        assert len(other.came) == 3
        kept.down = lambda: None
        clock.now_s = 4.0
        worker.round()
        assert kept.came == []  # it rests
        clock.now_s = 6.0
        worker.round()
        assert len(kept.came) == 3
        assert len(other.came) == 3


def test_a_sink_that_hangs_does_not_hold_up_the_round(tmp_path: Path) -> None:
    database, kept, opened = tmp_path / "s.db", Kept(), threading.Event()
    kept.down = lambda: None if opened.wait(20) else "late"
    append(database)
    with working(database, kept, patience_s=0.01) as worker:
        worker.round()
        append(database, killed(1))
        assert worker.round() == []
        assert worker.round() == []
        opened.set()
        for _ in range(200):
            if worker.round():
                break
            threading.Event().wait(0.01)
    assert kept.came == ["kill_switch None"]


def test_a_sink_that_raises_is_one_that_failed(tmp_path: Path) -> None:
    database, kept = tmp_path / "s.db", Kept()
    kept.down = lambda: str(1 // 0)
    append(database)
    with working(database, kept) as worker:
        worker.round()
        append(database, killed(1))
        assert [one.ok for one in worker.round()] == [False]


def test_what_is_told_of_what() -> None:
    failed = FailOpenCount(route="math", hour=1, n_runs=100, n_degraded=7)
    pause = paused(3)
    ratio_alarm = Alarm(route="math", epoch=1, at=1, cause="sample_ratio", reason="audits are missing")
    cases: list[tuple[Event, str | None]] = [
        (alarm(1), "drift"),
        (failed, "fail_open"),
        (pause, "incident"),
        (ratio_alarm, "sample_ratio"),
        (moved("roll_back", "evidence"), "rollback"),
        (moved("pause", "evidence"), "sample_ratio"),
        (moved("pause", "ann"), None),
        (moved("promote", "ann"), None),
        (killed(1), "kill_switch"),
    ]
    for event, kind in cases:
        notice = alerts_of(event)
        assert (notice and notice.kind) == kind
    notice = alerts_of(failed)
    assert notice is not None
    assert "7 of 100 runs" in notice.sentence


def monitored(now: float, *alerts: Of, at: int = 1) -> RouteForecast:
    drop = Forecast(
        of="em_drop",
        limit=0.02,
        now=now,
        per_1000=0.0,
        ahead=now,
        ahead_low=now,
        ahead_high=now,
        crossing=CrossingForecast(earliest=None, expected=None, latest=None),
        alert=False,
        doubtful=False,
        reason="",
    )
    return RouteForecast(
        route="math",
        at=at,
        epoch=1,
        since=0,
        confidence=0.95,
        cap_tokens=None,
        drop=drop,
        alerts=alerts,
    )


def test_a_budget_is_nearly_spent_from_four_fifths_on_and_a_breach_is_told_by_its_own_row() -> None:
    assert alerts_of(monitored(0.0159)) is None
    assert alerts_of(monitored(0.017, "em_drop")) is None
    notice = alerts_of(monitored(0.017))
    assert notice is not None
    assert (notice.kind, notice.path) == ("budget_nearly_spent", "/route?route=math")
    assert "85% of it" in notice.sentence
    loss = ServedLoss(n_audits=300, loss=0.05, e_value=21.0, max_em_drop=0.02, confidence=0.95)
    notice = alerts_of(replace(monitored(0.001), served=loss))
    assert notice is not None
    assert (notice.kind, notice.sentence) == ("budget_nearly_spent", loss.sentence)
    assert alerts_of(replace(monitored(0.001), served=replace(loss, e_value=19.0))) is None


def test_a_high_rate_of_fail_opens_is_noticed_once_an_hour(tmp_path: Path) -> None:
    database, kept, clock = tmp_path / "s.db", Kept(), Clock()
    append(database)
    failing, well = (RollupSums(n_requests=100, n_degraded=n) for n in (5, 4))
    with closing(SqliteConnection(database)) as connection, connection:
        sums = {RollupKey("math", "", "v", 0): failing, RollupKey("law", "", "v", 0): well}
        assert add_rollups(connection, sums, {}, since=0, seq=0, at_s=0.0)
    with working(database, kept, clock=clock) as worker:
        for clock.now_s in (0.0, 40.0, 80.0):
            worker.round()
    assert kept.came == []  # it happened before anybody listened
    rows = [one.event for one in read_events(database) if isinstance(one.event, FailOpenCount)]
    assert rows == [FailOpenCount(route="math", hour=0, n_runs=100, n_degraded=5)]


@given(st.text(), st.integers(2, 50))
def test_plain_is_one_short_printable_line(text: str, most: int) -> None:
    line = plain(text, most)
    assert len(line) <= most
    assert len(line.splitlines()) <= 1
    steering = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
    assert not any(unicodedata.category(c) in steering for c in line if c not in "\u200c\u200d")  # joiners spell words


def test_a_webhook_gets_what_slack_takes_and_a_hostile_name_is_plain_text() -> None:
    notice = alerts_of(alarm(1, route=HOSTILE, reason=HOSTILE))
    assert notice is not None
    with receiver() as (url, came):
        assert WebhookSink(url).send(notice, at_s=0.0, link="https://h/console") is None
        assert "s3cret" not in repr(WebhookSink(url))
    body = msgspec.json.decode(came[0])
    text, link = body["text"].split("\n")
    assert link == "https://h/console"
    assert "&lt;!channel&gt;" in text
    assert "<" not in text
    assert text.isprintable()
    assert body["route"].isprintable()
    assert (body["kind"], body["at"]) == ("drift", "1970-01-01T00:00:00Z")


def test_an_e_mail_holds_a_hostile_name_as_plain_text() -> None:
    notice = alerts_of(alarm(1, route=HOSTILE, reason=HOSTILE))
    assert notice is not None
    with mail_server.MailServer().serving() as served:
        server = MailServer(host=served.host, port=served.port, tls="opportunistic")
        sink = MailSink(server=server, sender="s@example.org", to=("a@example.org", "b@example.org"))
        assert sink.send(notice, at_s=0.0, link="https://h/console") is None
    message = message_from_bytes(served.mails[0], policy=default)
    assert message["bcc"] is None
    assert message["to"] == "a@example.org, b@example.org"
    assert message["subject"].startswith("Suffice: drift on <!channel>")
    assert message.get_content_type() == "text/plain"
    assert "https://h/console" in message.get_content()


def test_a_mail_server_that_refuses_or_is_away_is_said_without_secrets() -> None:
    def send(server: MailServer) -> str | None:
        return send_mail(server, sender="s@h.org", to=("a@h.org",), subject="s", text="t", timeout_s=30.0)

    with mail_server.MailServer(refuses=True).serving() as served:
        server = MailServer(host=served.host, port=served.port, tls="opportunistic")
        assert send(server) == "the mail server could not be used (SMTPRecipientsRefused)"
    assert "could not be used" in str(send(server))


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"webhook_url_env": "https://hooks/s3cret"}, "webhook_url_env"),
        ({"email_to": ["a\n@h"]}, "email_to"),
        ({"email_to": ["a@h"], "email_from": "b@h"}, "smtp_host"),
        ({"email_to": ["a@h"], "smtp_host": "m"}, "email_from"),
        ({"smtp_user_env": "U"}, "smtp_user_env"),
        ({"smtp_tls": "maybe"}, "smtp_tls"),
        ({"smtp_user_env": "U", "smtp_password_env": "P", "smtp_tls": "opportunistic"}, "smtp_tls"),
        ({"smtp_user_env": "U", "smtp_password_env": "P", "smtp_tls": "off"}, "smtp_tls"),
        ({"smtp_port": 0}, "smtp_port"),
        ({"repeat_s": -1.0}, "repeat_s"),
        ({"link": "javascript:alert(1)"}, "link"),
        ({"kinds": ["tests"]}, "kinds"),
    ],
)
def test_settings_that_cannot_work_are_refused(table: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError, match=rf"alerts\.{where}") as refused:
        parse_settings({"alerts": table})
    assert "s3cret" not in str(refused.value)


def test_a_test_notice_says_what_came_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(f'[store]\nurl = "sqlite:///{tmp_path}/s.db"\n[alerts]\nwebhook_url_env = "HOOK"\n')
    assert CliRunner().invoke(main, ["alerts", "test", "--config", str(file)]).exit_code == 2
    with receiver() as (url, came):
        monkeypatch.setenv("HOOK", url)
        done = CliRunner().invoke(main, ["alerts", "test", "--config", str(file)])
    assert (done.exit_code, len(came)) == (0, 1)
    assert "webhook: accepted" in done.output
    down = CliRunner().invoke(main, ["alerts", "test", "--config", str(file)])
    assert down.exit_code == 1
    assert "webhook: FAILED: the webhook could not be reached" in down.output
    assert "s3cret" not in down.output
    append(tmp_path / "s.db", killed(1))
    listed = CliRunner().invoke(main, ["alerts", "list", "--config", str(file)])
    assert "no alerts were sent yet" in listed.output
    assert sinks_of(Alerts()) == ()
