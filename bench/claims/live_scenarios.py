"""Traffic with known truth for the live loop: who requests what, how a run goes, and what an early stop loses.

Every request is one of a few hundred *items*: a profile (tokens per step, which the stop model sees) and a course of
answers (which it does not). The loss and saving of a version at each level is a table over items, so the truth is
exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np

from suffice.arrays import Floats

PROFILES: Final = 24
# Answers of the four samples; the last is the answer of the full run. R is right, W and V are wrong.
CALM, LOST, DOUBTFUL, WRONG, WAVERING = range(5)
COURSES: Final = ("RRRR", "WRRR", "RWRR", "WWWW", "VWWW")
# Trial answers after each of four turns of an agent, and what the last one says.
TURNS: Final = ("RRRR", "WWWR", "RWRR", "WWWW", "VWWW")
RARE: Final = 0.002  # of early answers that are wrong in any traffic
EPOCH: Final = 900  # requests between two changes of the model, in the scenario that changes it
N_EPOCHS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """Requests that lose alike.

    lost      rate of early answers that are wrong, [0, 1], which nothing on the way shows
    after     this rate once the change is complete; None: as before
    visible   rate, on top, at the profile that takes most tokens; it grows with the cube of the profile
    run_time  requests that arrive while a full run goes on, from and to
    """

    lost: float = RARE
    after: float | None = None
    visible: float = 0.0
    query_class: str = ""
    run_time: tuple[int, int] = (0, 30)

    def law(self, way: float) -> Floats:
        """P(item), shape (PROFILES, courses); `way` is how far the change has come, [0, 1]."""
        end = self.lost if self.after is None else self.after
        profile = np.arange(PROFILES) / (PROFILES - 1)
        p = np.zeros((PROFILES, len(COURSES)))
        p[:, LOST] = (1 - way) * self.lost + way * end + self.visible * profile**3
        p[:, DOUBTFUL], p[:, WRONG], p[:, WAVERING] = 0.05, 0.12, 0.002
        p[:, CALM] = 1 - p.sum(axis=1)
        return p / PROFILES


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One delivery of a request, as the gateway sees it."""

    stratum: int
    caller: str
    body: str
    conversation: str | None = None
    turn: int = 1
    key: str | None = None  # idempotency key
    prompt: str = ""  # what decides the item where it repeats; "": drawn anew

    @property
    def question(self) -> str:
        """What the prompt's hash is made of."""
        return self.prompt or f"{self.caller} {self.conversation} {self.body}"


