"""A bundle convinces somebody who trusts nobody, and forged ones do not.

Each forgery is shown three times. A clumsy forger edits the file. A careful one computes every digest anew: the seal,
the chain and the head. What follows from the rows, and from the log's rows about the publication, still gives them
away. Whoever writes the publication anew as well is found by a head that was kept elsewhere, and by nothing else.
"""

from __future__ import annotations

import ast
import copy
import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import verify_bundle as verifier

from suffice.assurance.certify import Counts, log_wealth
from suffice.assurance.fidelity import FIDELITY_CONFIDENCE, bound_fidelity
from suffice.assurance.labels import CHARGE_CONFIDENCE
from suffice.episode.vote import count_votes, deciding_sample
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import Event
from suffice.wiring.evidence import write_bundle
from tests.audit_bundle.made import BURST, SHARE, made_log
from tests.control.made import run

Line = dict[str, Any]
Lines = list[Line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Lines:
    """A bundle with everything that one may hold: a level between none and all, and audits of every kind."""
    settings = made_log(folder)
    for number in range(read_decided(folder / "log.db").of("r").n_publications, 0, -1):
        lines = [
            json.loads(line) for line in write_bundle(settings, "r", number, where="b", author="ann", reason="check")
        ]
        kinds = {line.get("status") for line in lines}
        labelled, unlabelled = (
            any(bool(line.get("d")) and ("label" in line) == known for line in lines) for known in (True, False)
        )
        if 0 < lines[0]["level"] < 40 and kinds >= {"pending", "lost", "returned"} and labelled and unlabelled:
            return lines
    pytest.fail("no publication of the story has audits of every kind")


def written(lines: Lines) -> bytes:
    return b"".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" for line in lines)


def verdict(lines: Lines, folder: Path, capsys: pytest.CaptureFixture[str], *, heads: bool = False) -> tuple[int, str]:
    file = folder / "bundle.jsonl"
    file.write_bytes(written(lines))
    code = verifier.main([str(file), *(["--head", str(folder / "heads.jsonl")] if heads else [])])
    return code, capsys.readouterr().out


def resealed(lines: Lines) -> Lines:
    """The same with every digest made anew, by somebody who may write the log and everything but the kept heads."""
    seal, rows, links = bytes(32), [], []
    for line in lines:
        if line["type"] in ("header", "request", "unrecorded"):
            seal = sha256(seal + written([line])).digest()
        rows += [line] * (line["type"] == "row")
        links += [line] * (line["type"] == "link")
    for row in rows:
        if json.loads(row["told"])[1] == "exported":
            body = json.loads(row["kept"])
            body["export"]["what"] = body["export"]["what"].rpartition(" ")[0] + f" {seal.hex()}"
            row["kept"] = json.dumps(body)
    digests = {row["seq"]: sha256(f"{row['told']}\n{row['kept']}".encode()).hexdigest() for row in rows}
    link = bytes.fromhex(links[0]["before"])
    for line in links:
        place, seq, kept, *words = line["of"]
        line["of"][2] = digests.get(seq, kept)
        parts = b"".join(bytes.fromhex(one) if one else bytes(32) for one in (line["of"][2], *words))
        link = sha256(link + struct.pack(">QQB", place, seq, 1) + parts).digest()
    lines[-1]["head"] |= {"place": links[-1]["of"][0], "link": link.hex()}
    return lines


def requests(lines: Lines) -> Lines:
    return [line for line in lines if line["type"] == "request"]


def audit(lines: Lines, status: str = "returned", *, differs: bool = False, labelled: bool = False) -> Line:
    """An audit of this kind whose Z at the published level is +1 where it differs."""
    level = lines[0]["level"]
    return next(
        line
        for line in requests(lines)
        if line.get("status") == status
        and ("label" in line) == labelled
        and (status != "returned" or (value_at(line["z"], level) == 1 if differs else not line["d"]))
    )


def value_at(runs: list[list[int]], level: int) -> int:
    return next((value for first, value in reversed(runs) if first <= level), 0)


def renumber(lines: Lines) -> None:
    for number, line in enumerate(requests(lines), requests(lines)[0]["n"]):
        line["n"] = number


# ---- forgeries -------------------------------------------------------------------------------------------------------


def remove_a_loss(lines: Lines) -> None:
    lines.remove(audit(lines, differs=True))


def remove_a_loss_and_close_the_gap(lines: Lines) -> None:
    remove_a_loss(lines)
    renumber(lines)


def call_a_loss_harmless(lines: Lines) -> None:
    audit(lines, differs=True)["z"] = []


def let_a_loss_agree(lines: Lines) -> None:
    line = audit(lines, differs=True)
    line["z"] = line["d"] = []


def turn_a_draw_off(lines: Lines) -> None:
    line = audit(lines, differs=True)
    line["audit"], line["p"] = False, 1 - line["p"]
    for name in ("status", "d", "z"):
        del line[name]


def leave_a_pending_audit_out(lines: Lines) -> None:
    line = audit(lines, "pending")
    line["audit"], line["p"] = False, 1 - line["p"]
    del line["status"]


def say_that_a_pending_audit_returned(lines: Lines) -> None:
    audit(lines, "pending").update(status="returned", d=[], z=[])


def say_that_a_lost_audit_had_no_answer(lines: Lines) -> None:
    audit(lines, "lost")["status"] = "no answer"


def put_audits_into_one_conversation(lines: Lines) -> None:
    """Which proves less, and is not what the log says."""
    for line in requests(lines):
        if "clusters" in line:
            line["clusters"][0] = "c"


def swap_two(lines: Lines) -> None:
    at = lines.index(audit(lines, differs=True))
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def swap_two_and_their_numbers(lines: Lines) -> None:
    swap_two(lines)
    renumber(lines)


def raise_a_propensity(lines: Lines) -> None:
    audit(lines, differs=True)["p"] = 0.9


def raise_all_propensities(lines: Lines) -> None:
    lines[0]["window"]["share"] = 0.7
    for line in requests(lines):
        line["p"] = 0.7 if line["audit"] else 0.3


def repeat_a_harmless_audit(lines: Lines) -> None:
    line = audit(lines)
    lines.insert(lines.index(line), copy.deepcopy(line))


def repeat_a_harmless_audit_in_place_of_a_loss(lines: Lines) -> None:
    at = lines.index(audit(lines, differs=True))
    lines[at] = {**copy.deepcopy(audit(lines)), "n": lines[at]["n"], "seq": lines[at]["seq"]}


def widen_the_budget(lines: Lines) -> None:
    lines[0]["promise"]["max_em_drop"] = 0.2


def lower_the_finish_charge(lines: Lines) -> None:
    lines[0]["kind"] = "reasoning"
    lines[0]["charges"]["finish"] = [{"from_level": 1, "n": 2_000, "n_differing": 20, "upper": 0.0151}]


def claim_a_higher_level(lines: Lines) -> None:
    lines[0]["level"] = lines[0]["certified_level"] = 40


def begin_the_window_later(lines: Lines) -> None:
    at = lines.index(audit(lines, differs=True))
    lines[0]["window"]["start"] = lines[at]["n"] + 1.0
    del lines[1 : at + 1]


def invent_a_label(lines: Lines) -> None:
    audit(lines, differs=True).update(label=10**6, right=False, z=[])


def borrow_a_label(lines: Lines) -> None:
    label = next(line["label"] for line in requests(lines) if "label" in line)
    audit(lines, differs=True).update(label=label, right=False, z=[])


def overrule_a_label(lines: Lines) -> None:
    line = next(line for line in requests(lines) if "label" in line and _feedback_of(lines, line)["correct"])
    line["z"] = []


def _feedback_of(lines: Lines, line: Line) -> Line:
    row = next(row for row in lines if row["type"] == "row" and row["seq"] == line["label"])
    output: Line = json.loads(row["kept"])["feedback"]
    return output


def raise_the_confidence(lines: Lines) -> None:
    lines[0]["promise"]["confidence"] = 0.99


def raise_the_delta(lines: Lines) -> None:
    lines[0]["promise"]["delta"] = 0.3


def bet_more(lines: Lines) -> None:
    lines[0]["bets"] = [0.25, 0.45, 0.65, 0.99]


FORGERIES: list[tuple[Callable[[Lines], None], str]] = [
    (remove_a_loss, "stands where request"),
    (remove_a_loss_and_close_the_gap, "the requests end at"),
    (call_a_loss_harmless, "nobody has labelled it, so Z has to be its disagreement"),
    (let_a_loss_agree, "lost: "),
    (turn_a_draw_off, "audits: "),
    (leave_a_pending_audit_out, "pending audits: 0 by the bundle, 1 by the log"),
    (say_that_a_pending_audit_returned, "counts as returned, and the log does not have its end"),
    (say_that_a_lost_audit_had_no_answer, "audits: "),
    (put_audits_into_one_conversation, "the rows certify level 0"),
    (swap_two, "stands where request"),
    (swap_two_and_their_numbers, "the order was changed"),
    (raise_a_propensity, "the log wealth of the levels is not what the rows come to"),
    (raise_all_propensities, "audits do not come as often as the logged probabilities say"),
    (repeat_a_harmless_audit, "is listed more than once"),
    (repeat_a_harmless_audit_in_place_of_a_loss, "is listed more than once"),
    (widen_the_budget, "promised max_em_drop: 0.2 by the bundle, 0.1 by the log"),
    (lower_the_finish_charge, "is charged 1.510%, and 1.6"),
    (claim_a_higher_level, "level 40 is claimed to be certified; the rows certify level"),
    (begin_the_window_later, "start of the window: "),
    (invent_a_label, "its label is no row of the audit log"),
    (borrow_a_label, "of the log does not say what is right there"),
    (overrule_a_label, "its full run is right by its label, so a stop that answers otherwise loses"),
    (raise_the_confidence, "promised confidence: 0.99 by the bundle, 0.9 by the log"),
    (raise_the_delta, "more than 1 - confidence and the epoch's share of it allow"),
    (bet_more, "bets: "),
]


@pytest.mark.slow
def test_a_bundle_holds_with_and_without_the_head_that_was_kept(
    whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = verdict(whole, folder, capsys, heads=True)
    assert code == 0, output
    assert f"level {whole[0]['certified_level']} of 40 passes" in output
    assert "holds: with confidence 0.9 these requests would have lost less than 10.00% on average" in output
    code, output = verdict(whole, folder, capsys)
    assert (code, "holds: with" in output) == (2, False), output
    assert "nothing here contradicts itself, but no head was kept elsewhere" in output


def test_what_a_forger_does_with_unchanged_rows_is_what_was_exported(
    whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the tests below would find the forger's tools, and not the forgery."""
    code, output = verdict(resealed(copy.deepcopy(whole)), folder, capsys)
    assert code == 2, output
    assert "nothing here contradicts itself" in output


@pytest.mark.slow(keep=12)
@pytest.mark.parametrize(("forge", "says"), FORGERIES, ids=[one.__name__ for one, _ in FORGERIES])
def test_a_forgery_is_named_though_every_digest_was_made_anew(
    forge: Callable[[Lines], None], says: str, whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = copy.deepcopy(whole)
    forge(lines)
    assert lines != whole
    code, output = verdict(lines, folder, capsys)
    assert code == 1
    assert "the audit log has another seal" in output
    code, output = verdict(resealed(lines), folder, capsys)
    assert code == 1, output
    assert says in output
    assert "seal" not in output
    _, output = verdict(lines, folder, capsys, heads=True)
    assert "is another one: the log was written anew" in output


def rewrite(lines: Lines, kind: str, change: Callable[[Line], None]) -> None:
    """Edit the log's own row."""
    row = next(row for row in lines if row["type"] == "row" and json.loads(row["told"])[1] == kind)
    body = json.loads(row["kept"])
    change(body)
    row["kept"] = json.dumps(body)


def publish_anew(lines: Lines) -> None:
    """Write into header and publication what the forged rows come to."""
    forged, level = verifier.Bundle(written(lines)), lines[0]["level"]
    lines[0] |= {"log_wealth": forged.wealth, "certified_level": forged.level}
    z = [forged.outcome(line)[level] for line in forged.counted]

    def agree(body: Line) -> None:
        body["publication"]["evidence"] |= {
            "n_audits": len(z),
            **{f"n_{name}": n for name, n in forged.n_clusters.items()},
            "n_lost": z.count(1),
            "n_gained": z.count(-1),
            "e_value": exp(forged.wealth[level]),
            "window_share": lines[0]["window"]["share"],
        }

    rewrite(lines, "policy_published", agree)


def test_whoever_writes_the_publication_anew_is_found_by_a_kept_head_alone(
    whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = copy.deepcopy(whole)
    let_a_loss_agree(lines)
    publish_anew(lines)
    assert verdict(lines, folder, capsys)[0] == 1, "the chain vouches for another row"
    code, output = verdict(resealed(lines), folder, capsys)
    assert code == 2, output
    assert "whoever owns the log could have written all of it anew" in output
    code, output = verdict(lines, folder, capsys, heads=True)
    assert code == 1
    assert "is another one: the log was written anew" in output


def test_a_label_that_is_edited_in_the_bundle_is_not_what_the_chain_vouches_for(
    whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = copy.deepcopy(whole)
    rewrite(lines, "feedback", lambda body: body["feedback"].update(correct=False, source="reviewer"))
    code, output = verdict(lines, folder, capsys)
    assert code == 1
    assert "of the log is not what the chain vouches for" in output


def test_a_link_that_is_left_out_is_missed(whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = copy.deepcopy(whole)
    del lines[next(at for at, line in enumerate(lines) if line["type"] == "link") + 5]
    code, output = verdict(lines, folder, capsys)
    assert code == 1
    assert "the chain does not lead to the head that the bundle carries" in output


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"type":"header","form":4}\n', b'{"type":"row"}\n'])
def test_what_is_no_bundle_is_said_with_another_exit_code(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bundle.jsonl"
    file.write_bytes(content)
    assert verifier.main([str(file)]) == 2
    assert "cannot be checked" in capsys.readouterr().out


def test_heads_of_another_time_vouch_for_nothing(
    whole: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heads.jsonl").write_text("")
    code, output = verdict(whole, tmp_path, capsys, heads=True)
    assert code == 2
    assert "the head behind the bundle was not kept" in output


# ---- independence ----------------------------------------------------------------------------------------------------


def test_the_verifier_is_small_and_shares_nothing_with_what_it_checks() -> None:
    source = Path(str(verifier.__file__)).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 381
    nodes = list(ast.walk(ast.parse(source)))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in named} <= sys.stdlib_module_names


def test_its_bounds_are_those_that_are_charged() -> None:
    for k, n in ((0, 300), (2, 1_000), (20, 2_000), (5, 5)):
        bound = bound_fidelity(k, n, confidence=FIDELITY_CONFIDENCE, anytime=False)
        any_time = bound_fidelity(k, n, confidence=CHARGE_CONFIDENCE)
        assert bound is not None
        assert any_time is not None
        assert verifier.finish_bound(k, n) == pytest.approx(bound.upper, abs=1e-9)
        assert verifier.refuted(k, n) == pytest.approx(any_time.upper, abs=2e-6)


def test_its_wealth_is_the_one_that_certifies() -> None:
    counts = Counts(*(np.array([n]) for n in (3, 400, 5)))
    plain = {(1.0, -1): 3, (1.0, 0): 400, (1.0, 1): 5}
    assert verifier.log_wealth(plain, 0.05) == pytest.approx(float(log_wealth(counts, max_em_drop=0.05)[0]))


# --------------------------------------------------------------------------- orders of samples


def decided_votes(n: int) -> Iterator[Event]:
    """Votes as the gateway ends them, at the deciding sample, without a label."""
    rng = random.Random(7)
    for number in range(n):
        audit = number < BURST or rng.random() < SHARE
        odds = 1.0 if number < BURST else SHARE if audit else 1 - SHARE
        request, outcome = run(number, rng, audit=audit, propensity=odds, p_right=0.75)
        answers = [step.answer for step in outcome.steps]
        steps = outcome.steps[: deciding_sample(answers, request.n_samples)]
        yield request
        yield replace(outcome, steps=steps, answer=count_votes([step.answer for step in steps]).answer)


@pytest.fixture(scope="module")
def in_orders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lines]:
    folder = tmp_path_factory.mktemp("orders")
    settings = made_log(folder, decided_votes(1_200))
    lines = [json.loads(line) for line in write_bundle(settings, "r", None, where="b", author="ann", reason="check")]
    return folder, lines


def test_a_bundle_of_votes_in_all_orders_holds(
    in_orders: tuple[Path, Lines], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, lines = in_orders
    assert any("orders" in line for line in lines)
    assert verdict(lines, folder, capsys, heads=True)[0] == 0


ONE_LOST = {"z": [[1, 1]], "d": [[1, 1]], "sum": [[1, 1]]}  # in its own order and in no other one


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: ONE_LOST, "lose more in their own order"),
        (lambda _: {"sum": [[1, -1]]}, "no order of its samples can gain"),
        (lambda line: {"z": [], "d": [], "sum": [[1, line["orders"]]]}, "none of"),
        (lambda _: {"z": [], "d": [], "sum": [[0, 1]]}, "none of"),
    ],
)
def test_sums_that_no_order_allows_are_found(
    in_orders: tuple[Path, Lines], change: Callable[[Line], Line], says: str
) -> None:
    _, lines = in_orders
    forged = [line | change(line) if "orders" in line else line for line in copy.deepcopy(lines)]
    assert any(says in one for one in verifier.check_orders(verifier.Bundle(written(forged))))
