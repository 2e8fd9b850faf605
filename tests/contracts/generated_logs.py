"""Small logs made at random, with what is true of them: modes, publications, pauses, overrides, audits, tokens."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from suffice.errors import ConfigError
from suffice.model.artefact import canonical
from suffice.review.holds import DAY_S, Override, OverrideKind
from suffice.settings import Settings, parse_settings
from suffice.store.rows.events import Event, FeedbackEvent, to_row
from suffice.types import (
    BudgetAccount,
    Epoch,
    EvidenceSummary,
    Feedback,
    Mode,
    Outcome,
    Overhead,
    Pause,
    Publication,
    Resumption,
    Usage,
)
from suffice.wiring.keys import kill_file
from suffice.wiring.routes import build_route
from tests.gateway.test_log_follower import VERSION
from tests.records import plain_request

NOW_S = 1_700_000_000.0
_KINDS: tuple[OverrideKind, ...] = ("observe", "cap", "budget")
_MODES: tuple[Mode, ...] = ("enforce", "observe")
ROW = (
    "INSERT INTO events (kind, key, episode_id, route, at_s, owner, body, response_id) VALUES (?, ?, ?, ?, ?, 1, ?, ?)"
)


@dataclass(slots=True)
class Truth:
    """What the generator knows of a route's enforced requests whose tokens are known."""

    spent: int = 0  # generated, all in all
    saved: int = 0  # of what would have been generated without Suffice, as far as it is known
    certified: int = 0  # part of `saved` under certified policies

    @property
    def saving(self) -> float | None:
        """By the definition in the reference, from the runs themselves."""
        return self.saved / (self.saved + self.spent) if self.spent else None


@dataclass(slots=True)
class Made:
    """One log and its settings."""

    folder: Path
    settings: Settings
    truths: dict[str, Truth] = field(default_factory=dict)
    killed: bool = False

    @property
    def path(self) -> Path:
        """Of the log."""
        return self.folder / "log.db"


