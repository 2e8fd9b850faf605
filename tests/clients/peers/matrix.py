"""Asks one client every scene, direct and through each mode of the gateway, and compares what it saw.

Knows cases and their order; refuses to know tables for readers (`__main__`) and how programs work.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from suffice.types import Episode
from tests.clients.peers.compare import differences, unlike
from tests.clients.peers.environments import clean_environment
from tests.clients.peers.roster import PROGRAMS, ROOT, Client
from tests.clients.peers.stage import MODES, Mode, Scene, Stage, model_name

CASE_TIMEOUT_S = 30.0
CLIENT_TIMEOUT_S = 600.0  # a busy machine takes its time
Place = Literal["direct", "gateway"]
PLACES: tuple[Place, Place] = ("direct", "gateway")


class ClientBroke(Exception):
    """The program itself failed, so nothing can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One scene in one mode: what the client saw in both places, and what is wrong about it."""

    client: str
    mode: Mode
    scene: str
    direct: dict[str, Any]
    through: dict[str, Any]
    stopped: bool
    wrong: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    mode: Mode
    scene: Scene
    place: Place


def compared(client: Client, folder: Path, stage: Stage, home: Path) -> list[Pair]:
    """Run one client. Raises ClientBroke when its program does not answer every case."""
    n_before = len(stage.episodes())
    cases = [
        _Case(mode=mode, scene=scene, place=place)
        for mode in MODES
        for scene in client.own_scenes()
        for place in PLACES
    ]
    seen = _run(client, folder, home, [_request_fields(case, stage) for case in cases])
    written = at_rest(stage, n_before)
    pairs = []
    for n in range(0, len(cases), 2):
        case = cases[n]
        model = model_name(case.mode, case.scene.name)
        stopped = any(e.outcome.stopped for e in written if e.request.model == model)
        expected, report = case.scene.expected
        wrong = unlike(seen[n], expected=expected, says=report)
        wrong += differences(seen[n], seen[n + 1], rule=case.scene.rule, stopped=stopped)
        wrong += _on_record(case, [e for e in written if e.request.model == model], stopped=stopped)
        pairs.append(
            Pair(
                client=client.name,
                mode=case.mode,
                scene=case.scene.name,
                direct=seen[n],
                through=seen[n + 1],
                stopped=stopped,
                wrong=wrong,
            )
        )
    return pairs


def _request_fields(case: _Case, stage: Stage) -> dict[str, Any]:
    return {
        "base_url": stage.url(case.place),
        "model": model_name(case.mode, case.scene.name),
        "stream": case.scene.stream,
        "tool": case.scene.tool,
        "timeout_s": CASE_TIMEOUT_S,
    }


def _run(client: Client, folder: Path, home: Path, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if client.runtime == "node":
        command, cwd = ["node", client.program], folder
    else:
        command, cwd = [str(folder / "bin" / "python"), "-m", f"{PROGRAMS}.{client.program}"], ROOT
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment(home),
        input="".join(json.dumps(c) + "\n" for c in cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=CLIENT_TIMEOUT_S,
    )
    seen = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    if done.returncode != 0 or len(seen) != len(cases):
        raise ClientBroke(f"{len(seen)} of {len(cases)} cases, exit {done.returncode}: {done.stderr[-1500:]}")
    return seen


def at_rest(stage: Stage, n_before: int) -> list[Episode]:
    """The episodes after the first `n_before`, once the log is at rest."""
    n_last = -1
    while True:
        result = stage.episodes()[n_before:]
        if len(result) == n_last:
            return result
        n_last = len(result)
        time.sleep(0.3)


def _on_record(case: _Case, written: list[Episode], *, stopped: bool) -> list[str]:
    """What the log must say, so that a comparison is about what it is called."""
    if not written:
        return ["log: no episode"]
    must_stop = case.mode == "enforce" and case.scene.thinks
    if must_stop and not stopped:
        return ["log: the run was not stopped, so nothing was tested"]
    if stopped and not must_stop:
        return ["log: a run was stopped that must not be"]
    modes = {e.request.mode for e in written}
    return [] if modes == {case.mode} else [f"log: mode {sorted(modes)} instead of {case.mode}"]
