"""The 21 odd streams are what they were when clients were measured with them: every byte counts."""

from __future__ import annotations

import hashlib
import json

from tests.sse_scripts import SCRIPTS

DIGEST = "3e277ea90d3b06cc2d9e158e0073aa10ace39742158c2b2389108dd529821243"


def test_they_are_twenty_one_and_unchanged() -> None:
    assert len(SCRIPTS) == 21
    content = [[name, [piece.hex() for piece in s.pieces], s.end] for name, s in sorted(SCRIPTS.items())]
    assert hashlib.sha256(json.dumps(content).encode()).hexdigest() == DIGEST
