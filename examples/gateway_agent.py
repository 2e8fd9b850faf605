"""An agent whose tool calls go through the gateway, which ends its loop too, or whose loop asks Suffice itself.

    python examples/gateway_agent.py

The gateway is `suffice serve`; the agent is an ordinary client of it that offers a calculator. The model is scripted,
because the local one makes no tool calls: it thinks longer than it needs before each call, and checks its result twice.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import arguments
from suffice import Governor
from suffice_testing import FakeUpstream, Reply, ServerBehaviour
from suffice_testing.prompt import cut, visible_length
from suffice_testing.reply import FakeRequest, ToolCall
from tool_agent import calculate

SETTINGS = """
[upstreams.model]
url = "{model}"
driver = "vllm"
slots = 4
think_opened = true

[routes.agent]                  # one request: its thought is cut once it settles on a call
upstream = "model"
mode = "{mode}"
uncertified = {uncertified}
audit_share = 0.0
scorer = "tool-call"
policy = {{ policy = "stable-answer", streak = 3 }}
probe = {{}}
steps = {{ min_tokens = 6, growth = 1.0 }}
turns = "loop"                  # for clients that name their conversation

[routes.loop]                   # the whole run: it ends once it has said the same twice
kind = "rounds"
mode = "{mode}"
uncertified = {uncertified}
audit_share = 0.0
scorer = "number"
policy = {{ policy = "stable-answer", streak = 2 }}
reading_tools = ["calculate"]   # it changes nothing, so a run may end without another call
probe = {{}}
"""
TOOL = {"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}


@dataclass(frozen=True, slots=True)
class Task:
    a: int
    b: int
    c: int

    @property
    def text(self) -> str:
        return f"Zoe has {self.a} crates with {self.b} melons each and eats {self.c}. How many are left?"

    @property
    def sums(self) -> tuple[str, ...]:
        """What the model computes, one sum a turn; the last two check the result."""
        a, b, c = self.a, self.b, self.c
        return (f"{a} * {b}", f"{a * b} - {c}", f"{a} * {b} - {c}", f"-{c} + {b} * {a}")


def scripted(seen: FakeRequest) -> Reply:
    """The model: it hesitates for a sentence, settles on a sum, and goes on thinking."""
    messages = [message for message in seen.messages if isinstance(message, Mapping)]
    a, b, c = (int(number) for number in re.findall(r"\d+", messages[0]["content"]))
    results = [message["content"] for message in messages if message.get("role") == "tool"]
    n, sums = len(results), Task(a, b, c).sums
    text = f"So far it is {results[-1]}." if n > 1 else ""
    if seen.body.get("tool_choice") == "none":
        return Reply(reasoning=tuple(cut("Without another sum, then.\n")), answer=tuple(cut(text or "Not known yet.")))
    if n == len(sums):
        return Reply(reasoning=tuple(cut("Both checks agree.\n")), answer=tuple(cut(text)))
    sentences = [f"Is it {sums[0]} again?\n", *[f"No, what is needed now is {sums[n]} here.\n"] * 8]

    def calls_after(thought: str) -> tuple[ToolCall, ...]:
        is_settled = visible_length(thought) > visible_length(sentences[0])
        arguments = json.dumps({"expression": sums[n] if is_settled else sums[0]})
        return (ToolCall(id=f"call_{n}", name="calculate", arguments=(arguments,)),)

    tokens = tuple(token for sentence in sentences for token in cut(sentence))
    return Reply(reasoning=tokens, answer=tuple(cut(text)), calls_after=calls_after, delay_s=0.02)


def ask(url: str, messages: list[Any], conversation: str | None) -> tuple[dict[str, Any], int]:
    """One request to the gateway: the message, and its tokens."""
    body = json.dumps({"model": "fake", "messages": messages, "tools": [TOOL]}).encode()
    headers = {"content-type": "application/json", "x-suffice-route": "agent"}
    if conversation is not None:
        headers["x-conversation-id"] = conversation
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body, headers)) as reply:
        answer: Any = json.load(reply)
    return answer["choices"][0]["message"], answer["usage"]["completion_tokens"]


def run(url: str, task: Task, *, governor: Governor | None = None, conversation: str | None = None) -> tuple[str, int]:
    """The agent: the last result of its tool, and the tokens that it took."""
    messages: list[Any] = [{"role": "user", "content": task.text}]
    result, n_tokens = "", 0
    with governor.episode(task.text) if governor is not None else contextlib.nullcontext() as ep:
        while True:
            message, tokens = ask(url, messages, conversation)
            n_tokens += tokens
            text, calls = message.get("content") or "", message.get("tool_calls") or []
            turn = {"text": text, "answer": None if text else "", "tokens": tokens, "done": not calls}
            stops = ep is not None and ep.step(**turn).stop
            if not calls or stops:
                return result, n_tokens
            messages.append(message)
            for call in calls:
                result = calculate(json.loads(call["function"]["arguments"])["expression"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


@contextlib.contextmanager
def serving(model: str, *, acts: bool) -> Iterator[str]:
    """`suffice serve` in front of the model: its URL."""
    mode = {"mode": "enforce" if acts else "observe", "uncertified": str(acts).lower()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "suffice.toml"
        file.write_text(SETTINGS.format(model=model, **mode), encoding="utf-8")
        command = [sys.executable, "-c", "from suffice.cli.main import main; main()", "serve"]
        output = (Path(folder) / "output.txt").open("wb")
        process = subprocess.Popen([*command, "--config", str(file), "--port", "0"], stdout=output, stderr=output)
        try:
            while not (found := re.search(r"listening on (\S+)/v1", (Path(folder) / "output.txt").read_text())):
                if process.poll() is not None:
                    raise SystemExit((Path(folder) / "output.txt").read_text())
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
            process.wait()
            output.close()


def main() -> None:
    """Run it in full, through the gateway, with its turns governed there, and with a loop that asks."""
    asked, rng = arguments(__doc__, questions=8), random.Random(3)
    tasks = [Task(rng.randint(2, 9), rng.randint(11, 40), rng.randint(1, 9)) for _ in range(asked.questions)]
    full = 0
    with FakeUpstream.in_thread(scripted, ServerBehaviour(dialect="vllm")) as fake:
        for name in ("full", "gateway", "and turns", "and loop"):
            before = fake.total_completion_tokens
            with (
                serving(fake.url, acts=name != "full") as url,
                Governor.connect(url, route="loop", timeout_s=60) as governor,
            ):
                runs = [
                    run(
                        url,
                        task,
                        governor=governor if name == "and loop" else None,
                        conversation=f"task {n}" if name == "and turns" else None,
                    )
                    for n, task in enumerate(tasks)
                ]
            done = sum(result == str(task.a * task.b - task.c) for (result, _), task in zip(runs, tasks, strict=True))
            delivered, spent = sum(tokens for _, tokens in runs), fake.total_completion_tokens - before
            full = full or spent
            figures = f"{delivered / len(tasks):.1f} tokens a task, {spent / len(tasks):.1f} with trial answers"
            figures += f", saved {1 - spent / full:.1%}"
            print(f"  {name:10} tasks done {done} of {len(tasks)}, {figures}", flush=True)


if __name__ == "__main__":
    main()
