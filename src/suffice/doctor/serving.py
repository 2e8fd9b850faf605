"""Experiments with the engine itself: prefix cache, slots, cancelled calls.

What the server reports about its cache is believed only as far as the clock agrees.
"""

from __future__ import annotations

import asyncio
import re
from statistics import median
from typing import Any

from suffice.doctor.talk import CHAT, COUNT, Facts, Saw, StreamTranscript, Talk, ms, within

N_WORDS = 1_200  # of a long prompt: hosted services cache from 1,024 tokens on
FEW_WORDS = 128  # of one whose cached tokens are only counted
ROUNDS = 3  # of the time to first token, for its median
SEEN_SHARE = 0.5  # of the prompt that a cache must serve to be of use
FASTER = 0.5  # warm time over cold time that shows a cache where nothing is reported
CLEAR_S = 0.05  # time differences below are noise
CANCEL_WITHIN_S = 3.0  # a cancelled slot must be free by then
LONG_CAP = 1_024  # tokens of a run that is hung up on
_WORDS = ("river", "stone", "lamp", "garden", "winter", "paper", "music", "bridge", "morning", "table")
_RUNNING = re.compile(r"^(?:llamacpp:requests_processing|vllm:num_requests_running)\S* ([\d.]+)", re.MULTILINE)


async def prefix_cache(talk: Talk, facts: Facts) -> Saw:
    pilot = await _first_token(talk, long_prompt(talk.nonce(), facts, FEW_WORDS))
    # A slow server gets a prompt that it can read in an eighth of the time.
    word_s = max(pilot.first_s or pilot.took_s, 1e-6) / FEW_WORDS
    n_words = max(FEW_WORDS, min(N_WORDS, int(talk.timeout_s / 8 / word_s)))
    begin_s, rounds = talk.clock_s(), list[tuple[StreamTranscript, StreamTranscript, StreamTranscript]]()
    while len(rounds) < ROUNDS:
        prompt = long_prompt(talk.nonce(), facts, n_words)
        asked = prompt, prompt, prompt + " And one more word: sea."
        cold, warm, longer = [await _first_token(talk, text) for text in asked]
        if cold.status != 200:
            return Saw("unclear", f"a long prompt was answered {cold.refused}")
        rounds.append((cold, warm, longer))
        elapsed_s = talk.clock_s() - begin_s
        if elapsed_s * (1 + 2 / len(rounds)) > talk.timeout_s:
            break  # one more round might not end in time
    cold_s, warm_s, longer_s = (median(r[i].first_s or r[i].took_s for r in rounds) for i in range(3))
    clock = (
        f"first token after {ms(cold_s)} cold, {ms(warm_s)} again, {ms(longer_s)} with a suffix"
        f" (median of {len(rounds)})"
    )
    _, warm, longer = rounds[-1]
    faster = max(warm_s, longer_s) <= FASTER * cold_s and cold_s - max(warm_s, longer_s) >= CLEAR_S
    if warm.n_cached is None or longer.n_cached is None or not warm.n_prompt:
        sure = faster or cold_s >= 4 * CLEAR_S  # a quick cold prompt leaves nothing to be saved
        return Saw("yes" if faster else "no" if sure else "unclear", f"nothing reported; {clock}")
    facts.reports_cache = True
    reported = f"cached {warm.n_cached:,} of {warm.n_prompt:,} prompt tokens again, {longer.n_cached:,} with a suffix"
    if min(warm.n_cached, longer.n_cached) < SEEN_SHARE * warm.n_prompt:
        return Saw("no", f"{reported}; {clock}")
    if not faster and cold_s >= 10 * CLEAR_S:
        return Saw("unclear", f"{reported}, but the clock does not agree: {clock}")
    return Saw("yes", f"{reported}; {clock}")


