"""Runs to estimate from: a log's calls, or recorded traces, seen as steps; and what each level does with them.

A level is a policy with its parameters, from the one that hardly ever stops to the boldest. It is
replayed through the same `Observer` and policy as live. Nothing here reads a reference: a stop is judged
by whether it answers as the full run does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.episode import vote
from suffice.episode.segment import Segmenter, visible_step
from suffice.policy.base import build_policy
from suffice.replay.logs.formats import LoggedCall
from suffice.replay.traces.batch import Batch
from suffice.scoring.base import Scorer
from suffice.settings import Probe, Steps
from suffice.signals.observe import Observer
from suffice.types import Kind, Step

WAVE = 4  # samples drawn at once: a stop inside a wave pays for all of it
LEAST_SAMPLES = 3  # answers to one prompt from which a vote can be thought
MOST_SAMPLES = 64
CHARS_A_TOKEN = 4.0  # of a thought whose tokens were not counted

# From the safe end. A certificate is tested in this order and ends at the first level that fails.
LADDERS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "votes": tuple({"policy": "beta", "threshold": t} for t in (0.999, 0.995, 0.99, 0.975, 0.95, 0.9, 0.8, 0.7)),
    "visible answers": tuple({"policy": "stable-answer", "streak": n} for n in (8, 6, 5, 4, 3, 2, 1)),
    "trial answers": tuple(
        {"policy": "confidence-threshold", "threshold": t} for t in (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8)
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRun:
    """One full run, as far as it can be replayed."""

    question: str  # groups runs of the same question
    kind: Kind
    steps: tuple[Step, ...]
    full_answer: str | None
    full_tokens: int  # generated
    answer_tokens: int = 0  # of them written behind the thought: a stop writes them, too
    gold: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelOutcomes:
    """What each level would have done with each run: R runs, L levels from the safe end."""

    ladder: str
    levels: tuple[str, ...]  # names for people
    question: tuple[str, ...]  # R
    full_tokens: NDArray[np.float64]  # R
    tokens: NDArray[np.float64]  # R x L: spent under the level, probes included
    differs: NDArray[np.bool_]  # R x L: answered otherwise than the full run, or not at all
    stopped: NDArray[np.bool_]  # R x L
    probe_tokens: NDArray[np.float64]  # R: of an audit that probes at every step
    drop: NDArray[np.float64] | None  # R x L: right in full minus right when stopped; None: no references

    @property
    def n_runs(self) -> int:
        """Full runs."""
        return len(self.question)


@dataclass(slots=True)
class LogRuns:
    """Runs that could be made of a log's calls, and what became of the others."""

    runs: list[LogRun] = field(default_factory=list)
    kind: Kind | None = None
    n_unfit: int = 0  # calls, or prompts, that show too little to be replayed


def runs_of_calls(calls: Sequence[LoggedCall], scorer: Scorer) -> LogRuns:
    """Thoughts where most calls show one, else votes over calls of one prompt; none of both: no runs."""
    if 2 * sum(any(call.thoughts) for call in calls) >= len(calls) > 0:
        thoughts = [run for call in calls for run in _thought_runs(call, scorer)]
        return LogRuns(runs=thoughts, kind="reasoning", n_unfit=sum(len(c.texts) for c in calls) - len(thoughts))
    by_prompt: dict[str, list[LoggedCall]] = defaultdict(list)
    for call in calls:
        by_prompt[call.prompt or f"call {len(by_prompt)}"].append(call)
    votes = [run for prompt, asked in by_prompt.items() if (run := _vote_run(prompt, asked, scorer)) is not None]
    return LogRuns(runs=votes, kind="samples" if votes else None, n_unfit=len(by_prompt) - len(votes))


def _vote_run(prompt: str, calls: Sequence[LoggedCall], scorer: Scorer) -> LogRun | None:
    """The answers to one prompt in the order of their calls; tokens of a call are shared equally by its choices."""
    steps: list[Step] = []
    for call in sorted(calls, key=lambda c: c.at_s or 0.0):
        for text in call.texts:
            tokens = (call.completion_tokens or 0) / len(call.texts) or len(text) / CHARS_A_TOKEN
            steps.append(
                Step(
                    index=len(steps) + 1,
                    tokens=max(1, round(tokens)),
                    answer=scorer.extract(text),
                    answer_source="sample",
                )
            )
    if len(steps) < LEAST_SAMPLES:
        return None
    kept = tuple(steps[:MOST_SAMPLES])
    return LogRun(
        question=prompt,
        kind="samples",
        steps=kept,
        full_answer=vote.count_votes([s.answer for s in kept]).answer,
        full_tokens=sum(s.tokens for s in kept),
    )


def _thought_runs(call: LoggedCall, scorer: Scorer) -> Iterator[LogRun]:
    """One run for each choice that shows its thought, cut at lines as the gateway does."""
    n = len(call.texts)
    for text, thought in zip(call.texts, call.thoughts, strict=True):
        if not thought:
            continue
        length = max(1, len(thought) + len(text))
        full = (call.completion_tokens or 0) / n or length / CHARS_A_TOKEN
        share = len(thought) / length
        thinking = full * share if call.reasoning_tokens is None else min(full, call.reasoning_tokens / n)
        steps = tuple(_visible_steps(thought, thinking, scorer))
        yield LogRun(
            question=call.prompt or text[:200],
            kind="reasoning",
            steps=steps,
            full_answer=scorer.extract(text),
            full_tokens=max(1, round(full)),
            answer_tokens=max(0, round(full - thinking)),
        )


