"""For the V1 model runner: `--logits-processors suffice_vllm.v1:EndThoughtV1`. Written for vLLM 0.32."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from suffice_vllm.runs import MOST_READINGS, Reading, Run, check_arguments
from suffice_vllm.worker import TokenTexts, open_table


class EndThoughtV1(LogitsProcessor):
    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        check_arguments(sampling_params.extra_args, sampling_params.n)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's
        self._table, tokenizer = open_table(vllm_config)
        self._text_of = TokenTexts(tokenizer)
        self._rows: dict[int, tuple[Run, LineReader, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        rows = self._rows
        for row in batch_update.removed:
            rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            run = self._table.enter(params.extra_args)
            rows.pop(row, None)
            if run is not None:
                rows[row] = run, LineReader(run), output
        for source, target, direction in batch_update.moved:
            moved, replaced = rows.pop(source, None), rows.pop(target, None)
            if moved is not None:
                rows[target] = moved
            if replaced is not None and direction is MoveDirectionality.SWAP:
                rows[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, (run, reader, output) in self._rows.items():
            if run.wants_signals and not run.is_over:
                reader.read(logits[row], output, self._text_of)
            token = run.next_forced(len(output), lambda output=output: output, self._text_of)  # type: ignore[misc]
            if token is not None:
                logits[row] = float("-inf")
                logits[row, token] = 0.0
        return logits


class LineReader:
    """Reads a run's logits step by step. Values stay on the device until a line ends."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._logprobs: Any = None  # of the next token, after `_n_seen` tokens
        self._n_seen = 0
        self._sum: Any = 0.0
        self._n_summed = 0

    def read(self, row: Any, output: list[int], text_of: TokenTexts) -> None:
        run, n = self._run, len(output)
        last = output[-1] if n else -1
        if n == self._n_seen + 1 and self._logprobs is not None and last >= 0:
            self._sum = self._sum + self._logprobs[last]
            self._n_summed += 1
        if last == run.tag[-1]:
            run.is_over = True
            return
        logprobs = torch.log_softmax(row, dim=-1)
        if n > self._n_seen and "\n" in text_of(last) and len(run.readings) < MOST_READINGS:
            margin = float(logprobs.max() - logprobs[run.tag[0]])
            mean = float(self._sum) / self._n_summed if self._n_summed else None
            run.readings.append(Reading(n, margin, mean))
            self._sum, self._n_summed = 0.0, 0
        self._logprobs, self._n_seen = logprobs, n
