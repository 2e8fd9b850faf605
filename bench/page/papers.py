"""What the papers say of their rules, and on which set here the same rule at its published setting comes nearest."""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    rule: str
    of: str  # the paper's model, data and baseline
    saved: str  # tokens or samples, as the paper counts
    drop: str  # points of accuracy
    set: str
    model: str = ""  # of the set alone; "": all


_QWEN = "AIME25 and HMMT25, against 64 samples (arXiv:2605.08083)"
CLAIMS = (
    *(
        Claim("beta", f"Qwen3-{size}, {_QWEN}", saved, drop, "sc_qwen3", f"Qwen3-{size}")
        for size, saved, drop in (
            ("8B", "59.4 %", "0.0"),
            ("4B", "70.5 %", "-0.1"),
            ("1.7B", "45.7 %", "0.0"),
            ("0.6B", "32.5 %", "0.0"),
        )
    ),
    Claim("beta", "Qwen3-1.7B, GPQA-Diamond, against 64 samples (arXiv:2605.08083)", "63.5 %", "0.3", "sc_epoch_gpqa"),
    Claim("beta", "code-davinci-002, GSM8K, against 40 samples", "65.5 %", "0.1", "sc_gsm8k_qwen1p5b"),
    *(
        Claim("momentum", f"Qwen3-{size}, {_QWEN}; branches managed, too", saved, drop, "sc_qwen3", f"Qwen3-{size}")
        for size, saved, drop in (
            ("8B", "68.3 %", "1.7"),
            ("4B", "69.1 %", "0.3"),
            ("1.7B", "68.6 %", "-4.3"),
            ("0.6B", "72.2 %", "1.4"),
        )
    ),
    Claim("esc", "last letters, against 40 samples", "67.4 %", "“comparable”", "sc_lastletters_gpt35"),
    Claim("esc", "GSM8K, against 40 samples", "80.1 %", "“comparable”", "sc_gsm8k_qwen1p5b"),
    Claim("dynasor", "R1-Distill, AMC23, AIME24 and MATH500", "29 %", "“matching”", "cot_qwen3"),
    Claim("deer", "Qwen3-14B, GPQA-Diamond, capped at 16k tokens", "60.5 %", "2.5", "cot_gemma12b"),
    Claim("code-stop", "Qwen3-4B, mean of several sets", "28.6 %", "0.0", "cot_gemma12b"),
    Claim("eat", "MATH-500 and AIME25", "12 to 22 %", "“unchanged”", "cot_gemma12b"),
    Claim("halt-cot", "GSM8K, StrategyQA and CommonsenseQA", "15 to 30 %", "0.4 at most", "cot_gemma12b"),
    Claim("cusum", "mean of several sets; 3.3 points above DEER", "11.1 %", "not in the abstract", "cot_gemma12b"),
    Claim("cges", "five benchmarks, against 16 samples (arXiv:2511.02603)", "58 % of calls", "0.4", "own_samples"),
    Claim("cisc", "nine models, four sets, at equal accuracy", "over 40 % of samples", "0.0", "own_samples"),
    Claim("tasr", "iterative retrieval, against five rounds", "37.4 % of calls", "5.2 % of F1", "rag_hotpot_decomp"),
    Claim("semantic-distance", "HotpotQA, 60 questions (arXiv:2606.27009)", "38 %", "not EM", "loop_revise_gsm8k"),
)
