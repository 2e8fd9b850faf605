"""Keeping the calls of one run where the run's prompt has been read already. Pure.

Between this gateway and several replicas stands a router that may look at a header; one server with
several slots looks at the prompt itself: llama.cpp takes the free slot whose last prompt begins most
alike, so a probe finds the slot of the probe before it as long as some slots are free.

llama.cpp's `id_slot` is never sent. A server that keeps a cache of prompts in memory (its default)
loads a cached prompt into the slot that was asked for before it looks whether that slot is busy; the
running call then goes on in the middle of a foreign conversation. Seen with xllamacpp 2026.10 and
read in `get_available_slot` of its tools/server/server-context.cpp: a run asked for 14 said 7, the answer to the
question of the other call.
"""

from __future__ import annotations

from collections.abc import Iterable


def marked(headers: Iterable[tuple[str, str]], name: str, run: str) -> list[tuple[str, str]]:
    """The headers with the one that a router keeps runs together by, unless the client sent its own.

    name  of the header; "": none is added
    run   the same for all calls of a run; reveals nothing
    """
    kept = list(headers)
    if not name or any(k.lower() == name.lower() for k, _ in kept):
        return kept
    return [*kept, (name, run)]
