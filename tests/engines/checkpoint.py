"""Turns the demonstration model's GGUF file into a folder that vLLM and SGLang load, with think tags of one token each.

    python -m tests.engines.checkpoint MODEL.gguf FOLDER

Needs gguf, numpy, torch, safetensors, tokenizers and transformers, which an engine's environment has.

Qwen2.5 has no think tags, and the engines' reasoning parsers need them as single tokens. Two unused rows of the
vocabulary become `<think>` and `</think>`: their input rows are the mean of the rows of the tag's pieces, and the
output row of `</think>` points in the direction of the piece that the model would otherwise write, only further. The
result thinks, closes its thought and answers when examples show it how. It is a vehicle for tests, not a better model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TAG_IDS = {"<think>": 151667, "</think>": 151668}  # the places that Qwen3 gave them; in Qwen2.5 they are padding
CLOSE_GAIN = 1.25  # length of the output row of </think>, in that of ">": the model then prefers the tag to its pieces
BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def weight_name(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{BLOCK[part]}.{kind}"


def config_of(fields: dict[str, Any], n_vocabulary: int, *, tied: bool) -> dict[str, Any]:
    arch = fields["general.architecture"]
    if arch != "qwen2":
        raise SystemExit(f"checkpoint: the file's architecture is {arch!r}, only 'qwen2' is known here")
    own = {key.removeprefix("qwen2."): value for key, value in fields.items() if key.startswith("qwen2.")}
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "max_position_embeddings": own["context_length"],
        "rms_norm_eps": float(own["attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(own.get("rope.freq_base", 1e6)),
        "vocab_size": n_vocabulary,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
    }


def rename_padding(path: Path) -> dict[str, list[int]]:
    """Put the tags into a tokenizer file, and return the ids of the pieces that each was written with before."""
    from tokenizers import Tokenizer

    before = Tokenizer.from_file(str(path))
    pieces = {tag: before.encode(tag, add_special_tokens=False).ids for tag in TAG_IDS}
    table = json.loads(path.read_text("utf-8"))
    words: dict[str, int] = table["model"]["vocab"]
    for tag, place in TAG_IDS.items():
        # The library takes the id of an added token from the vocabulary, so the padding entry must go.
        words = {word: at for word, at in words.items() if at != place} | {tag: place}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        table["added_tokens"] = [one for one in table["added_tokens"] if one["id"] != place]
        table["added_tokens"].append({"id": place, "content": tag} | flags)
    table["model"]["vocab"] = words
    table["added_tokens"].sort(key=lambda one: one["id"])
    path.write_text(json.dumps(table, ensure_ascii=False), "utf-8")
    after = Tokenizer.from_file(str(path))
    for tag, place in TAG_IDS.items():
        if after.encode(tag, add_special_tokens=False).ids != [place]:
            raise SystemExit(f"checkpoint: {tag} did not become one token")
    return pieces


def main() -> int:
    import numpy as np
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(folder))
    reader = GGUFReader(str(source))
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("tokenizer.ggml.") or name.endswith("_id")
    }
    weights = {
        weight_name(one.name): torch.from_numpy(np.ascontiguousarray(dequantize(one.data, one.tensor_type))).float()
        for one in reader.tensors
    }
    pieces = rename_padding(folder / "tokenizer.json")
    embedding = weights["model.embed_tokens.weight"]
    tied = "lm_head.weight" not in weights
    output = weights["lm_head.weight"] = embedding.clone() if tied else weights["lm_head.weight"]
    for tag, place in TAG_IDS.items():
        embedding[place] = embedding[pieces[tag]].mean(0)
    output[TAG_IDS["</think>"]] = CLOSE_GAIN * output[pieces["</think>"][-1]]
    output[TAG_IDS["<think>"]] = 0
    config = config_of(fields, embedding.shape[0], tied=False)
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    ends = {"eos_token_id": [config["eos_token_id"], 151643], "pad_token_id": 151643}
    (folder / "generation_config.json").write_text(json.dumps(ends), "utf-8")
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    print(f"{folder}: {len(weights)} tensors, pieces of the tags {pieces}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
