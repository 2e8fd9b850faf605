"""The demonstration's questions, each with one right answer. Their facts are in `facts.toml`."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

FACTS: Mapping[str, Any] = tomllib.loads((Path(__file__).parent / "facts.toml").read_text("utf-8"))
CAPITALS: Mapping[str, str] = FACTS["capitals"]
FAMILIES: Mapping[str, list[str]] = FACTS["families"]
POSITIVE_REVIEWS: list[str] = FACTS["positive_reviews"]
NEGATIVE_REVIEWS: list[str] = FACTS["negative_reviews"]
WORDS: list[str] = FACTS["words"]
NAMES: list[str] = FACTS["names"]
THINGS: list[str] = FACTS["things"]
BOXES: list[str] = FACTS["boxes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoQuestion:
    id: str  # unique over all families; the same for all seeds if the family is a fixed list
    ask: str  # the user's message
    gold: str  # the only right answer, not normalised


def capitals(rng: random.Random) -> Iterator[DemoQuestion]:
    for country in rng.sample(sorted(CAPITALS), len(CAPITALS)):
        slug = country.removeprefix("the ").lower().replace(" ", "-")
        yield DemoQuestion(id=f"capitals-{slug}", ask=f"What is the capital of {country}?", gold=CAPITALS[country])


def sentiment(rng: random.Random) -> Iterator[DemoQuestion]:
    labelled = [(text, "positive") for text in POSITIVE_REVIEWS] + [(text, "negative") for text in NEGATIVE_REVIEWS]
    numbered = list(enumerate(labelled, start=1))
    for number, (text, label) in rng.sample(numbered, len(numbered)):
        ask = f"Review: {text}\nIs this review positive or negative?"
        yield DemoQuestion(id=f"sentiment-{number:02d}", ask=ask, gold=label)


def sums(rng: random.Random) -> Iterator[DemoQuestion]:
    """Yield all sums of two numbers from 1 to 9; the answer is the whole equation."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    for a, b in rng.sample(pairs, len(pairs)):
        yield DemoQuestion(id=f"sums-{a}-{b}", ask=f"Write out the sum of {a} and {b}.", gold=f"{a} + {b} = {a + b}")


def letters(rng: random.Random) -> Iterator[DemoQuestion]:
    pairs = [(word, end) for word in WORDS for end in ("first", "last")]
    for word, end in rng.sample(pairs, len(pairs)):
        gold = word[0] if end == "first" else word[-1]
        yield DemoQuestion(id=f"letters-{end}-{word}", ask=f'What is the {end} letter of the word "{word}"?', gold=gold)


def lists(rng: random.Random) -> Iterator[DemoQuestion]:
    """Alternate between "which of three words belongs to a family" and "which of two numbers is larger"."""
    families = sorted(FAMILIES)
    members = [(family, member) for family in families for member in FAMILIES[family]]
    for number, (family, member) in enumerate(rng.sample(members, len(members)), start=1):
        others = rng.sample([f for f in families if f != family], 2)
        options = [member, *(rng.choice(FAMILIES[other]) for other in others)]
        rng.shuffle(options)
        article = "an" if family[0] in "aeiou" else "a"
        ask = f"Which of these is {article} {family}: {options[0]}, {options[1]} or {options[2]}?"
        yield DemoQuestion(id=f"lists-{family}-{member}", ask=ask, gold=member)
        low, high = sorted(rng.sample(range(10, 100), 2))
        first, second = (low, high) if rng.random() < 0.5 else (high, low)
        name = f"lists-larger-{number:02d}-{first}-{second}"
        yield DemoQuestion(id=name, ask=f"Which number is larger, {first} or {second}?", gold=str(high))


def distinct(draw: Callable[[random.Random], DemoQuestion]) -> Callable[[random.Random], Iterator[DemoQuestion]]:
    @wraps(draw)
    def questions(rng: random.Random) -> Iterator[DemoQuestion]:
        ids = set[str]()
        while True:
            question = draw(rng)
            if question.id not in ids:
                ids.add(question.id)
                yield question

    return questions


@distinct
def chains(rng: random.Random) -> DemoQuestion:
    """Return a sum of three or four numbers of at most two digits, never below zero."""
    total = rng.randint(10, 60)
    text = str(total)
    for _ in range(rng.choice((2, 3))):
        value = rng.randint(3, 40)
        if rng.random() < 0.5 and total - value >= 0:
            total, text = total - value, f"{text} - {value}"
        else:
            total, text = total + value, f"{text} + {value}"
    return DemoQuestion(id=f"chains-{text.replace(' ', '')}", ask=f"Calculate {text}.", gold=str(total))


