"""suffice-vllm against a stand-in for the parts of vLLM 0.32 that it touches: shapes as recorded, numpy for torch."""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from types import SimpleNamespace as Plain
from typing import Any

import numpy as np
import pytest

N_WORDS = 32
TAG = "</think>"
WORDS = {"\n": 1, "<": 2, "/think>": 3}  # the closing tag takes two tokens here; every other character is one from 4 on


def encode(text: str, *, add_special_tokens: bool = False) -> list[int]:
    assert not add_special_tokens
    ids: list[int] = []
    while text:
        word = next((w for w in ("/think>", "\n", "<") if text.startswith(w)), text[0])
        ids.append(WORDS[word] if word in WORDS else 4 + ord(word) % (N_WORDS - 4))
        text = text[len(word) :]
    return ids


class Move(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


class Base:
    pass


def config(*, tensor: int = 1, pipeline: int = 1, speculative: Any = None) -> Any:
    parallel = Plain(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    return Plain(parallel_config=parallel, speculative_config=speculative, model_config=Plain())


def parameters(n: int = 1, **arguments: Any) -> Any:
    return Plain(extra_args=arguments or None, n=n)


def _log_softmax(row: Any, dim: int) -> Any:
    assert dim == -1
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The name of a socket has at most 107 bytes, and folders of tests may take all of them."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield Path(folder)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> Iterator[Any]:
    """The two modules, imported with the stand-in."""
    folder = short_folder / "sockets"
    monkeypatch.setenv("SUFFICE_VLLM_FOLDER", str(folder))
    tokenizer = Plain(encode=encode, decode=lambda ids: "\n" if ids == [1] else "x")
    fakes: dict[str, dict[str, Any]] = {
        "torch": {"log_softmax": _log_softmax, "Tensor": np.ndarray, "device": object},
        "vllm": {},
        "vllm.tokenizers": {"cached_tokenizer_from_config": lambda **_: tokenizer},
        "vllm.v1.sample.logits_processor": {"LogitsProcessor": Base, "BatchUpdate": Plain, "MoveDirectionality": Move},
        "vllm.v1.worker.gpu.sample.logits_processor": {
            "LogitsProcessor": Base,
            "LogitsContext": Plain,
            "LogitsProcRequestState": Plain,
        },
    }
    for name in [one for one in sys.modules if one.startswith("suffice_vllm")]:
        monkeypatch.delitem(sys.modules, name)
    for name, values in fakes.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    from suffice_vllm import channel, v1, v2

    listeners: list[Any] = []
    begin = channel.Listener.__init__

    def begun(self: Any, *given: Any) -> None:
        begin(self, *given)
        listeners.append(self)

    monkeypatch.setattr(channel.Listener, "__init__", begun)
    yield Plain(v1=v1, v2=v2, channel=channel, folder=folder)
    for one in listeners:
        one.close()
    for name in [one for one in sys.modules if one.startswith("suffice_vllm")]:
        monkeypatch.delitem(sys.modules, name)