Arrivals: TypeAlias = Callable[[np.random.Generator], Iterator[Arrival]]
Way: TypeAlias = Callable[[float], float]  # requests since the change began → how far it has come, [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """When labels of audits come: requests until then, mean of a geometric law, and P(it comes at all)."""

    lost: tuple[float, float] = (50.0, 1.0)  # where a stop would have lost
    other: tuple[float, float] = (50.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A stream of requests and what happens to it.

    shares     of strata, before and after the change; the arrivals keep to them
    change_at  request at which the change begins; None: nothing changes
    is_fixed   a few prompts decide everything: the truth is the mean over the stream itself, not over a law
    repeats    stratum of further deliveries under one idempotency key: where draws are made per request, each of them
               runs in full and is no request of its own; None: there is none
    n_models   models that answer one after the other, a new one every `EPOCH` requests
    burst      requests that an epoch begins with in full; None: as the loop has it
    keep_rate  of live requests, whose rows are kept
    by_turns   a request is a run of an agent's turns, with an answer tried after each, and not a vote over samples
    """

    says: str
    strata: tuple[Stratum, ...]
    arrivals: Arrivals
    shares: tuple[tuple[float, ...], tuple[float, ...] | None] = ((1.0,), None)
    n: int = 6_000
    change_at: int | None = None
    way: Way = lambda _: 1.0
    delays: Delays = field(default_factory=Delays)
    is_fixed: bool = False
    repeats: int | None = None
    n_models: int = 1
    burst: int | None = None
    keep_rate: float = 0.2
    by_turns: bool = False

    def how_far(self, t: int) -> float:
        """How far the change has come at request t."""
        return 0.0 if self.change_at is None or t < self.change_at else self.way(float(t - self.change_at))

    def law(self, way: float, *, counts_repeats: bool) -> Floats:
        """P(stratum, item) of a request, shape (strata, PROFILES, courses)."""
        before, after = self.shares
        mixed = np.array(before) if after is None else (1 - way) * np.array(before) + way * np.array(after)
        if self.repeats is not None and not counts_repeats:
            mixed[self.repeats] = 0.0
        mixed /= mixed.sum()
        return np.stack([part * stratum.law(way) for part, stratum in zip(mixed, self.strata, strict=True)])


# --------------------------------------------------------------------------- who arrives


def singles(rng: np.random.Generator) -> Iterator[Arrival]:
    """Requests that have nothing to do with each other."""
    number = 0
    while True:
        number += 1
        yield Arrival(stratum=0, caller=f"c{rng.integers(50)}", body=f"b{number}")


def conversations(turns: int, *, open_at_once: int = 40) -> Arrivals:
    """Conversations of so many turns, many open at once; the first turn is of stratum 0, later ones of stratum 1."""

    def arrive(rng: np.random.Generator) -> Iterator[Arrival]:
        at = [[number, 0] for number in range(open_at_once)]
        following = open_at_once
        while True:
            place = int(rng.integers(open_at_once))
            name, turn = at[place]
            at[place][1] += 1
            if turn + 1 == turns:
                at[place], following = [following, 0], following + 1
            yield Arrival(
                stratum=min(turn, 1),
                caller=f"c{name % 50}",
                body=f"b{name}.{turn}",
                conversation=f"v{name}",
                turn=turn + 1,
            )

    return arrive


def heavy(rng: np.random.Generator) -> Iterator[Arrival]:
    """One client sends 40 % of the requests under one id, each of them another turn."""
    turn = 0
    for single in singles(rng):
        if rng.random() < 0.4:
            turn += 1
            yield Arrival(stratum=1, caller="heavy", body=f"h{turn}", conversation="session", turn=turn)
        else:
            yield single


def repeated(rng: np.random.Generator) -> Iterator[Arrival]:
    """Half of the requests repeat a prompt, each 50 times, eight at once: by one caller, or by 50 who ask once each."""
    hot, following = list[list[int]](), 0
    for single in singles(rng):
        if rng.random() < 0.5:
            yield single
            continue
        while len(hot) < 8:
            hot.append([following, 0])
            following += 1
        place = int(rng.integers(len(hot)))
        name, asked = hot[place]
        hot[place][1] += 1
        if asked + 1 == 50:
            del hot[place]
        one = name % 2 == 0
        yield Arrival(
            stratum=1 if one else 2, caller=f"c{name}" if one else f"c{asked}", body=f"hot{name}", prompt=f"hot{name}"
        )


def adversary(rng: np.random.Generator) -> Iterator[Arrival]:
    """A third of the requests come from a client that begins every id harmlessly and then sends what stops harm.

    It names conversations, repeats idempotency keys with other bodies, and spells one prompt with more and more spaces,
    ten requests each. Later turns are of stratum 1, spelled prompts of stratum 2, later deliveries of a key of 3.
    """
    ways = ("conversation", "key", "spelling")
    sent = dict.fromkeys(ways, 0)
    for single in singles(rng):
        if rng.random() >= 1 / 3:
            yield single
            continue
        way = ways[int(rng.integers(3))]
        sent[way] += 1
        name, turn = divmod(sent[way] - 1, 10)
        one = Arrival(stratum=min(turn, 1), caller="eve", body=f"{way} {sent[way]}")
        if way == "conversation":
            yield replace(one, conversation=f"e{name}", turn=turn + 1)
        elif way == "key":
            yield replace(one, stratum=3 if turn else 0, key=f"e{name}")
        else:
            yield replace(one, stratum=2, body=f"e{name}" + " " * turn)


def mixed(share: float, after: float, at: int) -> Arrivals:
    """Two strata whose shares change at a request; share of stratum 1 before and after."""

    def arrive(rng: np.random.Generator) -> Iterator[Arrival]:
        for number, single in enumerate(singles(rng), 1):
            second = rng.random() < (share if number < at else after)
            yield Arrival(stratum=int(second), caller=single.caller, body=single.body)

    return arrive


# --------------------------------------------------------------------------- scenarios

GRADED: Final = Stratum(visible=0.16)  # stops lose 4 % at the last level, and what loses more can be seen
HALF_PERIOD: Final = 500.0  # requests for which an oscillation stays
_AT: Final = 4_000


def _drift(says: str, way: Way = lambda _: 1.0, *, after: float = 0.06) -> Scenario:
    return Scenario(
        says=says,
        strata=(Stratum(after=after),),
        arrivals=singles,
        n=9_000,
        change_at=_AT,
        way=way,
    )


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "single turns": Scenario(
        says="independent requests; what loses more can be seen",
        strata=(GRADED,),
        arrivals=singles,
        keep_rate=1.0,
    ),
    "5 turns": Scenario(
        says="conversations of 5 turns; later turns lose 6 % to an early stop",
        strata=(Stratum(), Stratum(lost=0.06)),
        shares=((0.2, 0.8), None),
        arrivals=conversations(5),
        n=8_000,
    ),
    "20 turns": Scenario(
        says="conversations of 20 turns; later turns lose 6 % to an early stop",
        strata=(Stratum(), Stratum(lost=0.06)),
        shares=((0.05, 0.95), None),
        arrivals=conversations(20),
        n=14_000,
    ),
    "agent": Scenario(
        says="conversations of 5 runs of an agent's turns; in later ones 4 % of the first trial answers are wrong",
        strata=(Stratum(), Stratum(visible=0.2)),
        shares=((0.2, 0.8), None),
        arrivals=conversations(5),
        n=8_000,
        by_turns=True,
    ),
    "heavy client": Scenario(
        says="40 % of the requests come under one id, and 40 % of those lose",
        strata=(Stratum(), Stratum(lost=0.4)),
        shares=((0.6, 0.4), None),
        arrivals=heavy,
    ),
    "repeated prompts": Scenario(
        says="half of the requests repeat a prompt 50 times; stops harm an eighth of those that one caller repeats",
        strata=(Stratum(), Stratum(lost=0.125), Stratum(lost=0.02)),
        shares=((0.5, 0.25, 0.25), None),
        arrivals=repeated,
        is_fixed=True,
    ),
    "chosen ids": Scenario(
        says="a client with a third of the requests begins every id harmlessly; 40 % of what follows lose",
        strata=(Stratum(), Stratum(lost=0.4), Stratum(lost=0.01), Stratum(lost=0.4)),
        shares=((31 / 45, 1 / 10, 1 / 9, 1 / 10), None),
        arrivals=adversary,
        repeats=3,
    ),
    "run times": Scenario(
        says="30 % of the requests run for 500 to 1,500 requests, and 20 % of these lose",
        strata=(Stratum(), Stratum(lost=0.2, run_time=(500, 1_500))),
        shares=((0.7, 0.3), None),
        arrivals=mixed(0.3, 0.3, 0),
    ),
    "labels": Scenario(
        says="labels of losses come after 800 requests and for 40 % only, others after 100 and for 90 %",
        strata=(GRADED,),
        arrivals=singles,
        delays=Delays(lost=(800.0, 0.4), other=(100.0, 0.9)),
    ),
    "20 epochs": Scenario(
        says=f"another model every {EPOCH} requests, {N_EPOCHS} of them; the last level loses 2.2 %",
        strata=(Stratum(lost=0.022),),
        arrivals=singles,
        n=N_EPOCHS * EPOCH,
        n_models=N_EPOCHS,
        burst=600,
    ),
    "silent": _drift("from request 4,000 on 6 % of early answers are wrong, and nothing shows it"),
    "ramp": _drift(
        "from request 4,000 on early answers go wrong, 8 % of them after 4,000 more",
        lambda since: min(1.0, since / 4_000),
        after=0.08,
    ),
    "oscillation": _drift(
        "from request 4,000 on 6 % of early answers are wrong, for every other 500 requests",
        lambda since: float(since % (2 * HALF_PERIOD) < HALF_PERIOD),
    ),
    "classes": Scenario(
        says="two classes swap their shares of 85 and 15 % at request 4,000; stops lose 0.2 % in one, 6 % in the other",
        strata=(Stratum(query_class="a"), Stratum(lost=0.06, query_class="b")),
        shares=((0.85, 0.15), (0.15, 0.85)),
        arrivals=mixed(0.15, 0.85, _AT),
        n=9_000,
        change_at=_AT,
    ),
}
