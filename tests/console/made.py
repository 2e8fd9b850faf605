"""A small log that has something of everything: runs, labels, decisions, looks, an incident, items to review."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from suffice.review.items import ReviewItem, Source, day_number
from suffice.settings import Settings, Store
from suffice.store.database.writer import LogWriter
from suffice.store.people.deciding import open_incident
from suffice.store.rows.events import Event, FeedbackEvent, Sources
from suffice.types import Alarm, Epoch, EvidenceSummary, Feedback, Outcome, Publication, Query, Request
from suffice.wiring.routes import build_route
from suffice.wiring.worker import open_decisions, open_worker
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.made import run

HOSTILE = (
    "<script>pwned()</script>",
    "<img src=x onerror=pwned()>",
    '"><svg onload=pwned()>',
    "'><b style=a:b>",
    "javascript:pwned()",
    "{{ 7 * 7 }}{% for x in y %}",
    "</pre></table><iframe srcdoc='<script>pwned()</script>'>",
    '=HYPERLINK("http://x","y")',
    "@SUM(A1)",
    "+1+1",
    "\u202eevil\u202c \x07",
    "a" * 900,
    "<!--",
    "]]>",
    "&lt;b&gt;",
    "<a href=javascript:pwned()>x</a>",
    "<style>*{display:none}</style>",
    "<meta http-equiv=refresh content=0;url=//x>",
    "<form action=//x><input name=csrf>",
    "<base href=//x>",
    "${x()}",
    "<template><script>pwned()</script></template>",
    "<math><mtext><script>pwned()</script>",
    "<body onload=pwned()>",
    "<details open ontoggle=pwned()>",
    "<x data-key=n hx-get=//x hx-trigger=load hx-on:load=pwned()>",
)


def events(route: str, *, n: int = 40, texts: tuple[str, ...] = ()) -> list[Event]:
    """Runs with labels; `texts` stand wherever somebody else's words can stand."""
    rng, log = random.Random(1), list[Event]()
    for number in range(n):
        request, outcome = run(number, rng)
        text = texts[number % len(texts)] if texts else None
        query = Query(query_class=text[:190] if text else ("algebra", "geometry")[number % 2], n_words=9)
        request = replace(request, route=route, audit=number % 2 == 0, propensity=0.5, query=query)
        outcome = replace(outcome, usage=replace(outcome.usage, prompt_tokens=30) if outcome.usage else None)
        if text:
            request, outcome = replace(request, model=text), _everywhere(text, outcome)
        elif number % 2 == 0:
            outcome = replace(outcome, stop_step=4, would_answer="7" if number % 10 == 0 else outcome.answer)
        else:
            outcome = replace(
                outcome,
                stopped=True,
                end_reason="stopped",
                stop_reason="suffices",
                stop_step=4,
                tokens_saved_estimate=120,
                would_answer=outcome.answer,
                steps=outcome.steps[:4],
            )
        if number % 4 == 0:  # a loop that its caller runs, with what it read
            request = replace(request, kind="rounds")
            log.append(_kept_sources(request, text, is_cut=number == 0))
        log += [request, outcome]
        if number % 3 == 0:
            log.append(
                FeedbackEvent(
                    Feedback(
                        feedback_id=f"f{number}",
                        episode_id=request.episode_id,
                        gold=text or outcome.answer,
                        comment=text or "fine",
                        source=(text or "user")[:60],
                        reason=text,
                        rating=4,
                    )
                )
            )
    return log


def _everywhere(text: str, outcome: Outcome) -> Outcome:
    """The same end of a run, with the text wherever the model's words or its server's can stand."""
    return replace(
        outcome,
        answer=text,
        would_answer=text[::-1],
        stop_step=3,
        decision=text,
        steps=tuple(replace(step, answer=text, reason=text, caller_action=text) for step in outcome.steps),
        vote=((text, 3),),
        model=text,
        estimate_method=text,
        degraded=("probe",),
    )


def _kept_sources(request: Request, text: str | None, *, is_cut: bool) -> Sources:
    """What a loop read and wrote in its first round."""
    sources = (
        Source(step=1, what="read", text=text or "The Danube."),
        Source(step=1, what="wrote", text=text or "So it is the Danube."),
    )
    name, route = request.episode_id, request.route
    return Sources(episode_id=name, route=route, sources=sources, is_cut=is_cut, expires_at_s=9e9)


def decided(route: str, text: str, setup: str) -> list[Event]:
    """A cold start, an alarm, an epoch and a publication in it."""
    epoch = {"route": route, "author": text, "reason": text, "max_em_drop": 0.05, "confidence": 0.9, "burst": 10}
    made = Publication(
        route=route,
        number=1,
        epoch=2,
        at=20,
        version="v-1",
        fit="",
        level=3,
        n_levels=9,
        certified=True,
        share=0.1,
        reason=text,
        author=text,
        setup=setup,
        evidence=EvidenceSummary(n_audits=18, share=0.31, max_em_drop=0.02, confidence=0.95),
        classes=((text[:40], 1),),
    )
    return [
        Epoch(number=1, at=0, since_seq=0, **epoch),  # type: ignore[arg-type]
        Alarm(route=route, epoch=1, at=10, cause="signals", reason=text),
        Epoch(number=2, at=10, since_seq=0, **epoch),  # type: ignore[arg-type]
        made,
    ]


def fill(folder: Path, settings: Settings, *, now_s: float, texts: tuple[str, ...] = (), route: str = "math") -> None:
    """Write the log and have it summed up and looked at."""
    setup = build_route(route, settings.routes[route], None, settings.upstreams["local"]).setup
    log = LogWriter(Store(url=settings.store.url), now=lambda: now_s - 3_600)
    for event in [*events(route, texts=texts), *decided(route, texts[0] if texts else "as it came out", setup)]:
        assert log.append(event)
    assert log.drain(20)
    log.close()
    with open_decisions(settings) as writer:
        incident = open_incident(
            writer,
            route,
            settings.routes[route],
            texts[1] if texts else "EM fell",
            "somebody",
            now_s=now_s - 60,
            evidence=texts[:3],
        )
        assert not isinstance(incident, str), incident
        for number in range(0, 24, 2):
            text = texts[number % len(texts)] if texts else None
            assert writer.write_new(
                ReviewItem(
                    episode_id=f"ep_{number:05}",
                    route=route,
                    why="disagreement",
                    because=text or "it disagrees",
                    shows="both",
                    full_answer=text or "12",
                    early_answer=text or "13",
                    priority=float(number),
                    day=day_number(now_s),
                    n_reviewers=1,
                    requested_at_s=now_s - 60,
                    author="worker",
                    lease_s=900.0,
                    query_class=text or "algebra",
                ),
            )
    with open_worker(settings, learning=False) as here:
        assert here.once("rollup")
    with open_worker(settings) as here:
        here.once("monitor")
    assert folder.is_dir()


@contextmanager
def filled_site(folder: Path, *, texts: tuple[str, ...] = ()) -> Iterator[Visitor]:
    """The console on a log that `fill` filled, and an admin who has logged in."""
    settings = settings_in(folder)
    secret = people_of(settings).first()
    fill(folder, settings, now_s=time.time(), texts=texts)
    assert secret is not None
    with site(settings) as app:
        visitor = Visitor(app)
        visitor.login(secret)
        yield visitor


def more(settings: Settings, *, now_s: float) -> None:
    """One run more."""
    request, outcome = run(4_242, random.Random(3))
    log = LogWriter(Store(url=settings.store.url), now=lambda: now_s)
    for event in (replace(request, route="math"), outcome):
        assert log.append(event)
    assert log.drain(20)
    log.close()
