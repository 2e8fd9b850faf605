"""Versions: what is sealed is opened equal, and nothing else is opened at all."""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.model.artefact import canonical
from suffice.rollout import versions
from suffice.rollout.versions import (
    Version,
    check_address,
    misfit,
    open_version,
    overtaken,
    seal_version,
)
from suffice.signals import base
from suffice.signals.base import FOLDS
from suffice.signals.fold import Fields, SignalField
from suffice.signals.folds.answers import Votes
from tests.drawn import examples
from tests.rollout.made import HERE, LINEAGE, SECRET, learned, learned_body, rule

PROPERTY = settings(max_examples=examples(30))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e300, 1e300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CARDS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)


@PROPERTY
@given(threshold=st.floats(0.51, 0.99), card=CARDS, why=st.text(min_size=1, max_size=20))
def test_what_is_sealed_is_opened_equal(threshold: float, card: dict[str, Any], why: str) -> None:
    made = rule(threshold, report_card=card, lineage=replace(LINEAGE, why=why))
    sealed = seal_version(made, secret=SECRET)
    result = open_version(sealed, secret=SECRET, address=made.address)
    assert result == made
    assert result.plain() == made.plain()
    assert seal_version(result, secret=SECRET) == sealed


def test_a_learned_version_is_opened_equal_and_says_what_it_reads() -> None:
    made = learned()
    result = open_version(seal_version(made, secret=SECRET), secret=SECRET)
    assert result.plain() == made.plain()
    assert [one.name for one in result.signals] == ["confidence"]
    assert result.lineage.to_seq == 900


def test_the_address_is_of_everything_that_a_version_is() -> None:
    made = [
        rule(),
        rule(0.9),
        rule(kind="rounds"),
        rule(scorer="text"),
        rule(model_family="qwen3-8b"),
        rule(lineage=replace(LINEAGE, why="else")),
        rule(report_card={"n": 1}),
        rule(body={"policy": "never"}),
    ]
    assert len({one.address for one in made}) == len(made)
    assert rule().address == rule().address == "pv-" + rule().address[3:]
    assert hash(rule()) == hash(rule())


def test_a_version_cannot_be_changed() -> None:
    made = learned()
    with pytest.raises(FrozenInstanceError):
        made.kind = "rounds"  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.body["levels"] = []  # type: ignore[index]
    with pytest.raises((TypeError, AttributeError)):
        made.body["models"][0]["suffices"]["parts"][0]["weights"].append(1.0)
    copied = made.plain()
    copied["body"]["levels"][0][0] = 9.0
    assert made.plain() != copied
    given_card = {"n": [1]}
    kept = rule(report_card=given_card)
    given_card["n"].append(2)
    assert kept.plain()["report_card"] == {"n": [1]}


# --------------------------------------------------------------------------- tampered


@PROPERTY
@given(at=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_every_changed_byte_is_refused(at: int, flip: int) -> None:
    sealed = bytearray(seal_version(learned(), secret=SECRET))
    sealed[at % len(sealed)] ^= flip
    with pytest.raises(ConfigError, match=r"^version: "):
        open_version(bytes(sealed), secret=SECRET)


@PROPERTY
@given(cut=st.integers(0, 10**6))
def test_every_cut_tail_is_refused(cut: int) -> None:
    sealed = seal_version(learned(), secret=SECRET)
    with pytest.raises(ConfigError, match=r"^version: "):
        open_version(sealed[: cut % len(sealed)], secret=SECRET)
    with pytest.raises(ConfigError, match="changed, or cut off"):
        open_version(sealed + b"\n", secret=SECRET)


@PROPERTY
@given(source=st.binary(max_size=300))
def test_no_bytes_are_anything_but_refused(source: bytes) -> None:
    with pytest.raises(ConfigError):
        open_version(source, secret=SECRET)
    with pytest.raises(ConfigError):
        open_version(b"suffice-version/1 " + source, secret=SECRET)


def test_another_secret_and_another_address_are_refused_with_their_sentence() -> None:
    made = rule()
    sealed = seal_version(made, secret=SECRET)
    with pytest.raises(ConfigError, match="not made with this deployment's secret"):
        open_version(sealed, secret="another")
    with pytest.raises(ConfigError, match=f"this is {made.address}, asked for was {rule(0.9).address}"):
        open_version(sealed, secret=SECRET, address=rule(0.9).address)
    with pytest.raises(ConfigError, match="no secret"):
        seal_version(made, secret="")


def signed(content: bytes) -> bytes:
    """Whatever it is, signed with the right secret: an attacker who has it, or a bug of ours."""
    return b"suffice-version/1 %b %b\n%b" % (
        versions._address_of(content).encode(),
        versions._signature(content, SECRET),
        content,
    )


def pickled() -> bytes:
    return pickle.dumps({"policy": "never"})


def zipped(name: str = "weights.npy") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"0" * 10**6)
    return out.getvalue()


