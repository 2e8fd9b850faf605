"""The demonstration: observe, replay, enforce and compare, with policies that are not tuned on this data."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from suffice.policy.base import build_policy
from suffice.scoring.base import Scorer, build_scorer
from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice.store.database.views import read_episodes
from suffice.types import Episode, Mode
from suffice_demo import rows
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.replayed_runs import ReplayedRun
from suffice_demo.rows import DemoAnswer, Full, Pass, TableRow, ask_all

SAMPLES_POLICY: dict[str, Any] = {"policy": "beta", "threshold": 0.95}
REASONING_POLICY: dict[str, Any] = {"policy": "confidence-threshold", "threshold": 0.95}
ALSO_REPLAYED: dict[str, Any] = {"policy": "stable-answer", "streak": 2}
WAVE = 4
STEPS: dict[str, Any] = {"boundary": "line", "min_tokens": 16, "growth": 1.2}
# The bundled server is known to continue text and to cache prefixes.
PROBE: dict[str, Any] = {"max_tokens": 6, "verified_by": "owner"}
MAX_EXTRA_CALLS = 48
LIVE_NOTE = "uncertified, and every reply says so; audits, assigned at random, ran in full and are counted"
Progress: TypeAlias = Callable[[str, int], Callable[[DemoAnswer], None]]  # (title, total) → callback for each answer
Judged: TypeAlias = dict[str, tuple[bool, int]]  # by question: (the answer is right, its tokens)


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
    facts: list[str] = field(default_factory=list)  # sentences below the table
    stops: dict[str, int] = field(default_factory=dict)  # reason of the policy: number of stops
    pays: bool = True  # reasoning beats no reasoning, or does not apply
    errors: list[str] = field(default_factory=list)


def settings(stage: Stage, mode: Mode, database: Path) -> Settings:
    governed: dict[str, Any] = {"upstream": "local", "kind": stage.kind, "mode": mode, "match": {"header": stage.kind}}
    governed["max_extra_calls"] = max(MAX_EXTRA_CALLS, stage.n_samples - 1)
    if mode == "enforce":
        governed["uncertified"] = True  # these policies are not certified, and every reply says so
    if stage.kind == "samples":
        governed |= {"scorer": "text", "samples": stage.n_samples, "wave": WAVE, "policy": SAMPLES_POLICY}
    else:
        governed |= {"scorer": "number", "policy": REASONING_POLICY, "steps": STEPS, "probe": PROBE}
        if mode == "observe":
            governed["audit_share"] = 1.0  # every request is a probing audit, so that all can be replayed
    finish = {"finish": ["raw"]} if stage.driver == "llama.cpp" else {}
    upstream = {"url": stage.upstream, "driver": stage.driver, "slots": stage.slots, **finish}
    plain = {"upstream": "local", "mode": "off", "match": {"header": "plain"}}
    return parse_settings(
        {
            "upstreams": {"local": upstream},
            "routes": {stage.kind: governed, "plain": plain},
            "store": {"url": f"sqlite:///{database}"},
        }
    )


def predicted_tokens(upstream: str) -> int | None:
    """Return the server's count of generated tokens, or None if it does not report it."""
    try:
        with urllib.request.urlopen(f"{upstream}/metrics", timeout=5) as reply:  # noqa: S310 - our own URL
            for line in reply.read().decode().splitlines():
                if line.startswith("llamacpp:tokens_predicted_total "):
                    return int(float(line.split()[1]))
    except OSError:
        return None
    return None


