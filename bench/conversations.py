"""Does a live gateway keep its promise when requests are turns of conversations, or when some of them are slow?

    python bench/conversations.py --out drop.png        # about four minutes: 20 turns, 50 requests a second
    python bench/conversations.py --turns 1 --slow      # single requests; 30 % of them are hard and take 24 s
    PYTHONPATH=OLD/src python bench/conversations.py    # the same traffic on the code of another checkout

A model server of this program's own and `suffice serve` with its worker run on this machine. Nobody sends labels. The
request alone decides what each of its samples says, so the program knows for every request what the full vote answers,
what is right, and what was delivered.

    late     the first samples, nearly half, agree on a wrong answer   `--late` of the turns behind the first
    shaky    the first sample is wrong, the others agree                4 % of the others
    split    nearly half of the samples are wrong, each differently    10 %
    wrong    all samples agree on a wrong answer                       10 %
    plain    all samples are right                                     the rest

A vote of eight that stops at one sample loses about 8 points on first turns. One that stops at two or three that agree
loses nothing there, but every late turn. One that waits for four loses nothing. With `--slow`, a fifth of the hard
requests are late, whatever their turn.

The table has a row for every 500 requests, in the order in which they began. The drop is EM of the full votes less EM
of what was delivered: over all requests, over the live runs alone, and over all since the start. What is saved counts
the tokens of audits, too. The certificate speaks of runs that may be stopped, and a lottery draws the audits; so the
program exits with 1 when some `--window` live runs in a row, or all since the start while they are fewer, lost more
than the budget.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess

from peers import report
from suffice.store.routes.deployments import read_phases

ROUTE = "quiz"
N_OPEN = 400  # conversations at once, at least
TOKENS = 12  # of a sample
SAMPLE_S = 0.003
HARD_SHARE, HARD_S, HARD_LATE = 0.3, 24.0, 0.2
SHAKY, SPLIT, WRONG = 0.04, 0.1, 0.1
ROW = 500  # requests in a row of the table
LOOK_REQUESTS = 100  # requests between two looks at the level in force
LAST_S = 90.0  # seconds that a request may take
SUFFICE = "from suffice.cli.main import main; main()"


@dataclass(frozen=True, slots=True)
class Truth:
    """What the model says to one request: every sample, and what is right."""

    answers: tuple[int, ...]
    gold: int
    sample_s: float

    @property
    def em_full(self) -> bool:
        """Is the full vote right?"""
        return Counter(self.answers).most_common(1)[0][0] == self.gold


@dataclass(frozen=True, slots=True)
class World:
    """All requests that there can be; what a request gets follows from its conversation and its turn alone."""

    n_samples: int
    late: float
    slow: bool
    seed: int

    def truth(self, conversation: int, turn: int) -> Truth:
        """Draw the request's samples; turns count from 1."""
        rng = random.Random(f"{self.seed} {conversation} {turn}")
        gold = rng.randrange(10, 1_000)
        hard = self.slow and rng.random() < HARD_SHARE
        is_late = rng.random() < (HARD_LATE if hard else self.late if turn > 1 else 0.0)
        kind, n_wrong = rng.random(), (self.n_samples - 1) // 2
        says = [gold] * self.n_samples
        if is_late:
            says[:n_wrong] = [gold + 1] * n_wrong
        elif kind < SHAKY:
            says[0] = gold + 1
        elif kind < SHAKY + SPLIT:
            for nth, at in enumerate(rng.sample(range(self.n_samples), n_wrong)):
                says[at] = gold + 1 + nth
        elif kind < SHAKY + SPLIT + WRONG:
            says = [gold + 1] * self.n_samples
        return Truth(tuple(says), gold, HARD_S / self.n_samples if hard else SAMPLE_S)


# ---- the model server

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CASE, SEED = re.compile(rb"case (\d+)-(\d+)"), re.compile(rb'"seed": ?(\d+)')
LENGTH = re.compile(rb"content-length: ?(\d+)")


