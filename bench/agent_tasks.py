"""Agents with tools on tau2's tasks, governed by the gateway and in the loop, against full runs of the same tasks.

    python bench/agent_tasks.py [--tasks N] [--seed N]

Needs inspect-evals and inspect-ai, which hold the tasks, the databases and the tools (MIT; tau2 by Sierra Research, see
arXiv:2506.07982); nothing of them is kept here. The tools and the judgement of a task are theirs: it succeeds if the
database ends as the required actions leave it, and every one of these was called.

The model is scripted, because the local one makes no tool calls: what it thinks before a call, how often it changes
its mind, and what it checks again at the end are drawn by `script_of`. So the shares of governed requests are findings
about the gateway, pairs of task successes are findings about where it cuts, and tokens saved describe the script. Each
task is run three times with one script: in full (`observe`), through the gateway (a `reasoning` route cuts the thought
before a call once three steps lead to the same one), and in the loop as well (a `rounds` route ends the agent once it
has said the same twice).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from tests.gateway_process import GatewayProcess

from suffice import Governor
from suffice_loop import AgentRun
from suffice_testing import FakeUpstream, Reply, ServerBehaviour
from suffice_testing.prompt import cut, visible_length
from suffice_testing.reply import FakeRequest, ToolCall

Calls: TypeAlias = tuple[tuple[str, dict[str, Any]], ...]  # tools with their arguments

CHANGES_MIND = 0.35  # share of calls before which the model first considers an earlier call again, for a sentence
CHANGES_LATE = 0.02  # … and for three or four, so that a policy may take it for settled
RECHECKS = (1, 2, 3)  # turns behind the last action, in which it reads again what it has done
FORGETS = 0.05  # share of tasks in which it says twice that it is done, before it does the last action
DONE = "Done, your request has been carried out."
MOST_TURNS = 60
TOKEN_S = 0.02  # the model writes 50 tokens a second, so that a stop has something to cut
N_AT_ONCE = 8  # tasks


# --------------------------------------------------------------------------- tasks and their tools


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTask:
    name: str
    domain: str
    actions: Calls  # that the benchmark requires, in their order


def read_tasks(n: int, rng: random.Random) -> list[AgentTask]:
    """Return tasks that require actions."""
    spec = find_spec("inspect_evals")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("inspect-evals is not installed: pip install inspect-evals inspect-ai")
    data = Path(spec.submodule_search_locations[0]) / "tau2" / "data" / "domains"
    tasks = []
    for domain in tool_kits():
        for item in json.loads((data / domain / "tasks.json").read_text(encoding="utf-8")):
            listed = (item["evaluation_criteria"] or {}).get("actions") or []
            actions = tuple((one["name"], one["arguments"]) for one in listed)
            if actions:
                tasks.append(AgentTask(name=f"{domain} {item['id']}", domain=domain, actions=actions))
    rng.shuffle(tasks)
    return tasks[:n]


@cache
def tool_kits() -> Mapping[str, Any]:
    """Return the classes of tools by domain. Call it before there are threads."""
    from inspect_evals.tau2.airline.AirlineAgentTools import AirlineAgentTools
    from inspect_evals.tau2.retail.RetailAgentTools import RetailAgentTools

    return {"retail": RetailAgentTools, "airline": AirlineAgentTools}


class TaskTools:
    """tau2's tools, on a database of their own."""

    def __init__(self, domain: str, instance: str) -> None:
        self._kit = tool_kits()[domain](instance=instance)
        self._kit.initialize()

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        if name in ("calculate", "transfer_to_human_agents"):
            return "ok"
        try:
            return str(getattr(self._kit, name)(**arguments))[:2_000]
        except Exception as error:  # noqa: BLE001 - as in the benchmark, the model reads the error
            return f"error: {error}"[:500]

    def state(self) -> str:
        return str(self._kit.db.get_hash())


# --------------------------------------------------------------------------- the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    text: str  # what the model says
    thought: tuple[tuple[str, Calls], ...]  # sentences, each with the calls that it leads to; (): it ends the loop


