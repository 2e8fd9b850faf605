"""The sets of recorded runs on the page of benchmarks, and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from suffice.replay.traces.read import FILES, Survey, own_traces, set_name, survey

VARIABLE = "SUFFICE_TRACES"  # names a folder with files SET.dev.parquet
SUFFIX = ".dev.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set, or a part of one that is looked at by itself."""

    file: Path
    where: str | None = None
    min_run_em: float | None = None

    @property
    def name(self) -> str:
        more = [self.where or "", "" if self.min_run_em is None else f"runs with EM > {self.min_run_em:g}"]
        return ", ".join(part for part in (set_name(self.file), *more) if part)

    def survey(self) -> Survey:
        """Raise TraceError as reading does."""
        (data,) = survey([self.file], where=self.where, min_run_em=self.min_run_em)
        return data


def cases() -> list[Case]:
    """The sets in the box and those of the folder, the quick ones first."""
    folder = os.environ.get(VARIABLE)
    own = [Case(file=own_traces(kind)) for kind in FILES]
    others = [case for path in Path(folder).glob(f"*{SUFFIX}") for case in _looks(path)] if folder else []
    return [*own, *sorted(others, key=lambda case: (case.file.stat().st_size, case.name))]


def _looks(path: Path) -> Iterator[Case]:
    """Weak runs spoil one set (40 of its 72 runs have an EM below 0.3), a part without generated answers another."""
    yield Case(file=path, min_run_em=0.3 if path.name.startswith("sc_epoch_aime.") else None)
    if path.name.startswith("cot_gemma12b."):
        yield Case(file=path, where="task=mmlu_pro")


class Source(NamedTuple):
    what: str
    origin: str
    licence: str


_AUTO_TTS = "zhengkid/AutoTTS"
_CONSOL = "LiuzLab/consol"
_EPOCH = "Epoch AI's public logs, as kept in feruiloba/miri-fellowship-inference-scaling"
SOURCES = {
    "sc_epoch_gpqa": Source("votes of 8 or 16, GPQA-Diamond, 43 runs of many models", _EPOCH, "CC BY 4.0"),
    "sc_epoch_aime": Source("votes of 8 or 16, OTIS Mock AIME, 72 runs of many models", _EPOCH, "CC BY 4.0"),
    "sc_qwen3": Source("votes of 40, AIME and HMMT, Qwen3 0.6B to 8B", _AUTO_TTS, "none stated"),
    "sc_gsm8k_qwen1p5b": Source(
        "votes of 10, GSM8K, Qwen2.5-1.5B", "nikbrus0112-sketch/self-consistency-study", "none stated"
    ),
    "sc_lastletters_gpt35": Source("votes of 40, last letters, GPT-3.5", "Yiwei98/ESC", "none stated"),
    "sc_consol_gsm": Source("votes of 40, GSM8K, gpt-4o-mini, the API's own tokens", _CONSOL, "none stated"),
    "sc_consol_medqa": Source("votes of 40, MedQA, gpt-4o-mini, the API's own tokens", _CONSOL, "none stated"),
    "cot_gemma12b": Source(
        "chains probed at 11 points, MMLU-Pro and GPQA, gemma-4-12B", "tobypullan/logit_cot_overthinking", "none stated"
    ),
    "cot_mmlupro_qwen32b_gemma4b": Source(
        "chains probed at 12 points, MMLU-Pro, Qwen3-32B and gemma-3-4b", "tobypullan/CoTOverthinking", "none stated"
    ),
    "cot_qwen3": Source("chains probed every 500 tokens, AIME and HMMT, Qwen3 0.6B to 8B", _AUTO_TTS, "none stated"),
    "loop_revise_gsm8k": Source(
        "ten rounds of self-revision, GSM8K, Qwen2.5-7B and Mistral-7B",
        "bhattadiCS/research-thesis-overthinking-boundary",
        "none stated",
    ),
    "agent_mint": Source("tool agents of up to five turns, 55 models", "xingyaoww/mint-bench", "Apache-2.0"),
    "rag_hotpot_decomp": Source("RAG by question decomposition, HotpotQA", "VatsalP04/hotpotqa", "none stated"),
    "own_reasoning": Source("chains of thought, four small tasks, Qwen2.5-Coder-0.5B", "this project", "the project's"),
    "own_samples": Source("votes of 16, two small tasks, Qwen2.5-Coder-0.5B", "this project", "the project's"),
}
