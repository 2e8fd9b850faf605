"""Asks the demonstration's questions over HTTP and computes the rows of its tables."""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any, Final

import msgspec
import numpy as np

from suffice.assurance.money import undrawn_tokens
from suffice.episode import vote
from suffice.policy.base import Policy, build_policy
from suffice.scoring.base import Scorer
from suffice.types import Episode, Outcome
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.replayed_runs import QuestionPair, ReplayComparison, ReplayedRun, compare_pairs, replay_run

SEED: Final = 0  # of the bootstrap
TIMEOUT_S: Final = 600.0  # of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAnswer:
    question: TaskQuestion
    episode_id: str
    text: str = ""
    completion_tokens: int = 0
    stopped: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    route: str
    model: str
    extra: Mapping[str, Any]  # fields added to every request
    stream: bool = False
    n_at_once: int = 2


def question_seed(question_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=3).digest(), "big")


async def ask_all(
    url: str, questions: Sequence[TaskQuestion], how: Pass, done: Callable[[DemoAnswer], None]
) -> list[DemoAnswer]:
    """Call `done` for each answer. Return the answers in the order of the questions."""
    gate = asyncio.Semaphore(how.n_at_once)

    async def one(question: TaskQuestion) -> DemoAnswer:
        async with gate:
            answered = await asyncio.to_thread(_ask, url, question, how)
        label = {
            "feedback_id": f"gold:{answered.episode_id}",
            "episode_id": answered.episode_id,
            "gold": question.gold,
            "source": "exact-match",
        }
        await asyncio.to_thread(_post, f"{url}/v1/feedback", label, {})
        done(answered)
        return answered

    return list(await asyncio.gather(*map(one, questions)))


def _post(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(  # noqa: S310 - our own gateway
        url, json.dumps(body).encode(), {"content-type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310 - as above
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def _ask(url: str, question: TaskQuestion, how: Pass) -> DemoAnswer:
    payload = {
        "model": how.model,
        "messages": [dict(m) for m in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question_seed(question.id),
        "stream": how.stream,
        **how.extra,
    }
    route = {"x-suffice-route": how.route, "idempotency-key": f"{how.route}:{question.id}"}
    status, headers, body = _post(f"{url}/v1/chat/completions", payload, route)
    answer = DemoAnswer(question=question, episode_id=headers.get("x-suffice-episode-id", ""))
    if status != 200:
        return replace(answer, error=f"HTTP {status}: {body.decode(errors='replace')[:200]}")
    if how.stream:
        return _read_stream(body, answer)
    reply = msgspec.json.decode(body)
    return replace(
        answer,
        text=reply["choices"][0]["message"].get("content") or "",
        completion_tokens=reply["usage"]["completion_tokens"],
        stopped=bool(reply.get("suffice", {}).get("stopped")),
    )


def _read_stream(body: bytes, answer: DemoAnswer) -> DemoAnswer:
    text, tokens, stopped = "", 0, False
    for line in body.splitlines():
        data = line.strip().removeprefix(b"data: ")
        if not data or data == b"[DONE]" or data.startswith(b":"):
            continue
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            return replace(answer, error=str(chunk["error"])[:200])
        stopped = stopped or bool(chunk.get("suffice", {}).get("stopped"))
        tokens = chunk.get("usage", {}).get("completion_tokens", tokens)
        text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return replace(answer, text=text, completion_tokens=tokens, stopped=stopped)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    name: str
    how: str  # "live" or "replay"
    comparison: ReplayComparison
    note: str = ""  # remark for readers of the table
    acts: bool = False  # the policy stops runs

    @property
    def title(self) -> str:
        return f"{self.name}, {self.how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    answered: DemoAnswer
    episode: Episode
    correct: bool

    @property
    def gold(self) -> str:
        return self.answered.question.gold

    @property
    def tokens(self) -> int:
        """Generated by the full run without probes; if a vote was decided early, estimated for all its samples."""
        outcome = self.episode.outcome
        return _generated(outcome) + round(undrawn_tokens(self.episode.request, outcome))


def correct(answered: DemoAnswer, scorer: Scorer) -> bool:
    return matches(scorer, scorer.extract(answered.text), answered.question.gold)


def matches(scorer: Scorer, answer: str | None, gold: str) -> bool:
    return scorer.match(answer, scorer.normalise(gold) or gold)


def total_tokens(episode: Episode) -> int:
    over = episode.outcome.overhead
    return _generated(episode.outcome) + over.probe_tokens + over.discarded_tokens


def _generated(outcome: Outcome) -> int:
    return outcome.usage.completion_tokens if outcome.usage is not None else 0


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
    comparison = compare_pairs(pairs, rng=np.random.default_rng(SEED))
    return TableRow(name=name, how=how, comparison=comparison, note=note, acts=acts)


def replayed(full: Mapping[str, Full], policy: Policy, *, wave: int) -> dict[str, ReplayedRun]:
    runs = {q: replay_run(f.episode, policy, wave=wave) for q, f in full.items()}
    return {q: r for q, r in runs.items() if r is not None}


def judged(runs: Mapping[str, ReplayedRun], full: Mapping[str, Full], scorer: Scorer) -> dict[str, tuple[bool, int]]:
    return {
        q: (full[q].correct if r.stop_step is None else matches(scorer, r.answer, full[q].gold), r.tokens)
        for q, r in runs.items()
    }


def equal_budget(full: Mapping[str, Full], runs: Mapping[str, ReplayedRun]) -> tuple[int, dict[str, ReplayedRun]]:
    """Return the fixed budget whose cost on the recorded runs is nearest to that of `runs`, with its runs.

    A fixed budget needs no probes, so only the tokens of thought and answer count.
    """
    wanted = sum(r.tokens for r in runs.values())
    entries: dict[int, dict[str, ReplayedRun]] = {}
    for budget in range(10, 201, 5):
        replays = replayed(full, build_policy({"policy": "fixed-budget", "max_tokens": budget}), wave=1)
        entries[budget] = {q: replace(r, tokens=r.tokens - r.probe_tokens, probe_tokens=0) for q, r in replays.items()}
    best = min(entries, key=lambda budget: abs(sum(r.tokens for r in entries[budget].values()) - wanted))
    return best, entries[best]


def first_samples(full: Mapping[str, Full], k: int, scorer: Scorer) -> dict[str, tuple[bool, int]]:
    entries = {}
    for q, f in full.items():
        steps = f.episode.outcome.steps[:k]
        if steps:
            answer = vote.count_votes([s.answer for s in steps]).answer
            entries[q] = (matches(scorer, answer, f.gold), sum(s.tokens for s in steps))
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
