"""A few hundred passages made from facts, and questions whose answers lie two or three passages apart.

Countries and capitals are real; people and books are invented from a seed, so no model knows them by
heart. Every gold answer is exact by construction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from suffice_demo.local.questions import CAPITALS

FIRST = (
    "Alba",
    "Bruno",
    "Celia",
    "Dario",
    "Elin",
    "Fabio",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Lars",
    "Mira",
    "Nils",
    "Oriol",
    "Petra",
    "Quentin",
    "Rhea",
    "Sven",
    "Talia",
    "Ugo",
    "Vera",
    "Wanda",
    "Yara",
    "Zeno",
)
LAST = (
    "Kovel",
    "Brandis",
    "Torrez",
    "Halm",
    "Ostrav",
    "Pelin",
    "Quist",
    "Rundel",
    "Sarvo",
    "Timmer",
    "Abbas",
    "Corvin",
    "Dresko",
    "Engel",
    "Farkas",
    "Gorin",
    "Ibsel",
    "Jarnik",
    "Lomax",
    "Mortel",
    "Nadir",
    "Ulvang",
    "Varga",
    "Wexler",
    "Zander",
)
WORK = ("painter", "surgeon", "pilot", "baker", "judge", "geologist", "dancer", "plumber", "tailor", "librarian")
HOBBY = ("chess", "rowing", "pottery", "fencing", "sailing", "archery", "juggling", "gardening")
BOOK = ("Harbour", "Lantern", "Orchard", "Compass", "Glacier", "Meadow", "Furnace", "Cathedral", "Island", "Bridge")
COLOUR = ("Amber", "Crimson", "Silver", "Violet", "Golden", "Scarlet", "Ivory", "Copper", "Emerald", "Indigo")


@dataclass(frozen=True, slots=True)
class Question:
    """One question and its only right answer."""

    text: str
    gold: str
    hops: int


def corpus(seed: int = 7) -> list[str]:
    """All passages: capitals, people, books."""
    return [*_capitals(), *(p for person in _people(seed) for p in person.passages)]


def questions(n: int, seed: int = 7) -> list[Question]:
    """Two and three hops in turn: where somebody was born, and where the author of a book was."""
    people = random.Random(seed + 1).sample(_people(seed), n)
    return [
        Question(f"{p.name} was born in the capital of which country?", p.country, 2)
        if i % 2 == 0
        else Question(f"The author of the book {p.book} was born in the capital of which country?", p.country, 3)
        for i, p in enumerate(people)
    ]


@dataclass(frozen=True, slots=True)
class _Person:
    name: str
    city: str
    country: str
    book: str
    passages: tuple[str, ...]


def _capitals() -> list[str]:
    return [f"{city} is the capital of {country}." for country, city in CAPITALS.items()]


def _people(seed: int) -> list[_Person]:
    rng = random.Random(seed)
    names = rng.sample([f"{a} {b}" for a in FIRST for b in LAST], 100)
    titles = rng.sample([f"The {c} {b}" for c in COLOUR for b in BOOK], 100)
    people = []
    for name, book in zip(names, titles, strict=True):
        country, city = rng.choice(sorted(CAPITALS.items()))
        people.append(
            _Person(
                name,
                city,
                country,
                book,
                (
                    f"{name} was born in {city}.",
                    f"{name} is a {rng.choice(WORK)} and likes {rng.choice(HOBBY)}.",
                    f"The book {book} was written by {name}.",
                ),
            )
        )
    return people
