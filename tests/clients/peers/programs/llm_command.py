"""The command `llm`, called as its users call it but without a new process each time; its own log tells usage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from llm.cli import cli

from tests.clients.peers.programs.asking import KEY, QUESTION, Case, Seen, run


class LlmFailed(Exception):
    """The command ended with an error; its words are the message."""


def ask(case: Case, seen: Seen) -> None:
    # One folder for all cases: the command makes its database at the first, which takes a while.
    folder = Path(os.environ["HOME"]) / "llm"
    folder.mkdir(exist_ok=True)
    os.environ["LLM_USER_PATH"] = str(folder)
    model = {"model_id": "gw", "model_name": case.model, "api_base": case.base_url, "api_key_name": "gw"}
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]), encoding="utf-8")
    done: Any = CliRunner().invoke(cli, ["-m", "gw", "--key", KEY, *([] if case.stream else ["--no-stream"]), QUESTION])
    seen.text = done.stdout.rstrip("\n")
    if done.exit_code != 0:
        raise LlmFailed(done.stderr.strip() or repr(done.exception))
    logged = CliRunner().invoke(cli, ["logs", "--json", "-n", "1"])
    entry = json.loads(logged.stdout)[0]
    if entry["response"].rstrip("\n") != seen.text:
        raise LlmFailed("the newest entry of its log is of another question")
    _note(entry, seen)


def _note(entry: dict[str, Any], seen: Seen) -> None:
    prompt, completion = entry.get("input_tokens"), entry.get("output_tokens")
    if prompt is not None:
        details = json.loads(entry.get("token_details") or "{}").get("completion_tokens_details") or {}
        seen.usage = {
            "prompt": prompt,
            "completion": completion,
            "total": prompt + completion,
            "reasoning": details.get("reasoning_tokens"),
        }
    response = entry.get("response_json")
    response = json.loads(response) if isinstance(response, str) else response or {}
    seen.finish = response.get("finish_reason")


if __name__ == "__main__":
    run(ask)
