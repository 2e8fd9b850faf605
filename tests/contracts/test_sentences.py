"""One saving and one promise: on generated logs every surface shows the same, and it is true.

Each log is shown by `suffice status` (text and --json), the console's views, its report of the month and, for some, its
pages, `/api` and exported table, by alert rules, by the gauges of a gateway that follows the log, and by what that
gateway would write into a reply.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from prometheus_client import generate_latest

from suffice.assurance.estimate import ReportEstimates
from suffice.assurance.runs import Match
from suffice.cli.inspect.route_status import read_statuses
from suffice.cli.inspect.status_output import print_statuses
from suffice.console.context import LogView, ViewContext
from suffice.console.scope import parse_scope
from suffice.console.views.history import describe_saving, read_history
from suffice.console.views.report import MonthReport, month_report
from suffice.console.views.route_state import route_states
from suffice.control.jobs.upkeep import added_by
from suffice.formatting import format_percent, format_points
from suffice.gateway.clients import Clients
from suffice.gateway.context import Deployment, GatewayState, LogSampler
from suffice.gateway.kill import KillSwitch
from suffice.gateway.log_follower import Follower
from suffice.report.sentences import summarize
from suffice.report.snapshot import RouteSnapshot
from suffice.scoring.base import build_scorer, scorer_label
from suffice.serving.route import FixedPolicy
from suffice.settings import Settings, Store
from suffice.signals.query import class_of
from suffice.store.database.log import EventLog
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import open_reader
from suffice.store.database.writer import LogWriter
from suffice.store.people.preferences import MEASURES, check_rule
from suffice.store.routes import rollups
from suffice.store.routes.period import Period, PeriodFigures, read_periods
from suffice.store.routes.rollups import RouteScorer, fold_changes, read_stretch
from suffice.store.rows.preferences import AlertRule, RuleMeasure
from suffice.store.rows.sums import NO_SUMS, RollupKey, RollupSums
from suffice.telemetry import Metrics
from suffice.wiring.keys import kill_file
from suffice.wiring.routes import build_route, read_evidence
from tests.console.visitor import Visitor, people_of, site
from tests.contracts.generated_logs import Made, Truth, make

N_LOGS, BLOCKS = 1_000, 16  # so that a block has about 60
PAGES_EVERY = 25  # of the logs their pages are asked for over the console's own application
MONTH: Final = "2023-11"  # of every row of a generated log


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("template")
    LogWriter(Store(url=f"sqlite:///{folder / 'log.db'}"), now=lambda: 0.0).close()
    with contextlib.closing(SqliteConnection(folder / "log.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return (folder / "log.db").read_bytes()


def scoring(settings: Settings) -> Any:
    def match_of(name: str) -> Match:
        scorer = build_scorer(settings.routes[name].scorer)
        return lambda answer, gold: scorer.match(answer, scorer.normalise(gold) or "")

    return lambda name: RouteScorer(scorer_label(settings.routes[name].scorer), match_of(name))


def sum_up(made: Made, n_rows: int) -> None:
    """What the job `rollup` does with the next rows."""
    with contextlib.closing(SqliteConnection(made.path)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        since = rollups.read_to(connection).seq
        stretch, tallies = read_stretch(connection, since, n_rows), rollups.read_tallies(connection)
        fold_changes(tallies, stretch.changes, scoring(made.settings))
        sums = dict[RollupKey, RollupSums]()
        for change in stretch.changes:
            assert not isinstance(change, rollups.UnwrittenRequests)
            if isinstance(change, rollups.RunChange):
                request, match = change.after.episode.request, scoring(made.settings)(change.route).match
                hour = int(change.at_s // rollups.HOUR_S)
                key = RollupKey(request.route, class_of(request.query), request.policy_version, hour)
                sums[key] = sums.get(key, NO_SUMS).plus(added_by(change.after, match))
                if change.before is not None:
                    sums[key] = sums[key].plus(added_by(change.before, match), sign=-1)
        assert rollups.add_rollups(connection, sums, tallies, since=since, seq=max(stretch.last, 1), at_s=0.0)


def printed(one: RouteSnapshot) -> tuple[dict[str, str], dict[str, Any]]:
    text, plain = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(text):
        print_statuses([one], as_json=False)
    with contextlib.redirect_stdout(plain):
        print_statuses([one], as_json=True)
    pairs = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.getvalue().splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}, json.loads(plain.getvalue())


def gateway_of(made: Made) -> GatewayState:
    """A gateway that has followed the log to its end."""
    settings, evidence = made.settings, read_evidence(made.settings)
    log: Any = EventLog
    metrics = Metrics()
    gw = GatewayState(
        settings=settings,
        upstreams={},
        log=log,
        metrics=metrics,
        salt="s",
        new_id=str,
        wall_s=lambda: 2_000_000_000.0,
        monotonic_s=lambda: 0.0,
        clients=Clients(),
        deployment=Deployment(
            routes=tuple(
                build_route(name, route, evidence, settings.upstreams["up"]) for name, route in settings.routes.items()
            ),
            metrics=metrics,
            monotonic_s=lambda: 0.0,
            kill=KillSwitch(kill_file(settings)),
            salt="s",
        ),
        sampling=LogSampler(settings=settings, salt="s"),
    )
    follower = Follower(gw, made.path)
    follower.apply(follower.read_changes())
    gw.deployment.export_gauges()
    return gw


def can_stop(gw: GatewayState, name: str) -> bool:
    """May the gateway end a run of the route, or cut it before it begins?"""
    route = next(one for one in gw.deployment.routes if one.name == name)
    if gw.deployment.kill.on or not route.acts or route.holding.ceiling == 0:
        return False
    serving, asks = route.serving, route.settings.uncertified and bool(route.settings.arms)
    return not isinstance(serving, FixedPolicy) or asks or serving.policy.name != "never"


def check(made: Made) -> dict[str, tuple[RouteSnapshot, str]]:
    """Compare all surfaces of one log; each route with the state that every one of them shows."""
    statuses = {one.report.route: one for one in read_statuses(made.path, made.settings, None)}
    assert statuses.keys() == made.settings.routes.keys()
    with open_reader(made.path) as connection:
        look = LogView(
            connection=connection,
            settings=made.settings,
            path=made.path,
            now_s=2_000_000_000.0,
            monotonic_s=lambda: 0.0,
            killed=made.killed,
        )
        window = parse_scope({"days": "all"}, 2e9).range
        whole, each = read_periods(connection, since_hour=0, until_hour=window.until_hour, bucket_hours=24 * 7)
        pages = {one.name: one for one in route_states(look, each, window)}
        report = report_on(look)
        home, _ = read_history(asking(look, days="all"), None)
        home_saving = describe_saving(home, window)
    gw = gateway_of(made)
    gauges = generate_latest(gw.metrics.registry).decode()
    for name, one in statuses.items():
        text, plain = printed(one)
        saving, truth = one.report.measured.saving, made.truths[name]
        assert pages[name].saving == saving
        assert_one_effect(one, pages[name].figures, text, plain, gauges, truth)
        assert plain["measured"]["saving"] == (None if saving is None else pytest.approx(vars_of(saving), abs=0))
        gauge = re.search(rf'suffice_token_saving_ratio{{route="{name}"}} (\S+)', gauges)
        assert (None if gauge is None else float(gauge[1])) == (None if saving is None else saving.value)
        assert (saving is None) == (truth.saving is None)
        if saving is not None and truth.saving is not None:
            assert saving.value == pytest.approx(truth.saving, abs=1e-9)
            assert "saving" not in text or text["saving"].startswith(f"{saving.value:.1%}")
        route = next(each for each in gw.deployment.routes if each.name == name)
        payload = {one.promise, plain["promise"], text["promise"], gw.deployment.promise_to(route)()}
        assert payload == {one.promise}, (name, payload)
        states = re.findall(rf'suffice_promise_state{{route="{name}",state="(\w+)"}} 1.0', gauges)
        assert {one.promise_state, *states} == {one.promise_state}
        guarantee = gw.deployment.guarantee_of(route)()
        assert guarantee.stops == can_stop(gw, name), (name, guarantee.state, made.settings.routes[name])
        if guarantee.stops:
            assert "runs in full" not in one.promise
        assert_one_alert(one, pages[name].figures)
    assert_one_total([one.report.measured for one in statuses.values()], whole, gauges)
    assert_one_report(report, {name: one.figures for name, one in pages.items()}, whole, home_saving)
    return {name: (one, one.promise_state) for name, one in statuses.items()}


def assert_one_effect(
    one: RouteSnapshot, figures: PeriodFigures, text: dict[str, str], plain: dict[str, Any], gauges: str, truth: Truth
) -> None:
    """Saving and EM drop of a route: of its status in every form, of the console over the whole log, and of a gauge."""
    measured, name, displayed = one.report.measured, one.report.route, summarize(one).effect
    assert (figures.saving is None, figures.em_drop is None) == (measured.saving is None, measured.em_drop is None)
    assert plain["summary"]["effect"] == displayed
    drop = re.search(rf'suffice_em_drop_ratio{{route="{name}"}} (\S+)', gauges)
    assert (drop is None) == (measured.em_drop is None)
    if measured.em_drop is not None and figures.em_drop is not None and drop is not None:
        ends = [(one.value, one.low, one.high, float(one.n)) for one in (measured.em_drop, figures.em_drop)]
        assert ends[0] == pytest.approx(ends[1])
        assert float(drop[1]) == measured.em_drop.value
        assert "EM drop, paired" not in text or text["EM drop, paired"].startswith(
            f"{100 * measured.em_drop.value:+.1f}"
        )
        if measured.saving is not None:
            assert f"EM drop {format_points(measured.em_drop.value).partition(' ')[0].lstrip('+')} (" in displayed
    if measured.saving is None or figures.saving is None or measured.saved_tokens is None:
        return
    assert figures.saving.value == pytest.approx(measured.saving.value, abs=1e-9)
    parts = (measured.saved_tokens.value, measured.saved_certified_tokens)
    assert [*parts] == [truth.saved, truth.certified]
    assert (figures.saved_tokens, figures.saved_certified_tokens) == pytest.approx(parts)
    assert f"tokens saved {format_percent(measured.saving.value)}" in displayed
    saved = {
        certified: float(value)
        for certified, value in re.findall(rf'suffice_saved_tokens{{certified="(\w+)",route="{name}"}} (\S+)', gauges)
    }
    assert saved["yes"] + saved["no"] == pytest.approx(parts[0])
    assert saved["yes"] == pytest.approx(parts[1])
    uncertified = 1 - (parts[1] or 0.0) / parts[0] if parts[0] > 0 else 0.0
    if uncertified > 0.01:
        assert "uncertified" in displayed.lower() or one.promise_state == "uncertified", (
            "a saving that nobody certified says so"
        )


def asking(look: LogView, **query: str) -> ViewContext:
    """What a view is given when its page is asked for."""
    visit: Any = SimpleNamespace(request=SimpleNamespace(query=query))
    return ViewContext(**{name: getattr(look, name) for name in LogView.__dataclass_fields__}, visit=visit)


def report_on(look: LogView) -> MonthReport:
    return month_report(asking(look, month=MONTH))


def assert_one_report(report: MonthReport, pages: dict[str, PeriodFigures], whole: Period, home_saving: str) -> None:
    """The month holds the whole log, so its figures are those of the whole log, and so is its sentence."""
    known = {name: one for name, one in pages.items() if one.sums.n_requests}
    assert {one.name for one in report.routes} == known.keys()
    for displayed, figures in [
        *((one.figures, known[one.name]) for one in report.routes),
        (report.history.total, whole.total),
    ]:
        assert displayed.sums == figures.sums
        assert (displayed.saving, displayed.em_drop, displayed.would_save) == (
            figures.saving,
            figures.em_drop,
            figures.would_save,
        )
        assert (displayed.saved_tokens, displayed.saved_certified_tokens) == (
            figures.saved_tokens,
            figures.saved_certified_tokens,
        )
    assert home_saving.partition(", ")[2] == report.headline.partition(", ")[2]


def assert_one_alert(one: RouteSnapshot, figures: PeriodFigures) -> None:
    """What an alert rule compares with its limit is what the status says."""
    values = {measure: check_rule(rule_on(measure), figures).value for measure in MEASURES}
    counted, measured = one.report, one.report.measured
    assert values["requests"] == counted.n_requests == figures.sums.n_requests
    assert figures.sums.n_stopped == counted.n_stopped
    for measure, estimate in (("saved", measured.saving), ("em_drop", measured.em_drop)):
        value = values[measure]  # type: ignore[index]
        assert value == (None if estimate is None else pytest.approx(estimate.value, abs=1e-9))
    if counted.n_requests:
        assert values["stopped"] == counted.n_stopped / counted.n_requests


def rule_on(measure: RuleMeasure) -> AlertRule:
    return AlertRule(
        rule="r",
        revision=1,
        route="",
        measure=measure,
        side="above",
        limit=0.0,
        window_hours=24,
        least_requests=0,
        enabled=True,
        author="a",
        reason="a test",
    )


def assert_one_total(routes: list[ReportEstimates], whole: Period, gauges: str) -> None:
    """All routes together: of the console, and of what the dashboard divides."""
    saved = sum(map(float, re.findall(r"suffice_saved_tokens\{.*\} (\S+)", gauges)))
    spent = sum(map(float, re.findall(r"suffice_enforced_tokens\{.*\} (\S+)", gauges)))
    known = [one.saved_tokens.value for one in routes if one.saved_tokens is not None]
    assert saved == pytest.approx(sum(known))
    assert (whole.total.saving is None) == (not known)
    if whole.total.saving is not None:
        assert whole.total.saved_tokens == pytest.approx(saved)
        assert whole.total.saving.value == pytest.approx(saved / (saved + spent))


def vars_of(estimate: Any) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in estimate.__dataclass_fields__}


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_surface_of_a_generated_log_shows_the_same_saving_and_promise_and_they_are_true(
    tmp_path: Path, template: bytes, block: int
) -> None:
    for number in range(block * N_LOGS // BLOCKS, (block + 1) * N_LOGS // BLOCKS):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = make(folder, template, number)
        sum_up(made, 7)
        before = {one.report.route: one for one in read_statuses(made.path, made.settings, None)}
        sum_up(made, 10_000)
        displayed = check(made)
        for name, (one, _) in displayed.items():
            assert before[name].promise == one.promise
            assert before[name].report == one.report, "with rows that nobody has summed up it is the same"
        if number % PAGES_EVERY == 0:
            check_pages(made, {name: one for name, (one, _) in displayed.items()})


def check_pages(made: Made, statuses: dict[str, RouteSnapshot]) -> None:
    """The same on the console's pages and behind `/api`, as a person and a program are answered."""
    secret = people_of(made.settings).first() or ""
    with site(made.settings) as app:
        visitor = Visitor(app)
        visitor.login(secret)
        plain = {one["name"]: one for one in visitor.get("/api/routes?days=all").json["routes"]}
        monthly = {one["name"]: one for one in visitor.get(f"/api/report?month={MONTH}").json["routes"]}
        printed_month = without_tags(visitor.get(f"/console/report?month={MONTH}").text)
        table = exported(visitor)
        for name, one in statuses.items():
            saving = one.report.measured.saving
            assert plain[name]["promise"] == one.promise
            assert plain[name]["saving"] == (None if saving is None else vars_of(saving))
            page = without_tags(visitor.get(f"/console/route?days=all&name={name}").text)
            assert one.promise in page
            rows = [row for row in table if row["route"] == name]
            assert len(rows) == plain[name]["figures"]["sums"]["n_requests"] == one.report.n_requests
            assert sum(row["stopped"] == "yes" for row in rows) == one.report.n_stopped
            saved = one.report.measured.saved_tokens
            assert sum(int(row["tokens saved"] or 0) for row in rows) == (0 if saved is None else saved.value)
            if rows:
                assert monthly[name]["figures"]["sums"] == plain[name]["figures"]["sums"]
                for figure in ("saving", "em_drop", "saved_tokens", "saved_certified_tokens"):
                    assert monthly[name]["figures"][figure] == plain[name]["figures"][figure], figure
            drop = one.report.measured.em_drop
            if saving is not None:
                displayed = f"{100 * saving.value:.1f}".replace("-", "\N{MINUS SIGN}")
                assert displayed in page
                assert displayed in printed_month
            if drop is not None:
                assert f"{100 * drop.value:.2f}".replace("-", "\N{MINUS SIGN}") in printed_month


def without_tags(page: str) -> str:
    return re.sub(r"<[^>]+>", "", page).replace("&#39;", "'").replace("&#34;", '"')


def exported(visitor: Visitor) -> list[dict[str, str]]:
    """The rows of the exported table of all runs."""
    sent = visitor.post("/console/episodes.csv?days=all", {"csrf": visitor.token()})
    return list(csv.DictReader(io.StringIO(sent.body.decode("utf-8-sig"))))
