"""`python -m suffice_testing`: a fake model server, to try Suffice without a real one."""

from __future__ import annotations

import asyncio
import contextlib

import click

from suffice_testing.chain import SumsModel
from suffice_testing.dialects import ServerBehaviour
from suffice_testing.upstream import FakeUpstream


@click.command()
@click.option("--port", default=8080, show_default=True, help="Port on 127.0.0.1; 0 picks a free one.")
@click.option("--slots", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests served at once.")
def main(port: int, slots: int) -> None:
    """Serve a model that does sums, as a llama.cpp server would, until Ctrl-C.

    It thinks aloud, has its answer long before it ends, and is wrong in one of seven answers to the same prompt.
    """
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(port, slots))
    except OSError as error:
        raise click.ClickException(f"cannot listen on 127.0.0.1:{port}: {error.strerror or error}") from None


async def _serve(port: int, slots: int) -> None:
    # Idle connections are closed after 5 s, as llama.cpp does; prefixes are cached.
    server = ServerBehaviour(
        port=port, slots=slots, prefix_cache=True, models=("sums",), owner="llamacpp", idle_close_s=5.0
    )
    async with FakeUpstream(SumsModel(delay_s=0.002), server) as fake:
        click.echo(f"a fake llama.cpp server with the model 'sums' on {fake.url}; Ctrl-C ends it")
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
