"""A password goes to a mail server whose certificate is good, over TLS, and nowhere else; mail, as the owner says."""

from __future__ import annotations

import base64
import logging
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.edge import notification as mail
from suffice.edge.notification import MailServer, send_mail
from suffice.settings import MailTls, parse_settings
from tests.edge.certificate import certified
from tests.edge.mail_server import MailServer as Faked
from tests.edge.mail_server import Served, Tls

LOGIN = ("suffice", "s3cret-pass")
WORDS = (LOGIN[1].encode(), base64.b64encode(LOGIN[1].encode()), base64.b64encode(f"\0{LOGIN[0]}\0{LOGIN[1]}".encode()))
NO_TLS = "the mail server offers no encryption, so nothing was sent to it"
REFUSED = "the mail server could not be used (SSLCertVerificationError)"


def send(served: Served, login: tuple[str, str] | None = LOGIN, asks: MailTls = "required") -> str | None:
    server = MailServer(host=served.host, port=served.port, login=login, tls=asks)
    return send_mail(server, sender="s@h.org", to=("a@h.org",), subject="what", text="words", timeout_s=30.0)


def tried(folder: Path, served: Served, more: str) -> Result:
    """What `suffice alerts test` says with this server, and `more` of the table."""
    file = folder / "suffice.toml"
    file.write_text(
        f'[store]\nurl = "sqlite:///{folder}/s.db"\n[alerts]\nemail_to = ["a@h.org"]\nemail_from = "s@h.org"\n'
        f'smtp_host = "127.0.0.1"\nsmtp_port = {served.port}\n{more}\n'
    )
    return CliRunner().invoke(main, ["alerts", "test", "--config", str(file)])


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate for 127.0.0.1, with its key, whose issuer this system trusts."""
    alone, both = certified(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(alone))
    return both


@pytest.fixture(autouse=True)
def _no_password_in_any_log(caplog: pytest.LogCaptureFixture) -> object:
    """Whatever happens in a test of this file, no line of a log holds the password in any form."""
    caplog.set_level(logging.DEBUG)
    yield
    for word in WORDS:
        assert word.decode() not in caplog.text


def test_a_password_goes_over_starttls_and_the_mail_behind_it(trusted: Path) -> None:
    with Faked(tls="starttls", certificate=trusted, login=LOGIN).serving() as served:
        assert send(served) is None
    assert [line[:4].upper() for line in served.bare] == [b"EHLO", b"STAR"]
    assert any(line.startswith(b"AUTH PLAIN") for line in served.hidden)
    (came,) = served.mails
    message = message_from_bytes(came, policy=default)
    assert (message["subject"], message.get_content().strip()) == ("what", "words")


def test_on_the_port_of_smtps_all_of_it_is_hidden(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Faked(tls="at once", certificate=trusted, login=LOGIN).serving() as served:
        monkeypatch.setattr(mail, "TLS_PORT", served.port)
        assert send(served) is None
    assert (served.bare, len(served.mails)) == ([], 1)


@pytest.mark.parametrize(("tls", "message"), [("none", NO_TLS), ("promised only", "the mail server answered 454")])
@pytest.mark.parametrize(
    ("login", "asks"),
    [
        (LOGIN, "required"),
        (LOGIN, "opportunistic"),
        (LOGIN, "off"),
        (None, "required"),
    ],
)
def test_a_server_without_encryption_gets_no_password_and_no_mail_that_must_be_hidden(
    tls: Tls, message: str, login: tuple[str, str] | None, asks: MailTls
) -> None:
    with Faked(tls=tls, login=login).serving() as served:
        assert send(served, login, asks) == message
    assert served.mails == []
    assert {line[:4].upper() for line in served.bare} <= {b"EHLO", b"STAR", b"QUIT"}, "no password and no address"


@pytest.mark.parametrize("tls", ["starttls", "at once"])
@pytest.mark.parametrize("login", [LOGIN, None])
def test_a_certificate_that_nobody_vouches_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: Tls, login: tuple[str, str] | None
) -> None:
    _, both = certified(tmp_path, "127.0.0.1")
    with Faked(tls=tls, certificate=both, login=login).serving() as served:
        if tls == "at once":
            monkeypatch.setattr(mail, "TLS_PORT", served.port)
        assert send(served, login) == REFUSED
    assert (served.hidden, served.mails) == ([], [])


def test_a_certificate_for_another_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, both = certified(tmp_path, "mail.example.org", "127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(alone))
    with Faked(tls="starttls", certificate=both, login=LOGIN).serving() as served:
        assert send(served) == REFUSED
    assert (served.hidden, served.mails) == ([], [])


def test_a_wrong_password_is_said_without_it_though_the_server_says_it_again(trusted: Path) -> None:
    for gossips in (False, True):
        faked = Faked(tls="starttls", certificate=trusted, login=(LOGIN[0], "another"), gossips=gossips)
        with faked.serving() as served:
            assert send(served) == "the mail server answered 535"
        assert served.mails == []
    assert LOGIN[1] not in repr(MailServer(host="h", port=1, login=LOGIN))


@pytest.mark.parametrize("asks", ["opportunistic", "off"])
def test_a_server_that_asks_for_no_login_may_be_one_without_encryption_if_the_owner_says_so(asks: MailTls) -> None:
    with Faked().serving() as served:
        assert send(served, None, asks) is None
    assert len(served.mails) == 1


@pytest.mark.parametrize(("asks", "second"), [("required", b"STAR"), ("opportunistic", b"STAR"), ("off", b"MAIL")])
def test_encryption_that_is_offered_is_used_unless_it_is_off(trusted: Path, asks: MailTls, second: bytes) -> None:
    with Faked(tls="starttls", certificate=trusted).serving() as served:
        assert send(served, None, asks) is None
    assert (served.bare[1][:4].upper(), len(served.mails)) == (second, 1)
    assert bool(served.hidden) == (asks != "off")


def test_what_nobody_set_hides_mail_where_there_is_a_login_and_only_there() -> None:
    login = {"smtp_user_env": "U", "smtp_password_env": "P"}
    assert parse_settings({"alerts": login}).alerts.mail_tls == "required"
    assert parse_settings({"alerts": {}}).alerts.mail_tls == "opportunistic"
    for one in ("required", "off"):
        assert parse_settings({"alerts": {"smtp_tls": one}}).alerts.mail_tls == one


def test_the_owner_may_refuse_a_server_without_encryption(tmp_path: Path) -> None:
    with Faked().serving() as served:
        done = tried(tmp_path, served, 'smtp_tls = "required"')
    assert (done.exit_code, served.mails) == (1, []), done.output
    assert f"email: FAILED: {NO_TLS}" in done.output


def test_the_test_of_alerts_goes_the_same_way_and_prints_no_password(
    trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_USER", LOGIN[0])
    monkeypatch.setenv("MAIL_PASSWORD", LOGIN[1])
    with Faked(tls="starttls", certificate=trusted, login=LOGIN).serving() as served:
        login = 'smtp_user_env = "MAIL_USER"\nsmtp_password_env = "MAIL_PASSWORD"'
        took = tried(tmp_path, served, login)
        monkeypatch.setenv("MAIL_PASSWORD", "another-word")
        failed = tried(tmp_path, served, login)
    assert (took.exit_code, failed.exit_code) == (0, 1), took.output + failed.output
    assert "email: accepted" in took.output
    assert "email: FAILED: the mail server answered 535" in failed.output
    assert len(served.mails) == 1
    for word in (LOGIN[1], "another-word", base64.b64encode(b"another-word").decode()):
        assert word not in took.output + failed.output
