"""A log with a certificate whose audits were drawn, returned late, got lost, were labelled or never were."""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from suffice.control.jobs.upkeep import OVER_S
from suffice.rollout.assign import DAY_S, day_salt, point_of
from suffice.settings import Settings, parse_settings
from suffice.store.rows.events import DaySalt, Event
from suffice.wiring.keys import deployment_salt
from suffice.wiring.worker import open_worker
from tests.cli.test_audit import fill as append
from tests.control.made import label, run

N, BURST, SHARE = 620, 60, 0.4
DAY, STEP_S = 20_780, 300.0  # the first day of draws by salts, and the time between two requests
ROUTE = {
    "upstream": "up",
    "kind": "samples",
    "samples": 8,
    "scorer": "number",
    "mode": "enforce",
    "max_em_drop": 0.1,
    "confidence": 0.9,
    "audit_share": SHARE,
}


def settings_of(folder: Path, control: dict[str, Any] | None = None, **route: Any) -> Settings:
    """A route that certifies itself, and heads that are kept in a file."""
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:9"}},
            "routes": {"r": ROUTE | route},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
            "audit": {"file": str(folder / "heads.jsonl")},
            "control": {"tick_requests": 20, "burst_requests": BURST, "refit_requests": 200, "window_audits": 400}
            | (control or {}),
        }
    )


def salt_of(day: int, secret: str) -> DaySalt:
    return DaySalt(day=day, salt=day_salt(day, salt=secret), since_s=0.0, author="w")


def events(seed: int = 5, *, secret: str = "") -> Iterator[Event]:
    """Requests that overlap. A few are slow, some audits are abandoned, and some differences get no label.

    secret  by whose salts they are drawn, over two days and a few hours; the salts of the first two days are published
    """
    rng, due = random.Random(seed), defaultdict[int, list[Event]](list)
    if secret:
        yield salt_of(DAY - 1, secret)
    for number in range(N):
        in_burst, at_s = number < BURST, DAY * DAY_S + OVER_S + STEP_S * number if secret else 0.0
        day, into_s = divmod(at_s, DAY_S)
        if OVER_S <= into_s < OVER_S + STEP_S and day > DAY:
            yield salt_of(int(day) - 1, secret)
        salt = day_salt(int(day), salt=secret)
        point = point_of(f"u{number}", salt=salt, purpose=b"audit-lot") if secret else None
        audit = in_burst or (rng.random() if point is None else point) < SHARE
        odds = 1.0 if in_burst else SHARE if audit else 1 - SHARE
        lost = not in_burst and rng.random() < 0.01
        changes: dict[str, Any] = {"end_reason": "client_left", "answer": None} if lost else {}
        changes["received_at_s"] = at_s
        request, outcome = run(number, rng, audit=audit, propensity=odds, p_right=0.75, **changes)
        yield request
        ended = due[number + (rng.randrange(1, 5) if rng.random() < 0.97 else 60)]
        ended.append(outcome)
        if audit and rng.random() < 0.7 and not lost:
            by_reference = rng.random() < 0.6
            ended.append(label(number, gold=outcome.steps[0].answer) if by_reference else label(number, correct=True))
        yield from due.pop(number, ())


def made_log(folder: Path, log: Iterable[Event] | None = None, **route: Any) -> Settings:
    """Write the log, and let a worker certify what it proves."""
    settings = settings_of(folder, **route)
    if log is None and not route:
        shutil.copytree(_usual_log(), folder, dirs_exist_ok=True)
        return settings
    deployment_salt(settings)
    fill(settings, events() if log is None else log)
    return settings


@cache
def _usual_log() -> Path:
    """A folder with the log of `events`, which a worker takes seconds to certify."""
    folder = Path(tempfile.mkdtemp(prefix="suffice-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made_log(folder, events())
    return folder


def fill(settings: Settings, log: Iterable[Event]) -> None:
    """Write more into the log, and let a worker certify what it proves now."""
    append(settings, log)
    with open_worker(settings) as here:
        assert all(report.ok for report in here.once("certify") or ())