@dataclass(slots=True)
class _StageRun:
    result: StageResult
    scorer: Scorer
    progress: Progress

    async def ask(self, mode: Mode, title: str, how: Pass) -> tuple[list[DemoAnswer], dict[str, Episode], str]:
        stage = self.result.stage
        database = stage.folder / f"{stage.kind}-{mode}.db"
        before = await asyncio.to_thread(predicted_tokens, stage.upstream)
        async with serve_in_loop(settings(stage, mode, database)) as url:
            answers = await ask_all(url, stage.questions, how, self.progress(title, len(stage.questions)))
        answered = {a.episode_id for a in answers}
        episodes = {one.episode.request.episode_id: one.episode for one in read_episodes(database)}
        episodes = {name: episode for name, episode in episodes.items() if name in answered}
        after = await asyncio.to_thread(predicted_tokens, stage.upstream)
        self.result.errors += [a.error for a in answers if a.error is not None]
        return answers, episodes, _count_line(title, episodes, before, after)

    def _how(self, *, stream: bool = False) -> Pass:
        stage = self.result.stage
        options = {} if stage.kind == "reasoning" else {"samples": stage.n_samples}
        return Pass(
            route=stage.kind, model=stage.model, extra={"suffice": options}, n_at_once=stage.n_at_once, stream=stream
        )

    async def observe(self) -> dict[str, Full]:
        answers, episodes, line = await self.ask("observe", f"{self.result.stage.kind}: observe", self._how())
        self.result.facts.append(line)
        return {
            a.question.id: Full(answered=a, episode=episodes[a.episode_id], correct=rows.correct(a, self.scorer))
            for a in answers
            if a.error is None and a.episode_id in episodes
        }

    async def enforce(self, full: Mapping[str, Full]) -> tuple[dict[str, Episode], Judged]:
        kind = self.result.stage.kind
        answers, episodes, line = await self.ask("enforce", f"{kind}: enforce", self._how(stream=kind == "reasoning"))
        self.result.facts.append(line)
        outcomes = [episode.outcome for episode in episodes.values()]
        self.result.stops = dict(Counter(one.decision for one in outcomes if one.stopped))
        live = {a.question.id: episodes[a.episode_id] for a in answers if a.episode_id in episodes}
        return live, {
            q: (rows.matches(self.scorer, e.outcome.answer, full[q].gold), rows.total_tokens(e))
            for q, e in live.items()
            if q in full
        }

    async def plain(self, fields: Mapping[str, Any], title: str) -> Judged:
        """Ask the model without Suffice."""
        stage = self.result.stage
        how = Pass(route="plain", model=stage.model, extra=fields, n_at_once=stage.n_at_once)
        answers, _, _ = await self.ask("observe", title, how)
        return {a.question.id: (rows.correct(a, self.scorer), a.completion_tokens) for a in answers if a.error is None}


def _count_line(title: str, entries: Mapping[str, Episode], before: int | None, after: int | None) -> str:
    calls = [call for episode in entries.values() for call in episode.outcome.calls]
    agree = sum(rows.reconciled(e) for e in entries.values())
    line = f"{title}: upstream usage = client usage + overhead in {agree} of {len(entries)} requests"
    if before is None or after is None:
        return line
    ours, cancelled = sum(c.completion_tokens for c in calls), sum(c.cancelled for c in calls)
    return (
        f"{line}; the model server counted {after - before:,} generated tokens, our records say {ours:,}"
        f" ({cancelled} calls were cancelled: what was in flight then is in its count only)"
    )