@cache
def stream(answer: int) -> bytes:
    """A whole streamed answer, as it goes over the socket."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "m"}
    choice = {"index": 0, "delta": {"role": "assistant", "content": f"The answer is {answer}."}, "finish_reason": None}
    usage = {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS}
    chunks: list[dict[str, Any]] = [
        {**base, "choices": [choice]},
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**base, "choices": [], "usage": usage},
    ]
    events = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    return b"%s%x\r\n%s\r\n0\r\n\r\n" % (HEAD, len(events), events)


class Connection(asyncio.Protocol):
    """One connection to the model; the seed of a call says which sample it is, from 1."""

    def __init__(self, truth: Any) -> None:
        self.truth, self.received = truth, b""
        self.due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Whoever hangs up needs no answer any more."""
        if self.due is not None:
            self.due.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole; requests come one after another."""
        self.received += data
        head = self.received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = LENGTH.search(self.received[:head].lower())
        if len(self.received) < head + 4 + (int(length[1]) if length else 0):
            return
        case, seed = CASE.search(self.received, head), SEED.search(self.received, head)
        self.received = b""
        if case is None or seed is None:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        truth = self.truth(int(case[1]), int(case[2]))
        answer = stream(truth.answers[int(seed[1]) - 1])
        self.due = asyncio.get_running_loop().call_later(truth.sample_s, self.transport.write, answer)


# ---- the clients


@dataclass(slots=True)
class Seen:
    """What came of one request."""

    drop: int = 0  # EM of the full vote less EM of what was delivered
    tokens: int = 0  # generated for it
    failed: bool = False
    episode: str = ""  # its name in the gateway's log
    audit: bool = False  # it ran in full by lot; known once its row of the table was printed


@dataclass(slots=True)
class Conversation:
    """One conversation; the turns of it come one after another."""

    name: int
    n_turns: int
    turn: int = 0


@dataclass(slots=True)
class Look:
    """What was in force when so many requests had begun."""

    n: int
    level: int
    n_levels: int
    epoch: int
    alarm: str | None


@dataclass(slots=True)
class Traffic:
    """Conversations at a steady rate, whatever the answers take."""

    world: World
    url: str
    database: Path
    n_turns: int
    seen: list[Seen] = field(default_factory=list)  # in the order in which they began
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    waiting: deque[Conversation] = field(default_factory=deque)
    n_conversations: int = 0
    n_open: int = 0

    async def run(self, session: aiohttp.ClientSession, rate: float, seconds: float) -> None:
        """Send, and print a row of the table whenever its requests have ended."""
        names = ("requests", "level in force", "epoch", "audits", "drop, points", "drop, live", "since start", "saved")
        print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}", flush=True)
        start_s, beside = time.monotonic(), list[asyncio.Task[None]]()
        for n in range(int(rate * seconds)):
            await asyncio.sleep(start_s + n / rate - time.monotonic())
            if n % LOOK_REQUESTS == 0:
                beside.append(asyncio.create_task(self._look(n)))
            if n and n % ROW == 0:
                beside.append(asyncio.create_task(self._print_row(n)))
            conversation = self._next()
            conversation.turn += 1
            self.seen.append(Seen())
            self.tasks.append(asyncio.create_task(self._ask(session, conversation, self.seen[-1])))
        took_s = time.monotonic() - start_s
        await asyncio.gather(*self.tasks, *beside)
        if len(self.seen) % ROW == 0:
            await self._print_row(len(self.seen))
        await self._mark(self.seen)
        asked = f"{len(self.seen):,} requests of {self.n_conversations:,} conversations"
        print(f"\n{asked}, {len(self.seen) / took_s:.1f} a second")

    def _next(self) -> Conversation:
        """Whose turn is next: who waits longest, once enough conversations are open."""
        if self.n_open >= N_OPEN and self.waiting:
            return self.waiting.popleft()
        # The first ones are of every length, as if the traffic had gone on for long.
        is_first = self.n_conversations < N_OPEN
        n_turns = random.Random(self.n_conversations).randint(1, self.n_turns) if is_first else self.n_turns
        self.n_conversations += 1
        self.n_open += 1
        return Conversation(self.n_conversations, n_turns)

    async def _ask(self, session: aiohttp.ClientSession, conversation: Conversation, seen: Seen) -> None:
        question = f"case {conversation.name}-{conversation.turn}: what is the sum of the two?"
        body = {"model": "m", "seed": 1, "messages": [{"role": "user", "content": question}]}
        headers = {"x-conversation-id": f"c{conversation.name}"}
        truth, answer = self.world.truth(conversation.name, conversation.turn), None
        try:
            async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
                seen.episode = response.headers.get("x-suffice-episode-id", "")
                reply = await response.json()
                answer = int(re.findall(r"\d+", reply["choices"][0]["message"]["content"])[0])
                seen.tokens = reply["usage"]["completion_tokens"]
        except (aiohttp.ClientError, TimeoutError, LookupError, TypeError, ValueError):
            seen.failed = True
        seen.drop = truth.em_full - (answer == truth.gold)
        if conversation.turn < conversation.n_turns:
            self.waiting.append(conversation)
        else:
            self.n_open -= 1

    async def _look(self, n: int) -> None:
        found = (await asyncio.to_thread(read_phases, self.database)).get(ROUTE)
        if found is not None:
            self.looks.append(Look(n, found.level, found.n_levels, found.epoch, found.alarm))

    async def _print_row(self, end: int) -> None:
        """Print what came of the last ROW of so many requests, once all of them have ended."""
        await asyncio.wait(self.tasks[:end])
        part = self.seen[end - ROW : end]
        audits = await self._mark(part)
        looks = [look for look in self.looks if end - ROW <= look.n < end] or [Look(0, 0, 0, 0, None)]
        low, high = min(look.level for look in looks), max(look.level for look in looks)
        levels = f"{low if low == high else f'{low} to {high}'} of {max(look.n_levels for look in looks)}"
        live = [one for one in part if not one.audit]
        cells = [
            f"{end:,}",
            levels,
            str(looks[-1].epoch),
            str(audits),
            f"{100 * mean_drop(part):.2f}",
            f"{100 * mean_drop(live):.2f}" if live else "-",
            f"{100 * mean_drop(self.seen[:end]):.2f}",
            f"{saved(part, self.world.n_samples):.0%}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)

    async def _mark(self, part: list[Seen]) -> int:
        """Mark the audits among these requests, by the gateway's log, and count them."""
        names = await asyncio.to_thread(audited, self.database)
        for one in part:
            one.audit = one.episode in names
        return sum(one.audit for one in part)


