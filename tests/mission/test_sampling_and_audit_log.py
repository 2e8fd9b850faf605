"""Sampling and audit log: sums stay exact while a tenth of the requests keeps rows, and no change of the log passes."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import closing
from pathlib import Path

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin

pytestmark = pytest.mark.slow
VOTES, RATE, AUDITS = 5, 0.1, 0.02
ROUTE = {
    "policy": {"policy": "stable-answer", "streak": 2},
    "uncertified": True,  # it acts from the first request on, so that there are live runs to sample
    "audit_share": AUDITS,
    "sample_rate": RATE,
}


async def test_sums_are_exact_and_estimates_unbiased_at_a_tenth_of_the_rows(begin: Begin, tmp_path: Path) -> None:
    simulation = World(
        seed=9,
        votes=VOTES,
        profiles={"number": Profile(p_same=0.8, p_right=0.9), "which": Profile(p_same=0.8, p_right=0.5)},
        shares={"number": 0.8, "which": 0.2},
    )
    heads = tmp_path / "heads.jsonl"
    async with begin(simulation, {"r": ROUTE}, audit={"file": str(heads)}) as mission:
        served = await mission.send(3_000)  # a count is written for each thousand requests at the latest
        labelled = served[::10]
        await mission.feedback(
            [{"episode_id": one.episode_id, "gold": one.question.gold} for one in labelled], source="exact-match"
        )
        await mission.rest()
        n_rows = mission.sql("SELECT count(*) FROM requests WHERE route = 'r'")[0][0]
        # Live runs are kept at the rate; audits always: a binomial, with room for five deviations.
        expected = RATE * len(served) + AUDITS * len(served)
        assert n_rows == pytest.approx(expected, abs=5 * (expected**0.5))
        # Rows that are always kept, audits among them, stand for themselves; the others for 1 / keep_rate requests.
        weight = "CASE kept_by WHEN 'lot' THEN 1 / keep_rate ELSE 1 END"
        ((weighted,),) = mission.sql(f"SELECT sum({weight}) FROM requests WHERE route = 'r'")
        assert weighted == pytest.approx(len(served), rel=0.3)

        gateway = mission.gateway
        await mission.stop()  # the gateway counts what is left when it ends
        ((counted,),) = mission.sql(
            "SELECT sum(json_extract(body, '$.counted.n_requests')) FROM events WHERE kind = 'requests_counted'"
        )
        n_kept = mission.sql("SELECT count(*) FROM requests WHERE route = 'r'")[0][0]
        assert counted + n_kept == len(served)

        status, output = await mission.command("audit", "verify", "--head", str(heads))
        assert status == 0, output
        for what, damage in DAMAGE.items():
            copy = tmp_path / f"{what}.db"
            shutil.copy(gateway.database, copy)
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                connection.execute(damage)
            status, output = await mission.command("audit", "verify", "--db", str(copy), "--head", str(heads))
            assert status == 1, f"{what}: {output}"
            assert what in output


_NEWEST = "(SELECT max(seq) FROM events WHERE kind = 'feedback')"
DAMAGE = {
    "edited": f'UPDATE events SET body = replace(body, \'"gold":"\', \'"gold":"1\') WHERE seq = {_NEWEST}',
    "removed": f"DELETE FROM events WHERE seq = {_NEWEST}",
}


async def test_a_certificate_is_recomputed_by_a_program_that_shares_no_code(begin: Begin, tmp_path: Path) -> None:
    simulation = World(seed=10, votes=VOTES, profiles={"number": Profile(p_same=0.9), "which": Profile(p_same=0.8)})
    heads, bundle = tmp_path / "heads.jsonl", tmp_path / "bundle.jsonl"
    route = {"max_em_drop": 0.1, "audit_share": 0.1}
    async with begin(simulation, {"r": route}, audit={"file": str(heads)}) as mission:
        await mission.certified(labelled=0.5)
        served = await mission.send(200, labelled=0.5)
        assert any(one.stopped for one in served)
        await mission.rest()
        # It is written only if a replay of the log reproduces every decision up to the publication.
        status, output = await mission.command("audit", "bundle", "r", "--out", str(bundle))
        assert status == 0, output
        status, output = await _verified(bundle, heads)
        assert status == 0, output
        assert "holds:" in output
        forged = tmp_path / "forged.jsonl"
        forged.write_text(re.sub(r'"level":\s*\d+', '"level":40', bundle.read_text("utf-8"), count=1), "utf-8")
        status, output = await _verified(forged, heads)
        assert status == 1, output


async def _verified(bundle: Path, heads: Path) -> tuple[int, str]:
    program = Path(__file__).parents[2] / "tools" / "verify_bundle.py"
    command = (sys.executable, str(program), str(bundle), "--head", str(heads))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()