def _packed_minus(rng: random.Random) -> tuple[str, int]:
    name, box, thing = rng.choice(NAMES), rng.choice(BOXES), rng.choice(THINGS)
    n, each = rng.randint(2, 9), rng.randint(3, 12)
    gone = rng.randint(2, n * each - 1)
    has = f"{name} has {n} {box} with {each} {thing} each and gives away {gone} {thing}."
    return f"{has} How many {thing} are left?", n * each - gone


def _packed_plus(rng: random.Random) -> tuple[str, int]:
    name, box, thing = rng.choice(NAMES), rng.choice(BOXES), rng.choice(THINGS)
    n, each, more = rng.randint(2, 9), rng.randint(3, 12), rng.randint(2, 30)
    has = f"{name} buys {n} {box} with {each} {thing} each and already has {more} {thing} at home."
    return f"{has} How many {thing} does {name} have in total?", n * each + more


def _buy_and_give(rng: random.Random) -> tuple[str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    start, more = rng.randint(8, 40), rng.randint(5, 30)
    gone = rng.randint(3, start + more - 1)
    has = f"{name} has {start} {thing}, finds {more} more and then loses {gone}."
    return f"{has} How many {thing} does {name} have now?", start + more - gone


def _share(rng: random.Random) -> tuple[str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    friends, each = rng.randint(2, 8), rng.randint(3, 10)
    first = rng.randint(2, friends * each - 2)
    has = f"{name} has {first} {thing} and gets {friends * each - first} more."
    shares = f"{name} shares all of them equally among {friends} friends."
    return f"{has} {shares} How many {thing} does each friend get?", each


def _earn(rng: random.Random) -> tuple[str, int]:
    name = rng.choice(NAMES)
    hours, wage = rng.randint(3, 9), rng.randint(6, 15)
    spent = rng.randint(5, hours * wage - 5)
    works = f"{name} works {hours} hours for {wage} dollars an hour and then spends {spent} dollars."
    return f"{works} How many dollars are left?", hours * wage - spent


def _ages(rng: random.Random) -> tuple[str, int]:
    young, old = rng.sample(NAMES, 2)
    age, gap, years = rng.randint(5, 30), rng.randint(2, 12), rng.randint(3, 15)
    ages = f"{young} is {age} years old. {old} is {gap} years older than {young}."
    return f"{ages} How old will {old} be in {years} years?", age + gap + years


def _two_prices(rng: random.Random) -> tuple[str, int]:
    name, (one, two) = rng.choice(NAMES), rng.sample(THINGS, 2)
    n, price, m, other = (rng.randint(2, 9) for _ in range(4))
    buys = f"{name} buys {n} {one} for {price} dollars each and {m} {two} for {other} dollars each."
    return f"{buys} How many dollars does {name} pay?", n * price + m * other


def _seats(rng: random.Random) -> tuple[str, int]:
    rows, seats = rng.randint(3, 12), rng.randint(4, 12)
    taken = rng.randint(3, rows * seats - 2)
    hall = f"A hall has {rows} rows of {seats} seats. {taken} seats are taken."
    return f"{hall} How many seats are free?", rows * seats - taken


def _pages(rng: random.Random) -> tuple[str, int]:
    name = rng.choice(NAMES)
    a_day, days = rng.randint(5, 20), rng.randint(3, 9)
    rest = rng.randint(5, 60)
    reads = f"{name} reads {a_day} pages a day of a book with {a_day * days + rest} pages."
    return f"{reads} How many pages are left after {days} days?", rest


STORIES: tuple[Callable[[random.Random], tuple[str, int]], ...] = (
    _packed_minus,
    _packed_plus,
    _buy_and_give,
    _share,
    _earn,
    _ages,
    _two_prices,
    _seats,
    _pages,
)


def stories(rng: random.Random) -> Iterator[DemoQuestion]:
    texts = set[str]()
    while True:
        text, answer = STORIES[len(texts) % len(STORIES)](rng)
        if text not in texts:
            texts.add(text)
            yield DemoQuestion(id=f"stories-{len(texts):04d}", ask=text, gold=str(answer))


FAMILIES_OF_QUESTIONS: Mapping[str, Callable[[random.Random], Iterator[DemoQuestion]]] = {
    family.__name__: family for family in (capitals, sentiment, sums, letters, lists, chains, stories)
}
