"""How many files of ours a governed chat request passes through, from its first byte to its outcome row."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Self

import suffice
from suffice_testing import Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

PACKAGE = str(Path(suffice.__file__).parent)
THOUGHT = tuple(f" {n}\n" for n in range(200))
MOST_FILES = 37
N_TRACED = 5


class FilesSeen:
    """The files of the package whose functions begin or go on in this thread while the block lasts.

    Tasks that run already belong to no request: on a busy machine they fall into every one.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._others = asyncio.all_tasks() - {asyncio.current_task()}

    def __enter__(self) -> Self:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        is_ours = event == "call" and name.startswith(PACKAGE) and "/testing/" not in name
        if is_ours and asyncio.current_task() not in self._others:
            self.names.add(name.removeprefix(PACKAGE + "/"))


async def test_a_governed_request_passes_through_few_files(serve: Serve) -> None:
    """Requests behind the first are traced: what is imported or built once does not count."""
    async with serve(Reply(reasoning=THOUGHT, answer=("4",))) as gw:
        assert (await gw.ask(chat(stream=True))).done
        await gw.quiet()
        seen = []
        for _ in range(N_TRACED):
            with FilesSeen() as files:
                assert (await gw.ask(chat(stream=True))).done
                while gw.gateway.process.n_live:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.005)
            seen.append(files.names)
        outcomes = [one.episode.outcome for one in await gw.episodes(1 + N_TRACED)]
        assert all(one.end_reason == "done" and one.steps for one in outcomes)
    names = set.intersection(*seen)  # timers that fire meanwhile belong to no request
    assert len(names) <= MOST_FILES, "\n".join(sorted(names))
