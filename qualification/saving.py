"""One figure of saving: replies, status, report, console, metrics and CSV beside the truth of a month of requests.

Routes of thoughts with a fast and a slow hand-over run over HTTP before a model server that counts what it generates.
Every surface is then asked for the tokens that each route saved in this month, as a share of what the questions take
in full. Replies show no probes while everything is an audit, so those before the first level count as they truly were.
All must be one number, and near the truth; replies, which leave before the last counts of tokens come, only nearly one.
Beside it stands how much of what was generated was counted: tokens that a call sends after it was cut reach nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
from tests.mission.harness import Mission, on_mission

from qualification.net import Case, Run, Thoughts, saved_tokens, send, spent_by_question

CASES: Final = (
    Case(name="fast", line_tokens=16, probe_tokens=1, handover_s=0.0),
    Case(name="slow", line_tokens=24, probe_tokens=3, handover_s=0.24),
)
SAME: Final = 1e-4  # between figures of the log
REPLIES: Final = 0.005  # between them and the replies
CLOSE: Final = 0.05  # of every figure to the truth, a fraction of it
WITHIN_S: Final = 90.0  # that sums and gauges take to follow
_CSRF: Final = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


async def of_status(mission: Mission) -> dict[str, float]:
    _, text = await mission.command("status", "--json", "--all")
    routes = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {one["route"]: one["measured"]["saved_tokens"]["value"] for one in routes if one["measured"]["saved_tokens"]}


async def of_report(mission: Mission) -> dict[str, float]:
    report = await mission.api("/report", month=datetime.now(tz=UTC).strftime("%Y-%m"))
    return {one["name"]: one["figures"]["saved_tokens"] for one in report["routes"]}


async def of_console(mission: Mission) -> dict[str, float]:
    page = await mission.api("/routes")
    return {one["name"]: one["figures"]["saved_tokens"] for one in page["routes"]}


async def of_metrics(mission: Mission) -> dict[str, float]:
    saved: dict[str, float] = {}
    for name, value in (await mission.metrics()).items():
        if name.startswith("suffice_saved_tokens{"):
            route = name.partition('route="')[2].partition('"')[0]
            saved[route] = saved.get(route, 0.0) + value
    return saved


async def of_csv(mission: Mission) -> dict[str, float]:
    secret = await asyncio.to_thread(getattr, mission.gateway, "admin_secret")
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(mission.gateway.url, cookie_jar=jar) as session:

        async def token(path: str) -> str:
            async with session.get(path) as reply:
                shown = _CSRF.search(await reply.text())
                assert shown, path
                return shown[1]

        form = {"secret": secret, "csrf": await token("/console/login"), "back": "/console"}
        async with session.post("/console/login", data=form):
            pass
        async with session.post("/console/episodes.csv", data={"csrf": await token("/console")}) as reply:
            rows = csv.DictReader(io.StringIO((await reply.read()).decode("utf-8-sig")))
    saved: dict[str, float] = {}
    for row in rows:
        saved[row["route"]] = saved.get(row["route"], 0.0) + float(row["tokens saved"] or 0)
    return saved


def of_replies(runs: list[Run]) -> dict[str, float]:
    """The estimates of stopped runs, less the probes of the others, since a level acts: before, replies show none."""

    def of_one(told: Mapping[str, Any]) -> float:
        estimate = told.get("tokens_saved_estimate")
        return -(told.get("probe_tokens") or 0) if estimate is None else estimate

    return {run.case.name: sum(of_one(one.told) for one in run.asked[run.since :]) for run in runs}


async def simulate(options: argparse.Namespace, folder: Path) -> bool:
    world, runs = Thoughts(seed=options.seed), [Run(case) for case in CASES]
    probe = {"max_tokens": 8, "verified_by": "owner"}
    route = {"max_em_drop": 0.1, "audit_share": 0.1, "probe": probe, "max_extra_calls": 40}
    async with on_mission(world, folder, {run.case.name: route for run in runs}) as mission:
        for _ in range(0, options.requests, 100):
            for run in runs:
                await send(mission, world, run, 100, ("chat", "responses", "messages"))
        await mission.fake.idle()
        spent = spent_by_question(mission)
        full = {run.case.name: sum(world.thoughts[one.n].full_tokens for one in run.asked) for run in runs}
        truth = {run.case.name: saved_tokens(world, spent, run.asked) for run in runs}
        surfaces = {"status": await of_status(mission)}
        for _ in range(round(WITHIN_S)):  # the job of the sums, and a gateway that reads them, are behind
            surfaces |= {"report": await of_report(mission), "console": await of_console(mission)}
            surfaces["metrics"] = await of_metrics(mission)
            if _spread(surfaces, full) <= SAME:
                break
            await asyncio.sleep(1.0)
        early = {run.case.name: saved_tokens(world, spent, run.asked[: run.since]) for run in runs}
        replies = {name: early[name] + tokens for name, tokens in of_replies(runs).items()}
        surfaces["csv"] = await of_csv(mission)
        metrics = await mission.metrics()
        print(f"{'route':8} counted of all tokens that were generated")
        for run in runs:
            generated = sum(spent[one.n] for one in run.asked)
            share = metrics[f'suffice_enforced_tokens{{route="{run.case.name}"}}'] / generated
            print(f"{run.case.name:8} {100 * share:.2f}%")
    return judge(truth, full, surfaces, replies)


def _spread(surfaces: Mapping[str, Mapping[str, float]], full: Mapping[str, float]) -> float:
    figures = [[one.get(name, float("inf")) / full[name] for one in surfaces.values()] for name in full]
    return max(max(each) - min(each) for each in figures)


def judge(
    truth: Mapping[str, float],
    full: Mapping[str, float],
    surfaces: Mapping[str, Mapping[str, float]],
    replies: Mapping[str, float],
) -> bool:
    """Print the figures of each route; return whether all goals are met."""
    shown = {**surfaces, "replies": replies}
    print(f"{'route':8} {'truth':>8} " + " ".join(f"{name:>8}" for name in shown) + f" {'of truth':>9}")
    is_met = True
    for name, tokens in truth.items():
        shares = [one.get(name, float("nan")) / full[name] for one in shown.values()]
        off = max(abs(one - tokens / full[name]) for one in shares)
        is_met = is_met and off <= CLOSE * abs(tokens) / full[name]
        print(
            f"{name:8} {100 * tokens / full[name]:+7.2f}% "
            + " ".join(f"{100 * one:+7.2f}%" for one in shares)
            + f" {shares[0] * full[name] / tokens:9.3f}"
        )
    spread, beside = _spread(surfaces, full), _spread(shown, full)
    print(f"largest difference: {100 * spread:.4f} points between {', '.join(surfaces)}; {100 * beside:.2f} to replies")
    return is_met and spread <= SAME and beside <= REPLIES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=1_200, help="of each route")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return not asyncio.run(simulate(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
