"""Judges the gateway in front of a running engine, and prints a table.

    python -m tests.engines.suite vllm http://127.0.0.1:8700 --questions 40 --out FOLDER [--cells prefill-stream,…]

Each cell asks questions through `suffice serve` on a route of its own. Per cell: how many runs were stopped, whether
every reply is whole (one finish reason, [DONE], no closing tag in the answer), whether the usage is the engine's own
(the prompt as long as the engine counts it when asked directly, every call counted by the engine, and usage and
overhead together what all calls spent), how often a stop delivered its trial answer, and how long the client waited at
the stop. Bodies and one JSON line a run are kept in FOLDER, as soon as the run has ended: started again with the same
folder, the suite asks only what is missing there.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from suffice.store.database.views import read_episodes
from suffice.types import Outcome
from suffice_demo.local.tasks import questions

CHAT = "/v1/chat/completions"
TAG = "</think>"
METHODS = {"vllm": ("native", "prefill", "raw", "re-ask"), "sglang": ("prefill", "raw", "re-ask")}
ROUTE = """
[routes.{name}]
upstream = "{upstream}"
kind = "{kind}"
mode = "{mode}"
scorer = "number"
match = {{ header = "{name}" }}
{policy}
"""
REASONING = """max_extra_calls = 48
handover_ms = 60000
policy = {policy}
"""
STABLE = '{{ policy = "stable-answer", streak = {streak} }}'
ENFORCED = "uncertified = true\naudit_share = 0.0\n"
STEPS = """[routes.{name}.steps]
min_tokens = 8
growth = 1.0
[routes.{name}.probe]
max_tokens = 6
verified_by = "owner"
timeout_s = 300.0
"""
CAP = 48  # tokens, of which a thought of the test model alone has 60


@dataclass(frozen=True)
class Cell:
    name: str
    route: str
    stream: bool
    kind: str = "reasoning"
    fields: Mapping[str, Any] = field(default_factory=dict)
    hangs_up: bool = False  # the client leaves after the first bytes; the engine must be idle soon after


@dataclass
class Run:
    cell: str
    question: int
    status: int
    took_s: float
    text: str = ""
    thought: str = ""
    finish: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    torn: str = ""  # what is wrong with the reply; "": nothing
    outcome: Outcome | None = None
    prompt_tokens: int | None = None  # as the engine counts it when asked directly


def thinking(name: str, upstream: str, *, mode: str = "enforce", streak: int = 2, more: str = ENFORCED) -> str:
    policy = STABLE.format(streak=streak) if streak else '{ policy = "never" }'
    lines = REASONING.format(policy=policy) + more + STEPS.replace("{name}", name)
    return ROUTE.format(name=name, upstream=upstream, kind="reasoning", mode=mode, policy=lines)


def settings_of(engine: str, url: str, folder: Path, slots: int, port: int) -> str:
    text, first = f'[server]\nport = {port}\n[store]\nurl = "sqlite:///{folder}/log.db"\n', METHODS[engine][0]
    for method in METHODS[engine]:
        # A probe is a second request, and native sends none.
        finish = json.dumps(["native", "prefill"] if method == "native" else [method])
        text += f'[upstreams.{method}]\nurl = "{url}"\ndriver = "{engine}"\nslots = {slots}\nfinish = {finish}\n'
        if engine == "sglang":  # the template of the test model opens the thought
            text += "think_opened = true\n"
        text += thinking(method, method)
    # A trial call is as long as half a thought of the test model: by the second one the thought has ended.
    text += thinking("calls", first, streak=1)
    text += thinking("capped", first, streak=0, more=ENFORCED + "finish_unclosed = true\n") + "formed_tokens = 20\n"
    text += thinking("observe", "prefill", mode="observe", more="audit_share = 1.0\n")
    policy = 'samples = 6\nwave = 3\npolicy = { policy = "beta", threshold = 0.9 }\n' + ENFORCED
    text += ROUTE.format(name="samples", upstream="prefill", kind="samples", mode="enforce", policy=policy)
    return text + ROUTE.format(name="off", upstream="prefill", kind="reasoning", mode="off", policy="")


def cells_of(engine: str) -> Iterator[Cell]:
    for route in (*METHODS[engine], "observe", "samples"):
        kind = "samples" if route == "samples" else "reasoning"
        for stream in (True, False):
            yield Cell(f"{route}-{'stream' if stream else 'body'}", route, stream, kind)
    yield Cell("hang-up", METHODS[engine][0], stream=True, hangs_up=True)
    number = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": number}}
    # Strict, or a small model makes up the names of its arguments, and no two answers agree.
    give = {"name": "give_answer", "description": "Gives it.", "parameters": number, "strict": True}
    tool = {"type": "function", "function": give}
    for route in (METHODS[engine][0], "off"):
        yield Cell(f"tools-{route}-stream", route, True, fields={"tools": [tool], "tool_choice": "auto"})
        calls = route if route == "off" else "calls"
        yield Cell(f"tools-{route}-body", calls, False, fields={"tools": [tool], "tool_choice": "required"})
        yield Cell(f"schema-{route}-stream", route, True, fields={"response_format": schema})
        yield Cell(f"schema-{route}-body", route, False, fields={"response_format": schema})
        capped, fields = route if route == "off" else "capped", {"response_format": schema, "max_tokens": CAP}
        yield Cell(f"capped-{route}-stream", capped, True, fields=fields)
        yield Cell(f"capped-{route}-body", capped, False, fields=fields)


def body_of(cell: Cell, question: Any) -> dict[str, Any]:
    body = {"model": "local", "messages": [dict(m) for m in question.messages], "max_tokens": 180, "suffice": {}}
    if cell.kind == "samples":
        body |= {"temperature": 0.8, "max_tokens": 12, "chat_template_kwargs": {"enable_thinking": False}}
    else:
        body["temperature"] = 0
    if cell.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | dict(cell.fields)


def post(port: int, body: Mapping[str, Any], headers: Mapping[str, str] = {}) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, response.read()


def leave(port: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json", **headers})
    connection.getresponse().read1(2048)
    connection.close()


def n_running(port: int) -> float:
    """Requests that the engine runs, by its own metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    names = ("vllm:num_requests_running", "sglang:num_running_reqs")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def idle_after(port: int, within_s: float = 15.0) -> float | None:
    """Seconds until the engine's metrics show no running request; None: some still run at the end."""
    began_s = time.monotonic()
    while n_running(port):
        if time.monotonic() - began_s > within_s:
            return None
        time.sleep(0.25)
    return round(time.monotonic() - began_s, 1)