def long_prompt(nonce: str, facts: Facts, most_words: int = N_WORDS) -> str:
    """A prompt that no cache has seen, because it begins with a word that is new."""
    room = facts.context_tokens or 8 * N_WORDS
    n_words = max(64, min(most_words, room // 4))
    words = (_WORDS[(i * i + i // 7) % len(_WORDS)] for i in range(n_words))
    return f"{nonce}: here is a list of words. {' '.join(words)}. Say hello."


async def _first_token(talk: Talk, text: str, **more: Any) -> StreamTranscript:
    return await talk.stream(talk.body(text, 1, stream_options={"include_usage": True}, **more))


async def cache_prompt(talk: Talk, facts: Facts) -> Saw:
    if not facts.reports_cache:
        return Saw("unclear", "the server does not report what its cache served")
    prompt = long_prompt(talk.nonce(), facts, FEW_WORDS)
    await _first_token(talk, prompt)
    warm = await _first_token(talk, prompt, cache_prompt=True)
    if warm.status != 200:
        return Saw("no", f"answered {warm.refused}")
    off = await _first_token(talk, prompt, cache_prompt=False)
    counts = f"cached {warm.n_cached or 0:,} of {warm.n_prompt or 0:,} with true, {off.n_cached or 0:,} with false"
    if not warm.n_cached:
        return Saw("unclear", f"{counts}: there is no cache to turn off")
    return Saw("yes" if (off.n_cached or 0) < warm.n_cached / 2 else "ignored", counts)


async def id_slot(talk: Talk, facts: Facts) -> Saw:
    """Ask for the last slot, then for the first, and look which one works; only of a server that is idle.

    llama.cpp's server may load another conversation into a busy slot that is asked for by number.
    """
    if not facts.can_list_slots or not facts.n_slots or facts.n_slots < 2:
        why = "the server has one slot" if facts.n_slots == 1 else "/slots does not say which slot works"
        return Saw("unclear", why)
    results = []
    for wanted in (facts.n_slots - 1, 0):
        if await _busy(talk) != []:
            return Saw("unclear", "somebody else is being served, whose answer the question could spoil")
        seen = StreamTranscript()
        async with talk.open(CHAT, talk.body(COUNT, LONG_CAP, id_slot=wanted, stream=True)) as call:
            async for _ in talk.pieces(call, seen, talk.clock_s()):
                break
            if seen.status != 200:
                return Saw("no", f"answered {seen.refused}")
            results.append((wanted, await _busy(talk) or []))
        await _quiet(talk)
    text = "; ".join(f"asked for {wanted}, working: {busy}" for wanted, busy in results)
    return Saw("yes" if all(busy == [wanted] for wanted, busy in results) else "ignored", text)


async def cancel(talk: Talk, facts: Facts) -> Saw:
    idle = [await talk.whole(talk.body("Say hello.", 1)) for _ in range(ROUNDS)]
    idle_s = median(one.took_s for one in idle)
    seen = StreamTranscript()
    async with talk.open(CHAT, talk.body(COUNT, LONG_CAP, stream=True)) as call:
        async for _ in talk.pieces(call, seen, talk.clock_s()):
            if seen.n_pieces >= 4:
                break
        during = await _running(talk)
    left_s = talk.clock_s()
    if seen.status != 200 or seen.finish_reason is not None:
        return Saw("unclear", f"there was no long answer to hang up on ({seen.n_pieces} pieces)")
    if during:
        free = await _quiet(talk)
        if free:
            return Saw("yes", f"{during} running before, none {ms(talk.clock_s() - left_s)} after the client hung up")
        return Saw("no", f"{await _running(talk)} still running {CANCEL_WITHIN_S:g} s after the client hung up")
    after = await talk.whole(talk.body("Say hello.", 1))
    sentence = f"a short request took {ms(after.took_s)} after a hang-up, {ms(idle_s)} idle"
    if after.took_s > 3 * idle_s + 0.5:
        return Saw("no", sentence)
    if facts.n_slots == 1:
        return Saw("yes", sentence)
    return Saw("unclear", f"{sentence}; a server with a free slot would answer so too")


async def _busy(talk: Talk) -> list[int] | None:
    """The slots that work now; None: the server does not list them."""
    status, listed = await talk.get("/slots")
    if status != 200 or not isinstance(listed, list):
        return None
    return [int(str(within(s, "id"))) for s in listed if within(s, "is_processing") is True]


async def _running(talk: Talk) -> int | None:
    """Requests that run now, from /slots or else /metrics; None: the server says in neither."""
    busy = await _busy(talk)
    if busy is not None:
        return len(busy)
    status, text = await talk.get("/metrics")
    match = _RUNNING.search(text) if status == 200 and isinstance(text, str) else None
    return None if match is None else int(float(match.group(1)))


async def _quiet(talk: Talk) -> bool:
    end_s = talk.clock_s() + CANCEL_WITHIN_S
    while await _running(talk):
        if talk.clock_s() > end_s:
            return False
        await asyncio.sleep(0.02)
    return True
