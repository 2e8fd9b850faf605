"""What the processes of `test_faults` do; apart, because each of them imports it."""

from __future__ import annotations

import asyncio
import time
from multiprocessing.connection import Connection

from suffice.settings import Store
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback, Request
from tests.records import plain_request

FINISHED = ""


def seen(episode_id: str) -> Request:
    return plain_request(episode_id)


def feedback(feedback_id: str) -> FeedbackEvent:
    return FeedbackEvent(Feedback(feedback_id=feedback_id, correct=True))


def send_feedback(store: Store, run: str, n_feedback: int, sender: Connection) -> None:
    """Leave a request open, send feedback from four tasks at once and tell each name once it is acknowledged."""
    log = LogWriter(store, now=time.time)
    log.append(seen(f"open-{run}"))

    async def send(worker: int) -> None:
        for i in range(n_feedback):
            name = f"{run}-{worker}-{i}"
            receipt = await log.append_durable(feedback(name))
            assert not receipt.duplicate
            sender.send(name)

    async def send_all() -> None:
        await asyncio.gather(*map(send, range(4)))

    asyncio.run(send_all())
    sender.send(FINISHED)
    time.sleep(600)  # until it is killed