def numpy_archive() -> bytes:
    out = io.BytesIO()
    np.savez(out, weights=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (pickled, "a pickle"),
        (zipped, "a zip archive"),
        (lambda: zipped("../../etc/passwd"), "a zip archive"),
        (numpy_archive, "npz"),
        (lambda: gzip.compress(b"0" * 10**7), "compressed"),
        (lambda: b"", "got nothing"),
        (lambda: canonical(rule().plain()), "JSON without the line"),
        (lambda: b"suffice-version/1 x", "first line"),
        (lambda: b"cos\nsystem\n(S'ls'\ntR.", "something else"),
        (lambda: b" " * (33 * 2**20), "at most"),
    ],
)
def test_what_is_no_version_is_refused_before_anything_is_parsed(
    source: Callable[[], bytes], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object) -> object:
        raise AssertionError("parsed")

    monkeypatch.setattr(versions, "parse_json", parse)
    with pytest.raises(ConfigError, match=says):
        open_version(source(), secret=SECRET)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "pv-..",
        "",
        "pv-" + "0" * 31,
        "PV-" + "0" * 32,
        "pv-" + "0" * 33,
        "pv-" + "0" * 32 + "\n",
        "pv-" + "g" * 32,
    ],
)
def test_only_an_address_may_become_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="as an address"):
        check_address(name)
    with pytest.raises(ConfigError, match="as an address"):
        open_version(seal_version(rule(), secret=SECRET), secret=SECRET, address=name)
    with pytest.raises(ConfigError, match="as an address"):
        rule(lineage=replace(LINEAGE, parent=name))


# --------------------------------------------------------------------------- wrong, though signed


