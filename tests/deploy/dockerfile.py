"""A Dockerfile as a list of instructions. Knows syntax; what the instructions do is their reader's."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    stage: int  # counted from 0; -1: before the first FROM
    name: str  # upper case
    text: str  # continuation lines joined

    @property
    def words(self) -> list[str]:
        """The arguments: of the exec form, else split as a shell does."""
        text = self.text.partition(" CMD ")[2] if self.name == "HEALTHCHECK" else self.text
        return json.loads(text) if text.startswith("[") else shlex.split(text)

    @property
    def pairs(self) -> dict[str, str]:
        return dict(word.partition("=")[::2] for word in self.words)


def instructions(file: Path) -> list[Instruction]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    lines_of_stages, stage = list[Instruction](), -1
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        stage += name.upper() == "FROM"
        lines_of_stages.append(Instruction(stage, name.upper(), text.strip()))
    return lines_of_stages


def of_stage(lines: list[Instruction], stage: int, name: str) -> list[Instruction]:
    return [one for one in lines if (one.stage, one.name) == (stage, name)]
