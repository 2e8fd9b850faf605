"""Writes into each decision script what the library decides: `python -m tests.loop.record`."""

from __future__ import annotations

import json
import tempfile

from suffice import Governor
from suffice.settings import parse_settings
from tests.loop.players.plain import play
from tests.loop.players.playing import SCRIPTS, played, read_scripts
from tests.loop.scripted_model import scripted_model


def main() -> None:
    scripts = read_scripts()
    for name, script in scripts.items():
        with tempfile.TemporaryDirectory() as folder, scripted_model(scripts) as (model, taken):
            store = {"url": f"sqlite:///{folder}/log.db"}
            settings = parse_settings({"routes": {name: script["route"]}, "store": store})
            with Governor.open(settings, route=name) as governor:
                run = play(governor, script["question"], f"{model}/{name}/v1", name)
            script["expected"] = played(run) | {"model_calls": taken[name]}
        text = json.dumps(script, indent=1, ensure_ascii=False) + "\n"
        (SCRIPTS / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