def changed(change: Callable[[dict[str, Any]], object], version: Version | None = None) -> bytes:
    plain = copy.deepcopy((version or learned()).plain())
    change(plain)
    return signed(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


def weights(plain: dict[str, Any]) -> Any:
    return plain["body"]["models"][0]["suffices"]["parts"][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: weights(p)["weights"].__setitem__(0, math.nan), "finite numbers only"),
        (lambda p: weights(p)["weights"].__setitem__(0, -math.inf), "finite numbers only"),
        (lambda p: weights(p)["weights"].__setitem__(0, "1"), r"weights\[0\]"),
        (lambda p: weights(p)["weights"].append(1.0), "one for each of 2 features"),
        (lambda p: p["body"]["levels"].pop(), "levels: need a list of levels for each of 2 models"),
        (lambda p: p["body"]["levels"].__setitem__(0, 7), r"levels\[0\]: Expected `array`"),
        (lambda p: p["body"]["levels"].__setitem__(0, [0.3, 0.1]), r"levels\[0\]: must rise"),
        (lambda p: p["body"]["levels"].__setitem__(0, [0.1, 1e9]), r"levels\[0\]\[1\]"),
        (lambda p: p["body"].__setitem__("models", []), "models: got 0; 1 to 20"),
        (lambda p: p["body"].__setitem__("schema", 1), "body.schema"),
        (lambda p: p["body"].__setitem__("more", 2), "unknown field `more`"),
        (lambda p: p["body"]["models"][0]["trained"].__setitem__("target", "value"), "and have the same target"),
        (lambda p: p["body"]["models"][0].__setitem__("features", ["mood", "luck"]), "features"),
        (lambda p: p["signals"][0].__setitem__("name", "telepathy"), "reads other signals"),
        (lambda p: p["signals"][0]["fields"].append("mood"), "reads other signals"),
        (lambda p: p.__setitem__("signals", []), "reads other signals"),
        (lambda p: p.__setitem__("schema", 7), "version.schema: Invalid enum value 7"),
        (lambda p: p.__setitem__("form", "magic"), "version.form"),
        (lambda p: p.__setitem__("kind", "agents"), "version.kind"),
        (lambda p: p.__setitem__("model_family", None), "model_family: missing"),
        (lambda p: p.pop("scorer"), "version: Object missing required field `scorer`"),
        (lambda p: p.__setitem__("__class__", "os"), "unknown field `__class__`"),
        (lambda p: p["lineage"].__setitem__("since_seq", -1), "since_seq"),
        (lambda p: p["lineage"].__setitem__("proposed_s", -5), "proposed_s"),
        (lambda p: p["lineage"].__setitem__("why", ""), "and why"),
        (lambda p: p["report_card"].__setitem__("saving", 10**400), "report_card.saving"),
        (lambda p: p["report_card"].__setitem__("text", "x" * 3_000), "characters"),
        (lambda p: p.__setitem__("report_card", [1]), "report_card: Expected `object`"),
    ],
)
def test_what_cannot_serve_is_refused_though_it_is_signed(
    change: Callable[[dict[str, Any]], object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        open_version(changed(change), secret=SECRET)


def test_the_same_version_written_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="not written canonically"):
        open_version(signed(json.dumps(rule().plain()).encode()), secret=SECRET)


def test_a_body_that_is_too_deep_or_holds_what_json_does_not_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    for card, says in (
        (deep, "at most 64 deep"),
        ({"x": {1, 2}}, "report_card.x"),
        ({"x": math.nan}, "report_card.x"),
        ({1: 2}, "a key: got 1"),
        ({"x": [0] * 1_000_001}, "items"),
    ):
        with pytest.raises(ConfigError, match=says):
            rule(report_card=card)
    with pytest.raises(ConfigError, match="bytes; at most"):
        rule(report_card={str(i): ["x" * 2_000] * 1_000 for i in range(17)})
    with pytest.raises(ConfigError, match="unknown name 'telepathy'"):
        rule(body={"policy": "telepathy"})


# --------------------------------------------------------------------------- what it must fit


def test_another_kind_or_scorer_is_refused_with_its_sentence() -> None:
    made = rule(model_family="qwen3-8b")
    assert misfit(made, **HERE) is None
    for other, says in (
        ({"kind": "rounds"}, "is for routes of kind 'samples'; this one is 'rounds'"),
        ({"scorer": "text"}, "was judged by the scorer 'number'; here answers are read by 'text'"),
    ):
        assert says in (misfit(made, **HERE | other) or "")


def test_a_signal_that_does_not_exist_any_more_or_is_another_one_is_refused() -> None:
    sealed = seal_version(rule(), secret=SECRET)
    open_version(sealed, secret=SECRET)

    class Other(Votes):
        fields: ClassVar[Fields] = {**Votes.fields, "mood": SignalField("what its versions did not have")}

    try:
        with patch.dict(FOLDS, votes=Other):  # which restores the order of the table, too
            base.resolve_needs.cache_clear()
            with pytest.raises(ConfigError, match="reads other signals here"):
                open_version(sealed, secret=SECRET)
            del FOLDS["votes"]
            base.resolve_needs.cache_clear()
            with pytest.raises(ConfigError, match="unknown signal 'votes'"):
                open_version(sealed, secret=SECRET)
    finally:
        base.resolve_needs.cache_clear()


def test_a_publication_names_the_number_it_follows() -> None:
    assert overtaken(0, 0) is None
    assert overtaken(7, 7) is None
    assert "publication 8 came in between" in (overtaken(7, 8) or "")
    assert "which there is not" in (overtaken(9, 8) or "")


def test_of_fifty_who_publish_at_once_one_wins() -> None:
    latest, won = 3, 0
    for _ in range(50):
        if overtaken(3, latest) is None:
            latest, won = latest + 1, won + 1
    assert won == 1


def test_lineage_must_say_who_and_why() -> None:
    for lineage in (replace(LINEAGE, proposed_by=""), replace(LINEAGE, why="")):
        with pytest.raises(ConfigError, match="who or what proposed it, and why"):
            rule(lineage=lineage)


def test_classes_count_among_what_is_read() -> None:
    body = learned_body()
    body["models"][0] = {**body["models"][0], "classes": [["hard", 0.1]]}
    assert {one.name for one in learned(body).signals} == {"confidence", "query"}
