"""TensorZero's gateway (Rust), as its wheel embeds it: an HTTP server inside this otherwise idle process.

Python only starts it and sleeps, so this process's CPU time is the gateway's. Observability is off:
nothing is written to a database. Prints the address it serves on.

    python tensorzero_gateway.py UPSTREAM_URL CONFIG_FILE
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import tensorzero

CONFIG = """
[gateway]
observability.enabled = false

[models.m]
routing = ["up"]

[models.m.providers.up]
type = "openai"
model_name = "m"
api_base = "{upstream}/v1/"
api_key_location = "none"
"""


class Client:
    """Stands where an OpenAI client would: it is only told the address."""

    base_url = ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    file = Path(sys.argv[2])
    file.write_text(CONFIG.format(upstream=sys.argv[1]), encoding="utf-8")
    client = tensorzero.patch_openai_client(Client(), config_file=str(file), async_setup=False)
    print(client.base_url, flush=True)
    threading.Event().wait()