def read_reply(run: Run, data: bytes, *, stream: bool) -> None:
    lines = [line[6:] for line in data.decode().splitlines() if line.startswith("data: {")]
    values = [json.loads(text) for text in (lines if stream else [data.decode()])]
    for value in values:
        run.report, run.usage = value.get("suffice") or run.report, value.get("usage") or run.usage
        for choice in value.get("choices") or []:
            output = choice.get("delta") or choice.get("message") or {}
            run.text += output.get("content") or ""
            run.thought += output.get("reasoning") or output.get("reasoning_content") or ""
            run.finish += [choice["finish_reason"]] if choice.get("finish_reason") else []
    wrong = {
        "finish": len(run.finish) != 1,
        "done": stream and not data.endswith(b"data: [DONE]\n\n"),
        "tag": TAG in run.text,
        "usage": not run.usage,
        "ids": len({value.get("id") for value in values}) != 1,
    }
    run.torn = ",".join(name for name, is_wrong in wrong.items() if is_wrong)


def line_of(run: Run) -> str:
    return json.dumps(asdict(run), default=str) + "\n"


def kept_runs(folder: Path, cell: Cell) -> list[Run]:
    """Runs of an earlier start; their outcomes are read from the log anew."""
    path = folder / f"{cell.name}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [Run(**json.loads(line) | {"outcome": None}) for line in lines]


def ask(cell: Cell, folder: Path, port: int, number: int, question: Any) -> Run:
    run = answered(cell, folder, port, number, question)
    with (folder / f"{cell.name}.jsonl").open("a", encoding="utf-8") as out:
        out.write(line_of(run))
    return run


def answered(cell: Cell, folder: Path, port: int, number: int, question: Any) -> Run:
    began_s = time.monotonic()
    if cell.hangs_up:
        leave(port, body_of(cell, question), {"x-suffice-route": cell.route})
        return Run(cell.name, number, 200, time.monotonic() - began_s)
    status, data = post(port, body_of(cell, question), {"x-suffice-route": cell.route})
    run = Run(cell.name, number, status, time.monotonic() - began_s)
    (folder / f"{cell.name}-{number:02d}.body").write_bytes(data)
    if status == 200:
        read_reply(run, data, stream=cell.stream)
    else:
        run.torn = f"status {status}"
    return run


def reconciles(run: Run) -> bool:
    """Whether usage and overhead are what the engine counted, to the token."""
    outcome = run.outcome
    if outcome is None or outcome.usage is None:
        return False
    usage, more = outcome.usage, outcome.overhead
    spent = sum(call.completion_tokens for call in outcome.calls)
    read = sum(call.prompt_tokens or 0 for call in outcome.calls)
    payload = usage.completion_tokens + more.probe_tokens + more.discarded_tokens
    # A call that was given up before its first chunk is marked as estimated: no engine tells what it read.
    whole = [call for call in outcome.calls if not call.cancelled or call.completion_tokens]
    return (
        spent == payload
        and read == usage.prompt_tokens + more.extra_prompt_tokens
        and run.prompt_tokens in (None, usage.prompt_tokens)
        and run.usage.get("prompt_tokens") == usage.prompt_tokens
        and run.usage.get("completion_tokens") == usage.completion_tokens
        and all(call.source == "provider" for call in whole)
    )