def _visible_steps(thought: str, tokens: float, scorer: Scorer) -> Iterator[Step]:
    """Steps with the last answer that the thought itself shows, its tokens spread over its characters."""
    segmenter, before, told = Segmenter(Steps()), None, 0
    n_chars = 0
    for line in thought.splitlines(keepends=True):
        n_chars += len(line)
        reached = round(tokens * n_chars / len(thought))
        point = segmenter.feed(line, reached - told)
        told = reached
        if point is not None:
            step = visible_step(point, scorer.extract(point.text), before)
            before = step.answer
            yield step


def runs_of_traces(batches: Iterable[Batch]) -> LogRuns:
    """The runs of recorded traces, of one kind: that of the first batch."""
    found = LogRuns()
    for batch in batches:
        found.kind = found.kind or batch.kind
        if batch.kind != found.kind:
            found.n_unfit += len(batch)
            continue
        for i in range(len(batch)):
            steps = tuple(batch.steps(i))
            # A chain's last step is its own end with the answer behind it: stopping there saves nothing.
            tail = 0 if batch.kind == "samples" else _tail_tokens(batch.meta[i])
            found.runs.append(
                LogRun(
                    question=batch.question_id[i],
                    kind=batch.kind,
                    steps=steps if batch.kind == "samples" else steps[:-1],
                    full_answer=batch.full_answer[i],
                    full_tokens=int(batch.full_tokens[i]),
                    answer_tokens=tail,
                    gold=batch.gold[i],
                )
            )
    return found


def _tail_tokens(meta: str | None) -> int:
    """Tokens of the answer behind the thought, where a recording tells them."""
    import msgspec

    try:
        return int(msgspec.json.decode(meta or "{}").get("answer_tokens") or 0)
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError):
        return 0


def replay_ladder(found: LogRuns, scorer: Scorer) -> LevelOutcomes:
    """Every level on every run. Needs at least one run."""
    runs = found.runs
    name = _ladder_for(found)
    ladder = [build_policy(dict(spec)) for spec in LADDERS[name]]
    needs = tuple(dict.fromkeys(need for policy in ladder for need in policy.needs))
    shape = (len(runs), len(ladder))
    tokens, differs = np.zeros(shape), np.zeros(shape, dtype=np.bool_)
    stopped, drop = np.zeros(shape, dtype=np.bool_), np.zeros(shape)
    has_gold = all(run.gold is not None for run in runs)
    for i, run in enumerate(runs):
        tokens[i] = run.full_tokens
        right = has_gold and _is_right(run.full_answer, run, scorer)
        open_levels = set(range(len(ladder)))
        observer, last = Observer(needs, run.kind), len(run.steps) - 1
        for place, step in enumerate(run.steps):
            signals = observer.observe(step)
            if run.kind == "samples" and place == last:
                break  # all samples are drawn: nothing is left to stop
            for level in sorted(open_levels):
                if ladder[level].decide(signals).action != "stop":
                    continue
                open_levels.discard(level)
                stopped[i, level] = True
                tokens[i, level] = min(_spent(run, place), 2 * run.full_tokens)
                differs[i, level] = signals.answer is None or signals.answer != run.full_answer
                if has_gold:
                    drop[i, level] = float(right) - float(_is_right(signals.answer, run, scorer))
            if not open_levels:
                break
        for level in open_levels:  # never stopped: probes were paid all the same
            tokens[i, level] += sum(s.probe_tokens for s in run.steps)
    return LevelOutcomes(
        ladder=name,
        levels=tuple(_words(spec) for spec in LADDERS[name]),
        question=tuple(run.question for run in runs),
        full_tokens=np.array([run.full_tokens for run in runs], dtype=np.float64),
        tokens=tokens,
        differs=differs,
        stopped=stopped,
        probe_tokens=np.array([_probing(run) for run in runs], dtype=np.float64),
        drop=drop if has_gold else None,
    )


def _ladder_for(found: LogRuns) -> str:
    if found.kind == "samples":
        return "votes"
    probed = sum(any(s.logprobs or s.confidence is not None for s in run.steps) for run in found.runs)
    return "trial answers" if 2 * probed >= len(found.runs) else "visible answers"


def _spent(run: LogRun, place: int) -> int:
    """Tokens of a run that is stopped behind the step at `place`, from 0."""
    if run.kind == "samples":
        drawn = min(len(run.steps), -(-(place + 1) // WAVE) * WAVE)
        return sum(s.tokens for s in run.steps[:drawn])
    seen = run.steps[: place + 1]
    return sum(s.tokens + s.ctx_tokens + s.probe_tokens for s in seen) + run.answer_tokens


def _probing(run: LogRun) -> int:
    """What an audit of this run would spend on probes; samples and visible answers need none."""
    if run.kind != "reasoning":
        return 0
    recorded = sum(s.probe_tokens for s in run.steps)
    return recorded or len(run.steps) * Probe().max_tokens


def _is_right(answer: str | None, run: LogRun, scorer: Scorer) -> bool:
    gold = run.gold or ""
    return scorer.match(answer, scorer.normalise(gold) or gold)


def _words(spec: Mapping[str, Any]) -> str:
    return " ".join([str(spec["policy"]), *(f"{v:g}" for k, v in spec.items() if k != "policy")])
