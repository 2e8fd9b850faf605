"""The loops of callers that a gateway keeps open between their steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from suffice.episode.rounds import RoundsRun

OPEN_RUNS = 10_000  # open caller-driven loops; beyond it the caller with the most loses the one idle longest
IDLE_RUN_S = 1_800.0  # a loop idle for longer is abandoned
STOP_GRACE_S = 60.0  # after a stop was delivered: whoever reports no further step has obeyed it


class OpenRuns:
    """Caller-driven runs by episode id, the least recently used first. An ended run stays to answer repeated calls."""

    def __init__(self, *, limit: int = OPEN_RUNS, idle_s: float = IDLE_RUN_S) -> None:
        self._limit, self._idle_s = limit, idle_s
        self._runs: dict[str, tuple[RoundsRun, float, str | None]] = {}  # run, last use, opening key
        self._n_of = Counter[str]()  # runs by sender
        self.opened: dict[str, str] = {}  # idempotency key of the opening call → episode
        self._stopped: dict[str, float] = {}  # when a run was last told to stop, the earliest first

    def __len__(self) -> int:
        return len(self._runs)

    def put(self, run: RoundsRun, *, key: str | None, now_s: float) -> None:
        self._runs[run.id] = run, now_s, key
        self._n_of[run.ledger.request.sender] += 1
        if key is not None:
            self.opened[key] = run.id

    def get(self, episode_id: str, *, sender: str, now_s: float) -> RoundsRun | None:
        run, _, key = self._runs.get(episode_id, (None, 0.0, None))
        if run is None or run.ledger.request.sender != sender:
            return None
        del self._runs[episode_id]
        self._runs[episode_id] = run, now_s, key
        return run

    def note_decision(self, run: RoundsRun, *, now_s: float) -> None:
        self._stopped.pop(run.id, None)
        if run.has_stop and not run.is_over:
            self._stopped[run.id] = now_s

    def pop_stopped(self, *, now_s: float) -> Iterator[RoundsRun]:
        """Return, once, the runs whose caller was told to stop and has reported nothing since then."""
        while self._stopped:
            name, stop_s = next(iter(self._stopped.items()))
            if now_s - stop_s < STOP_GRACE_S:
                return
            del self._stopped[name]
            if name in self._runs:
                yield self._runs[name][0]

    def pop_old(self, *, now_s: float) -> Iterator[RoundsRun]:
        """Remove the abandoned runs, and those beyond the limit; all of them if `now_s` is infinite.

        Beyond the limit a run of the caller with the most goes, so that nobody's loops push out another's.
        """
        while self._runs:
            name, (run, used_s, key) = next(iter(self._runs.items()))
            if now_s - used_s <= self._idle_s:
                if len(self._runs) <= self._limit:
                    return
                most = max(self._n_of, key=self._n_of.__getitem__)
                name = next(name for name, (run, _, _) in self._runs.items() if run.ledger.request.sender == most)
                run, _, key = self._runs[name]
            del self._runs[name]
            self._n_of -= Counter({run.ledger.request.sender: 1})  # which drops whoever has none
            self._stopped.pop(name, None)
            if key is not None and self.opened.get(key) == name:
                del self.opened[key]
            yield run
