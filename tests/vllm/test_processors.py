"""Both processors in a batch whose rows come, go and move, and the way of a word from HTTP to the logits."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace as Plain
from typing import Any

import numpy as np
import pytest

from tests.vllm.conftest import N_WORDS, TAG, Move, config, encode, parameters

CLOSING = encode(TAG)  # the line has just ended: the stand-in's favourite token is a line end
NAMED: dict[str, Any] = {"suffice_text": "\n" + TAG, "suffice_tag": TAG}


def update(removed: Any = (), added: Any = (), moved: Any = ()) -> Any:
    return Plain(removed=removed, added=added, moved=moved)


def logits(n_rows: int, favourite: int = 1) -> Any:
    values = np.zeros((n_rows, N_WORDS), dtype=np.float32)
    values[:, favourite] = 3.0
    return values


def step(processor: Any, outputs: list[list[int]]) -> None:
    """One greedy step of a V1 batch, whose rows are `outputs`."""
    processor.update_state(None)
    chosen = processor.apply(logits(len(outputs))).argmax(axis=-1)
    for output, token in zip(outputs, chosen, strict=True):
        output.append(int(token))


def test_v1_ends_one_run_of_a_batch_and_leaves_the_others_alone(engine: Any) -> None:
    processor = engine.v1.EndThoughtV1(config(), None, False)
    first, second, plain = [], [], []  # type: ignore[var-annotated]
    added = [
        (0, parameters(suffice_run="a", **NAMED), [1], first),
        (1, parameters(suffice_run="b", **NAMED), [1], second),
        (2, parameters(), [1], plain),
    ]
    processor.update_state(update(added=added))
    rows = [first, second, plain]
    for _ in range(3):
        step(processor, rows)
    assert processor._table.end("b")
    step(processor, rows)
    # In the middle of the text the rows are moved: the run goes on where its row is now.
    processor.update_state(update(moved=[(0, 1, Move.SWAP)]))
    rows = [second, first, plain]
    step(processor, rows)
    processor.update_state(update(removed=[1], moved=[(2, 1, Move.UNIDIRECTIONAL)]))
    rows = [second, plain]
    for _ in range(3):
        step(processor, rows)
    assert second == [1, 1, 1, *CLOSING, 1, 1, 1]
    assert first == [1] * 5
    assert plain == [1] * 8


def test_v1_goes_on_after_a_preemption_in_another_row(engine: Any) -> None:
    processor = engine.v1.EndThoughtV1(config(), None, False)
    output: list[int] = []
    named = parameters(suffice_run="a", **NAMED)
    processor.update_state(update(added=[(0, named, [1], output)]))
    step(processor, [output])
    assert processor._table.end("a")
    step(processor, [output])
    processor.update_state(update(removed=[0]))
    processor.apply(logits(1))
    processor.update_state(update(added=[(0, parameters(), [1], []), (1, named, [1], output)]))
    processor.apply(logits(2))  # a part of the prompt is read again: what it chooses is thrown away
    other: list[int] = []
    for _ in range(3):
        step(processor, [other, output])
    assert output == [1, *CLOSING, 1, 1]
    assert other == [1, 1, 1]


def test_v1_reads_margins_at_line_ends_without_a_probe(engine: Any) -> None:
    processor = engine.v1.EndThoughtV1(config(), None, False)
    output: list[int] = []
    processor.update_state(update(added=[(0, parameters(suffice_run="a", suffice_signals=1, **NAMED), [1], output)]))
    for favourite in (5, 5, 1, 6):
        values = logits(1, favourite)
        output.append(int(processor.apply(values).argmax()))
    (reading,) = processor._table.readings("a", 0)
    assert reading.n_tokens == 3
    assert reading.end_margin == pytest.approx(3.0)
    chosen = 3.0 - np.log(np.exp(3.0) + N_WORDS - 1)
    assert reading.logprob == pytest.approx(chosen, abs=1e-5)
    assert processor._table.readings("a", 3) == []


@pytest.mark.parametrize("changed", [{"tensor": 2}, {"pipeline": 2}, {"speculative": Plain()}])
def test_an_unsafe_set_up_does_not_start(engine: Any, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="suffice-vllm: "):
        engine.v1.EndThoughtV1(config(**changed), None, False)
    with pytest.raises(ValueError, match="suffice-vllm: "):
        engine.v2.EndThoughtV2(config(**changed), Plain())


class Slots:
    """The V2 runner's buffers: tokens by slot, the prompt's first."""

    def __init__(self) -> None:
        self.tokens = np.zeros((4, 64), dtype=np.int64)
        self.prompt_len = Plain(np=np.zeros(4, dtype=np.int64))
        self.total_len = Plain(gpu=np.zeros(4, dtype=np.int64))
        self.all_token_ids = Plain(gpu=self.tokens)

    def put(self, slot: int, tokens: list[int]) -> None:
        start = int(self.total_len.gpu[slot])
        self.tokens[slot, start : start + len(tokens)] = tokens
        self.total_len.gpu[slot] += len(tokens)

    def begin(self, slot: int, prompt: list[int]) -> None:
        self.total_len.gpu[slot], self.prompt_len.np[slot] = 0, len(prompt)
        self.put(slot, prompt)


def test_v2_ends_one_run_by_its_slot_whatever_its_row(engine: Any) -> None:
    states = Slots()
    processor = engine.v2.EndThoughtV2(config(), states)
    for slot, prompt, arguments in ((2, [7, 7], {"suffice_run": "a", **NAMED}), (0, [7], dict[str, Any]())):
        states.begin(slot, prompt)
        assert processor.add_request(slot, parameters(**arguments)) is bool(arguments)

    def run_step(order: list[int]) -> None:
        lengths = np.array([states.total_len.gpu[slot] for slot in order])
        context = Plain(idx_mapping_np=np.array(order), seq_lens_upper_bound_np=lengths)
        for slot, token in zip(order, processor.apply(logits(len(order)), context).argmax(axis=-1), strict=True):
            states.put(slot, [int(token)])

    run_step([2, 0])
    assert processor._table.end("a")
    for order in ([0, 2], [2, 0], [0, 2], [2], [2]):
        run_step(order)
    assert states.tokens[2, 2:8].tolist() == [1, *CLOSING, 1, 1, 1]
    assert states.tokens[0, 1:5].tolist() == [1] * 4
    # The slot's next request is nobody's run.
    states.begin(2, [7])
    assert processor.add_request(2, parameters()) is False
    run_step([2])
    assert states.tokens[2, 1] == 1


async def post(endpoint: Any, body: bytes, path: str = "/v1/chat/completions/control") -> tuple[int, Any]:
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        sent.append(message)

    await endpoint({"type": "http", "method": "POST", "path": path, "root_path": ""}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def vllm_itself(status: int) -> Any:
    """vLLM's application, which does not know the path, or refuses its caller before it looks."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"error": "vllm"}'})

    return app


