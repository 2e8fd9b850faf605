"""Attacks on the audits: nobody outside can predict, choose, repeat or see the draw of a request."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
from scipy.stats import binom

from suffice.gateway.auth import DeliveryMemory, RequestKey
from suffice.rollout.assign import AuditAssignment
from suffice_testing import Fault, Reply, ToolCall
from tests.gateway.conftest import Serve, serve
from tests.gateway.served import Answer, chat
from tests.gateway.test_audit_assignment import KINDS, shape
from tests.gateway.test_audit_propensity import CHAIN, RAW

__all__ = ["serve"]

SHARE = 0.3
N = 6_000


def _is_usual(n_audits: int, n: int, share: float = SHARE) -> bool:
    """Would a fair draw come out like this? It fails one time in a hundred million."""
    return bool(binom.ppf(5e-9, n, share) <= n_audits <= binom.ppf(1 - 5e-9, n, share))


# ---- choosing --------------------------------------------------------------------------------------------------------

UMLAUTS = "Wie hei\u00dft die gr\u00f6\u00dfte Stadt?"
Ask = Callable[[int], Mapping[str, Any]]
VARIANTS: dict[str, Ask] = {
    "spaces at the end": lambda n: {"body": f"q{' ' * (n % 500)}{n // 500}"},
    "spaces without width": lambda n: {"body": "q" + "\u200b" * (n % 90) + "\u2060" * (n // 90)},
    "accents composed and not": lambda n: {"body": unicodedata.normalize(("NFC", "NFD")[n % 2], UMLAUTS) + str(n // 2)},
    "capitals": lambda n: {"body": "".join(c.upper() if n >> i & 1 else c for i, c in enumerate("howmuchistwoandtwo"))},
    "seeds": lambda n: {"body": f'{{"seed":{n}}}'},
    "seeds of one number": lambda n: {"body": f'{{"seed":1e{n % 300}{"0" * (n // 300)}}}'},
    "users": lambda n: {"body": f'{{"user":"u{n}"}}'},
    "keys": lambda n: {"body": "q", "caller": f"Bearer k{n}"},
    "a key and more spaces": lambda n: {"body": "q", "caller": "Bearer k" + " " * n},
    "conversations": lambda n: {"body": "q", "conversation": str(n)},
    "odd conversations": lambda n: {"body": "q", "conversation": chr(0x20 + n % 200) + chr(0x400 + n // 200)},
    "idempotency keys": lambda n: {"body": "q", "idempotency_key": str(n)},
    "a key as long as a book": lambda n: {"body": "q", "idempotency_key": "x" * (n % 97) * 40 + str(n)},
    "routes": lambda n: {"body": "q", "route": f"r{n}"},
    "lengths": lambda n: {"body": "x" * n},
    "the same question, told as an answer to another": lambda n: {"body": f"q\0{n}", "conversation": "a\0b"},
}


class _Gateway:
    """The draws of one gateway, as its clients cause them."""

    def __init__(self, *, window_s: float = 600.0) -> None:
        self.memory, self.window_s, self.n, self.now_s = DeliveryMemory(), window_s, 0, 0.0

    def ask(self, **key: Any) -> AuditAssignment:
        self.n += 1
        output = {"route": "r", "caller": "", "body": "q"} | key
        return self.memory.assign(
            RequestKey(**(output | {"body": output["body"].encode()})),
            episode_id=f"ep_{self.n:019x}",
            share=SHARE,
            salt="secret",
            window_s=self.window_s,
            now_s=self.now_s,
            wall_s=1e9 + self.now_s,
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_of_a_request_has_other_odds(variant: str) -> None:
    gateway = _Gateway()
    drawn = [gateway.ask(**VARIANTS[variant](n)) for n in range(N)]
    first = [one for one in drawn if one.delivery == 1]
    assert len(first) > N // 2
    assert _is_usual(sum(one.audit for one in first), len(first))
    assert {one.propensity for one in first} <= {SHARE, 1 - SHARE}
    assert len({one.unit for one in first}) == len(first), "two requests of one draw"


@pytest.mark.parametrize("window_s", [0.0, 600.0], ids=["no window", "ten minutes"])
@pytest.mark.parametrize("wanted", [True, False], ids=["audits", "no audits"])
def test_who_sees_every_draw_and_asks_again_until_it_suits_him_gains_nothing(*, wanted: bool, window_s: float) -> None:
    """Whatever he gives up has been drawn at the same odds; what is repeated is no evidence."""
    gateway, counted = _Gateway(window_s=window_s), list[bool]()
    for n in range(N // 4):
        for _ in range(5):
            drawn = gateway.ask(body=f"question {n}")
            if drawn.delivery == 1:
                counted.append(drawn.audit)
            if drawn.audit is wanted:
                break
    assert _is_usual(sum(counted), len(counted))


def test_a_request_after_the_window_is_drawn_anew_and_not_by_its_body() -> None:
    gateway, same = _Gateway(), 0
    for n in range(2_000):
        first = gateway.ask(body=f"q{n}").audit
        gateway.now_s += 1_300.0
        same += gateway.ask(body=f"q{n}").audit is first
        gateway.now_s += 1_300.0
    assert _is_usual(same, 2_000, SHARE**2 + (1 - SHARE) ** 2)


# ---- predicting ------------------------------------------------------------------------------------------------------

PREDICTORS: dict[str, Callable[[int, str, list[bool]], bool]] = {
    "the last draw": lambda _, __, seen: seen[-1] if seen else False,
    "three in a row": lambda _, __, seen: seen[-3:] == [False] * 3,
    "overdue": lambda _, __, seen: not any(seen[-8:]),
    "every third": lambda n, _, __: n % 3 == 0,
    "a hash of the body": lambda _, body, __: hashlib.blake2b(body.encode()).digest()[0] < 77,
    "the hash that draws, without its salt": lambda _, body, __: (
        hashlib.blake2b(body.encode(), key=hashlib.blake2b(b"").digest(), digest_size=8).digest()[0] < 77
    ),
    "the length of the body": lambda _, body, __: len(body) % 3 == 0,
    "the id of the episode before": lambda n, _, __: n & 1 == 1,
}


@cache
def _drawn() -> list[tuple[str, bool]]:
    """Bodies and their draws, which are the same whoever guesses."""
    gateway, bodies = _Gateway(), [f"question {n} " + "x" * (n % 17) for n in range(4 * N)]
    return [(body, gateway.ask(body=body).audit) for body in bodies]


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_no_guess_is_better_than_the_share(predictor: str) -> None:
    seen, hits = list[bool](), list[bool]()
    for n, (body, audit) in enumerate(_drawn()):
        if PREDICTORS[predictor](n, body, seen):
            hits.append(audit)
        seen.append(audit)
    assert len(hits) > 500
    assert _is_usual(sum(hits), len(hits))


# ---- seeing ----------------------------------------------------------------------------------------------------------

REQUESTED: dict[str, dict[str, Any]] = {
    "a stream": {"stream": True},
    "a body": {},
    "usage in a stream": {"stream": True, "stream_options": {"include_usage": True}},
    "our own object": {"suffice": {}},
    "our own object in a stream": {"suffice": {}, "stream": True},
    "a limit": {"max_completion_tokens": 9},
    "a seed": {"seed": 7, "temperature": 0},
    "a user": {"user": "u"},
}
TOOL = ToolCall(id="c1", name="f", arguments=('{"x":', "1}"))
_OWN = re.compile(rb"ep_[0-9a-f]+|chatcmpl[-0-9a-z]+|\"created\":\s*\d+|\d+\.\d+ s")  # of this request alone
UPSTREAMS: dict[str, Any] = {
    "500": Reply(faults=(Fault(status=500, status_body=b'{"error":{"message":"down"}}'),)),
    "429": Reply(faults=(Fault(status=429, status_body=b'{"error":{"message":"slow"}}'),)),
    "HTML": Reply(faults=(Fault(html=True),)),
    "no end": Reply(reasoning=("two\n",) * 9, answer=("4",), faults=(Fault(done=False),)),
    "no finish": Reply(reasoning=("two\n",) * 9, answer=("4",), faults=(Fault(finish=False),)),
    "dies": Reply(reasoning=("two\n",) * 9, answer=("4",), faults=(Fault(die_after=5, die_how="error_frame"),)),
    "a bad frame": Reply(reasoning=("two\n",) * 9, answer=("4",), faults=(Fault(bad_frame_after=5),)),
    "a tool call": Reply(reasoning=("two\n",) * 9, tool_calls=(TOOL,)),
}


# How far probes and samples had come at the end: it hangs on the machine, for audits as for all others.
MEASURED = frozenset({"steps", "probe_tokens", "extra_prompt_tokens", "extra_calls", "vote", "would_answer"})


def _without_measures(answer: Answer) -> Any:
    code, headers, own, keys, report, text = shape(answer)
    return code, headers, own, keys, {name: None if name in MEASURED else value for name, value in report.items()}, text


async def _both(serve: Serve, says: Any, route: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Ask until audits and others are there, and compare everything that could tell them apart."""
    async with serve(says, upstream=RAW, route={**route, "audit_share": 0.5}) as g:
        shapes = dict[str, Any]()
        for _ in range(3):
            for _ in range(10):
                answer = await g.ask(chat(**more))
                await g.quiet()  # a slot that the last request still has is no sign of an audit
                report = _OWN.sub(b"", answer.raw) if answer.status != 200 or answer.torn else _without_measures(answer)
                shapes[answer.headers["x-suffice-episode-id"]] = answer.status, sorted(answer.headers), report
            drawn = {one.episode.request.episode_id: one.episode.request.audit for one in await g.episodes(len(shapes))}
            if len(set(drawn.values())) == 2:
                break
        else:
            pytest.fail("thirty draws at one half came out alike")
        audits, others = ({repr(shapes[name]) for name, one in drawn.items() if one is kind} for kind in (True, False))
        assert audits == others


@pytest.mark.slow(keep=13)
@pytest.mark.parametrize("requested", REQUESTED)
@pytest.mark.parametrize("kind", ["observe", "enforce", "samples"])
async def test_no_reply_tells_an_audit(serve: Serve, kind: str, requested: str) -> None:
    await _both(serve, CHAIN, KINDS[kind], REQUESTED[requested])


@pytest.mark.slow(keep=9)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("upstream", UPSTREAMS)
async def test_no_reply_of_a_broken_upstream_tells_an_audit(serve: Serve, upstream: str, *, stream: bool) -> None:
    await _both(serve, UPSTREAMS[upstream], {"kind": "reasoning", "scorer": "number"}, {"stream": stream})
