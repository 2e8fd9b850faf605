"""Runs a loop over its questions twice, in full and governed, and prints what that saved and what it cost.

The full pass observes: every loop comes to its own end. The governed pass acts, uncertified and saying
so; a tenth of its runs is drawn by lot to run in full all the same, and is counted as spent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from suffice import AsyncEpisode, Episode, Governor
from suffice.scoring.base import Scorer, build_scorer
from suffice.settings import parse_settings


class Asked(Protocol):
    """A question with an exact answer."""

    @property
    def text(self) -> str:
        """What is asked."""
        ...

    @property
    def gold(self) -> str:
        """The only right answer."""
        ...


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of the loop."""

    right: bool
    steps: int
    generated: int  # tokens
    read: int  # prompt tokens, cached or not
    stopped: bool


def arguments(doc: str | None, *, questions: int) -> argparse.Namespace:
    """What an example takes from the command line. `questions` of them take two to four minutes of one core."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--questions", type=int, default=questions, help="how many (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="one line a run")
    return parser.parse_args()


def compare(
    questions: Sequence[Any],
    loop: Callable[[Any, Episode], None],
    *,
    title: str,
    scorer: str,
    policy: Mapping[str, Any],
    verbose: bool = False,
) -> dict[str, list[Ran]]:
    """Run `loop(question, episode)` on every question, in full and governed."""

    def run(gov: Governor, question: Asked) -> Episode:
        with gov.episode(question.text, key=question.text) as ep:
            loop(question, ep)
        gov.feedback(ep.id, gold=question.gold, source="exact-match")
        return ep

    return _compared(questions, run, title=title, scorer=scorer, policy=policy, verbose=verbose)


def compare_async(
    questions: Sequence[Any],
    loop: Callable[[Any, AsyncEpisode], Awaitable[None]],
    *,
    title: str,
    scorer: str,
    policy: Mapping[str, Any],
    verbose: bool = False,
) -> dict[str, list[Ran]]:
    """The same for a loop that is asynchronous."""

    async def one(gov: Governor, question: Asked) -> AsyncEpisode:
        async with gov.episode(question.text, key=question.text) as ep:
            await loop(question, ep)
        await gov.afeedback(ep.id, gold=question.gold, source="exact-match")
        return ep

    def run(gov: Governor, question: Asked) -> AsyncEpisode:
        return asyncio.run(one(gov, question))

    return _compared(questions, run, title=title, scorer=scorer, policy=policy, verbose=verbose)


def _compared(
    questions: Sequence[Asked],
    run: Callable[[Governor, Any], Episode | AsyncEpisode],
    *,
    title: str,
    scorer: str,
    policy: Mapping[str, Any],
    verbose: bool,
) -> dict[str, list[Ran]]:
    os.environ.setdefault("SUFFICE_SALT", "examples")  # the same audits each time, so that figures can be repeated
    yardstick, found, started = build_scorer(scorer), dict[str, list[Ran]](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, mode in (("full", "observe"), ("governed", "enforce")):
            route = {
                "kind": "rounds",
                "scorer": scorer,
                "policy": dict(policy),
                "mode": mode,
                "audit_share": 0.1,
                "uncertified": mode == "enforce",
            }
            settings = parse_settings(
                {"routes": {"loop": route}, "store": {"url": f"sqlite:///{Path(folder) / name}.db"}}
            )
            with Governor.open(settings, route="loop") as gov:
                found[name] = []
                for question in questions:
                    found[name].append(_ran(run(gov, question), question, yardstick))
                    if verbose:
                        print(f"  {name:8} {question.text[:60]!r} gold {question.gold!r}: {found[name][-1]}")
                if gov.failed_open:
                    raise SystemExit(f"{title}: Suffice failed and let loops go on: {gov.failed_open}")
    _show(title, policy, found, time.monotonic() - started)
    return found


def _ran(ep: Episode | AsyncEpisode, question: Asked, scorer: Scorer) -> Ran:
    answer = None if ep.answer is None else scorer.normalise(ep.answer)
    gold = scorer.normalise(question.gold)
    return Ran(
        right=gold is not None and scorer.match(answer, gold),
        steps=len(ep.history),
        generated=ep.tokens,
        read=sum(said.ctx_tokens for said in ep.history),
        stopped=ep.stopped,
    )


def _show(title: str, policy: Mapping[str, Any], found: Mapping[str, list[Ran]], seconds: float) -> None:
    n = len(found["full"])
    words = ", ".join(f"{k} {v}" for k, v in policy.items() if k != "policy")
    print(f"\n{title}: {n} questions, policy {policy['policy']} ({words}), uncertified, {seconds:.0f} s")
    print(f"  {'':10}{'EM':>8}{'steps':>8}{'generated':>12}{'read':>10}   tokens a question")
    for name, runs in found.items():
        mean = [sum(getattr(r, field) for r in runs) / n for field in ("right", "steps", "generated", "read")]
        print(f"  {name:10}{100 * mean[0]:7.1f}%{mean[1]:8.1f}{mean[2]:12.1f}{mean[3]:10.1f}")
    spent = {name: sum(r.generated + r.read for r in runs) for name, runs in found.items()}
    generated = {name: sum(r.generated for r in runs) for name, runs in found.items()}
    lost = sum(a.right and not b.right for a, b in zip(found["full"], found["governed"], strict=True))
    gained = sum(b.right and not a.right for a, b in zip(found["full"], found["governed"], strict=True))
    print(
        f"  tokens saved: {_saved(generated):.1f}% generated, {_saved(spent):.1f}% with prompts;"
        f" {sum(r.stopped for r in found['governed'])} of {n} runs stopped; EM lost {lost}, gained {gained}",
        flush=True,
    )


def _saved(spent: Mapping[str, int]) -> float:
    return 100 * (1 - spent["governed"] / max(1, spent["full"]))
