"""Replies of the object store that keeps an archive: whatever it says, a sentence names the archive, and it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from suffice.errors import StoreError, TraceError
from suffice.replay.archive.layout import MOST_NAMES, Archive
from tests.stub_server import Stub

SECRET = "sk-never-told"
MANY = b"".join(
    b"<Contents><Key>manifests/2026-01-01.json</Key><Size>1</Size>"
    b"<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>a</ETag></Contents>"
    for _ in range(1_000)
)


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def listing(content: bytes, *, more: bool = False) -> bytes:
    goes_on = b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>" if more else b""
    return http(b'<?xml version="1.0"?><ListBucketResult>' + goes_on + content + b"</ListBucketResult>")


Opened = Callable[[bytes], tuple[Archive, Stub]]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    stores = list[Stub]()

    def answer(reply: bytes) -> tuple[Archive, Stub]:
        stores.append(Stub(reply))
        for name, value in {
            "ENDPOINT": stores[-1].url,
            "ALLOW_HTTP": "true",
            "ACCESS_KEY_ID": "a",
            "SECRET_ACCESS_KEY": SECRET,
            "REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        return Archive.open("s3://bucket", cache=tmp_path), stores[-1]

    yield answer
    for store in stores:
        store.close()


LISTS = {
    "no http": b"hello\r\n\r\n",
    "nothing": b"",
    "a page": http(b"<html>not a list"),
    "json": http(b'{"Contents": []}'),
    "bytes that are no text": http(b"\xff\xfe\x00"),
    "an entity": http(b'<!DOCTYPE a [<!ENTITY b "bb">]><ListBucketResult>&b;</ListBucketResult>'),
    "nested without end": http(b"<ListBucketResult>" + b"<a>" * 100_000),
    "a length that is none": b"HTTP/1.1 200 OK\r\ncontent-length: 10 GB\r\n\r\n",
    "less than its length": b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc",
    "a refusal": http(f"<Error>{SECRET[:3]}</Error>".encode(), "403 Forbidden"),
    "names without end": listing(MANY, more=True),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_is_none_is_said_in_a_sentence(opened: Opened, case: str) -> None:
    archive, _ = opened(LISTS[case])
    with pytest.raises(StoreError) as report:
        archive.days()
    output = str(report.value)
    assert output.startswith("s3://bucket: ")
    assert SECRET not in output
    assert "\n" not in output
    assert (f"more than {MOST_NAMES:,} manifests" in output) is (case == "names without end")


def test_names_that_are_no_days_are_left_out(opened: Opened) -> None:
    names = ("manifests/../../etc/passwd", "manifests/2026-01-01.json", "manifests/x.json", "manifests/9.json.json")
    one = MANY[: len(MANY) // 1_000]
    content = b"".join(one.replace(b"manifests/2026-01-01.json", name.encode()) for name in names)
    archive, _ = opened(listing(content))
    with contextlib.suppress(StoreError):  # the client may refuse the first of them
        assert archive.days() == ["2026-01-01"]


OBJECTS = {
    "too much": http(b"x" * 100_000),
    "a length of 4 TB": b"HTTP/1.1 200 OK\r\ncontent-length: 4000000000000\r\netag: a\r\n\r\nx",
    "no length": b"HTTP/1.1 200 OK\r\n\r\nx",
    "less than its length": b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\netag: a\r\n\r\nabc",
    "no http": b"hello\r\n\r\n",
    "missing": http(b"", "404 Not Found"),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_an_object_that_is_none_is_refused_unread(opened: Opened, case: str) -> None:
    archive, _ = opened(OBJECTS[case])
    with pytest.raises((StoreError, TraceError)) as report:
        archive.read("manifests/2026-01-01.json", most_bytes=1_000)
    assert "2026-01-01.json" in str(report.value)


def test_what_a_redirect_leads_to_is_no_manifest(opened: Opened) -> None:
    """The client follows redirects: what it finds there is checked like everything else, and told nobody."""
    inner = Stub(http(b'{"token": "internal"}'))
    archive, _ = opened(http(b"", "307 Temporary Redirect", f"location: {inner.url}/meta"))
    with pytest.raises((StoreError, TraceError)) as report:
        archive.manifest("2026-01-01")
    assert "internal" not in str(report.value)
    inner.close()
