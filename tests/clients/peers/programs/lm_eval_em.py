"""lm-eval measures Exact Match with its own task, filter and metric, on the questions that it is given."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

# `until` is empty on purpose: a request with stop words passes through ungoverned.
TASK = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{gold}}}}"
generation_kwargs:
  until: []
  do_sample: false
filter_list:
  - name: number
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
        group_select: -1
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def measured(exam: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "sums.jsonl"
        rows.write_text("".join(json.dumps(item) + "\n" for item in exam["items"]), encoding="utf-8")
        (folder / "sums.yaml").write_text(TASK.format(file=json.dumps(str(rows))), encoding="utf-8")
        report = lm_eval.simple_evaluate(
            model="local-chat-completions",
            tasks=["sums"],
            apply_chat_template=True,
            bootstrap_iters=0,
            model_args={
                "model": exam["model"],
                "base_url": f"{exam['base_url']}/chat/completions",
                "num_concurrent": exam["n_at_once"],
                "tokenized_requests": False,
                "max_retries": 1,
            },
            task_manager=TaskManager(include_path=str(folder)),
        )
    return {"em": report["results"]["sums"]["exact_match,number"], "n": report["n-samples"]["sums"]["effective"]}


if __name__ == "__main__":
    for line in sys.stdin:
        print("\nSEEN " + json.dumps(measured(json.loads(line))), flush=True)