def script_of(task: AgentTask, rng: random.Random) -> list[Turn]:
    """Draw what the model would do on a task if it is never cut."""
    turns = [Turn(text="", thought=_thought(task, n, rng)) for n in range(len(task.actions))]
    reads = [one for one in task.actions if one[0].startswith(("get_", "find_", "search_"))]
    reads = reads or [("calculate", {"expression": "1 + 1"})]
    if rng.random() < FORGETS and len(task.actions) > 1:
        early = Turn(text=DONE, thought=(("This should be all that was asked.\n", (reads[0],)),) * 4)
        turns[-1:-1] = [early, early]
    checks = [rng.choice(reads) for _ in range(rng.choice(RECHECKS))]
    turns += [Turn(text=DONE, thought=(("Let me check again what was done.\n", (check,)),) * 4) for check in checks]
    return [*turns, Turn(text=DONE, thought=(("All of it is done by now.\n", ()),) * 4)]


def _thought(task: AgentTask, n: int, rng: random.Random) -> tuple[tuple[str, Calls], ...]:
    right, earlier = (task.actions[n],), (task.actions[max(0, n - 1)],)
    n_doubts = rng.choice((3, 4)) if rng.random() < CHANGES_LATE else int(rng.random() < CHANGES_MIND)
    first: tuple[str, Calls] = ("First the request is read again, with care.\n", ())
    doubt = (f"Perhaps {earlier[0][0]} should be called once more.\n", earlier)
    settled = (f"So {right[0][0]} is called, as the policy allows it.\n", right)
    return (first, *[doubt] * (n_doubts if n else 0), *[settled] * rng.randint(4, 12))


class ScriptedAgent:
    """A model that plays the script of the task that the first message names; results of tools count its turns.

    A call that a cut made wrong is not made good: the script goes on.
    """

    def __init__(self, scripts: Mapping[str, Sequence[Turn]]) -> None:
        self._scripts = scripts

    def __call__(self, seen: FakeRequest) -> Reply:
        messages = [message for message in seen.messages if isinstance(message, Mapping)]
        n = sum(message.get("role") == "tool" for message in messages)
        script = self._scripts[messages[0]["content"]]
        turn = script[min(n, len(script) - 1)]

        def calls_after(thought: str) -> tuple[ToolCall, ...]:
            length, needed, calls = visible_length(thought), 0, turn.thought[0][1]
            for sentence, leads_to in turn.thought:
                needed += visible_length(sentence)
                calls = leads_to if needed <= length else calls
            return _wire_calls(calls, n)

        tokens = tuple(token for sentence, _ in turn.thought for token in cut(sentence))
        return Reply(reasoning=tokens, answer=tuple(cut(turn.text)), calls_after=calls_after, delay_s=TOKEN_S)


def _wire_calls(calls: Calls, n: int) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(id=f"call_{n}_{k}", name=name, arguments=(json.dumps(given),)) for k, (name, given) in enumerate(calls)
    )


# --------------------------------------------------------------------------- the agent


@dataclass(slots=True)
class TaskRun:
    called: list[str] = field(default_factory=list)
    tokens: int = 0
    n_requests: int = 0
    success: bool = False


def run_task(url: str, task: AgentTask, *, kind: str, governor: Governor | None) -> TaskRun:
    """Run the agent on a task; `governor` governs its loop, too."""
    instance = f"{kind} {task.name}"
    tools, run = TaskTools(task.domain, instance), TaskRun()
    messages: list[dict[str, Any]] = [{"role": "user", "content": task.name}]
    names = sorted({name for name, _ in task.actions} | {"calculate"})
    offered = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in names]
    with contextlib.ExitStack() as stack:
        loop = None if governor is None else stack.enter_context(AgentRun(governor, task.name))
        for _ in range(MOST_TURNS):
            message, n_tokens = _ask(url, messages, offered)
            run.tokens, run.n_requests = run.tokens + n_tokens, run.n_requests + 1
            text, calls = message.get("content") or "", message.get("tool_calls") or []
            if loop is not None:
                loop.take(text, tokens=n_tokens, calls_tool=bool(calls))
            if not calls or (loop is not None and loop.stops):
                break
            messages.append({"role": "assistant", "content": text, "tool_calls": calls})
            for call in calls:
                name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                run.called.append(_written(name, arguments))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": tools.call(name, arguments)})
    run.success = _succeeded(task, run, tools, f"{instance} expected")
    return run


def _ask(url: str, messages: list[Any], tools: list[Any]) -> tuple[dict[str, Any], int]:
    body = {"model": "fake", "messages": messages, "tools": tools, "max_tokens": 2_000}
    headers = {"content-type": "application/json", "x-suffice-route": "agent"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as reply:
        answer = json.load(reply)
    return answer["choices"][0]["message"], answer["usage"]["completion_tokens"]


def _written(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, arguments], sort_keys=True)