async def test_a_word_over_http_reaches_the_worker_that_has_the_run(engine: Any) -> None:
    from suffice_vllm.control import ControlEndpoint

    workers = [engine.v1.EndThoughtV1(config(), None, False) for _ in range(2)]
    output: list[int] = []
    workers[1].update_state(update(added=[(0, parameters(suffice_run="a", **NAMED), [1], output)]))
    step(workers[1], [output])
    dead = engine.folder / "1-0.sock"
    import socket

    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(dead))
    endpoint = ControlEndpoint(vllm_itself(404))
    ask = json.dumps({"id": "a", "action": "reasoning_end"}).encode()
    assert await post(endpoint, ask) == (200, {"success": True})
    assert not await asyncio.to_thread(dead.exists)
    step(workers[1], [output])
    assert output == [1, CLOSING[0]]
    status, answer = await post(endpoint, json.dumps({"id": "b", "action": "reasoning_end"}).encode())
    assert (status, answer["success"]) == (200, False)
    assert (await post(endpoint, b'{"id": 3}'))[0] == 400
    assert (await post(endpoint, b"x" * 5_000))[0] == 413
    # Whoever vLLM would not admit ends nothing.
    assert await post(ControlEndpoint(vllm_itself(401)), ask) == (401, {"error": "vllm"})
    assert (await post(endpoint, b"{}", path="/v1/other"))[0] == 404


async def test_a_word_that_comes_after_its_caller_gave_up_ends_nothing(engine: Any) -> None:
    worker, output = engine.v1.EndThoughtV1(config(), None, False), list[int]()
    worker.update_state(update(added=[(0, parameters(suffice_run="a", **NAMED), [1], output)]))
    table, ask = worker._table, {"id": "a", "action": "reasoning_end"}
    late = json.dumps(ask | {"until": time.monotonic() - 0.1}).encode()
    assert engine.channel.respond(table, late) == {"success": False}
    step(worker, [output])
    step(worker, [output])
    assert output == [1, 1]
    assert await engine.channel.ask_workers(ask) == {"success": True}
    step(worker, [output])
    assert output == [1, 1, CLOSING[0]]


def test_sockets_are_closed_to_other_users(engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("SUFFICE_VLLM_FOLDER", str(folder))
    with pytest.raises(PermissionError, match="mode 700"):
        engine.v1.EndThoughtV1(config(), None, False)