def mean_drop(seen: list[Seen]) -> float:
    """EM drop of these requests."""
    return float(np.mean([one.drop for one in seen]))


def saved(seen: list[Seen], n_samples: int) -> float:
    """Share of the tokens of full runs that these requests, audits among them, did not take."""
    return 1 - sum(one.tokens for one in seen) / (len(seen) * n_samples * TOKENS)


def audited(database: Path) -> set[str]:
    """The episodes that the log calls audits."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as log:
        return {name for (name,) in log.execute("SELECT episode_id FROM requests WHERE audit")}


# ---- what is told


def running_drop(seen: list[Seen], n_window: int) -> np.ndarray:
    """EM drop over each `n_window` of them in a row, (n,), or over all since the start while they are fewer."""
    total = np.concatenate([[0], np.cumsum([one.drop for one in seen])])
    end = np.arange(1, len(total))
    mean: np.ndarray = (total[end] - total[np.maximum(0, end - n_window)]) / np.minimum(end, n_window)
    mean[: ROW - 1] = 0.0  # a handful shows nothing
    return mean


def plot(traffic: Traffic, n_window: int, max_em_drop: float, out: Path) -> None:
    """Write level and drop over the requests as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(9, 6), layout="constrained")
    looks = sorted(traffic.looks, key=lambda look: look.n)
    above.step([look.n for look in looks], [look.level for look in looks], where="post")
    above.set_ylabel("level in force")
    at = [n for n, one in enumerate(traffic.seen) if not one.audit]
    live = running_drop([traffic.seen[n] for n in at], n_window)
    below.plot(100 * running_drop(traffic.seen, ROW), label=f"last {ROW:,} requests, audits among them")
    below.plot(at[ROW - 1 :], 100 * live[ROW - 1 :], label=f"last {n_window:,} live runs")
    below.axhline(100 * max_em_drop, color="black", linestyle="--", label="budget")
    below.set(xlabel="requests, in the order in which they began", ylabel="true EM drop, points")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(out, dpi=120)


