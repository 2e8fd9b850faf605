"""What Suffice will do with an upstream, from what was seen there. Pure.

It knows findings and settings, and refuses to know how either came about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from suffice.settings import Driver
from suffice.types import Findings
from suffice.upstream.drivers import CONTINUES, DRIVERS, allows_probes, find_verdict, finding, honoured
from suffice.upstream.shapes import SHAPES, engines

# What Suffice reads or sends and has seen only in documentation, not at a live server.
FROM_DOCUMENTATION: tuple[str, ...] = (
    "the ways to close a thought and the budget fields of every driver but llama.cpp's",
)


def not_verified() -> tuple[str, ...]:
    """What is known of other engines from their documentation alone, a line each."""
    shapes = (
        f"{engine}: " + "; ".join(s.shape for s in SHAPES if s.engine == engine and s.evidence == "synthetic")
        for engine in engines("synthetic")
    )
    return (*shapes, *FROM_DOCUMENTATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What follows from an examination."""

    driver: Driver
    finish: tuple[str, ...]  # ways to close a thought, best first; (): none
    may_probe: bool  # does it continue a text and cache prefixes?
    sentences: tuple[str, ...]  # for a person, in plain words
    settings: str  # a block for suffice.toml


def advise(findings: Findings, *, name: str, url: str, driver: Driver | None) -> Advice:
    """Say what the upstream is good for, and how to write it down.

    name    of the upstream in the settings block
    driver  as its owner chose it; None: the one that offers what was seen
    """
    chosen = driver or _driver(findings)
    may_probe = allows_probes(findings)
    return Advice(
        driver=chosen,
        finish=findings.finish,
        may_probe=may_probe,
        sentences=(_stops(findings), _probes(findings), *_added(findings), *_cautions(findings, chosen)),
        settings=_settings(findings, name, url, chosen),
    )


def _driver(findings: Findings) -> Driver:
    if {"native", "raw"} & set(findings.finish):
        return "llama.cpp"
    # A message was continued, in vLLM's way of asking for it; the plain driver would not ask.
    return "vllm" if "prefill" in findings.finish else "openai"


def _stops(findings: Findings) -> str:
    if not findings.finish:
        return (
            "Stops on a reasoning route: nothing was seen that closes a thought; what is left is to ask again"
            " (re-ask). A samples route needs none."
        )
    return f"Stops on a reasoning route: closed by {', then '.join(findings.finish)}."


def _probes(findings: Findings) -> str:
    if allows_probes(findings):
        return "Probes while observing: allowed, it continues a text and caches prefixes."
    missing = []
    if not any(honoured(findings, way) for way in CONTINUES):
        missing.append("it does not continue a text")
    if not honoured(findings, "prefix_cache"):
        word = {"no": "it caches no prefixes", "ignored": "it caches no prefixes"}
        missing.append(word.get(find_verdict(findings, "prefix_cache") or "", "nobody saw it cache a prefix"))
    return f"Probes while observing: not sent, {' and '.join(missing)}."


def _added(findings: Findings) -> list[str]:
    fields = {
        "stream_options.include_usage": "stream_usage",
        "logprobs": "logprobs_stream",
        "cache_prompt": "cache_prompt",
    }
    may = [field for field, experiment in fields.items() if honoured(findings, experiment)]
    return [f"Fields that may be added to a request: {', '.join(may) or 'none'}."]


def _cautions(findings: Findings, driver: Driver) -> list[str]:
    """What an owner should know before relying on this server."""
    said = []
    if find_verdict(findings, "cancel") in ("no", "ignored"):
        said.append("Caution: it goes on generating after a hang-up, so a stop saves no work there.")
    if find_verdict(findings, "stream_usage") in ("no", "ignored"):
        said.append("Caution: streams tell no usage, so tokens are counted by pieces and marked so.")
    if find_verdict(findings, "native_budget") == "ignored":
        said.append("Caution: it accepts a reasoning budget and ignores it.")
    if find_verdict(findings, "reasoning") == "no":
        said.append("This model showed no thought, so a reasoning route has nothing to stop; samples works.")
    if driver != "llama.cpp" and {"native", "raw"} & set(findings.finish):
        said.append(f"Driver {driver!r} writes no template and no control: native and raw need llama.cpp's.")
    return said


def _settings(findings: Findings, name: str, url: str, driver: Driver) -> str:
    lines = [f"[upstreams.{name}]", f"url = {json.dumps(url)}", f'driver = "{driver}"']
    continues = DRIVERS[driver].prefill is not None
    usable = [m for m in findings.finish if driver == "llama.cpp" or (m == "prefill" and continues)]
    if findings.n_slots is not None:
        lines.append(f"slots = {findings.n_slots}")
    if usable:
        lines.append(f"finish = {json.dumps(usable)}")
    found = finding(findings, "reasoning")
    if found is not None and found.verdict == "no" and usable:
        lines.append("# no thought was seen: a reasoning route would have nothing to stop")
    return "\n".join(lines) + "\n"