async def run_samples_stage(stage: Stage, progress: Progress) -> StageResult:
    result, scorer = StageResult(stage=stage), build_scorer("text")
    passes = _StageRun(result, scorer, progress)
    full = await passes.observe()
    runs = rows.replayed(full, build_policy(SAMPLES_POLICY), wave=WAVE)
    drawn = [r.stop_step or len(full[q].episode.outcome.steps) for q, r in runs.items()]
    until_decided = {q: (f.correct, rows.total_tokens(f.episode)) for q, f in full.items()}
    mean_tokens = sum(r.tokens for r in runs.values()) / max(1, sum(f.tokens for f in full.values()))
    k = max(1, round(mean_tokens * stage.n_samples))
    greedy = await passes.plain({"temperature": 0}, "samples: one greedy")
    live, judged = await passes.enforce(full)
    result.rows = [
        rows.row(f"full vote of {stage.n_samples}", "live", full, until_decided, "ends once it is decided"),
        rows.row("one sample", "replay", full, rows.first_samples(full, 1, scorer)),
        rows.row("one greedy answer", "live", full, greedy),
        rows.row(f"fixed vote of {k}", "replay", full, rows.first_samples(full, k, scorer), "about equal tokens"),
        rows.row("beta 0.95", "replay", full, rows.judged(runs, full, scorer), "whole waves charged", acts=True),
        rows.row("beta 0.95", "live", full, judged, LIVE_NOTE, acts=True),
    ]
    result.pays = result.rows[2].comparison.em < result.rows[0].comparison.em
    mean = sum(drawn) / max(1, len(drawn))
    result.facts.append(f"mean samples seen at the end of a run: {mean:.1f} of {stage.n_samples}")
    result.facts.append(_agreement(live, runs))
    return result


def _agreement(live: Mapping[str, Episode], runs: Mapping[str, ReplayedRun]) -> str:
    both = [(e, runs[q]) for q, e in live.items() if q in runs and not e.request.audit]
    same_step = sum((e.outcome.stop_step if e.outcome.stopped else None) == r.stop_step for e, r in both)
    same_answer = sum(e.outcome.answer == (r.answer if r.stop_step else r.full_answer) for e, r in both)
    audits = sum(e.request.audit for e in live.values())
    return (
        f"live against replay ({len(both)} requests, {audits} audits ran in full): same stopping point in {same_step},"
        f" same answer in {same_answer}"
    )


async def run_reasoning_stage(stage: Stage, progress: Progress) -> StageResult:
    result, scorer = StageResult(stage=stage), build_scorer("number")
    passes = _StageRun(result, scorer, progress)
    full = await passes.observe()
    runs = rows.replayed(full, build_policy(REASONING_POLICY), wave=1)
    none = await passes.plain({"chat_template_kwargs": {"enable_thinking": False}}, "reasoning: no thinking")
    budget, capped = rows.equal_budget(full, runs)
    note = "a fixed cut, at the first line end after it, at about equal tokens"
    other = rows.replayed(full, build_policy(ALSO_REPLAYED), wave=1)
    live, judged = await passes.enforce(full)
    result.rows = [
        rows.row("full thought", "live", full, {q: (f.correct, f.tokens) for q, f in full.items()}),
        rows.row("no thinking", "live", full, none),
        rows.row(f"budget {budget}", "replay", full, rows.judged(capped, full, scorer), note),
        rows.row("stable for 2", "replay", full, rows.judged(other, full, scorer), "probes charged", acts=True),
        rows.row("confidence 0.95", "replay", full, rows.judged(runs, full, scorer), "probes charged", acts=True),
        rows.row("confidence 0.95", "live", full, judged, LIVE_NOTE, acts=True),
    ]
    result.pays = result.rows[1].comparison.em < result.rows[0].comparison.em
    result.facts += [_agreement(live, runs), _fidelity(live)]
    return result


def _fidelity(live: Mapping[str, Episode]) -> str:
    stopped = [e.outcome for e in live.values() if e.outcome.stopped]
    kept = sum(o.answer == o.would_answer for o in stopped)
    pauses = sorted(o.handover_ms for o in stopped if o.handover_ms is not None)
    middle = f"; pause at the stop: median {pauses[len(pauses) // 2]:.0f} ms" if pauses else ""
    return f"delivered answer = trial answer in {kept} of {len(stopped)} stops{middle}"


def write_demo_report(results: Sequence[StageResult], path: Path) -> None:
    reports = [
        {
            "kind": result.stage.kind,
            "model": result.stage.model,
            "n_questions": len(result.stage.questions),
            "rows": [asdict(r) for r in result.rows],
            "facts": result.facts,
            "stops": result.stops,
            "reasoning_pays": result.pays,
            "errors": result.errors,
        }
        for result in results
    ]
    path.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
