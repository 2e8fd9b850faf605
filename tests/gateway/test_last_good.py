"""The last-good file: read as this deployment wrote it not too long ago, or refused; whole, or not there at all."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from suffice.errors import ConfigError
from suffice.gateway.last_good import (
    MOST_AHEAD_S,
    GoodRoute,
    LastGood,
    LastGoodWriter,
    open_sealed,
    read_last_good,
    seal_last_good,
    write_last_good,
)
from suffice.review.holds import Override
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import Epoch, Findings, Pause, Publication
from tests.gateway.test_log_follower import VERSION

HOUR_S = 3_600.0
PUBLISHED = Publication(
    route="r",
    number=3,
    epoch=1,
    at=10,
    version="v",
    fit=VERSION.address,
    level=2,
    n_levels=3,
    certified=True,
    share=0.1,
    reason="x",
    author="w",
)
ROUTE = GoodRoute(
    held=RouteDeployment(
        epoch=Epoch(route="r", number=1, at=0, since_seq=0, reason="because", author="w"),
        publication=PUBLISHED,
        last=PUBLISHED,
        n_publications=3,
        n_epochs=1,
    ),
    overrides=(
        Override(
            route="r",
            number=1,
            kind="cap",
            reason="a look",
            author="ann",
            set_at_s=900.0,
            expires_at_s=9_000.0,
            level=1,
        ),
    ),
    standing={"policy": "beta", "threshold": 0.9},
    refused=None,
    n_requests=77,
)
GOOD = LastGood(
    at_s=1_000.0,
    seq=42,
    routes={"r": ROUTE},
    versions={VERSION.address: VERSION.plain()},
    findings={"up": Findings(examination_id="x", upstream="up", url_key="k", model="m", at_s=1.0)},
)
SEALED = seal_last_good(GOOD, secret="ours")


def opened(source: bytes, *, now_s: float = 1_060.0) -> LastGood:
    return open_sealed(source, secret="ours", now_s=now_s, most_s=HOUR_S)


def test_what_was_written_is_read_and_means_the_same(tmp_path: Path) -> None:
    file = tmp_path / "log.db.good"
    assert read_last_good(file, secret="ours", now_s=0.0, most_s=1.0) is None, "there is no file"
    write_last_good(file, GOOD, secret="ours")
    result = read_last_good(file, secret="ours", now_s=1_060.0, most_s=HOUR_S)
    assert result is not None
    assert (result.at_s, result.seq, result.routes, result.findings) == (1_000.0, 42, GOOD.routes, GOOD.findings)
    assert result.versions == json.loads(json.dumps(GOOD.versions))
    assert result.matters


PARTS = {
    "the mark": (0, 19),
    "the digest": (20, 84),
    "the signature": (85, 149),
    "the end of the line": (149, 150),
    "the time": (SEALED.index(b'"at_s"'), SEALED.index(b'"at_s"') + 14),
    "a publication": (SEALED.index(b'"publication"'), SEALED.index(b'"publication"') + 300),
    "a model": (SEALED.index(b'"versions"'), SEALED.index(b'"versions"') + 300),
    "what people hold": (SEALED.index(b'"overrides"'), SEALED.index(b'"overrides"') + 150),
    "the last byte": (len(SEALED) - 1, len(SEALED)),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_byte_of_any_part_is_refused(part: str) -> None:
    first, last = PARTS[part]
    rng = random.Random(part)
    for at in range(first, last):
        changed = bytearray(SEALED)
        changed[at] ^= rng.randrange(1, 256)
        with pytest.raises(ConfigError):
            opened(bytes(changed))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "first line is broken"),
        (SEALED[:100], "first line is broken"),
        (SEALED[:-1], "cut off"),
        (SEALED + b"\n", "cut off"),
        (SEALED.partition(b"\n")[2], "first line is broken"),
        (b"\x80\x04\x95" + SEALED, "first line is broken"),
        (b"x" * 200, "first line is broken"),
        (seal_last_good(GOOD, secret="theirs"), "not made with this deployment's secret"),
    ],
)
def test_what_is_no_file_of_this_deployment_is_refused_with_a_sentence(source: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(source)


def test_a_file_is_served_for_so_long_by_the_time_that_was_signed_and_not_from_the_future() -> None:
    opened(SEALED, now_s=1_000.0 + HOUR_S - 1)
    with pytest.raises(ConfigError, match="may be served for 3,600 s"):
        opened(SEALED, now_s=1_000.0 + HOUR_S)
    opened(SEALED, now_s=1_000.0 - MOST_AHEAD_S)
    with pytest.raises(ConfigError, match="ahead of this computer's clock"):
        opened(SEALED, now_s=1_000.0 - MOST_AHEAD_S - 1)


def test_nothing_is_signed_without_a_secret() -> None:
    with pytest.raises(ConfigError, match="no secret"):
        seal_last_good(GOOD, secret="")


@pytest.mark.parametrize(
    ("held", "matters"),
    [
        (RouteDeployment(), False),
        (RouteDeployment(epoch=ROUTE.held.epoch, n_epochs=1), False),
        (RouteDeployment(publication=PUBLISHED), True),
        (RouteDeployment(pause=Pause(route="r", number=1, cause="person", reason="x", author="ann")), True),
    ],
)
def test_a_file_matters_where_something_acts_or_a_person_has_spoken(held: RouteDeployment, matters: bool) -> None:
    assert LastGood(at_s=0.0, seq=0, routes={"r": GoodRoute(held=held)}).matters is matters


# --------------------------------------------------------------------------- keeping it


def kept(file: Path) -> LastGood | None:
    return read_last_good(file, secret="ours", now_s=1_000.0, most_s=HOUR_S)


def test_nothing_new_is_written_once_a_minute(tmp_path: Path) -> None:
    clock, file = [0.0], tmp_path / "g"
    certifier = LastGoodWriter(file, secret="ours", monotonic_s=lambda: clock[0], every_s=60.0)
    assert certifier.keep(lambda: GOOD, changed=True)
    file.unlink()
    clock[0] = 59.0
    assert certifier.keep(lambda: GOOD, changed=False)
    assert not file.exists()
    clock[0] = 60.0
    assert certifier.keep(lambda: GOOD, changed=False)
    assert kept(file) is not None


def test_a_change_that_cannot_be_written_leaves_no_file_that_does_not_know_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "g"
    certifier = LastGoodWriter(file, secret="ours", monotonic_s=lambda: 0.0, every_s=60.0)
    assert certifier.keep(lambda: GOOD, changed=True)

    def full() -> LastGood:
        raise OSError(28, "No space left on device")

    for _ in range(3):
        assert not certifier.keep(full, changed=True)
    assert not file.exists()
    assert caplog.text.count("No space left on device") == 1, "said once"


# One process that forks writer after writer; each kills itself before or after its n-th step towards a new file.
WRITERS = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from suffice.gateway.last_good import write_last_good
from tests.gateway.test_last_good import GOOD

def killing(call, left, before):
    def at(*args, **kwargs):
        left[0] -= 1
        mine = left[0] == 0
        if mine and before:
            os.kill(os.getpid(), signal.SIGKILL)
        found = call(*args, **kwargs)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return at

for line in sys.stdin:
    file, n, when = line.split()
    child = os.fork()
    if child == 0:
        left = [int(n)]
        os.fsync = killing(os.fsync, left, when == "before")
        for name in ("mkdir", "open", "write_bytes", "replace", "unlink"):
            setattr(Path, name, killing(getattr(Path, name), left, when == "before"))
        write_last_good(Path(file), replace(GOOD, seq=43), secret="ours")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_that_is_killed_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path, when: str) -> None:
    seen, status = list[int](), -1
    command = [sys.executable, "-c", WRITERS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        while status != 0:
            file = tmp_path / str(len(seen)) / "g"
            write_last_good(file, GOOD, secret="ours")
            parent.stdin.write(f"{file} {len(seen) + 1} {when}\n")
            parent.stdin.flush()
            status = int(parent.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            result = kept(file)
            assert result is not None
            seen.append(result.seq)
        parent.stdin.close()
    assert len(seen) > 5, "it was killed at so many steps"
    assert seen == sorted(seen), "the old one until a step, and the new one from there on"
    assert {seen[0], seen[-1]} == {42, 43}
