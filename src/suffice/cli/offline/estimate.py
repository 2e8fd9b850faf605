"""`suffice estimate`: predicts from logs what early stopping would save. Makes no calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from suffice.cli.offline import trace_files
from suffice.cli.shell import FILE, JSON_OBJECT, Command, option, wrapped
from suffice.errors import ConfigError
from suffice.plugins import load_plugins
from suffice.replay.estimate import (
    CertifiableLevel,
    LogEstimate,
    LogRuns,
    QuantityInterval,
    estimate_levels,
    replay_ladder,
    runs_of_calls,
    runs_of_traces,
    traffic_of,
)
from suffice.replay.logs import FORMATS, Log, read_logs
from suffice.replay.traces.read import read_traces
from suffice.scoring.base import build_scorer

SEED = 0  # of the random draws: the same log gives the same figures
HOUR_S, DAY_S = 3_600.0, 86_400.0


@click.command(cls=Command)
@click.argument("logs", nargs=-1, required=True, type=FILE)
@option("--max-em-drop", type=float, default=0.02, metavar="E", help="Largest EM drop: a fraction, 0.01 is one point.")
@option("--confidence", type=float, default=0.95, metavar="C", help="How sure the promise must be: a fraction.")
@option("--scorer", default="text", metavar="NAME", help="How answers are read and compared, as in the settings.")
@option(
    "--like", multiple=True, metavar="FILE", help="Recorded traces of similar traffic to judge stops by; repeatable."
)
@option("--audit-share", type=float, default=0.1, metavar="S", help="Fraction of the requests that runs in full.")
@option(
    "--audits", type=click.IntRange(1), default=800, metavar="N", help="Audits that a certificate rests on, at most."
)
@option("--format", "as_format", type=click.Choice(FORMATS), help="Format of the logs. [default: told from each]")
@JSON_OBJECT
def estimate(
    logs: tuple[Path, ...],
    like: tuple[str, ...],
    scorer: str,
    audits: int,
    as_format: str | None,
    *,
    as_json: bool,
    **fractions: float,
) -> None:
    """Predict from LOGS the saving at a maximum EM drop, the cost of audits, and how many days they take.

    LOGS are OpenAI requests with their responses as JSON lines, or logs of LiteLLM, Langfuse or vLLM. No call is made.
    Exits with 2 when the logs cannot be read or hold too little.
    """
    for name, value in fractions.items():
        if not 0 < value < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: got {value}; a fraction between 0 and 1 (1 point = 0.01)")
    load_plugins()
    reader = build_scorer(scorer)
    log = read_logs(logs, as_format=as_format)
    own = runs_of_calls(log.calls, reader)
    judged = runs_of_traces(read_traces(trace_files(like))) if like else own
    if not judged.runs:
        raise ConfigError(
            f"{', '.join(map(str, logs))}: shows no thought, and no prompt was answered three times: nothing says when"
            " a stop would suffice; name recorded traces of traffic like yours with --like"
        )
    rng = np.random.default_rng(SEED)
    n_requests = len(log.calls) if own.kind != "samples" else len(own.runs) + own.n_unfit
    traffic = traffic_of(log.calls, n_requests, rng)
    result = estimate_levels(
        replay_ladder(judged, reader),
        traffic,
        most_audits=audits,
        rng=rng,
        assumed=_assumed(like, own, judged, traffic.span_s),
        **fractions,
    )
    if as_json:
        formats = {"formats": log.formats, "n_records": log.n_records, "n_left_out": log.n_left_out}
        click.echo(json.dumps(asdict(result) | formats))
    else:
        _print(result, log, like)


def _assumed(like: Sequence[str], own: LogRuns, judged: LogRuns, span_s: float | None) -> list[str]:
    sentences = ["requests keep coming as in the log: same rate, same mix of questions, same model and settings"]
    if like:
        sentences.append(f"stops do on this traffic what they do on {', '.join(map(str, like))}")
    elif judged.kind == "samples":
        sentences.append(
            "calls with the same prompt are the samples of one request, in the order of their times; the tokens of"
            " a call with several choices are shared equally by them"
        )
        if own.n_unfit:
            sentences.append(
                f"{own.n_unfit} prompts with fewer than three answers behave like the {len(own.runs)} others"
            )
    else:
        sentences.append(
            "a stop gives the answer that the thought itself shows last; without probes nobody can ask for another,"
            " and whether the delivered answer is the same shows only live"
        )
    if span_s is None:
        sentences.append("the log has no times, so no number of days is given")
    elif span_s < DAY_S:
        sentences.append(f"a day is like the {span_s / HOUR_S:.1f} hours in the log")
    return sentences


def _print(result: LogEstimate, log: Log, like: Sequence[str]) -> None:
    traffic = result.traffic
    a_day = "" if traffic.requests_per_day is None else f", {_range(traffic.requests_per_day, '{:,.0f}')} a day"
    click.echo(
        f"{traffic.n_calls:,} calls ({', '.join(dict.fromkeys(log.formats))}), {log.n_left_out} records left out;"
        f" {traffic.n_requests:,} requests{a_day}"
    )
    source = f"traces {', '.join(map(str, like))}" if like else "the log"
    click.echo(
        f"judged by {result.ladder} of {result.n_runs:,} full runs of {result.n_questions:,} questions in {source}\n"
    )
    width = max(len("level"), *(len(level.name) for level in result.levels))
    click.echo(f"{'level':<{width}} {'stopped':>8} {'saving':>21} {'differs from full run':>22} {'audits':>8}")
    for level in result.levels:
        audits = "never" if level.audits is None else f"{level.audits:,.0f}"
        saving, differs = _range(level.saving, "{:.1%}"), _range(level.disagreement, "{:.1%}")
        click.echo(f"{level.name:<{width}} {level.stopped:>8.0%} {saving:>21} {differs:>22} {audits:>8}")
    for promise in result.promises:
        _print_promise(promise, result)
    click.echo("\nassumed:")
    for sentence in result.assumed:
        click.echo(wrapped(sentence, "  - ", "    "))
    click.echo(wrapped("Intervals hold 90% of what the log allows under these assumptions."))
    click.echo(wrapped("Nothing is promised before live audits."))


def _print_promise(promise: CertifiableLevel, result: LogEstimate) -> None:
    how = {
        "agreement": "without labels (every answer that differs counts as a loss)",
        "labels": "with labels of the audits that differ",
    }[promise.judged_by]
    click.echo(f"\nEM drop at most {100 * result.max_em_drop:g} points at {result.confidence:.0%}, {how}:")
    if promise.level is None or promise.audits is None:
        click.echo(f"  nothing can be certified with {result.most_audits:,} audits")
        return
    days = "unknown" if promise.days is None else f"{_range(promise.days, '{:,.1f}')} days"
    lines = [
        ("chance that a level is certified", f"{promise.p_any:.0%}, most likely {promise.level}"),
        ("certifiable saving", f"{_range(promise.saving, '{:.1%}')} of generated tokens"),
        ("audits cost", f"{_range(promise.audit_cost, '{:.1%}')} at {result.audit_share:.0%} audits"),
        ("net saving", _range(promise.net_saving, "{:.1%}")),
    ]
    if promise.net_saving_of_all_tokens is not None:
        lines.append(("… of all tokens, prompts included", _range(promise.net_saving_of_all_tokens, "{:.1%}")))
    lines.append(("to the certificate", f"{_range(promise.audits, '{:,.0f}')} audits, {days}"))
    for what, value in lines:
        click.echo(f"  {what:<34} {value}")


def _range(value: QuantityInterval, how: str) -> str:
    return f"{how.format(value.middle)} [{how.format(value.low)}, {how.format(value.high)}]"
