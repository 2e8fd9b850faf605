"""Serves the demonstration's 1.5B model with PyTorch in bfloat16, for recordings on processors that multiply it fast.

    python -m venv .cache/torch && .cache/torch/bin/pip install torch gguf tokenizers
    .cache/torch/bin/python bench/rag/torch_server.py WEIGHTS.gguf --port 8300 --slots 20

Answers the two paths of llama.cpp's server that `rounds.LlamaServer` asks, on loopback. The weights are those of the
GGUF file, unpacked. All requests that wait go through the model in one pass, and each slot keeps the keys and values of
its last prompt, so that a round reads only what is new. Decoding is greedy and ends at a line's end.
"""

from __future__ import annotations

import argparse
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

MOST_TOKENS = 2048  # of a prompt with its reply
N_RIVALS = 20
SPECIAL = (3, 4)  # types of tokens in the file: control and user-defined
# How Qwen2's tokenizer splits text.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Words:
    """The tokens of the file, and the bytes that each stands for."""

    def __init__(self, reader: GGUFReader) -> None:
        tokens, merges, types = (
            reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type")
        )
        self._tokens = tokens
        self._tokenizer = Tokenizer(
            models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(pair.split(" ")) for pair in merges])
        )
        self._tokenizer.normalizer = normalizers.NFC()
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokenizer.add_special_tokens(
            [
                AddedToken(token, normalized=False, special=True)
                for token, kind in zip(tokens, types, strict=True)
                if kind in SPECIAL
            ]
        )
        # Byte-level BPE writes a byte as itself where it is printable, and as a character from 256 on where it is not.
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self._bytes = {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
        self.ends = {tokens.index("<|im_end|>"), tokens.index("<|endoftext|>")}

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def spell(self, token: int) -> bytes:
        written = self._tokens[token]
        if all(char in self._bytes for char in written):
            return bytes(self._bytes[char] for char in written)
        return bytes(written, "utf-8")


@dataclass(frozen=True, slots=True)
class Layer:
    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_and_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens of a slot, behind `begin` tokens that it holds."""

    slot: int
    begin: int
    tokens: list[int]


class Qwen2:
    """The model with the keys and values of `n_slots` prompts; products in bfloat16, everything else in float32."""

    def __init__(self, reader: GGUFReader, n_slots: int) -> None:
        def read(key: str) -> Any:
            return reader.fields[f"qwen2.{key}"].contents()

        weights = {tensor.name: _unpack(tensor) for tensor in reader.tensors}
        n_layers, self._n_heads = read("block_count"), read("attention.head_count")
        self._n_kv, self._eps = read("attention.head_count_kv"), read("attention.layer_norm_rms_epsilon")
        self._head = read("embedding_length") // self._n_heads
        self._frequencies = 1.0 / read("rope.freq_base") ** (torch.arange(0, self._head, 2).float() / self._head)
        self._layers = [_layer(weights, f"blk.{i}.") for i in range(n_layers)]
        self._embedding, self._norm = weights["token_embd.weight"], weights["output_norm.weight"]
        self._unembedding = weights.get("output.weight", self._embedding)
        shape = (n_slots, n_layers, 2, self._n_kv, MOST_TOKENS, self._head)
        self._cache = torch.zeros(shape, dtype=torch.bfloat16)

    def logits(self, pieces: list[Piece]) -> torch.Tensor:
        """Of the token behind each piece, shape (pieces, vocabulary)."""
        hidden = self._embedding[torch.tensor([token for piece in pieces for token in piece.tokens])].float()
        places = torch.cat([torch.arange(one.begin, one.begin + len(one.tokens)) for one in pieces])
        angles = torch.cat([places[:, None].float() * self._frequencies] * 2, -1)[:, None]
        for i, layer in enumerate(self._layers):
            mixed = self._attend(self._normed(hidden, layer.attention_norm), i, pieces, angles)
            hidden = hidden + F.linear(mixed, layer.out).float()
            gate, up = F.linear(self._normed(hidden, layer.mlp_norm), layer.gate_and_up).float().chunk(2, -1)
            hidden = hidden + F.linear((F.silu(gate) * up).to(torch.bfloat16), layer.down).float()
        ends = torch.tensor([len(piece.tokens) for piece in pieces]).cumsum(0) - 1
        last = self._scaled(hidden[ends], self._norm)
        logits = F.linear(last.to(torch.bfloat16), self._unembedding).float()
        # bfloat16 keeps three digits; the likeliest tokens are computed again.
        likeliest = logits.topk(2 * N_RIVALS, -1).indices
        return logits.scatter(1, likeliest, torch.einsum("td,tkd->tk", last, self._unembedding[likeliest].float()))

    def _attend(self, x: torch.Tensor, i: int, pieces: list[Piece], angles: torch.Tensor) -> torch.Tensor:
        layer, width = self._layers[i], self._n_kv * self._head
        mixed = F.linear(x, layer.qkv).float() + layer.qkv_bias
        query, key, value = mixed.split([self._n_heads * self._head, width, width], -1)
        query = self._turned(query.view(-1, self._n_heads, self._head), angles)
        key = self._turned(key.view(-1, self._n_kv, self._head), angles)
        value = value.view(-1, self._n_kv, self._head).to(torch.bfloat16)
        out, at = torch.empty(len(x), self._n_heads * self._head, dtype=torch.bfloat16), 0
        for piece in pieces:
            n, length = len(piece.tokens), piece.begin + len(piece.tokens)
            mine, held = slice(at, at + n), self._cache[piece.slot, i]
            held[0, :, piece.begin : length] = key[mine].transpose(0, 1)
            held[1, :, piece.begin : length] = value[mine].transpose(0, 1)
            seen = None if n == 1 else torch.arange(length)[None] <= torch.arange(piece.begin, length)[:, None]
            one = F.scaled_dot_product_attention(
                query[mine].transpose(0, 1)[None],
                held[0, :, :length][None],
                held[1, :, :length][None],
                attn_mask=seen,
                enable_gqa=True,
            )
            out[mine] = one[0].transpose(0, 1).reshape(n, -1)
            at += n
        return out

    def _turned(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        x, half = x.float(), self._head // 2
        swapped = torch.cat([-x[..., half:], x[..., :half]], -1)
        return (x * angles.cos() + swapped * angles.sin()).to(torch.bfloat16)

    def _scaled(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._eps) * weight

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self._scaled(x, weight).to(torch.bfloat16)


def _unpack(tensor: Any) -> torch.Tensor:
    values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
    return values if tensor.name.endswith(("norm.weight", "bias")) else values.to(torch.bfloat16)


def _layer(weights: dict[str, torch.Tensor], prefix: str) -> Layer:
    def joined(*names: str) -> torch.Tensor:
        return torch.cat([weights.pop(prefix + name) for name in names])

    return Layer(
        attention_norm=weights[f"{prefix}attn_norm.weight"],
        qkv=joined("attn_q.weight", "attn_k.weight", "attn_v.weight"),
        qkv_bias=joined("attn_q.bias", "attn_k.bias", "attn_v.bias"),
        out=weights[f"{prefix}attn_output.weight"],
        mlp_norm=weights[f"{prefix}ffn_norm.weight"],
        gate_and_up=joined("ffn_gate.weight", "ffn_up.weight"),
        down=weights[f"{prefix}ffn_down.weight"],
    )


@dataclass(slots=True)
class Completion:
    slot: int
    prompt: list[int]
    most_tokens: int
    pending: list[int] = field(default_factory=list)
    begin: int = 0
    listed: list[dict[str, Any]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Runs everything that waits in one pass after the other, for ever."""

    def __init__(self, model: Qwen2, words: Words, n_slots: int) -> None:
        self._model, self._words = model, words
        self._held: list[list[int]] = [[] for _ in range(n_slots)]
        self.waiting: SimpleQueue[Completion] = SimpleQueue()

    def run(self) -> None:
        active: list[Completion] = []
        while True:
            while not active or not self.waiting.empty():
                active.append(self._begun(self.waiting.get()))
            logits = self._model.logits([Piece(one.slot, one.begin, one.pending) for one in active])
            rivals = F.log_softmax(logits, -1).topk(N_RIVALS, -1)
            for one, values, tokens in zip(active, rivals.values.tolist(), rivals.indices.tolist(), strict=True):
                self._add(one, values, tokens)
            active = [one for one in active if not one.done.is_set()]

    def _begun(self, asked: Completion) -> Completion:
        held, prompt = self._held[asked.slot], asked.prompt
        most = min(len(held), len(prompt) - 1)
        asked.begin = next((i for i in range(most) if held[i] != prompt[i]), most)
        asked.pending = prompt[asked.begin :]
        self._held[asked.slot] = [*prompt]
        return asked

    def _add(self, one: Completion, values: list[float], tokens: list[int]) -> None:
        texts = [self._words.spell(token) for token in tokens]
        rivals = [
            {"token": text.decode("utf-8", "replace"), "logprob": value}
            for text, value in zip(texts, values, strict=True)
        ]
        one.listed.append({"id": tokens[0], "bytes": [*texts[0]], **rivals[0], "top_logprobs": rivals})
        one.begin += len(one.pending)
        one.pending = [tokens[0]]
        if tokens[0] in self._words.ends or b"\n" in texts[0] or len(one.listed) >= one.most_tokens:
            one.done.set()
        else:
            self._held[one.slot].append(tokens[0])


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, port: int, words: Words, engine: Engine) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.words, self.engine = words, engine


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self._reply({"tokens": self.server.words.encode(body["content"])})
            return
        asked = Completion(body["id_slot"], body["prompt"], body["n_predict"])
        self.server.engine.waiting.put(asked)
        asked.done.wait()
        self._reply({"completion_probabilities": asked.listed})

    def _reply(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="file that `python -m suffice_demo.local.weights qwen1.5b` fetches")
    parser.add_argument("--port", type=int, default=8300)
    parser.add_argument("--slots", type=int, default=20, help="requests at once; each takes 60 MB")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    reader = GGUFReader(asked.weights)
    words = Words(reader)
    engine = Engine(Qwen2(reader, asked.slots), words, asked.slots)
    threading.Thread(target=engine.run, daemon=True).start()
    server = Server(asked.port, words, engine)
    print(f"listening on 127.0.0.1:{asked.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
