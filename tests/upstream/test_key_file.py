"""An upstream's key in a file: sent as it stands there now, and never written into settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from suffice.errors import ConfigError
from suffice.server import serve_in_loop
from suffice.settings import parse_settings
from suffice.wiring import gateway
from suffice.wiring.keys import api_key
from suffice_testing import FakeUpstream, Reply


async def test_a_key_that_is_rotated_in_its_file_is_sent_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "SECRETS_S", 0.05)
    file = tmp_path / "key"
    file.write_text("sk-first\n")
    async with FakeUpstream(Reply(answer=("4",))) as fake, aiohttp.ClientSession() as session:
        settings = parse_settings(
            {
                "upstreams": {"up": {"url": fake.url, "api_key_file": str(file)}},
                "routes": {"r": {"upstream": "up"}},
                "store": {"url": f"sqlite:///{tmp_path}/log.db"},
                "control": {"enabled": False},
            }
        )

        async def sent(url: str) -> str:
            body = {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]}
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
            return dict(fake.calls[-1].headers)["authorization"]

        async with serve_in_loop(settings) as url:
            assert await sent(url) == "Bearer sk-first"
            another = tmp_path / "another"
            another.write_text("sk-second")
            another.rename(file)  # as a mounted secret is replaced
            async with asyncio.timeout(10):
                while await sent(url) != "Bearer sk-second":
                    pass
            file.write_text("two\nlines")
            await asyncio.sleep(0.2)
            assert await sent(url) == "Bearer sk-second", "a broken file changes nothing"


@pytest.mark.parametrize("content", ["", " \n", "two\nlines", "a" * 5_000, "\x07"])
def test_a_file_that_holds_no_key_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    raw = {"upstreams": {"up": {"url": "http://h", "api_key_file": str(tmp_path / "key")}}}
    with pytest.raises(ConfigError, match=r"^upstreams\.up\.api_key_file: .* needs one line") as report:
        api_key("up", parse_settings(raw).upstreams["up"])
    assert "two" not in str(report.value)


@pytest.mark.parametrize("field", ["api_key", "key", "secret", "token", "password"])
def test_a_key_in_the_settings_is_refused_with_the_way_out(field: str) -> None:
    raw = {"upstreams": {"up": {"url": "http://h", field: "sk-very-secret"}}}
    with pytest.raises(
        ConfigError, match="holds no secrets: name where it is, in api_key_env or api_key_file"
    ) as report:
        parse_settings(raw)
    assert "very-secret" not in str(report.value)


def test_a_key_has_one_place() -> None:
    both = {"url": "http://h", "api_key_env": "K", "api_key_file": "/k"}
    with pytest.raises(ConfigError, match="excludes api_key_env"):
        parse_settings({"upstreams": {"up": both}})