def _succeeded(task: AgentTask, run: TaskRun, tools: TaskTools, instance: str) -> bool:
    expected = TaskTools(task.domain, instance)
    for name, arguments in task.actions:
        expected.call(name, arguments)
    has_all = all(_written(name, arguments) in run.called for name, arguments in task.actions)
    return has_all and tools.state() == expected.state()


# --------------------------------------------------------------------------- the comparison

Results: TypeAlias = dict[str, tuple[list[TaskRun], Counter[str]]]  # runs, and their requests by reason

GATEWAY = {
    "kind": "reasoning",
    "scorer": "whole",
    "policy": {"policy": "stable-answer", "streak": 3},
    "audit_share": 0.0,
    "probe": {},
    "steps": {"min_tokens": 6, "growth": 1.0},
    "upstream": "up",
}
LOOP = {"kind": "rounds", "scorer": "text", "policy": {"policy": "stable-answer", "streak": 2}, "audit_share": 0.0}


@contextlib.contextmanager
def served(folder: Path, fake: FakeUpstream, *, mode: str, forms: Sequence[str]) -> Iterator[GatewayProcess]:
    upstream = {"url": fake.url, "driver": "vllm", "slots": 4 * N_AT_ONCE, "think_opened": True, "finish": ["prefill"]}
    acting = {"mode": mode, "uncertified": mode == "enforce"}
    folder.mkdir()
    routes = {"agent": GATEWAY | acting | {"reply_forms": list(forms)}, "loop": LOOP | acting}
    with GatewayProcess.serving(folder, {"upstreams": {"up": upstream}, "routes": routes}) as gateway:
        yield gateway


def ungoverned_by_reason(url: str) -> Counter[str]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    counts: Counter[str] = Counter()
    for line in lines:
        if line.startswith("suffice_ungoverned_total{") and 'route="agent"' in line:
            labels, _, value = line.rpartition(" ")
            counts[labels.partition('reason="')[2].partition('"')[0]] += int(float(value))
    return counts


def compare(tasks: Sequence[AgentTask], scripts: Mapping[str, Sequence[Turn]], *, forms: Sequence[str]) -> None:
    """Run all tasks in full, through the gateway, and in the loop as well; print a row behind each."""
    heads = f"{'success':>9}{'lost':>6}{'gained':>8}{'requests':>10}{'tokens a task':>15}{'saved':>8}"
    print(f"{'':10}{heads}   requests by reason", flush=True)
    results: Results = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, mode in (("full", "observe"), ("gateway", "enforce"), ("and loop", "enforce")):
            with (
                FakeUpstream.in_thread(ScriptedAgent(scripts), ServerBehaviour(dialect="vllm")) as fake,
                served(Path(name) / kind, fake, mode=mode, forms=forms) as gateway,
                Governor.connect(gateway.url, route="loop", timeout_s=60) as governor,
            ):
                in_loop = governor if kind == "and loop" else None
                with ThreadPoolExecutor(N_AT_ONCE) as pool:
                    runs = list(pool.map(partial(run_task, gateway.url, kind=kind, governor=in_loop), tasks))
                counts = ungoverned_by_reason(gateway.url)
                counts["governed"] = sum(run.n_requests for run in runs) - sum(counts.values())
                results[kind] = (runs, counts)
            show(kind, results)


def show(kind: str, results: Results) -> None:
    full, (runs, counts) = results["full"][0], results[kind]
    n, spent = len(runs), sum(run.tokens for run in runs)
    lost = sum(a.success and not b.success for a, b in zip(full, runs, strict=True))
    gained = sum(b.success and not a.success for a, b in zip(full, runs, strict=True))
    saved = 1 - spent / max(1, sum(run.tokens for run in full))
    n_requests = sum(counts.values())
    shares = ", ".join(f"{reason} {count / n_requests:.1%}" for reason, count in counts.most_common() if count)
    success = sum(run.success for run in runs) / n
    row = f"{kind:10}{success:9.1%}{lost:6}{gained:8}{n_requests:10,}{spent / n:15.1f}{saved:8.1%}   {shares}"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text-only", action="store_true", help="let requests with tools pass through")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    tasks = read_tasks(options.tasks, rng)
    forms = ("text",) if options.text_only else ("text", "json", "tools")
    compare(tasks, {task.name: script_of(task, rng) for task in tasks}, forms=forms)


if __name__ == "__main__":
    main()
