"""Thinking routes over HTTP: the saving that is announced against what was truly saved, net.

Five lengths of thought, two costs of a probe, a fast and a slow hand-over, three APIs in turn. The model server knows
what each question takes in full, and counts everything that it generates for it: the run, its probes, the original
beside a continuation that opens slowly, and the answer after the stop.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final

from tests.mission.harness import Mission, on_mission

from suffice_testing.prompt import cut, visible_length
from suffice_testing.reply import AnswerTokens, FakeRequest, Reply
from suffice_testing.world import World

LINES: Final = (4, 12)  # of a thought
TOKEN_S: Final = 0.004  # that a token takes
PROBE_TOKENS: Final = 8  # at most
AT_ONCE: Final = 8  # requests in flight: tokens that nobody has time to read are generated, and not counted by anybody
WITHIN: Final = 0.03  # announced against true
LEAST: Final = -0.01  # of a route over all of its requests
ESTIMATE: Final = (0.95, 1.05)  # `tokens_saved_estimate` against the truth, over a route's stopped runs
FEW: Final = 50  # live requests, and stopped ones: with fewer there is nothing to compare
_ITEM: Final = re.compile(r"item (\d+)\b")
_TAG: Final = 1  # token of the raw text that closes a thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    line_tokens: int  # of each line of a thought
    probe_tokens: int  # of each trial answer
    handover_s: float  # before the first token of a continuation


CASES: Final = tuple(
    Case(
        name=f"t{8 * line}-p{probe}-{'slow' if slow else 'fast'}",
        line_tokens=line,
        probe_tokens=probe,
        handover_s=slow,
    )
    for line, slow in ((3, 0.0), (6, 0.06), (12, 0.0), (24, 0.3), (48, 0.3))
    for probe in (1, 6)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    case: Case
    answers: tuple[str, ...]  # after each line

    @property
    def full_tokens(self) -> int:
        return len(self.answers) * self.case.line_tokens + len(cut(f"It is {self.answers[-1]}"))


@dataclass(slots=True, kw_only=True)
class Thoughts(World):
    """A world of thoughts of unequal lengths; each question belongs to a route."""

    thoughts: dict[int, Thought] = field(default_factory=dict)
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        World.__post_init__(self)
        self._dice = random.Random(self.seed + 1)

    def think(self, case: Case) -> int:
        """Make a question; return its number."""
        n, dice = len(self.thoughts) + 1, self._dice
        n_lines, final = dice.randint(*LINES), str(dice.randint(10, 99))
        n_guesses = dice.randint(0, n_lines // 2)
        answers = *(str(dice.randint(100, 999)) for _ in range(n_guesses)), *(final,) * (n_lines - n_guesses)
        self.thoughts[n] = Thought(case=case, answers=answers)
        return n

    def __call__(self, seen: FakeRequest) -> Reply:
        thought = self.thoughts[int(_ITEM.findall(seen.text)[-1])]
        cap = seen.body.get("n_predict") or seen.body.get("max_tokens") or inf  # finishes may be capped, too
        case, is_probe = thought.case, seen.is_raw and cap <= PROBE_TOKENS
        lines = [f"step {k}" + " on" * (case.line_tokens - 3) + "\n" for k in range(len(thought.answers))]
        ends = [visible_length("".join(lines[: k + 1])) for k in range(len(lines))]

        def after(text: str) -> AnswerTokens:
            n_done = sum(end <= visible_length(text) for end in ends)
            answer = thought.answers[max(n_done, 1) - 1]
            words = cut("so " * (case.probe_tokens - 1) + answer) if is_probe else cut(f"It is {answer}")
            return AnswerTokens(words, (-0.1,) * len(words))

        return Reply(
            reasoning=tuple(token for line in lines for token in cut(line)),
            answer=cut(f"It is {thought.answers[-1]}"),
            answer_after=after,
            first_delay_s=case.handover_s if seen.is_raw and not is_probe else 0.0,
            delay_s=0.0 if is_probe else TOKEN_S,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    n: int
    told: Mapping[str, Any]


@dataclass(slots=True)
class Run:
    """One route: what was asked of it, and how many of that came before what acts at last."""

    case: Case
    asked: list[Asked] = field(default_factory=list)
    announced: float | None = None
    said: str = ""
    acts: tuple[int, float] | None = None  # the level, and the share of audits
    since: int = 0  # requests when it began to act as now


def _request(api: str, text: str) -> tuple[str, dict[str, Any]]:
    if api == "chat":
        return "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": text}], "suffice": {}}
    if api == "responses":
        return "/v1/responses", {"model": "m", "input": text, "suffice": {}}
    return "/v1/messages", {
        "model": "m",
        "max_tokens": 4_000,
        "messages": [{"role": "user", "content": text}],
        "suffice": {},
    }


async def ask(mission: Mission, world: Thoughts, run: Run, api: str) -> None:
    n = world.think(run.case)
    path, body = _request(api, f"How many parts does item {n} have?")
    headers = {"x-suffice-route": run.case.name}
    async with mission.session.post(mission.gateway.url + path, json=body, headers=headers) as reply:
        said: dict[str, Any] = await reply.json()
        assert reply.status == 200, said
        run.asked.append(Asked(n, said.get("suffice") or {}))


async def send(mission: Mission, world: Thoughts, run: Run, n_requests: int, apis: Sequence[str]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(k: int) -> None:
        async with gate:
            await ask(mission, world, run, apis[k % len(apis)])

    await asyncio.gather(*(one(k) for k in range(n_requests)))
    await mission.rest()
    note_announcement(mission, run)


def note_announcement(mission: Mission, run: Run) -> None:
    """Read what the route says that it saves from here on, if that is news."""
    made = mission.rows("policy_published", run.case.name)
    if not made:
        return
    last = made[-1]
    share = last["evidence"].get("share") if last["level"] else 0.0
    acts = last["level"], last["share"]
    if acts != run.acts:
        run.acts, run.since = acts, len(run.asked)
    run.announced, run.said = share, f"{last['number']}: level {last['level']}, {last['reason']}"


def spent_by_question(mission: Mission) -> dict[int, int]:
    spent: dict[int, int] = {}
    for call in mission.fake.completions:
        n = int(_ITEM.findall(call.request.text)[-1])
        spent[n] = spent.get(n, 0) + call.n_tokens_sent
    return spent


def saved_tokens(world: Thoughts, spent: Mapping[int, int], asked: Sequence[Asked]) -> int:
    """The truth about some requests."""
    return sum(world.thoughts[one.n].full_tokens - spent[one.n] for one in asked)


def saved(world: Thoughts, spent: Mapping[int, int], asked: Sequence[Asked]) -> float:
    return saved_tokens(world, spent, asked) / sum(world.thoughts[one.n].full_tokens for one in asked)


def judge(world: Thoughts, spent: Mapping[int, int], run: Run) -> bool:
    """Print the line of a route; return whether its goals are met."""
    later, (estimate, truth, n_stopped) = run.asked[run.since :], estimated(world, spent, run)
    since, whole = saved(world, spent, later) if len(later) >= FEW else None, saved(world, spent, run.asked)
    ratio = estimate / truth if n_stopped >= FEW else None
    is_off = since is not None and run.announced is not None and abs(since - run.announced) > WITHIN
    is_met = not is_off and whole >= LEAST and (ratio is None or ESTIMATE[0] <= ratio <= ESTIMATE[1])
    print(
        f"{run.case.name:14} {_percent(run.announced):>9} {_percent(since):>10} {len(later):5}"
        f" {_percent(whole):>9} {len(run.asked):5} {'' if ratio is None else f'{ratio:.3f}':>14}"
        f"{'' if is_met else '   MISSED'}"
    )
    print(f"{'':14} {run.said}; {n_stopped} stopped", flush=True)
    return is_met


def estimated(world: Thoughts, spent: Mapping[int, int], run: Run) -> tuple[float, float, int]:
    """What the replies of stopped runs say that they saved, what they truly saved, and how many they are."""
    known = [one for one in run.asked if one.told.get("tokens_saved_estimate") is not None]
    estimate = sum(one.told["tokens_saved_estimate"] for one in known)
    return estimate, saved_tokens(world, spent, known), len(known)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.1f} %"


async def simulate(options: argparse.Namespace, folder: Path) -> bool:
    world = Thoughts(seed=options.seed)
    runs = [Run(case) for case in CASES if not options.cases or case.name in options.cases]
    probe = {"max_tokens": PROBE_TOKENS, "verified_by": "owner"}
    route = {
        "max_em_drop": options.max_em_drop,
        "probe": probe,
        "max_extra_calls": 40,
        **({"agent": "off"} if options.fixed else {}),
    }
    routes = {run.case.name: route for run in runs}
    async with on_mission(world, folder, routes) as mission:
        print(f"{'route':14} announced true since     n true, all     n estimate/truth")
        met = list[bool]()
        for run in runs:
            for _ in range(0, options.requests, options.stride):
                await send(mission, world, run, options.stride, options.apis)
            await mission.fake.idle()
            met.append(judge(world, spent_by_question(mission), run))
        if options.status:
            print((await mission.command("status", "--all"))[1])
        return all(met)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=1_000, help="of each route")
    parser.add_argument("--stride", type=int, default=100, help="requests of a route between two looks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-em-drop", type=float, default=0.1)
    parser.add_argument("--apis", nargs="+", default=["chat", "responses", "messages"])
    parser.add_argument("--cases", nargs="*", help="names of routes, such as t96-p1-fast")
    parser.add_argument("--fixed", action="store_true", help="without the agent")
    parser.add_argument("--status", action="store_true", help="print the status of the routes, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return not asyncio.run(simulate(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
