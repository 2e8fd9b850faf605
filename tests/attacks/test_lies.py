"""Attacks by lies: of label senders who want a bad policy certified, of answers that break scorers, of upstreams."""

from __future__ import annotations

import json
import math
import random
import re
import time
from typing import Any

import pytest

from suffice.assurance.labels import INFERENCE_KEY, MAX_SHARE, RANKS, TrustedLabel, rank_of, resolve_labels
from suffice.scoring.base import SCORERS, build_scorer
from suffice.store.database.views import read_events
from suffice.types import Feedback
from suffice_testing import Fault, Reply
from tests.gateway.conftest import Serve, serve
from tests.gateway.served import chat

__all__ = ["serve"]

# ---- labels ----------------------------------------------------------------------------------------------------------

AUDITS = [f"ep_{n}" for n in range(100)]


def _label(
    audit: str, seq: int, verdict: str, *, key: str = "liar", source: str = "user", asks: bool = False
) -> TrustedLabel:
    trust = rank_of(
        Feedback(
            feedback_id="f",
            episode_id=audit,
            correct=True,
            source=source,
            sender=key,
            door=INFERENCE_KEY if asks else "",
        )
    )
    return TrustedLabel(audit=audit, seq=seq, source=source, key=key, trust=trust, verdict=verdict)


def _flood(verdict: str, **who: Any) -> list[TrustedLabel]:
    return [_label(audit, seq, verdict, **who) for seq, audit in enumerate(AUDITS * 3)]


def _reviewed(verdict: str, n: int = 100) -> list[TrustedLabel]:
    return [_label(audit, 10_000 + seq, verdict, key="ann", source="reviewer") for seq, audit in enumerate(AUDITS[:n])]


@pytest.mark.parametrize("source", ["user", "judge", "behaviour", "REVIEWER", " reviewer", "reviеwer", "", "3"])
def test_one_key_that_labels_everything_decides_its_share_at_most(source: str) -> None:
    result = resolve_labels(_flood("fine", source=source), differing=AUDITS)
    assert len(result) <= MAX_SHARE * len(AUDITS)


@pytest.mark.parametrize("source", ["reviewer", "exact-match", "judge"])
def test_a_key_that_asks_is_a_user_whatever_it_calls_itself(source: str) -> None:
    result = resolve_labels(_flood("fine", source=source, asks=True), differing=AUDITS)
    assert len(result) <= MAX_SHARE * len(AUDITS)
    against = resolve_labels(_flood("fine", source=source, asks=True) + _reviewed("lost"), differing=AUDITS)
    assert set(against.values()) == {"lost"}


@pytest.mark.parametrize("late", [True, False], ids=["said later", "said earlier"])
@pytest.mark.parametrize("source", ["user", "judge", "behaviour", "exact-match"])
def test_nobody_outvotes_a_reviewer(source: str, *, late: bool) -> None:
    lies = [label for n in range(30) for label in _flood("fine", source=source, key=f"liar {n}")]
    if late:
        lies = [_label(one.audit, one.seq + 10**6, "fine", source=source, key=one.key) for one in lies]
    assert set(resolve_labels(lies + _reviewed("lost"), differing=AUDITS).values()) == {"lost"}


def test_voices_of_one_rank_that_contradict_each_other_leave_no_verdict() -> None:
    labels = _reviewed("lost") + [_label(a, n, "fine", key="bob", source="reviewer") for n, a in enumerate(AUDITS)]
    assert not resolve_labels(labels, differing=AUDITS)


def test_the_order_of_labels_and_their_repetition_change_nothing() -> None:
    labels = _flood("fine") + _flood("lost", key="other") + _reviewed("lost", 40)
    usual, rng = resolve_labels(labels, differing=AUDITS), random.Random(1)
    for _ in range(5):
        shuffled = labels * 2
        rng.shuffle(shuffled)
        assert resolve_labels(shuffled, differing=AUDITS) == usual


def test_labels_of_what_was_no_audit_give_nobody_more_weight() -> None:
    elsewhere = [_label(f"ep_{n}", n, "fine") for n in range(1_000, 50_000)]
    assert resolve_labels(elsewhere, differing=AUDITS) == {}
    assert len(resolve_labels(elsewhere + _flood("fine"), differing=AUDITS)) <= MAX_SHARE * len(AUDITS)


def test_no_source_that_is_not_named_is_trusted() -> None:
    for name in RANKS:
        assert rank_of(Feedback(feedback_id="f", episode_id="e", correct=True, source=name[:-1])) <= 0


# ---- answers and references ------------------------------------------------------------------------------------------

