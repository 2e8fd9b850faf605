"""For the V2 model runner, vLLM's default on a GPU: `--logits-processors suffice_vllm.v2:EndThoughtV2`.

Written against the interface of vLLM 0.32 and tested against a stand-in for it; not verified on a GPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from suffice_vllm.runs import Run, check_arguments
from suffice_vllm.worker import TokenTexts, open_table


class EndThoughtV2(LogitsProcessor):
    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        check_arguments(sampling_params.extra_args, sampling_params.n)

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._table, tokenizer = open_table(vllm_config)
        self._text_of = TokenTexts(tokenizer)
        self._states = req_states
        self._runs: dict[int, Run] = {}  # by the slot of their request

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        run = self._table.enter(sampling_params.extra_args)
        if run is None:
            self._runs.pop(req_idx, None)  # of the slot's last request
            return False
        self._runs[req_idx] = run
        return True

    def apply(self, logits: Any, ctx: LogitsContext) -> Any:
        # Without speculative decoding, which is refused at the start, each request has one row, in the batch's order.
        for row, slot in enumerate(ctx.idx_mapping_np):
            run = self._runs.get(int(slot))
            if run is None or not run.is_told or run.is_over:
                continue
            n_prompt = int(self._states.prompt_len.np[slot])
            n_generated = int(ctx.seq_lens_upper_bound_np[row]) - n_prompt
            token = run.next_forced(n_generated, partial(self._output, int(slot), n_prompt), self._text_of)
            if token is not None:
                logits[row] = float("-inf")
                logits[row, token] = 0.0
        return logits

    def _output(self, slot: int, n_prompt: int) -> list[int]:
        """Copy a run's output from the device, which waits for it: from the stop to the end of the line."""
        n_total = int(self._states.total_len.gpu[slot])
        tokens: list[int] = self._states.all_token_ids.gpu[slot, n_prompt:n_total].tolist()
        return tokens