def keeps_schema(run: Run) -> bool:
    try:
        answer = json.loads(run.text)
    except ValueError:
        return False
    return isinstance(answer, dict) and [*answer] == ["answer"] and type(answer["answer"]) is int


def judge(cell: Cell, runs: list[Run]) -> dict[str, Any]:
    stopped = [run for run in runs if run.outcome is not None and run.outcome.stopped]
    pauses = sorted(run.outcome.handover_ms or 0.0 for run in stopped if run.outcome is not None)
    same = [run for run in stopped if run.outcome is not None and run.outcome.answer == run.outcome.would_answer]
    degraded = [site for run in runs for site in run.report.get("degraded") or []]
    return {
        "cell": cell.name,
        "asked": len(runs),
        "stopped": len(stopped),
        "torn": sum(bool(run.torn) for run in runs),
        "reconciled": sum(map(reconciles, runs)),
        "same_as_trial": len(same),
        **({"valid": sum(map(keeps_schema, runs))} if "response_format" in cell.fields else {}),
        "degraded": degraded,
        "pause_ms": round(statistics.median(pauses)) if pauses else None,
        "pause_p90_ms": round(pauses[int(0.9 * (len(pauses) - 1))]) if pauses else None,
    }


def prompt_key(cell: Cell, question: Any) -> str:
    return json.dumps([question.messages, cell.kind, cell.fields.get("tools")])


def count_prompts(
    port: int, cell: Cell, requested: Sequence[Any], known: dict[str, int], pool: ThreadPoolExecutor
) -> None:
    """Let the engine count each prompt itself: one token of answer."""

    def count(question: Any) -> int:
        body = body_of(replace(cell, stream=False), question) | {"max_tokens": 1}
        body.pop("suffice")
        status, data = post(port, body)
        return json.loads(data)["usage"]["prompt_tokens"] if status == 200 else -1

    missing = {
        prompt_key(cell, question): question for question in requested if prompt_key(cell, question) not in known
    }
    known |= zip(missing, pool.map(count, missing.values()), strict=True)


def read_outcomes(runs: Sequence[Run], log: Path, route: str, within_s: float = 120.0) -> None:
    """Give each run its outcome, which is logged once its last probe has ended; some engines take a minute for that."""
    began_s = time.monotonic()
    while True:
        logged = [seen.episode for seen in read_episodes(log, route)]
        ended = {one.request.episode_id: one.outcome for one in logged}
        for run in runs:
            run.outcome = ended.get(run.report.get("episode_id", ""))
        if all(run.outcome or not run.report for run in runs) or time.monotonic() - began_s > within_s:
            return
        time.sleep(1.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.engines.suite")
    parser.add_argument("engine", choices=METHODS)
    parser.add_argument("url")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--cells", default="")
    parser.add_argument("--out", type=Path, default=Path("engines-out"))
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = settings_of(options.engine, options.url, folder, options.slots, port)
    (folder / "suffice.toml").write_text(settings, "utf-8")
    wanted = options.cells.split(",") if options.cells else None
    cells = [cell for cell in cells_of(options.engine) if wanted is None or cell.name in wanted]
    requested, known = questions("reasoning", options.questions), dict[str, int]()
    engine_port = int(options.url.rstrip("/").rpartition(":")[2])
    serve = [str(Path(sys.executable).with_name("suffice")), "serve", "--config", str(folder / "suffice.toml")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the gateway is ended with it
    with (folder / "serve.log").open("wb") as log:
        gateway = subprocess.Popen(serve, stdout=log, stderr=log)
    try:
        wait_until_up(gateway, port)
        results = []
        for cell in cells:
            runs = kept_runs(folder, cell)[: len(requested)]
            missing = sorted(set(range(len(requested))) - {run.question for run in runs})
            with ThreadPoolExecutor(options.clients) as pool:
                count_prompts(engine_port, cell, requested, known, pool)
                runs += pool.map(partial(ask, cell, folder, port), missing, [requested[number] for number in missing])
            idle = {"idle_after_s": idle_after(engine_port)} if cell.hangs_up else {}
            read_outcomes(runs, folder / "log.db", cell.route)
            for run in runs:
                run.prompt_tokens = known.get(prompt_key(cell, requested[run.question]))
            (folder / f"{cell.name}.jsonl").write_text("".join(map(line_of, runs)), "utf-8")
            results.append(judge(cell, runs) | idle)
            print(json.dumps(results[-1]), flush=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.wait(30)
    return 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until_up(gateway: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        if gateway.poll() is not None:
            raise SystemExit("suite: the gateway ended at once; see serve.log")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("suite: the gateway did not start")


if __name__ == "__main__":
    sys.exit(main())
