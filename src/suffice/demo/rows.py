"""Asks the demonstration's questions over HTTP, and computes the rows of its tables."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec
import numpy as np

from suffice.assurance.money import undrawn_tokens
from suffice.episode import vote
from suffice.local.tasks import TaskQuestion
from suffice.policy.base import Policy, build_policy
from suffice.replay.run import QuestionPair, ReplayComparison, ReplayedRun, compare_pairs, replay_run
from suffice.scoring.base import Scorer
from suffice.types import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAnswer:
    question: TaskQuestion
    episode_id: str
    text: str
    finish_reason: str | None
    completion_tokens: int
    stopped: bool
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    route: str
    model: str
    extra: Mapping[str, Any]  # fields added to every request
    stream: bool = False
    n_at_once: int = 2


def question_seed(question_id: str) -> int:
    """The same seed for a question in every pass, so that passes differ in nothing else."""
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=3).digest(), "big")


async def ask_all(
    url: str, questions: Sequence[TaskQuestion], how: Pass, done: Callable[[DemoAnswer], None]
) -> list[DemoAnswer]:
    """Ask every question once; call `done` as each answer arrives. Answers in the questions' order."""
    gate = asyncio.Semaphore(how.n_at_once)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:

        async def one(question: TaskQuestion) -> DemoAnswer:
            async with gate:
                answered = await _ask(session, url, question, how)
            await _label(session, url, answered)
            done(answered)
            return answered

        return list(await asyncio.gather(*(one(q) for q in questions)))


def request_body(question: TaskQuestion, how: Pass) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": how.model,
        "messages": [dict(m) for m in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question_seed(question.id),
        "stream": how.stream,
    }
    return body | dict(how.extra)


async def _ask(session: aiohttp.ClientSession, url: str, question: TaskQuestion, how: Pass) -> DemoAnswer:
    headers = {"x-suffice-route": how.route, "idempotency-key": f"{how.route}:{question.id}"}
    async with session.post(f"{url}/v1/chat/completions", json=request_body(question, how), headers=headers) as reply:
        episode_id = reply.headers.get("x-suffice-episode-id", "")
        if reply.status != 200:
            return _failed(question, episode_id, f"HTTP {reply.status}: {(await reply.text())[:200]}")
        if how.stream:
            return await _read_stream(reply, question, episode_id)
        body = await reply.json()
    choice = body["choices"][0]
    return DemoAnswer(
        question=question,
        episode_id=episode_id,
        text=choice["message"].get("content") or "",
        finish_reason=choice.get("finish_reason"),
        completion_tokens=body["usage"]["completion_tokens"],
        stopped=bool(body.get("suffice", {}).get("stopped")),
    )


async def _read_stream(reply: aiohttp.ClientResponse, question: TaskQuestion, episode_id: str) -> DemoAnswer:
    text, finish, tokens, stopped = "", None, 0, False
    async for line in reply.content:
        data = line.strip().removeprefix(b"data: ")
        if not data or data == b"[DONE]" or data.startswith(b":"):
            continue
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            return _failed(question, episode_id, str(chunk["error"])[:200])
        stopped = stopped or bool(chunk.get("suffice", {}).get("stopped"))
        tokens = chunk.get("usage", {}).get("completion_tokens", tokens)
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice.get("finish_reason") or finish
    return DemoAnswer(
        question=question,
        episode_id=episode_id,
        text=text,
        finish_reason=finish,
        completion_tokens=tokens,
        stopped=stopped,
    )


def _failed(question: TaskQuestion, episode_id: str, error: str) -> DemoAnswer:
    return DemoAnswer(
        question=question,
        episode_id=episode_id,
        text="",
        finish_reason=None,
        completion_tokens=0,
        stopped=False,
        error=error,
    )


async def _label(session: aiohttp.ClientSession, url: str, answered: DemoAnswer) -> None:
    body = {
        "feedback_id": f"gold:{answered.episode_id}",
        "episode_id": answered.episode_id,
        "gold": answered.question.gold,
        "source": "exact-match",
    }
    async with session.post(f"{url}/v1/feedback", json=body) as reply:
        await reply.read()