def make(folder: Path, template: bytes, seed: int) -> Made:
    """A log in a folder; `template` is an empty one."""
    rng = random.Random(seed)
    made = Made(folder, _settings(folder, rng))
    made.path.write_bytes(template)
    events: list[tuple[float, Event]] = []
    for name in made.settings.routes:
        made.truths[name] = Truth()
        events += [(rng.random(), event) for event in _decisions(made, name)]
        events += _runs(made, name, rng)
    order = sorted(range(len(events)), key=lambda at: events[at][0])
    # Decisions of a route stay in their order, wherever their places fell.
    decided = {name: iter(_decisions(made, name)) for name in made.settings.routes}
    rows = []
    for at in order:
        event: Event | None = events[at][1]
        if isinstance(event, Epoch | Publication | Pause | Resumption | Override):
            event = next(decided[event.route], None)
        if event is not None:
            row = to_row(event)
            rows.append((row.kind, row.key, row.episode_id, row.route, NOW_S, row.body, row.response_id))
    connection = sqlite3.connect(made.path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    connection.executemany(ROW, rows)
    connection.execute(
        "INSERT INTO artefacts (address, body, at_s) VALUES (?, ?, 0)",
        (VERSION.address, canonical(VERSION.plain()).decode()),
    )
    connection.execute("COMMIT")
    connection.close()
    if rng.random() < 0.1:
        made.killed = True
        kill_file(made.settings).touch()
    return made


def _settings(folder: Path, rng: random.Random) -> Settings:
    while True:
        routes = {f"r{number}": _route(rng) for number in range(rng.randint(1, 3))}
        try:
            return parse_settings(
                {
                    "upstreams": {"up": {"url": "http://127.0.0.1:1", "driver": "vllm"}},
                    "routes": routes,
                    "store": {"url": f"sqlite:///{folder / 'log.db'}"},
                }
            )
        except ConfigError:
            continue  # some of these do not go together


def _route(rng: random.Random) -> dict[str, Any]:
    route: dict[str, Any] = {
        "upstream": "up",
        "scorer": "number",
        "mode": rng.choice(["enforce"] * 4 + ["observe", "off"]),
        "kind": rng.choice(["reasoning", "reasoning", "samples"]),
        "max_em_drop": rng.choice([0.02, 0.05]),
        "uncertified": rng.random() < 0.4,
    }
    if route["kind"] == "samples":
        route["samples"] = 8
    what = rng.random()
    if what < 0.4:
        route["policy"] = {"policy": rng.choice(["stable-answer", "stable-answer", "never"])}
    elif what < 0.55 and route["kind"] == "reasoning":
        route["effort"] = "low"
    elif what < 0.65:
        route["promise"] = "budgeted"
    if rng.random() < 0.2:
        route["on_fallback"] = "availability_first"
    return route


def setup_of(made: Made, name: str) -> str:
    """What the route's evidence rests on."""
    route = made.settings.routes[name]
    return build_route(name, route, upstream=made.settings.upstreams["up"]).setup


def _decisions(made: Made, name: str) -> list[Event]:
    """What was decided on a route, in order."""
    rng = random.Random(f"{made.folder.name}{name}")
    route, events = made.settings.routes[name], list[Event]()
    epochs = publications = pauses = resumed = overrides = 0
    for _ in range(rng.randint(0, 6)):
        what = rng.random()
        if what < 0.3 or (not epochs and what < 0.6):
            epochs += 1
            events.append(
                Epoch(
                    route=name,
                    number=epochs,
                    at=0,
                    since_seq=0,
                    reason="x",
                    author="w",
                    burst=rng.choice([0, 10]),
                )
            )
        elif what < 0.7 and epochs:
            publications += 1
            events.append(_publication(made, name, publications, epochs, rng))
        elif what < 0.75:
            pauses += 1
            events.append(Pause(route=name, number=pauses, cause="person", reason="x", author="a"))
        elif what < 0.9 and pauses > resumed:
            resumed = pauses
            events.append(Resumption(route=name, number=pauses, reason="x", author="a"))
        elif what >= 0.9:
            overrides += 1
            kind: OverrideKind = rng.choice(_KINDS)
            ends_s = rng.choice([NOW_S + 5 * DAY_S, 4_000_000_000.0])
            events.append(
                Override(
                    route=name,
                    number=overrides,
                    kind=kind,
                    reason="x",
                    author="a",
                    set_at_s=NOW_S,
                    expires_at_s=ends_s,
                    level=rng.choice([0, 1]) if kind == "cap" else None,
                    max_em_drop=route.max_em_drop / 2 if kind == "budget" else None,
                )
            )
    return events


def _publication(made: Made, name: str, number: int, epoch: int, rng: random.Random) -> Publication:
    route = made.settings.routes[name]
    level = rng.choice([0, 1, 1, 2])
    arm, owned = (route.arms[0] if route.is_paired else ""), route.is_owned
    level = min(level, 1) if arm or owned else level
    spends = route.promise == "budgeted" and level and rng.random() < 0.6
    n, n_lost = rng.randint(100, 900), rng.randint(0, 5)
    version = arm or f"{VERSION.address}@{level}"
    if owned:
        from suffice.store.routes.rollouts import own_version

        version = own_version(route).address
    return Publication(
        route=name,
        number=number,
        epoch=epoch,
        at=10,
        version=version if level else "",
        fit="" if arm or owned or not level else VERSION.address,
        level=level,
        n_levels=3,
        certified=level > 0,
        share=0.05,
        reason="x",
        author="w",
        arm=arm,
        setup=setup_of(made, name) if rng.random() < 0.8 else "other settings",
        upstream=(("m", "m", ""),),
        evidence=EvidenceSummary(
            n_audits=n,
            n_lost=n_lost,
            n_disagreeing=rng.randint(n_lost, 9),
            confidence=rng.choice([0.95, 0.95, 0.9]),
            max_em_drop=route.max_em_drop if rng.random() < 0.8 else 0.2,
            window_start=1.0,
            window_end=n + 1.0,
        ),
        spending=BudgetAccount(
            floor=rng.randint(0, level),
            affordable=2,
            n_audits=9,
            n_waiting=0,
            em_drop=0.01,
            max_em_drop=0.02,
            clipped=0.0,
        )
        if spends
        else None,
    )


def _runs(made: Made, name: str, rng: random.Random) -> list[tuple[float, Event]]:
    """Requests with their outcomes and labels, each at a place in the log."""
    route, truth, events = made.settings.routes[name], made.truths[name], list[tuple[float, Event]]()
    setup, share = setup_of(made, name), rng.choice([0.2, 0.5])
    for number in range(rng.randint(3, 30)):
        mode: Mode = route.mode if rng.random() < 0.7 else rng.choice(_MODES)
        audit = mode == "enforce" and rng.random() < share
        episode, full = f"{name}-{number}", rng.randint(200, 4_000)
        ungoverned = "tools" if rng.random() < 0.1 or mode == "off" else None
        stopped = mode == "enforce" and not audit and ungoverned is None and rng.random() < 0.7
        delivered = full if not stopped else rng.randint(50, full)
        probe, discarded = rng.choice([0, 0, 40]), rng.randint(0, 30) if stopped else 0
        known, saved = rng.random() < 0.95, full - delivered - probe - discarded
        is_estimated = rng.random() < 0.95
        request = plain_request(
            episode,
            route=name,
            mode=mode,
            audit=audit,
            propensity=share if audit else 1 - share,
            question_key=f"q{rng.randint(0, 20)}",
            ungoverned=ungoverned,
            received_at_s=NOW_S,
            setup=setup,
        )
        outcome = Outcome(
            episode_id=episode,
            end_reason="stopped" if stopped else "done",
            status=200,
            answer=rng.choice("45"),
            response_id=f"c-{episode}",
            usage=Usage(prompt_tokens=9, completion_tokens=delivered) if known else None,
            overhead=Overhead(probe_tokens=probe, discarded_tokens=discarded),
            stopped=stopped,
            tokens_saved_estimate=saved if stopped and is_estimated else None,
            stop_step=1 if rng.random() < 0.5 or stopped else None,
            would_answer=rng.choice("45"),
        )
        begins = rng.random() * 0.9
        ends = begins + rng.random() * 0.05
        events += [(begins, request), (ends, outcome)]
        if rng.random() < 0.5:
            output = Feedback(feedback_id=f"f-{episode}", episode_id=episode, gold=rng.choice("45"), source="user")
            events.append((ends + rng.random(), FeedbackEvent(output)))
        if mode == "enforce" and ungoverned is None and known:
            truth.spent += delivered + probe + discarded
            truth.saved += saved if is_estimated or not stopped else 0
            truth.certified += (saved if is_estimated or not stopped else 0) * request.certified
    newest = replace(request, episode_id=f"{name}-newest", mode=route.mode, ungoverned="tools")
    return [*events, (0.99, newest)]
