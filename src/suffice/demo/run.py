"""The demonstration: observe, replay what was observed, enforce, compare, all through the real gateway.

The policies are fixed beforehand: published or plain defaults, tuned on nothing. Whatever the figures are, they are
shown.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suffice.demo import rows
from suffice.demo.rows import DemoAnswer, Full, Pass, TableRow, ask_all
from suffice.local.tasks import TaskQuestion
from suffice.policy.base import build_policy
from suffice.replay.run import ReplayedRun
from suffice.scoring.base import Scorer, build_scorer
from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice.store.database.views import read_episodes
from suffice.types import Episode, Mode

SAMPLES_POLICY: dict[str, Any] = {"policy": "beta", "threshold": 0.95}
REASONING_POLICY: dict[str, Any] = {"policy": "confidence-threshold", "threshold": 0.95}
ALSO_REPLAYED: dict[str, Any] = {"policy": "stable-answer", "streak": 2}
WAVE = 4
STEPS: dict[str, Any] = {"boundary": "line", "min_tokens": 16, "growth": 1.2}
# The server in the box was verified to continue a text and to cache prefixes.
PROBE: dict[str, Any] = {"max_tokens": 6, "verified_by": "owner"}
MAX_EXTRA_CALLS = 48


def settings(
    kind: str, *, upstream: str, slots: int, mode: Mode, database: Path, n_samples: int, driver: str = "llama.cpp"
) -> Settings:
    governed: dict[str, Any] = {"upstream": "local", "kind": kind, "mode": mode, "match": {"header": kind}}
    governed["max_extra_calls"] = max(MAX_EXTRA_CALLS, n_samples - 1)
    if mode == "enforce":
        governed["uncertified"] = True  # nothing has certified these policies, and every reply says so
    if kind == "samples":
        governed |= {"scorer": "text", "samples": n_samples, "wave": WAVE, "policy": SAMPLES_POLICY}
    else:
        governed |= {"scorer": "number", "policy": REASONING_POLICY, "steps": STEPS, "probe": PROBE}
        if mode == "observe":
            governed["audit_share"] = 1.0  # every request is a probing audit, so that all can be replayed
    return parse_settings(
        {
            "upstreams": {
                "local": {"url": upstream, "driver": driver, "slots": slots, "finish": ["raw"]}
                if driver == "llama.cpp"
                else {"url": upstream, "driver": driver, "slots": slots}
            },
            "routes": {
                kind: governed,
                "plain": {"upstream": "local", "mode": "off", "match": {"header": "plain"}},
            },
            "store": {"url": f"sqlite:///{database}"},
        }
    )


LIVE_NOTE = "uncertified, and every reply says so; audits, drawn by lot, ran in full and are counted"
Progress = Callable[[str, int], Callable[[DemoAnswer], None]]  # (title, total) → called for each answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    kind: str  # "samples" or "reasoning"
    model: str  # name on the wire
    upstream: str
    driver: str
    slots: int
    n_samples: int
    questions: Sequence[TaskQuestion]
    folder: Path
    n_at_once: int


@dataclass(slots=True)
class StageResult:
    stage: Stage
    rows: list[TableRow] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)  # sentences under the table
    stops: dict[str, int] = field(default_factory=dict)  # the policy's sentence: how often
    pays: bool = True  # reasoning beats not reasoning, or does not apply
    errors: list[str] = field(default_factory=list)


def predicted_tokens(upstream: str) -> int | None:
    try:
        with urllib.request.urlopen(f"{upstream}/metrics", timeout=5) as reply:  # noqa: S310 - our own URL
            for line in reply.read().decode().splitlines():
                if line.startswith("llamacpp:tokens_predicted_total "):
                    return int(float(line.split()[1]))
    except OSError:
        return None
    return None


async def run_pass(
    stage: Stage, mode: Mode, how: Pass, title: str, progress: Progress
) -> tuple[list[DemoAnswer], dict[str, Episode], str]:
    database = stage.folder / f"{stage.kind}-{mode}.db"
    configured = settings(
        stage.kind,
        upstream=stage.upstream,
        slots=stage.slots,
        mode=mode,
        database=database,
        n_samples=stage.n_samples,
        driver=stage.driver,
    )
    before = await asyncio.to_thread(predicted_tokens, stage.upstream)
    async with serve_in_loop(configured) as url:
        answers = await ask_all(url, stage.questions, how, progress(title, len(stage.questions)))
    asked = {a.episode_id for a in answers}
    entries = {
        e.episode.request.episode_id: e.episode
        for e in read_episodes(database)
        if e.episode.request.episode_id in asked
    }
    after = await asyncio.to_thread(predicted_tokens, stage.upstream)
    return answers, entries, _count_line(title, entries, before, after)


def _count_line(title: str, entries: Mapping[str, Episode], before: int | None, after: int | None) -> str:
    ours = sum(c.completion_tokens for e in entries.values() for c in e.outcome.calls)
    agree = sum(rows.reconciled(e) for e in entries.values())
    line = f"{title}: upstream usage = client usage + overhead in {agree} of {len(entries)} requests"
    if before is None or after is None:
        return line
    cancelled = sum(c.cancelled for e in entries.values() for c in e.outcome.calls)
    return (
        f"{line}; the model server counted {after - before:,} generated tokens, our records say {ours:,}"
        f" ({cancelled} calls were cancelled: what was in flight then is in its count only)"
    )


def extra(stage: Stage) -> dict[str, Any]:
    return {"suffice": {}} if stage.kind == "reasoning" else {"suffice": {"samples": stage.n_samples}}


async def observe(stage: Stage, scorer: Scorer, progress: Progress, result: StageResult) -> dict[str, Full]:
    how = Pass(route=stage.kind, model=stage.model, extra=extra(stage), n_at_once=stage.n_at_once)
    answers, episodes, line = await run_pass(stage, "observe", how, f"{stage.kind}: observe", progress)
    result.facts.append(line)
    result.errors += [a.error for a in answers if a.error is not None]
    return {
        a.question.id: Full(answered=a, episode=episodes[a.episode_id], correct=rows.correct(a, scorer))
        for a in answers
        if a.error is None and a.episode_id in episodes
    }


async def enforce(stage: Stage, progress: Progress, result: StageResult) -> dict[str, Episode]:
    how = Pass(
        route=stage.kind,
        model=stage.model,
        extra=extra(stage),
        n_at_once=stage.n_at_once,
        stream=stage.kind == "reasoning",
    )
    answers, episodes, line = await run_pass(stage, "enforce", how, f"{stage.kind}: enforce", progress)
    result.facts.append(line)
    result.errors += [a.error for a in answers if a.error is not None]
    for episode in episodes.values():
        outcome = episode.outcome
        if outcome.stopped:
            result.stops[outcome.decision] = result.stops.get(outcome.decision, 0) + 1
    return {a.question.id: episodes[a.episode_id] for a in answers if a.episode_id in episodes}


def _live_rows(live: Mapping[str, Episode], full: Mapping[str, Full], scorer: Scorer) -> dict[str, tuple[bool, int]]:
    return {
        q: (rows.matches(scorer, e.outcome.answer, full[q].answered.question.gold), rows.total_tokens(e))
        for q, e in live.items()
        if q in full
    }


async def run_samples_stage(stage: Stage, progress: Progress) -> StageResult:
    result, scorer = StageResult(stage=stage), build_scorer("text")
    policy = build_policy(SAMPLES_POLICY)
    full = await observe(stage, scorer, progress, result)
    runs = rows.replayed(full, policy, wave=WAVE)
    drawn = [r.stop_step or len(full[q].episode.outcome.steps) for q, r in runs.items()]
    until_decided = {q: (f.correct, rows.total_tokens(f.episode)) for q, f in full.items()}
    mean_tokens = sum(r.tokens for r in runs.values()) / max(1, sum(f.tokens for f in full.values()))
    k = max(1, round(mean_tokens * stage.n_samples))
    result.rows += [
        rows.row(f"full vote of {stage.n_samples}", "live", full, until_decided, "ends once it is decided"),
        rows.row("one sample", "replay", full, rows.first_samples(full, 1, scorer)),
        rows.row(f"fixed vote of {k}", "replay", full, rows.first_samples(full, k, scorer), "about equal tokens"),
        rows.row("beta 0.95", "replay", full, rows.judged(runs, full, scorer), "whole waves charged", acts=True),
    ]
    greedy = await _plain(stage, {"temperature": 0}, "samples: one greedy", scorer, progress, result)
    result.rows.insert(2, rows.row("one greedy answer", "live", full, greedy))
    result.pays = result.rows[2].comparison.em < result.rows[0].comparison.em
    live = await enforce(stage, progress, result)
    result.rows.append(rows.row("beta 0.95", "live", full, _live_rows(live, full, scorer), LIVE_NOTE, acts=True))
    mean = sum(drawn) / max(1, len(drawn))
    result.facts.append(f"mean samples seen at the end of a run: {mean:.1f} of {stage.n_samples}")
    result.facts.append(_agreement(live, runs))
    return result


def _agreement(live: Mapping[str, Episode], runs: Mapping[str, ReplayedRun]) -> str:
    both = [(e, runs[q]) for q, e in live.items() if q in runs and not e.request.audit]
    same_step = sum(_live_stop(e) == r.stop_step for e, r in both)
    same_answer = sum(e.outcome.answer == (r.answer if r.stop_step else r.full_answer) for e, r in both)
    audits = sum(e.request.audit for e in live.values())
    return (
        f"live against replay ({len(both)} requests, {audits} audits ran in full): same stopping point in {same_step},"
        f" same answer in {same_answer}"
    )


def _live_stop(episode: Episode) -> int | None:
    return episode.outcome.stop_step if episode.outcome.stopped else None


async def run_reasoning_stage(stage: Stage, progress: Progress) -> StageResult:
    result, scorer = StageResult(stage=stage), build_scorer("number")
    policy = build_policy(REASONING_POLICY)
    full = await observe(stage, scorer, progress, result)
    runs = rows.replayed(full, policy, wave=1)
    result.rows.append(rows.row("full thought", "live", full, {q: (f.correct, f.tokens) for q, f in full.items()}))
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    none = await _plain(stage, off, "reasoning: no thinking", scorer, progress, result)
    result.rows.append(rows.row("no thinking", "live", full, none))
    budget, capped = rows.equal_budget(full, runs)
    note = "a fixed cut, at the first line end after it, at about equal tokens"
    result.rows.append(rows.row(f"budget {budget}", "replay", full, rows.judged(capped, full, scorer), note))
    other = rows.replayed(full, build_policy(ALSO_REPLAYED), wave=1)
    result.rows += [
        rows.row("stable for 2", "replay", full, rows.judged(other, full, scorer), "probes charged", acts=True),
        rows.row("confidence 0.95", "replay", full, rows.judged(runs, full, scorer), "probes charged", acts=True),
    ]
    live = await enforce(stage, progress, result)
    result.rows.append(rows.row("confidence 0.95", "live", full, _live_rows(live, full, scorer), LIVE_NOTE, acts=True))
    result.pays = result.rows[1].comparison.em < result.rows[0].comparison.em
    result.facts.append(_agreement(live, runs))
    result.facts.append(_fidelity(live))
    return result


def _fidelity(live: Mapping[str, Episode]) -> str:
    stopped = [e.outcome for e in live.values() if e.outcome.stopped]
    kept = sum(o.answer == o.would_answer for o in stopped)
    pauses = sorted(o.handover_ms for o in stopped if o.handover_ms is not None)
    middle = f"; pause at the stop: median {pauses[len(pauses) // 2]:.0f} ms" if pauses else ""
    return f"delivered answer = trial answer in {kept} of {len(stopped)} stops{middle}"


async def _plain(
    stage: Stage, fields: Mapping[str, Any], title: str, scorer: Scorer, progress: Progress, result: StageResult
) -> dict[str, tuple[bool, int]]:
    how = Pass(route="plain", model=stage.model, extra=fields, n_at_once=stage.n_at_once)
    answers, _, _ = await run_pass(stage, "observe", how, title, progress)
    result.errors += [a.error for a in answers if a.error is not None]
    return {a.question.id: (rows.correct(a, scorer), a.completion_tokens) for a in answers if a.error is None}


def to_json(result: StageResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "kind": result.stage.kind,
        "model": result.stage.model,
        "n_questions": len(result.stage.questions),
        "rows": [asdict(r) for r in result.rows],
        "facts": result.facts,
        "stops": result.stops,
        "reasoning_pays": result.pays,
        "errors": result.errors,
    }


def write_demo_report(results: Sequence[StageResult], path: Path) -> None:
    path.write_text(json.dumps([to_json(r) for r in results], indent=2) + "\n", encoding="utf-8")