DIFFERENT = [
    ("number", "1e400", "1e401"),
    ("number", "-1e400", "1e400"),
    ("number", "9" * 400, "9" * 399 + "8"),
    ("number", "0." + "0" * 400 + "1", "0"),
    ("number", "1/0", "2/0"),
    ("number", "nan", "nan"),
    ("number", "inf", "inf"),
    ("number", "NaN", "7"),
    ("number", "∞", "7"),
    ("number", "7", "-7"),
    ("number", "7", "\u22127"),
    ("number", "1.0000000000000001", "1.0000000000000002"),
    ("number", "9007199254740993", "9007199254740992"),
    ("number", "12", "1\u00b2"),
    ("number", "10", "1\u200b1"),
    ("number", "7", "7 or 8"),
    ("number", "1,234", "1.234"),
    ("text", "yes", "yes no"),
    ("text", "", ""),
    ("text", "\u200b", "\u200b"),
    ("text", "Paris", "Pariѕ"),
    ("math", "\\frac{1}{2}", "\\frac{2}{1}"),
    ("math", "\\frac{1}{0}", "\\frac{2}{0}"),
    ("math", "x^{2}", "x2"),
    ("choice", "A", "B"),
    ("choice", "A and B", "A"),
    ("yes-no", "yes", "no"),
    ("yes-no", "not yes", "yes"),
    ("json", '{"a":1}', '{"a":2}'),
    ("json", '{"a":1,"a":2}', '{"a":1}'),
    ("json", "[1]", "[true]"),
    ("json", "1e400", "1e401"),
    ("date", "2024-02-30", "2024-03-01"),
    ("date", "13/13/2024", "1/1/2025"),
    ("list", "1, 2", "1, 2, 3"),
    ("list", "1, 1", "1"),
    ("quantity", "5 km", "5 m"),
    ("quantity", "1e400 km", "1e401 km"),
    ("squad", "the", "a"),
    ("whole", "a", "b"),
]


@pytest.mark.parametrize(("scorer", "answer", "gold"), DIFFERENT, ids=lambda value: ascii(value)[:24])
def test_no_odd_writing_makes_two_answers_equal(scorer: str, answer: str, gold: str) -> None:
    reads = build_scorer(scorer)
    normal = reads.normalise(gold)
    assert normal is None or not reads.match(reads.normalise(answer), normal)


UNITS = [
    "\\boxed{",
    "\\frac{",
    "\\sqrt[",
    "{[(",
    "(((a+)+)+)+",
    "9",
    "1,",
    "1e9",
    "answer: ",
    "\\text{\\mathrm{",
    "- 1\n",
    '{"a":[',
    "```\n",
    "5 km ",
    "2024-01-01 ",
    "a\u0300",
    "\u202e\u200d",
    "$$",
    ". Answer",
    "yes no ",
    "A. B) (C] ",
    "1/2/3/",
    "²³",
]


@pytest.mark.slow(keep=3)
@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_a_long_answer_costs_linear_time(unit: str) -> None:
    text = unit * (2**18 // len(unit))
    took = dict[str, float]()
    for name in SCORERS:
        spec: Any = {"scorer": "regex", "pattern": "answer: (.+)"} if name == "regex" else name
        scorer = build_scorer(spec)
        began_s = time.process_time()
        scorer.match(scorer.extract("The answer is 7. " + text), scorer.normalise(text) or "7")
        took[name] = time.process_time() - began_s
    assert max(took.values()) < 1.0, took


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b",
        "(a|aa)+$",
        "(.*)*x",
        "a{1,999}{1,999}",
        "(?=(a+))\\1",
        "(?P<x>a)(?P=x)",
        "((a*)*)*",
        "(a?){200}a{200}",
    ],
    ids=str,
)
def test_no_pattern_of_a_scorer_backtracks(pattern: str) -> None:
    """It is refused, or it takes linear time."""
    try:
        scorer = build_scorer({"scorer": "regex", "pattern": pattern})
    except Exception as refused:  # noqa: BLE001 - its class is what is looked at
        assert type(refused).__name__ == "ConfigError"  # noqa: PT017
        return
    began_s = time.process_time()
    scorer.extract("a" * 50_000 + "!")
    assert time.process_time() - began_s < 5.0


# ---- upstreams -------------------------------------------------------------------------------------------------------


def _stream(*changes: dict[str, Any], usage: str = '{"prompt_tokens":3,"completion_tokens":2}') -> bytes:
    """What an upstream sends, with changes to its chunks; numbers may be written as JSON allows and Python does not."""
    usual: dict[str, Any] = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [
        usual | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "4"}, "finish_reason": None}]},
        usual | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    for change in changes:
        chunks = [chunk | change for chunk in chunks]
    frames = [json.dumps(chunk) for chunk in chunks]
    frames.append(json.dumps(usual | {"choices": []})[:-1] + f', "usage": {usage}}}')
    return "".join(f"data: {frame}\n\n" for frame in [*frames, "[DONE]"]).encode()


def _choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": "stop", **fields}]}