SEED = 0  # of the bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    name: str
    how: str  # "live" or "replay": where the figures come from
    comparison: ReplayComparison
    note: str = ""  # half a sentence that a reader of the table needs
    acts: bool = False  # is it a policy that stops?

    @property
    def title(self) -> str:
        return f"{self.name}, {self.how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    answered: DemoAnswer
    episode: Episode
    correct: bool

    @property
    def tokens(self) -> int:
        """Generated by the full run, without probes; where a vote was decided early, by all its samples, estimated."""
        outcome = self.episode.outcome
        generated = outcome.usage.completion_tokens if outcome.usage is not None else 0
        return generated + round(undrawn_tokens(self.episode.request, outcome))


def correct(answered: DemoAnswer, scorer: Scorer) -> bool:
    return matches(scorer, scorer.extract(answered.text), answered.question.gold)


def matches(scorer: Scorer, answer: str | None, gold: str) -> bool:
    return scorer.match(answer, scorer.normalise(gold) or gold)


def total_tokens(episode: Episode) -> int:
    outcome = episode.outcome
    generated = outcome.usage.completion_tokens if outcome.usage is not None else 0
    return generated + outcome.overhead.probe_tokens + outcome.overhead.discarded_tokens


def row(
    name: str,
    how: str,
    full: Mapping[str, Full],
    entries: Mapping[str, tuple[bool, int]],
    note: str = "",
    *,
    acts: bool = False,
) -> TableRow:
    pairs = [
        QuestionPair(
            question=q, full_correct=f.correct, correct=entries[q][0], full_tokens=f.tokens, tokens=entries[q][1]
        )
        for q, f in full.items()
        if q in entries
    ]
    return TableRow(
        name=name, how=how, comparison=compare_pairs(pairs, rng=np.random.default_rng(SEED)), note=note, acts=acts
    )


def replayed(full: Mapping[str, Full], policy: Policy, *, wave: int) -> dict[str, ReplayedRun]:
    runs = {q: replay_run(f.episode, policy, wave=wave) for q, f in full.items()}
    return {q: r for q, r in runs.items() if r is not None}


def judged(runs: Mapping[str, ReplayedRun], full: Mapping[str, Full], scorer: Scorer) -> dict[str, tuple[bool, int]]:
    return {q: (_right(r, full[q], scorer), r.tokens) for q, r in runs.items()}


def equal_budget(full: Mapping[str, Full], runs: Mapping[str, ReplayedRun]) -> tuple[int, dict[str, ReplayedRun]]:
    """The fixed budget whose cost on the recorded runs is nearest to that of `runs`, and its own runs.

    A fixed budget needs no probe while it waits, so only the tokens of the thought and the answer count.
    """
    wanted = sum(r.tokens for r in runs.values())
    entries: dict[int, dict[str, ReplayedRun]] = {}
    for budget in range(10, 201, 5):
        replays = replayed(full, build_policy({"policy": "fixed-budget", "max_tokens": budget}), wave=1)
        entries[budget] = {q: replace(r, tokens=r.tokens - r.probe_tokens, probe_tokens=0) for q, r in replays.items()}
    best = min(entries, key=lambda budget: abs(sum(r.tokens for r in entries[budget].values()) - wanted))
    return best, entries[best]


def _right(run: ReplayedRun, full: Full, scorer: Scorer) -> bool:
    return full.correct if run.stop_step is None else matches(scorer, run.answer, full.answered.question.gold)


def first_samples(full: Mapping[str, Full], k: int, scorer: Scorer) -> dict[str, tuple[bool, int]]:
    entries = {}
    for q, f in full.items():
        steps = f.episode.outcome.steps[:k]
        if steps:
            answer = vote.count_votes([s.answer for s in steps]).answer
            entries[q] = (matches(scorer, answer, f.answered.question.gold), sum(s.tokens for s in steps))
    return entries


def reconciled(episode: Episode) -> bool:
    outcome = episode.outcome
    if outcome.usage is None:
        return not outcome.calls
    usage, over = outcome.usage, outcome.overhead
    prompts = sum(c.prompt_tokens or 0 for c in outcome.calls)
    generated = sum(c.completion_tokens for c in outcome.calls)
    return (
        prompts == usage.prompt_tokens + over.extra_prompt_tokens
        and generated == usage.completion_tokens + over.probe_tokens + over.discarded_tokens
    )
