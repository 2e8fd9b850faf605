"""Fields of paired calls may change what a call costs, and nothing of what it is asked."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.settings import parse_settings


def upstream(**fields: Any) -> Any:
    return parse_settings({"upstreams": {"up": {"url": "http://127.0.0.1:9", **fields}}}).upstreams["up"]


def test_a_service_tier_and_its_price_are_taken() -> None:
    result = upstream(paired_fields={"service_tier": "flex"}, paired_price=0.5)
    assert (result.paired_fields, result.paired_price) == ({"service_tier": "flex"}, 0.5)


@pytest.mark.parametrize("field", ["model", "messages", "temperature", "reasoning_effort", "max_tokens", "stream"])
def test_a_field_that_may_change_the_answer_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"upstreams.up.paired_fields: got '{field}', which may change the answer"):
        upstream(paired_fields={"service_tier": "flex", field: 1})


def test_a_price_without_the_fields_that_it_is_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"upstreams\.up\.paired_price: needs paired_fields"):
        upstream(paired_price=0.5)
    with pytest.raises(ConfigError, match="paired_price"):
        upstream(paired_fields={"service_tier": "flex"}, paired_price=1.5)