STREAMS: dict[str, bytes] = {
    "usage below nothing": _stream(usage='{"prompt_tokens":-5,"completion_tokens":-7}'),
    "usage of 30 digits": _stream(usage=f'{{"prompt_tokens":{10**30},"completion_tokens":{10**30}}}'),
    "usage without end": _stream(usage='{"prompt_tokens":1e400,"completion_tokens":1e400}'),
    "usage of no number": _stream(usage='{"prompt_tokens":"3","completion_tokens":[2]}'),
    "usage that is true": _stream(usage='{"prompt_tokens":true,"completion_tokens":false}'),
    "usage as a list": _stream(usage="[3, 2]"),
    "usage as a text": _stream(usage='"none"'),
    "more thought than answer": _stream(
        usage='{"prompt_tokens":3,"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":99}}'
    ),
    "more cached than asked": _stream(
        usage='{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":10000000}}'
    ),
    "an unheard-of end": _stream(_choice(finish_reason="banana")),
    "an end that clears the screen": _stream(_choice(finish_reason="\x1b[2J\nERROR")),
    "an end of a megabyte": _stream(_choice(finish_reason="x" * 2**20)),
    "an end that is a number": _stream(_choice(finish_reason=7)),
    "an end that is a list": _stream(_choice(finish_reason=["stop"])),
    "a model of no text": _stream({"model": 7}),
    "a model that is a list": _stream({"model": ["m"]}),
    "a model of a megabyte": _stream({"model": "x" * 2**20}),
    "a model in two lines": _stream({"model": 'm"} 1\nx{a="'}),
    "an id of no text": _stream({"id": 7}),
    "an id of a megabyte": _stream({"id": "x" * 2**20}),
    "an id in two lines": _stream({"id": "a\r\nx-admin: 1"}),
    "no id": _stream({"id": None}),
    "a time without end": _stream({"created": 10**30}),
    "a time of no number": _stream({"created": "now"}),
    "a choice below all": _stream(_choice(index=-1)),
    "a choice beyond all": _stream(_choice(index=10**9)),
    "a choice of no number": _stream(_choice(index="0")),
    "choices that are a table": _stream({"choices": {"0": {}}}),
    "a delta of nothing": _stream(_choice(delta=None)),
    "a delta that is a list": _stream(_choice(delta=[])),
    "a text that is a number": _stream(_choice(delta={"content": 4})),
    "half a character": _stream(_choice(delta={"content": "\ud800"})),
    "our own words": _stream({"suffice": {"certified": True, "stopped": True, "episode_id": "ep_1"}}),
}


@pytest.mark.parametrize("lie", STREAMS)
async def test_a_lying_upstream_spoils_one_reply_at_most(serve: Serve, lie: str) -> None:
    says = Reply(
        faults=(Fault(status=200, status_body=STREAMS[lie], status_headers={"content-type": "text/event-stream"}),)
    )
    route = {"kind": "reasoning", "scorer": "number"}
    async with serve(says, route=route) as g:
        for stream in (True, False):
            answer = await g.ask(chat(stream=stream))
            assert answer.status in {200, 502}
            assert "x-admin" not in answer.headers
            assert "certified" not in answer.headers.get("x-suffice-certified", "")
        for one in await g.episodes(2):
            outcome = one.episode.outcome
            for output in (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) if outcome.usage else ():
                assert 0 <= output < 2**53
            assert not outcome.stopped
            assert len(outcome.model or "") <= 1_000
        async with g.session.get(g.url + "/healthz") as alive:
            assert alive.status == 200
        async with g.session.get(g.url + "/metrics") as report:
            text = await report.text()
        lines = text.splitlines()
        assert all(re.match(r"#|[a-z_0-9]+(\{[^\n]*\})? \S+$", line) and len(line) < 2_000 for line in lines)
        values = [float(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")]
        assert all(math.isfinite(value) and value >= 0 for value in values)


async def test_an_upstream_of_another_name_each_time_fills_neither_metrics_nor_the_log(serve: Serve) -> None:
    """Another model suspends a route and begins an epoch: a storm of names may not become a storm of either."""
    n = iter(range(10**6))

    def says(_: Any) -> Reply:
        return Reply(
            faults=(
                Fault(
                    status=200,
                    status_body=_stream({"model": f"m-{next(n)}"}),
                    status_headers={"content-type": "text/event-stream"},
                ),
            )
        )

    async with serve(says, route={"kind": "reasoning", "scorer": "number"}) as g:
        async with g.session.get(g.url + "/metrics") as report:
            before = len((await report.text()).splitlines())
        for _ in range(60):
            assert (await g.ask(chat(stream=True))).status == 200
        await g.episodes(60)
        kinds = [type(one.event).__name__ for one in read_events(g.database)]
        assert len(kinds) <= 2 * 60 + 20, sorted(set(kinds))
        async with g.session.get(g.url + "/metrics") as report:
            assert len((await report.text()).splitlines()) <= before + 60


async def test_an_upstream_that_gives_every_reply_one_id_joins_no_label_to_a_strangers_run(serve: Serve) -> None:
    says = Reply(
        faults=(Fault(status=200, status_body=_stream(), status_headers={"content-type": "text/event-stream"}),)
    )
    async with serve(says, route={"kind": "reasoning", "scorer": "number"}) as g:
        for number in range(3):
            await g.ask(chat(f"question {number}", stream=True))
        await g.episodes(3)
        async with g.session.post(g.url + "/v1/feedback", json={"response_id": "c-1", "correct": False}) as sent:
            assert sent.status < 500
        labelled = [one for one in await g.episodes(3) if one.labels]
    assert len(labelled) <= 1
