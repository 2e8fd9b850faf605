"""`suffice demo`: a real model, the real gateway, questions with known answers, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from suffice.cli.server.demo_console import run_console
from suffice.cli.server.demo_online import run_online
from suffice.cli.server.weights import fetched
from suffice.cli.shell import fail
from suffice.demo import run, show
from suffice.demo.ask import DemoAnswer
from suffice.demo.rows import correct
from suffice.demo.run import Stage, StageResult, write_demo_report
from suffice.errors import SufficeError
from suffice.files import make_folder
from suffice.local import tasks
from suffice.local.server import LocalServer, ServerSpec
from suffice.scoring.base import build_scorer

# Requests that a local server works on at once. Two for samples: the same prompt comes eight times, and each
# slot reads it once. Eight for reasoning: four runs, and their probes beside them.
SLOTS = {"samples": 2, "reasoning": 8}
AT_ONCE = {"samples": 1, "reasoning": 4}  # questions


@click.command()
@click.option("--small", is_flag=True, help="Only the small model (98 MB), no reasoning route; --online: shorter.")
@click.option("--online", is_flag=True, help="Let a route certify itself, live; then swap the model. 10 to 15 minutes.")
@click.option("--console", "as_console", is_flag=True, help="Serve the console on a demo's log, or on a made-up month.")
@click.option("--port", type=int, default=8400, show_default=True, help="Port of the console.")
@click.option("--full", is_flag=True, help="300 questions a route and 16 samples: takes about an hour.")
@click.option("--model", default="qwen0.5b", show_default=True, help="Reasoning route: qwen0.5b or qwen1.5b.")
@click.option("--upstream", default=None, help="Use a running server instead, e.g. http://127.0.0.1:8080.")
@click.option("--upstream-model", default="", help="Model name to ask that server for.")
@click.option(
    "--driver",
    default="llama.cpp",
    type=click.Choice(["llama.cpp", "vllm", "openai"]),
    show_default=True,
    help="What that server can do beyond the plain protocol.",
)
@click.option("--questions", type=click.IntRange(4, 300), default=None, help="Questions a route. [default: 120 and 40]")
@click.option("--samples", type=click.IntRange(2, 64), default=None, help="Samples in a full run. [default: 8]")
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    metavar="FOLDER",
    help="Folder for the report, the picture and the logs.",
)
def demo(
    small: bool,
    online: bool,
    as_console: bool,
    port: int,
    full: bool,
    model: str,
    upstream: str | None,
    upstream_model: str,
    driver: str,
    questions: int | None,
    samples: int | None,
    out: str,
) -> None:
    """Run a real local model through the gateway and show what stopping saves.

    SUFFICE_MODEL=/path/x.gguf uses a model file of your own on the reasoning route.
    """
    if online and (full or upstream or upstream_model or questions or samples):
        raise click.UsageError("--online swaps a model of its own and goes with --small and --out only")
    if as_console and (online or full or upstream or upstream_model or questions or samples):
        raise click.UsageError("--console goes with --small, --port and --out only")
    console = Console()
    folder = Path(out).resolve()
    make_folder(folder)
    if as_console:
        _console(console, folder, small=small, port=port)
        return
    for old in folder.glob("*.db*"):
        old.unlink()
    if online:
        raise SystemExit(_online(console, folder, small=small))
    plan = _Plan(
        n_samples_questions=questions or (300 if full else 120),
        n_reasoning_questions=questions or (300 if full else 40),
        n_samples=samples or (16 if full else 8),
        folder=folder,
        model=model,
        driver=driver,
        upstream=upstream,
        upstream_model=upstream_model,
        small=small,
    )
    try:
        with plan.stages(console) as stages:
            results = _run(console, stages)
        show.picture(results, folder / "demo.png")
        write_demo_report(results, folder / "report.json")
    except SufficeError as error:
        fail("demo", error)
    _tell(console, folder, results)
    if any(result.errors for result in results):
        raise SystemExit(1)


def _console(console: Console, folder: Path, *, small: bool, port: int) -> None:
    try:
        run_console(console, folder, small=small, port=port)
    except SufficeError as error:
        fail("demo", error)
    except OSError as error:
        fail("demo", f"cannot listen: {error.strerror or error}")


def _online(console: Console, folder: Path, *, small: bool) -> int:
    try:
        return run_online(console, folder, small=small)
    except SufficeError as error:
        fail("demo", error)


def _tell(console: Console, folder: Path, results: list[StageResult]) -> None:
    show.print_demo(console, results)
    console.print(f"\npicture: {_near(folder / 'demo.png')}   report: {_near(folder / 'report.json')}")
    console.print(f"logs, readable with sqlite3 and `suffice status --db`: {_near(folder)}/*.db\n")
    console.print(show.NEXT, highlight=False, markup=False)


def _near(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class _Plan:
    def __init__(
        self,
        *,
        n_samples_questions: int,
        n_reasoning_questions: int,
        n_samples: int,
        folder: Path,
        model: str,
        driver: str,
        upstream: str | None,
        upstream_model: str,
        small: bool,
    ) -> None:
        self.n_samples_questions, self.n_reasoning_questions = n_samples_questions, n_reasoning_questions
        self.n_samples, self.folder, self.model, self.driver = n_samples, folder, model, driver
        self.upstream, self.upstream_model, self.small = upstream, upstream_model, small

    @contextmanager
    def stages(self, console: Console) -> Iterator[list[Stage]]:
        kinds = ("samples",) if self.small else ("samples", "reasoning")
        if self.upstream is not None:
            yield [self._stage(kind, self.upstream_model or "default", self.upstream, slots=4) for kind in kinds]
            return
        files = {kind: fetched(console, "smol" if kind == "samples" else self.model) for kind in kinds}
        with ExitStack() as servers:
            stages = []
            for kind in kinds:
                name = "smol" if kind == "samples" else self.model
                spec = ServerSpec(
                    model_path=files[kind],
                    alias=name,
                    n_parallel=SLOTS[kind],
                    ctx_tokens_per_slot=1024,
                    template=None if kind == "samples" else "think",
                )
                server = servers.enter_context(LocalServer(spec, log_path=self.folder / f"{name}-server.log"))
                stages.append(self._stage(kind, name, server.url, slots=SLOTS[kind]))
            yield stages

    def _stage(self, kind: str, model: str, url: str, *, slots: int) -> Stage:
        at_once = min(AT_ONCE[kind], max(1, slots // 2))  # a probe is sent to a free slot only
        n = self.n_samples_questions if kind == "samples" else self.n_reasoning_questions
        return Stage(
            kind=kind,
            model=model,
            upstream=url,
            driver=self.driver,
            slots=slots,
            n_samples=self.n_samples,
            questions=tasks.questions(kind, n),
            folder=self.folder,
            n_at_once=at_once,
        )


def _run(console: Console, stages: list[Stage]) -> list[StageResult]:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[live]}"),
    )
    with Progress(*columns, console=console) as bars:

        def progress(title: str, total: int) -> Callable[[DemoAnswer], None]:
            task = bars.add_task(title, total=total, live="")
            seen = {"n": 0, "right": 0, "tokens": 0, "stopped": 0}

            def one(answered: DemoAnswer) -> None:
                seen["n"] += 1
                seen["right"] += correct(answered, build_scorer(answered.question.scorer))
                seen["tokens"] += answered.completion_tokens
                seen["stopped"] += answered.stopped
                live = f"EM {seen['right'] / seen['n']:.2f} · {seen['tokens'] / seen['n']:.0f} tokens"
                bars.update(task, advance=1, live=live + (f" · {seen['stopped']} stopped" if seen["stopped"] else ""))

            return one

        async def together() -> list[StageResult]:
            work = {"samples": run.run_samples_stage, "reasoning": run.run_reasoning_stage}
            return list(await asyncio.gather(*(work[stage.kind](stage, progress) for stage in stages)))

        return asyncio.run(together())
