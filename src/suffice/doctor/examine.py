"""An examination: every experiment once, one after the other, each within its time.

It knows the order and what a failed experiment means. It refuses to know what is made of the
verdicts (`advise`) and where they are kept (`store`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from suffice.doctor import finishing, plain, serving
from suffice.doctor.seen import Facts, Saw
from suffice.doctor.talk import Talk
from suffice.errors import UpstreamError
from suffice.types import Finding, Findings
from suffice.upstream.continuation import DRIVER_METHODS
from suffice.upstream.drivers import url_key

Experiment: TypeAlias = Callable[[Talk, Facts], Awaitable[Saw]]

# In the order of EXPERIMENTS; what others build on stands before them.
RUN: Mapping[str, Experiment] = {
    "reachable": plain.reachable,
    "models": plain.examine_models,
    "slots": plain.slots,
    "context": plain.context,
    "unknown_fields": plain.unknown_fields,
    "max_tokens": plain.max_tokens,
    "max_completion_tokens": plain.max_completion_tokens,
    "stream_usage": plain.stream_usage,
    "reasoning": plain.examine_reasoning,
    "logprobs": plain.logprobs,
    "logprobs_stream": plain.logprobs_stream,
    "tool_stream": plain.tool_stream,
    "n": plain.n,
    "seed": plain.seed,
    "prefill": finishing.prefill,
    "raw": finishing.raw,
    "native_end": finishing.native_end,
    "native_budget": finishing.native_budget,
    "prefix_cache": serving.prefix_cache,
    "cache_prompt": serving.cache_prompt,
    "id_slot": serving.id_slot,
    "cancel": serving.cancel,
    "rate_limits": plain.rate_limits,
}
METHODS: Mapping[str, str] = {"native": "native_end", "raw": "raw", "prefill": "prefill"}


async def examine(
    talk: Talk, *, upstream: str, examination_id: str, at_s: float, tell: Callable[[str], None] = lambda _: None
) -> Findings:
    """Make every experiment; a server that answers no chat at all is asked nothing further.

    upstream  its name in the settings, "" when it has none
    tell      called with each experiment's name before it is made
    """
    facts, found = Facts(), dict[str, Finding]()
    for name, experiment in RUN.items():
        tell(name)
        saw = await _within(talk, experiment, facts)
        found[name] = Finding(experiment=name, verdict=saw.verdict, evidence=saw.evidence)
        if name == "reachable" and saw.verdict != "yes":
            break
    return Findings(
        examination_id=examination_id,
        upstream=upstream,
        url_key=url_key(talk.settings.url),
        model=talk.model,
        at_s=at_s,
        findings=tuple(found.values()),
        n_slots=facts.n_slots,
        context_tokens=facts.context_tokens,
        finish=ways_to_finish(found),
    )


async def _within(talk: Talk, experiment: Experiment, facts: Facts) -> Saw:
    """One experiment, in its time; a server that breaks off or is silent gives no verdict."""
    try:
        async with asyncio.timeout(talk.timeout_s):
            return await experiment(talk, facts)
    except TimeoutError:
        return Saw("unclear", f"not done within {talk.timeout_s:g} s (--timeout)")
    except UpstreamError as error:
        return Saw("no" if experiment is plain.reachable else "unclear", error.for_operator())


def ways_to_finish(found: Mapping[str, Finding]) -> tuple[str, ...]:
    """The ways to close a thought that were seen to work, best first."""
    order = DRIVER_METHODS["llama.cpp"]  # the driver that knows all of them
    tried = [m for m in order if m in METHODS]  # a re-ask is an ordinary chat: there is nothing to find out
    return tuple(m for m in tried if (one := found.get(METHODS[m])) is not None and one.verdict == "yes")
