"""`suffice admin` and the first run: secrets are shown once, and the audit log says who may come in."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.console import auth
from suffice.store.people.audit_view import entries
from suffice.wiring.files import load_settings
from suffice.wiring.people import People
from suffice.wiring.worker import open_decisions

TOML = """
[upstreams.local]
url = "http://127.0.0.1:1"
[store]
url = "sqlite:///{folder}/log.db"
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "suffice.toml"
    path.write_text(TOML.format(folder=tmp_path))
    open_decisions(load_settings(path)).close()  # a log, as the first start of a gateway makes it
    return str(path)


def admin(file: str, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = CliRunner().invoke(main, ["admin", *words, "--config", file])
    return done.exit_code, done.stdout.strip(), done.stderr.strip()


def test_secrets_are_printed_once_and_the_audit_log_says_who_may_come_in(file: str) -> None:
    known = People.of(load_settings(file))
    code, first, errors = admin(file, "reset-secret")
    assert code == 0
    assert "shown once" in errors
    code, secret, _ = admin(file, "add", "rita", "--role", "reviewer")
    roster = known.now()
    assert code == 0
    assert roster is not None
    person = auth.authenticate(roster, secret)
    assert person is not None
    assert (person.name, person.role) == ("rita", "reviewer")
    assert admin(file, "list")[1].splitlines()[1].startswith("rita")
    assert admin(file, "remove", "rita")[0] == 0
    changes = [(one.after, one.who != "") for one in entries(Path(file).parent / "log.db", kind="access_changed")]
    assert changes == [("admin: reset as admin", True), ("rita: added as reviewer", True), ("rita: removed", True)]
    text = (Path(file).parent / "log.db").read_bytes() + known.file.read_bytes()
    for one in (first, secret):
        assert one.rpartition("_")[2].encode() not in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("add", "x y"), "1 to 64"),
        (("remove", "bob"), "no person is called 'bob'"),
        (("reset-secret", "bob"), "no person is called"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_2(file: str, words: tuple[str, ...], why: str) -> None:
    code, out, errors = admin(file, *words)
    assert (code, out) == (2, "")
    assert why in errors
    assert "Traceback" not in errors
