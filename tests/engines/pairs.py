"""Measures what ending a thought inside vLLM saves: time over tokens, without the gateway.

    python -m tests.engines.pairs http://127.0.0.1:8700 --pairs 20 --out FOLDER

Each question is asked in full, then with its thought ended once it names its answer, then in full again; time runs from
the first piece of thought to the end of the stream, and the two full runs around a stopped one are averaged, so that a
machine that becomes slower or faster in between counts on neither side. (A thought that is ended before it knows its
answer goes on in the answer: this model is too small to give one.) Each triple is a line of FOLDER/pairs.jsonl;
started again, the program asks only what is missing there.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from suffice_demo.local.tasks import questions
from tests.engines.suite import CHAT, TAG

NAMED = "answer"  # in a line that goes on: the thought ends with this line


def post(port: int, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection.getresponse()


def run(port: int, question: Any, *, ends: bool) -> tuple[float, int]:
    """Seconds from the first piece of thought to the end, and the tokens as the engine counts them."""
    name = f"pair-{time.time_ns()}"
    named = {"suffice_run": name, "suffice_text": "\n" + TAG, "suffice_tag": TAG}
    body = {"model": "local", "messages": [dict(one) for one in question.messages], "temperature": 0, "max_tokens": 180}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "vllm_xargs": named}
    first_s, report, usage = 0.0, not ends, dict[str, int]()
    for line in post(port, CHAT, body):
        value = json.loads(line[6:]) if line.startswith(b"data: {") else {}
        usage = value.get("usage") or usage
        for choice in value.get("choices") or ():
            if piece := choice["delta"].get("reasoning"):
                first_s = first_s or time.monotonic()
                if not report and NAMED in piece:
                    reply = post(port, f"{CHAT}/control", {"id": name, "action": "reasoning_end"})
                    report = json.loads(reply.read())["success"]
                    assert report
    return time.monotonic() - first_s, usage["completion_tokens"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.engines.pairs")
    parser.add_argument("url")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("engines-out/pairs"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path, port = options.out / "pairs.jsonl", int(options.url.rstrip("/").rpartition(":")[2])
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    requested = list(enumerate(questions("reasoning", options.pairs)))
    missing = [one for one in requested if one[0] not in {number for number, *_ in rows}]

    def triple(one: tuple[int, Any]) -> list[Any]:
        row = [one[0], *(run(port, one[1], ends=ends) for ends in (False, True, False))]
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        return row

    with ThreadPoolExecutor(options.clients) as pool:
        rows += pool.map(triple, missing)
    full_s = sum((before[0] + after[0]) / 2 for _, before, _, after in rows)
    full_tokens = sum((before[1] + after[1]) / 2 for _, before, _, after in rows)
    time_saved = 1 - sum(ended[0] for _, _, ended, _ in rows) / full_s
    tokens_saved = 1 - sum(ended[1] for _, _, ended, _ in rows) / full_tokens
    shares = {"time_saved": round(time_saved, 3), "tokens_saved": round(tokens_saved, 3)}
    print(json.dumps({"pairs": len(rows), **shares, "ratio": round(time_saved / tokens_saved, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
