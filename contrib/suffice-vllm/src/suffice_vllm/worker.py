"""What both processors need of vLLM's configuration."""

from __future__ import annotations

from typing import Any

from suffice_vllm.channel import Listener
from suffice_vllm.runs import RunTable, refusal


def open_table(vllm_config: Any) -> tuple[RunTable, Any]:
    """Return the worker's table of runs, which listens from now on, and the tokenizer. Raise ValueError."""
    from vllm.tokenizers import cached_tokenizer_from_config

    parallel = vllm_config.parallel_config
    why = refusal(
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
        speculates=vllm_config.speculative_config is not None,
    )
    if why is not None:
        raise ValueError(why)
    tokenizer = cached_tokenizer_from_config(model_config=vllm_config.model_config)
    table = RunTable(lambda text: tokenizer.encode(text, add_special_tokens=False))
    Listener(table)
    return table, tokenizer


class TokenTexts:
    """The text of each token; decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._tokenizer.decode([token]) if token >= 0 else ""
        return self._known[token]