def status(gateway: GatewayProcess) -> str:
    """What `suffice status` says of the route: phase, level, promise, audits."""
    config = str(gateway.folder / "suffice.toml")
    command = [sys.executable, "-c", SUFFICE, "status", "--config", config, "--route", ROUTE]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return said.stdout + said.stderr


def tell(traffic: Traffic, n_window: int, max_em_drop: float) -> int:
    """Print what it took, the alarms, and the worst requests in a row; 1 where they are over the budget."""
    own, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own_s, their_s = own.ru_utime + own.ru_stime, theirs.ru_utime + theirs.ru_stime
    print(f"CPU seconds: {own_s:.0f} clients and model, {their_s:.0f} Suffice")
    print(f"failed requests: {sum(one.failed for one in traffic.seen)}")
    alarms = {look.alarm: look.n for look in reversed(traffic.looks) if look.alarm}
    for alarm, n in reversed(alarms.items()):
        print(f"alarm, seen at request {n:,}: {alarm}")
    live = running_drop([one for one in traffic.seen if not one.audit], n_window).max(initial=0.0)
    some = running_drop(traffic.seen, ROW).max(initial=0.0)
    print(f"worst {ROW:,} requests in a row, audits among them: {100 * some:.2f} points lost")
    print(f"worst {n_window:,} live runs in a row: {100 * live:.2f} points lost, of {100 * max_em_drop:.2f} allowed")
    return int(live > max_em_drop)


async def measure(options: argparse.Namespace, folder: Path) -> Traffic:
    """Start both servers, send the traffic, and print what `status` says at the end."""
    late = (0.0 if options.slow else 0.06) if options.late is None else options.late
    world = World(options.samples, late, options.slow, options.seed)
    truth = cache(world.truth)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(truth), "127.0.0.1", 0)
    settings = {
        "upstreams": {"up": {"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "slots": 10_000}},
        "routes": {
            ROUTE: {
                "upstream": "up",
                "kind": "samples",
                "samples": options.samples,
                "wave": 1,
                "scorer": "number",
                "mode": "enforce",
                "max_em_drop": options.max_em_drop,
                "confidence": 0.95,
            }
        },
    }
    with GatewayProcess.serving(folder, settings, log_level="warning") as gateway:
        traffic = Traffic(world, gateway.url, gateway.database, options.turns)
        unlimited, in_time = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=LAST_S)
        async with server, aiohttp.ClientSession(connector=unlimited, timeout=in_time) as session:
            await traffic.run(session, options.rate, options.seconds)
            print(await asyncio.to_thread(status, gateway))
    return traffic


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20, help="of a conversation; 1: single requests")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=240.0, help="for which requests are sent")
    parser.add_argument("--samples", type=int, default=8, help="of a full vote")
    parser.add_argument("--max-em-drop", type=float, default=0.02)
    parser.add_argument("--late", type=float, help="share of later turns that are late; default 0.06, with --slow 0")
    parser.add_argument("--slow", action="store_true", help="hard requests: 30 %%, 24 s in full, a fifth of them late")
    parser.add_argument("--window", type=int, default=2_400, help="live runs whose drop must keep to the budget")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write a picture to this file; needs the extra `replay`")
    options, _ = parser.parse_known_args()  # `make bench ARGS=...` gives all programs the same words
    if options.out is not None and find_spec("matplotlib") is None:
        print("conversations: a picture needs matplotlib, which the extra `replay` brings", file=sys.stderr)
        return 2
    print(f"machine: {report.machine()}\ncommand: {' '.join(sys.argv)}\n")
    with tempfile.TemporaryDirectory(prefix="conversations-") as folder:
        traffic = asyncio.run(measure(options, Path(folder)))
    if options.out is not None:
        plot(traffic, options.window, options.max_em_drop, options.out)
    return tell(traffic, options.window, options.max_em_drop)


if __name__ == "__main__":
    sys.exit(main())
