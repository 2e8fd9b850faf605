"""instructor: a record asked for through a tool call."""

from __future__ import annotations

import instructor
import openai
from pydantic import BaseModel

from tests.clients.peers.programs.asking import KEY, QUESTION, Case, Seen, run


class Keep(BaseModel):
    """The record that is asked for."""

    value: int


def ask(case: Case, seen: Seen) -> None:
    plain = openai.OpenAI(base_url=case.base_url, api_key=KEY, max_retries=0, timeout=case.timeout_s)
    client = instructor.from_openai(plain)
    messages = [{"role": "user", "content": QUESTION}]
    if case.stream:
        for part in client.chat.completions.create_partial(
            model=case.model, response_model=Keep, messages=messages, max_retries=0
        ):
            seen.tools = [{"name": "Keep", "arguments": part.model_dump()}]
        return
    record, whole = client.chat.completions.create_with_completion(
        model=case.model, response_model=Keep, messages=messages, max_retries=0
    )
    seen.calls("Keep", record.model_dump())
    seen.finish = whole.choices[0].finish_reason
    seen.thinks(getattr(whole.choices[0].message, "reasoning_content", None))
    seen.counts(whole.usage)


if __name__ == "__main__":
    run(ask)
