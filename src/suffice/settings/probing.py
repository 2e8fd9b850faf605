"""The tables of a route that say where its thoughts are cut into steps, and how trial answers are requested."""

from __future__ import annotations

from typing import Any

import msgspec

from suffice.settings.limits import NonNegativeInt, PositiveInt, PositiveSeconds, VerifiedBy


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    max_tokens: int = 16  # of the trial answer
    formed_tokens: PositiveInt = 256  # of a trial answer that is a tool call or under a schema
    closing: str = "\n"  # written before the closing tag; must not end in a space
    answer_prefix: str = ""  # written after the closing tag
    stop: tuple[str, ...] = ("\n",)  # where a trial answer ends
    timeout_s: PositiveSeconds = 30.0  # a trial answer that takes longer counts as missing
    reask_thought: str = "My reasoning so far:\n\n{thought}"  # `re-ask`: the assistant's message
    reask_ask: str = (  # `re-ask`: the user's message after it
        "Stop reasoning here. Give only the final answer to my question, in the form that it asked for."
    )
    reask_tools_ask: str = (  # the same, where the request offers tools
        "Stop reasoning here. Do what it leads to: call the tools that it chose, or give only the final answer."
    )
    propose: dict[str, Any] = {}  # a policy over the stream: probes are sent only where it would stop; empty: all
    propose_every: NonNegativeInt = 0  # probe also each checkpoint that comes this many after the last; 0: none
    verified_by: VerifiedBy = "doctor"  # who verified that the upstream continues a text and caches prefixes


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    boundary: str = "line"  # where a step may end: a name of `episode.chain_reader.SEGMENTERS`
    min_tokens: int = 24  # a step is at least this long
    growth: float = 1.15  # each step is this much longer than the last: geometric probing
    max_tokens: int = 512  # a step without a boundary ends here, between words
