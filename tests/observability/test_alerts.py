"""Each alert fires on data that is made for it and stays silent on harmless data, as promtool decides."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.observability.prometheus import program
from tests.observability.test_files import ALERTS, RULES

REQUESTS, ENDED = "suffice_requests_total", 'route="r",mode="enforce",end_reason='
ON_R = '{route="r"}'

# Alert: series a minute that make it fire (promtool's notation: first value, change, repetitions), and harmless ones.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "SufficeDown": ({'up{job="suffice",instance="a"}': "0x120"}, {'up{job="suffice",instance="a"}': "1x120"}),
    "SufficeRequestsFail": (
        {f'{REQUESTS}{{{ENDED}"done"}}': "0+90x120", f'{REQUESTS}{{{ENDED}"timeout"}}': "0+10x120"},
        {f'{REQUESTS}{{{ENDED}"done"}}': "0+99x120", f'{REQUESTS}{{{ENDED}"timeout"}}': "0+1x120"},
    ),
    "SufficeInternalErrors": (
        {f'{REQUESTS}{{{ENDED}"internal_error"}}': "0+1x120"},
        {f'{REQUESTS}{{{ENDED}"client_left"}}': "0+1x120", f'{REQUESTS}{{{ENDED}"internal_error"}}': "3x120"},
    ),
    "SufficeUpstreamFails": (
        {'suffice_upstream_errors_total{upstream="up",code="upstream_unavailable"}': "0+12x120"},
        {'suffice_upstream_errors_total{upstream="up",code="upstream_unavailable"}': "0+1x120"},
    ),
    "SufficeUpstreamSaturated": (
        {'suffice_upstream_queue_ratio{upstream="up"}': "2x120"},
        {'suffice_upstream_queue_ratio{upstream="up"}': "1x60 2x5 1x55"},
    ),
    "SufficeShedsLoad": ({f"suffice_shed_total{ON_R}": "0+1x120"}, {f"suffice_shed_total{ON_R}": "7x120"}),
    "SufficeLogUnreadable": (
        {'suffice_log_unread_seconds{instance="a"}': "0+60x120"},
        {'suffice_log_unread_seconds{instance="a"}': "2x120"},
    ),
    "SufficeEventsDropped": (
        {'suffice_events_dropped_total{instance="a"}': "0+1x120"},
        {'suffice_events_dropped_total{instance="a"}': "5x120"},
    ),
    "SufficeFeedbackLost": (
        {'suffice_feedback_total{instance="a",result="failed"}': "0+1x120"},
        {'suffice_feedback_total{instance="a",result="rejected"}': "0+1x120"},
    ),
    "SufficeSpansLost": (
        {'suffice_spans_total{instance="a",result="dropped"}': "0+1x120"},
        {'suffice_spans_total{instance="a",result="exported"}': "0+1x120"},
    ),
    "SufficeFailsOpen": (
        {'suffice_failopen_total{site="policy"}': "0+2x120", f'{REQUESTS}{{{ENDED}"done"}}': "0+100x120"},
        {'suffice_failopen_total{site="policy"}': "0+1x120", f'{REQUESTS}{{{ENDED}"done"}}': "0+200x120"},
    ),
    "SufficeCertificateLost": (
        {f"suffice_certified_level{ON_R}": "3x60 0x60"},
        {f"suffice_certified_level{ON_R}": "3x60 2x60", 'suffice_certified_level{route="new"}': "0x120"},
    ),
    "SufficeUncertifiedStops": (
        {
            'suffice_stops_total{route="r",reason="suffices",method="raw"}': "0+1x120",
            'suffice_promise_state{route="r",state="uncertified"}': "1x120",
        },
        {
            'suffice_stops_total{route="r",reason="suffices",method="raw"}': "0+1x120",
            'suffice_promise_state{route="r",state="certified"}': "1x120",
        },
    ),
    "SufficeForecastBreach": ({f"suffice_alerts{ON_R}": "1x120"}, {f"suffice_alerts{ON_R}": "0x120"}),
    "SufficeIncidentOpen": ({f"suffice_open_incidents{ON_R}": "1x120"}, {f"suffice_open_incidents{ON_R}": "0x120"}),
    "SufficeStopsPleaseLess": (
        {f"suffice_satisfaction_effect_upper_bound{ON_R}": "-0.01x120"},
        {f"suffice_satisfaction_effect_upper_bound{ON_R}": "0.02x120"},
    ),
    "SufficeVersionRefused": (
        {f"suffice_versions_refused_total{ON_R}": "0+1x120"},
        {f"suffice_versions_refused_total{ON_R}": "1x120"},
    ),
    "SufficeKillSwitchOn": (
        {'suffice_kill_switch{instance="a"}': "1x120", 'suffice_kill_switch{instance="b"}': "0x120"},
        {'suffice_kill_switch{instance="a"}': "0x120"},
    ),
    "SufficeKillSwitchByHand": (
        {'suffice_kill_switch_local{instance="a"}': "1x120", 'suffice_kill_switch_local{instance="b"}': "0x120"},
        {'suffice_kill_switch_local{instance="a"}': "0x120"},
    ),
    "SufficeNotWatched": ({f"suffice_watch_lapsed{ON_R}": "1x120"}, {f"suffice_watch_lapsed{ON_R}": "0x120"}),
    "SufficeNoWorker": (
        {f"suffice_watch_age_seconds{ON_R}": "0+60x120"},
        {f"suffice_watch_age_seconds{ON_R}": "4x120"},
    ),
    "SufficeJobFails": (
        {'suffice_failing_jobs{task="certify"}': "1x120"},
        {'suffice_failing_jobs{task="certify"}': "0x120"},
    ),
    "SufficeVersionSkew": (
        {f"suffice_version_skew{ON_R}": "1x120"},
        {f"suffice_version_skew{ON_R}": "0x60 1x5 0x55"},
    ),
    "SufficeDeploymentsDiffer": (
        {
            'suffice_build_info{version="1",instance="a"}': "1x120",
            'suffice_build_info{version="2",instance="b"}': "1x120",
        },
        {
            'suffice_build_info{version="1",instance="a"}': "1x120",
            'suffice_build_info{version="1",instance="b"}': "1x120",
        },
    ),
}
AT = "110m"


def _check(alert: str, data: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in data.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})',
                "eval_time": AT,
                "exp_samples": expected,
            }
        ],
    }


def _promtool(*arguments: str | Path) -> str:
    done = subprocess.run([program("promtool"), *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_alert_has_data_made_for_it() -> None:
    assert {rule["alert"] for rule in ALERTS} == CASES.keys()


def test_prometheus_reads_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in _promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_each_alert_fires_on_its_data_and_on_no_harmless_one(tmp_path: Path) -> None:
    fired = [{"labels": "{}", "value": 1}]
    tests = [_check(alert, bad, fired) for alert, (bad, _) in CASES.items()]
    tests += [_check(alert, good, []) for alert, (_, good) in CASES.items()]
    file = tmp_path / "alerts_test.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}), "utf-8")
    assert "SUCCESS" in _promtool("test", "rules", file)


@pytest.mark.parametrize("alert", CASES)
def test_made_data_keeps_to_the_series_of_its_alert(alert: str) -> None:
    expression = next(rule["expr"] for rule in ALERTS if rule["alert"] == alert)
    for series in (*CASES[alert][0], *CASES[alert][1]):
        assert series.partition("{")[0] in expression
