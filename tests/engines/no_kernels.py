"""In place of SGLang's kernels, of which there is no CPU build: every name can be imported, and none can be called."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} is not there on a CPU; choose torch's own backend for it")

    return missing
