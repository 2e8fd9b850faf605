"""Do memory and descriptors of a real gateway stay flat over ten thousand streams?

Starts `suffice serve` before a fake model server, asks stream after stream on three routes, and prints resident memory
and open descriptors every thousand streams. Exits with 1 when memory grows by more than noise after the first third.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import linear_regression, mean

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess

from suffice_testing import FakeUpstream, Reply

ALLOWED_BYTES = 64 * 1024  # growth per thousand streams below this is the allocator's
SAYS = Reply(reasoning=("so ", "it ", "is\n") * 8, answer=("fo", "ur"))
ROUTES = ("off", "observe", "votes")


async def ask(url: str, first: int, n: int, options: argparse.Namespace) -> None:
    """Read `n` streams to their ends, some at once, on every route in turn."""
    left = iter(range(first, first + n))

    async def client(session: aiohttp.ClientSession) -> None:
        for i in left:
            question = f"how much is number {i}?" if options.distinct else f"how much? {i % 7}"
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": question}]}
            headers = {"x-suffice-route": "observe" if options.distinct else ROUTES[i % len(ROUTES)]}
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
                if not (await response.read()).endswith(b"[DONE]\n\n"):
                    raise SystemExit(f"stream {i} of {n} did not end as it should")

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(options.at_once)))


def slope_bytes(counts: list[int], sizes: list[int]) -> tuple[float, float]:
    """Growth per thousand streams, and the standard error of that."""
    slope, at_zero = linear_regression(counts, sizes)
    rest = sum((y - at_zero - slope * x) ** 2 for x, y in zip(counts, sizes, strict=True)) / max(1, len(counts) - 2)
    middle = mean(counts)
    spread = sum((x - middle) ** 2 for x in counts)
    return slope * 1_000, float((rest / spread) ** 0.5 * 1_000)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--distinct", action="store_true", help="another prompt each time, on one route")
    parser.add_argument("--quick", action="store_true", help="3,000 streams")
    options, _ = parser.parse_known_args()
    n = 3_000 if options.quick else options.streams
    step = max(1, n // 20)
    routes = {name: {"upstream": "up", "match": {"header": name}} for name in ROUTES}
    routes["off"]["mode"] = "off"  # type: ignore[assignment]
    routes["votes"] |= {"kind": "samples", "samples": 2}  # type: ignore[dict-item]
    counts, sizes, files = list[int](), list[int](), list[int]()
    with tempfile.TemporaryDirectory() as folder, FakeUpstream.in_thread(SAYS) as fake:
        settings = {"upstreams": {"up": {"url": fake.url, "slots": 16}}, "routes": routes}
        with GatewayProcess.serving(folder, settings, log_level="warning") as gateway:
            start_s = time.monotonic()
            for done in range(step, n + 1, step):
                asyncio.run(ask(gateway.url, done, step, options))
                fake.calls.clear()  # what the fake remembers is no part of this
                counts.append(done)
                sizes.append(gateway.rss_bytes())
                files.append(gateway.n_descriptors())
                if done % max(step, 1_000) < step:
                    print(
                        f"{done:>7,} streams  {sizes[-1] / 2**20:7.2f} MiB  {files[-1]:>4} descriptors"
                        f"  {done / (time.monotonic() - start_s):6.0f} streams/s"
                    )
    warm = len(counts) // 3
    slope, error = slope_bytes(counts[warm:], sizes[warm:])
    grows = slope > ALLOWED_BYTES and slope > 2 * error
    print(
        f"memory after the first {counts[warm - 1]:,} streams:"
        f" {slope / 1024:+.1f} KiB per 1,000 streams, +- {error / 1024:.1f}"
    )
    print(f"descriptors: {min(files[warm:])} to {max(files[warm:])}")
    leaks = max(files[warm:]) - min(files[warm:]) > 16
    print("it grows" if grows or leaks else "flat")
    return int(grows or leaks)


if __name__ == "__main__":
    sys.exit(main())
