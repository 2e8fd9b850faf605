"""dspy's LM."""

from __future__ import annotations

import dspy

from tests.clients.peers.programs.asking import KEY, QUESTION, Case, Seen, run


def ask(case: Case, seen: Seen) -> None:
    model = dspy.LM(
        f"openai/{case.model}",
        api_base=case.base_url,
        api_key=KEY,
        cache=False,
        num_retries=0,
        timeout=case.timeout_s,
    )
    report = model(QUESTION)[0]
    if isinstance(report, str):
        seen.text = report
    else:
        seen.text = report["text"]
        seen.thinks(report.get("reasoning_content"))
    entry = model.history[-1]
    seen.counts(dict(entry["usage"]))
    response = entry.get("response")
    choices = getattr(response, "choices", None)
    if choices:
        seen.finish = choices[0].finish_reason


if __name__ == "__main__":
    run(ask)
