"""A model server to examine: it does what it is asked, and lies where it is told to."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from suffice.doctor.examine import examine
from suffice.doctor.experiments import BEGUN, COUNT, LIST, THINK
from suffice.doctor.forms import ASK, LONG_ASK
from suffice.doctor.session import ServerSession
from suffice.settings import Driver, Upstream
from suffice.types import Findings
from suffice.upstream.client import UpstreamClient
from suffice_testing import FakeUpstream, Reply
from suffice_testing.prompt import cut
from suffice_testing.reply import AnswerTokens, FakeRequest, ToolCall

THOUGHT = tuple(f"step {n}, " for n in range(60))
CALL = ToolCall(id="call_1", name="get_weather", arguments=('{"city":', ' "Reykjavik"}'))


def form_reply(seen: FakeRequest, *, drops: Collection[str] = (), **fixed: Any) -> Reply:
    """A fruit in the form that is asked for, but not after a thought that was ended in a way of `drops`."""
    ways = {"prefill": bool(seen.body.get("continue_final_message")), "native": "reasoning_control" in seen.body}
    is_free = any(ways[way] for way in drops)
    thought = ("first\n", *THOUGHT) if LONG_ASK in seen.text else ()
    if seen.body.get("tools") and not is_free:
        return Reply(reasoning=thought, answer=(), tool_calls=(CALL,), delay_s=0.002, **fixed)
    fruit = "apple" if is_free else "kiwi"
    return Reply(reasoning=thought, answer=cut(json.dumps({"fruit": fruit})), delay_s=0.002, **fixed)


def model(
    *, delay_s: float = 0.0, cold_s: float = 0.0, drops: Collection[str] = (), **changes: Any
) -> Callable[[FakeRequest], Reply]:
    """A model that thinks, counts, calls tools and obeys its seed.

    delay_s  before each token of a long list
    cold_s   before the first token of a prompt whose first word was never read
    drops    see `form_reply`
    changes  to every reply
    """
    read: set[str] = set()
    fresh = itertools.count(1_000)

    def say(seen: FakeRequest) -> Reply:
        text, first = seen.text, seen.text.partition(":")[0]
        wait_s = cold_s if "list of words" in text and first not in read else 0.0
        read.add(first)
        fixed: dict[str, Any] = {"first_delay_s": wait_s, **changes}
        if COUNT in text:
            return Reply(answer=tuple(f"{n}\n" for n in range(1, 201)), delay_s=delay_s, **fixed)
        if LIST in text:
            after = AnswerTokens(cut(f"{BEGUN} 6, 7, 8, 9"))
            return Reply(reasoning=THOUGHT, answer=cut("1, 2, 3, 4, 5, 6"), answer_after=lambda _: after, **fixed)
        if THINK in text:
            return Reply(reasoning=THOUGHT, answer=("180",), delay_s=0.002, **fixed)
        if ASK in text:
            return form_reply(seen, drops=drops, **fixed)
        if seen.body.get("tools"):
            return Reply(answer=(), tool_calls=(CALL,), **fixed)
        if seen.body.get("temperature") == 1.5:
            drawn = random.Random(seen.body.get("seed", next(fresh)))
            return Reply(answer=(f"The sea has {drawn.randrange(10**9)} waves.",), **fixed)
        return Reply(answer=("Hello", "."), **fixed)

    return say


@asynccontextmanager
async def open_session(
    fake: FakeUpstream, *, timeout_s: float = 30.0, driver: Driver = "openai"
) -> AsyncIterator[ServerSession]:
    """A session with a running fake."""
    async with UpstreamClient("up", Upstream(url=fake.url, driver=driver), None) as client:
        yield ServerSession(client, model="fake", timeout_s=timeout_s)


async def examine_fake(fake: FakeUpstream, *, timeout_s: float = 30.0, driver: Driver = "openai") -> Findings:
    """Examine a running fake."""
    async with open_session(fake, timeout_s=timeout_s, driver=driver) as session:
        return await examine(session, upstream="up", examination_id="ex_1", at_s=0.0)


def verdicts(findings: Findings) -> dict[str, str]:
    """Verdicts by experiment."""
    return {one.experiment: one.verdict for one in findings.findings}


def evidence(findings: Findings, experiment: str) -> str:
    """The sentence of one experiment."""
    return next(one.evidence for one in findings.findings if one.experiment == experiment)
