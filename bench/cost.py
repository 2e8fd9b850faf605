"""What the relay costs: CPU time of the gateway's process a request and a streamed chunk, and the added wait.

    python bench/cost.py [--quick] [--no-peers] [--check] [--only WORD ...]

Upstream, gateways and this client are processes of their own on one machine; each scenario is asked of
every gateway in turn, round after round, and the medians are printed with their range. See README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from peers import load, report
from peers.load import Heard, Target
from peers.processes import cpu_s
from peers.targets import FORMS, start, upstream

BARE, SLOW = report.BARE, "LiteLLM proxy"
UNGOVERNED, OBSERVE, ENFORCE = "Suffice, ungoverned", "Suffice, observe", "Suffice, enforce, policy on"
GAP_MS = 20.0  # 50 chunks a second and stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way to ask, and what is counted."""

    name: str  # the column's head, with its unit
    stream: bool
    at_once: int
    each: int  # requests over each connection
    chunks: int = 200
    gap_ms: float = 0.0
    usage: int = 0  # 1: an empty usage in every chunk
    waits: bool = False  # count the time to the first event instead of CPU time

    def quick(self) -> Scenario:
        """A shorter one, for development."""
        return Scenario(
            name=self.name,
            stream=self.stream,
            at_once=self.at_once,
            each=max(1, self.each // 4),
            chunks=self.chunks if not self.gap_ms else 100,
            gap_ms=self.gap_ms,
            usage=self.usage,
            waits=self.waits,
        )


SCENARIOS = (
    Scenario(name="plain x1, ms/request", stream=False, at_once=1, each=200),
    Scenario(name="plain x32, ms/request", stream=False, at_once=32, each=12),
    Scenario(name="paced x1, us/chunk", stream=True, at_once=1, each=1, chunks=150, gap_ms=GAP_MS),
    Scenario(name="paced x32, us/chunk", stream=True, at_once=32, each=1, chunks=150, gap_ms=GAP_MS),
    Scenario(name="unpaced x1, us/chunk", stream=True, at_once=1, each=24),
    Scenario(name="unpaced x32, us/chunk", stream=True, at_once=32, each=4),
    Scenario(name="unpaced x32 with empty usage, us/chunk", stream=True, at_once=32, each=4, usage=1),
    Scenario(name="first event p50, ms", stream=True, at_once=1, each=300, chunks=4, waits=True),
)
P99 = "first event p99, ms"


@dataclass(slots=True)
class Figures:
    """Everything measured so far."""

    by_scenario: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    problems: list[str] = field(default_factory=list)

    def take(self, scenario: Scenario, target: Target, heard: list[Heard], cpu: float) -> None:
        """Turn one measurement into its figure."""
        wrong = [h for h in heard if h.status != 200 or (scenario.stream and h.n_events < scenario.chunks - 3)]
        if wrong:
            seen = f"status {wrong[0].status}, {wrong[0].n_events} events"
            self.problems.append(f"{target.name}, {scenario.name}: {len(wrong)} bad answers ({seen})")
            return
        if scenario.waits:
            waits_ms = sorted(h.first_event_s * 1e3 for h in heard if h.first_event_s is not None)
            self.by_scenario[scenario.name][target.name].append(median(waits_ms))
            self.by_scenario[P99][target.name].append(quantiles(waits_ms, n=100)[98])
        elif target.pid is not None:
            unit = cpu * 1e6 / scenario.chunks if scenario.stream else cpu * 1e3
            self.by_scenario[scenario.name][target.name].append(unit / len(heard))


async def measure(scenario: Scenario, target: Target, figures: Figures) -> None:
    each = scenario.each if target.name != SLOW else max(1, scenario.each // 8)
    before = cpu_s(target.pid) if target.pid else 0.0
    stagger_s = scenario.gap_ms / 1e3
    try:
        async with asyncio.timeout(60):
            heard = await load.run(
                target, stream=scenario.stream, n_at_once=scenario.at_once, each=each, stagger_s=stagger_s
            )
    except (OSError, TimeoutError) as error:
        figures.problems.append(f"{target.name}, {scenario.name}: {type(error).__name__}")
        return
    if scenario.stream:
        await asyncio.sleep(0.02)  # what is done behind the answer belongs to it
    figures.take(scenario, target, heard, cpu_s(target.pid) - before if target.pid else 0.0)


async def rounds(
    base: str, targets: list[Target], scenarios: list[Scenario], n_rounds: int, until_s: float
) -> tuple[Figures, int]:
    """Ask everything of everybody, again and again. The first, unmeasured pass warms up."""
    warm = Scenario(name="warm", stream=True, at_once=2, each=3)
    await load.plan(base, chunks=50, gap_ms=0, usage=0)
    for target in targets:
        await measure(warm, target, Figures())
    figures, done = Figures(), 0
    while done < n_rounds and (done < 1 or time.monotonic() < until_s):
        for scenario in scenarios:
            await load.plan(base, chunks=scenario.chunks, gap_ms=scenario.gap_ms, usage=scenario.usage)
            turn = done % len(targets)
            for target in targets[turn:] + targets[:turn]:
                await measure(scenario, target, figures)
        done += 1
    return figures, done


@dataclass(frozen=True, slots=True)
class Limit:
    """A promise: the figure of `name` in `scenario`, or how far it lies above another's, is at most `at_most`."""

    scenario: str
    name: str
    at_most: float
    over: str | None = None  # divide by this target's figure
    less: str | None = None  # subtract this target's figure

    def verdict(self, figures: Figures) -> tuple[bool, str] | None:
        """(kept, sentence); None when something that it needs was not measured."""
        found = figures.by_scenario.get(self.scenario, {})
        if any(name and not found.get(name) for name in (self.name, self.over, self.less)):
            return None
        value, text = median(found[self.name]), f"{self.name}: {self.scenario}"
        if self.over:  # round by round: what else the machine does changes between rounds
            pairs = zip(found[self.name], found[self.over], strict=False)
            value, text = median(one / other for one, other in pairs), f"{text}, over {self.over}"
        if self.less:
            value, text = value - median(found[self.less]), f"{text}, more than {self.less}"
        kept = value <= self.at_most
        return kept, f"{'kept' if kept else 'MISSED'}  {text}: {value:.2f}, at most {self.at_most:g}"


LIMITS = (
    Limit("plain x1, ms/request", UNGOVERNED, 0.4),
    Limit("plain x32, ms/request", UNGOVERNED, 0.4),
    *[
        limit
        for name in (OBSERVE, ENFORCE)
        for scenario in ("paced x1, us/chunk", "paced x32, us/chunk")
        for limit in (Limit(scenario, name, 40.0), Limit(scenario, name, 1.3, over=BARE))
    ],
    *[
        Limit(scenario.name, f"Suffice with all on, {mode}", 1.15, over=f"{over}, {mode}")
        for over in ("Suffice", "Suffice before")
        for mode in ("observe", "enforce, policy on")
        for scenario in SCENARIOS
        if not scenario.waits
    ],
    *[
        Limit(scenario.name, f"{name}, {form}", 1.1, over=name)
        for name in (OBSERVE, ENFORCE)
        for form in FORMS
        for scenario in SCENARIOS
        if not scenario.waits and not scenario.usage
    ],
    Limit("unpaced x32, us/chunk", OBSERVE, 12.0),
    Limit("unpaced x32, us/chunk", ENFORCE, 12.0),
    Limit("unpaced x32, us/chunk", ENFORCE, 1.0, over="TensorZero (Rust)"),
    Limit(P99, OBSERVE, 2.0, less="direct"),
    Limit(P99, ENFORCE, 2.0, less="direct"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short rounds, under a minute; for development")
    parser.add_argument("--no-peers", action="store_true", help="leave TensorZero and LiteLLM out")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is missed")
    parser.add_argument("--rounds", type=int, help="how many rounds; default 5, with --quick 2")
    parser.add_argument("--only", nargs="*", default=[], help="scenarios that contain one of these words")
    parser.add_argument("--store", default="", help="URL of the log of the gateway with everything on, as PostgreSQL's")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version, to measure too")
    parser.add_argument("--targets", nargs="*", default=[], help="gateways that contain one of these words")
    options = parser.parse_args()
    scenarios = [s for s in SCENARIOS if not options.only or any(word in s.name for word in options.only)]
    if options.quick:
        scenarios = [s.quick() for s in scenarios]
    print(f"machine: {report.machine()}")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        base = stack.enter_context(upstream(folder))
        peers = not (options.no_peers or options.quick)
        targets, absent = start(stack, base, folder, peers=peers, store=options.store, before=options.before)
        if options.targets:
            targets = [t for t in targets if any(word in t.name for word in options.targets)]
        n_rounds = options.rounds or (2 if options.quick else 5)
        limit_s = time.monotonic() + (40 if options.quick else 270)
        figures, done = asyncio.run(rounds(base, targets, scenarios, n_rounds, limit_s))
    print(f"rounds: {done}, medians (range); CPU time of the gateway's process; x: ratio to the {BARE} of this run\n")
    print(report.table(figures.by_scenario, [t.name for t in targets], absent))
    for problem in figures.problems:
        print(f"problem: {problem}")
    verdicts = [v for limit in LIMITS if (v := limit.verdict(figures)) is not None]
    print("\n" + "\n".join(sentence for _, sentence in verdicts))
    print(f"\nafterwards: load average {report.machine().rpartition(' load average ')[2]}")
    return 1 if options.check and (figures.problems or not all(kept for kept, _ in verdicts)) else 0


if __name__ == "__main__":
    sys.exit(main())
