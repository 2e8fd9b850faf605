"""The demonstration's questions and the facts behind them, each with its only right answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

CAPITALS: Mapping[str, str] = {
    "Albania": "Tirana",
    "Algeria": "Algiers",
    "Angola": "Luanda",
    "Argentina": "Buenos Aires",
    "Armenia": "Yerevan",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Azerbaijan": "Baku",
    "Bahrain": "Manama",
    "Bangladesh": "Dhaka",
    "Belarus": "Minsk",
    "Belgium": "Brussels",
    "Bhutan": "Thimphu",
    "Botswana": "Gaborone",
    "Bulgaria": "Sofia",
    "Cambodia": "Phnom Penh",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Cyprus": "Nicosia",
    "Denmark": "Copenhagen",
    "Ecuador": "Quito",
    "Egypt": "Cairo",
    "Estonia": "Tallinn",
    "Ethiopia": "Addis Ababa",
    "Fiji": "Suva",
    "Finland": "Helsinki",
    "France": "Paris",
    "Georgia": "Tbilisi",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Guatemala": "Guatemala City",
    "Honduras": "Tegucigalpa",
    "Hungary": "Budapest",
    "India": "New Delhi",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Kuwait": "Kuwait City",
    "Kyrgyzstan": "Bishkek",
    "Laos": "Vientiane",
    "Latvia": "Riga",
    "Lebanon": "Beirut",
    "Liberia": "Monrovia",
    "Libya": "Tripoli",
    "Lithuania": "Vilnius",
    "Madagascar": "Antananarivo",
    "Malawi": "Lilongwe",
    "Mali": "Bamako",
    "Malta": "Valletta",
    "Mexico": "Mexico City",
    "Morocco": "Rabat",
    "Mozambique": "Maputo",
    "Namibia": "Windhoek",
    "Nepal": "Kathmandu",
    "New Zealand": "Wellington",
    "Nicaragua": "Managua",
    "Niger": "Niamey",
    "Nigeria": "Abuja",
    "North Korea": "Pyongyang",
    "Norway": "Oslo",
    "Oman": "Muscat",
    "Pakistan": "Islamabad",
    "Panama": "Panama City",
    "Peru": "Lima",
    "the Philippines": "Manila",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Qatar": "Doha",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Rwanda": "Kigali",
    "Saudi Arabia": "Riyadh",
    "Senegal": "Dakar",
    "Serbia": "Belgrade",
    "Slovakia": "Bratislava",
    "Slovenia": "Ljubljana",
    "Somalia": "Mogadishu",
    "South Korea": "Seoul",
    "Spain": "Madrid",
    "Sudan": "Khartoum",
    "Sweden": "Stockholm",
    "Switzerland": "Bern",
    "Syria": "Damascus",
    "Thailand": "Bangkok",
    "Tunisia": "Tunis",
    "Turkey": "Ankara",
    "Uganda": "Kampala",
    "the United Kingdom": "London",
    "Uruguay": "Montevideo",
    "Venezuela": "Caracas",
    "Vietnam": "Hanoi",
    "Zambia": "Lusaka",
    "Zimbabwe": "Harare",
}

POSITIVE_REVIEWS: tuple[str, ...] = (
    "The soup was hot, rich and exactly what I wanted.",
    "I laughed from the first scene to the last.",
    "These shoes are the most comfortable I have ever owned.",
    "The staff were kind and solved my problem in five minutes.",
    "A lovely hotel with a clean room and a wonderful view.",
    "The battery easily lasts two days, which is great.",
    "My children adore this game and play it every evening.",
    "Fresh bread, friendly people, fair prices.",
    "The book is so good that I read it in one night.",
    "Delivery came a day early and everything was perfect.",
    "This is the best coffee in town.",
    "The new phone is fast, light and beautiful.",
    "What a charming little theatre; we will come again.",
    "The repair was cheap and the bike rides like new.",
    "I am very happy with this warm and soft jacket.",
    "The guide was funny and knew every corner of the city.",
    "An excellent course that taught me a lot.",
    "The cake was delicious and the portion generous.",
    "Setting it up took one minute and it works flawlessly.",
    "Our room was quiet and we slept wonderfully.",
    "The concert was magical and the sound superb.",
    "I recommend this dentist to everyone; she is gentle and careful.",
    "The garden is gorgeous and perfect for a picnic.",
    "Great value: sturdy, pretty and cheap.",
    "The singer has a beautiful voice and the songs are terrific.",
    "The pizza was crisp and full of flavour.",
    "A brilliant film with a moving end.",
    "The museum was fascinating and the entrance was free.",
    "Customer service answered at once and was very helpful.",
    "I love this lamp; it makes the whole room cosy.",
)

NEGATIVE_REVIEWS: tuple[str, ...] = (
    "The soup was cold and tasted of nothing.",
    "I was so bored that I left before the end.",
    "These shoes hurt and fell apart after a week.",
    "The staff were rude and ignored us for an hour.",
    "A dirty hotel with a broken shower and a terrible smell.",
    "The battery dies after an hour, which is awful.",
    "My children hated this game and threw it away.",
    "Stale bread, unfriendly people, silly prices.",
    "The book is so dull that I gave up after ten pages.",
    "Delivery came three weeks late and the box was crushed.",
    "This is the worst coffee I have ever had.",
    "The new phone is slow, heavy and ugly.",
    "What a horrible theatre; we will never come again.",
    "The repair was expensive and the bike is still broken.",
    "I am very disappointed with this thin and scratchy jacket.",
    "The guide was grumpy and knew nothing about the city.",
    "A useless course that taught me nothing.",
    "The cake was dry and far too sweet, simply disgusting.",
    "Setting it up took all day and it still does not work.",
    "Our room was noisy and we could not sleep at all.",
    "The concert was a disaster and the sound was dreadful.",
    "I warn everyone about this dentist; he is rough and careless.",
    "The garden is full of rubbish and smells bad.",
    "A waste of money: flimsy, ugly and overpriced.",
    "The singer is out of tune and the songs are terrible.",
    "The pizza was burnt and we had to send it back.",
    "A stupid film with a ridiculous end.",
    "The museum was boring and much too expensive.",
    "Customer service never answered and did not help at all.",
    "I regret buying this lamp; it broke on the first day.",
)

WORDS: tuple[str, ...] = (
    "apple",
    "bread",
    "cloud",
    "dance",
    "eagle",
    "flower",
    "garden",
    "horse",
    "island",
    "jacket",
    "kitchen",
    "lemon",
    "mountain",
    "needle",
    "orange",
    "pencil",
    "queen",
    "river",
    "silver",
    "table",
    "uncle",
    "violin",
    "window",
    "yellow",
    "zebra",
    "basket",
    "candle",
    "dragon",
    "engine",
    "forest",
    "guitar",
    "hammer",
    "insect",
    "jungle",
    "kettle",
    "ladder",
    "market",
    "nature",
    "office",
    "planet",
)

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "lion", "rabbit", "tiger", "sheep", "wolf", "bear"),
    "fruit": ("banana", "apple", "pear", "cherry", "grape", "mango", "peach", "plum", "lemon", "melon"),
    "vehicle": ("car", "bus", "train", "truck", "bicycle", "ship", "tram", "van", "taxi", "motorcycle"),
    "colour": ("red", "blue", "green", "yellow", "purple", "white", "black", "pink", "brown", "grey"),
}


NAMES = (
    "Ann",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Mary",
    "Nick",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
)
THINGS = ("apples", "pencils", "books", "eggs", "coins", "stickers", "cookies", "marbles", "cards", "shells")
BOXES = ("boxes", "bags", "baskets", "packs", "trays")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoQuestion:
    id: str  # unique among all families, stable over seeds where the family is a fixed list
    ask: str  # what the user writes
    gold: str  # the only right answer, before any scorer's normal form


def capitals(rng: random.Random) -> Iterator[DemoQuestion]:
    """The capital of each listed country, in random order."""
    for country in rng.sample(sorted(CAPITALS), len(CAPITALS)):
        slug = country.removeprefix("the ").lower().replace(" ", "-")
        yield DemoQuestion(id=f"capitals-{slug}", ask=f"What is the capital of {country}?", gold=CAPITALS[country])


def sentiment(rng: random.Random) -> Iterator[DemoQuestion]:
    """Whether each listed review is positive or negative, in random order."""
    labelled = [(text, "positive") for text in POSITIVE_REVIEWS]
    labelled += [(text, "negative") for text in NEGATIVE_REVIEWS]
    numbered = list(enumerate(labelled, start=1))
    for number, (text, label) in rng.sample(numbered, len(numbered)):
        ask = f"Review: {text}\nIs this review positive or negative?"
        yield DemoQuestion(id=f"sentiment-{number:02d}", ask=ask, gold=label)


def sums(rng: random.Random) -> Iterator[DemoQuestion]:
    """All sums of two numbers from 1 to 9, in random order; the whole equation is the answer."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    for a, b in rng.sample(pairs, len(pairs)):
        yield DemoQuestion(id=f"sums-{a}-{b}", ask=f"Write out the sum of {a} and {b}.", gold=f"{a} + {b} = {a + b}")


def make_letters_question(rng: random.Random) -> Iterator[DemoQuestion]:
    """The first or the last letter of a word, in random order."""
    pairs = [(word, end) for word in WORDS for end in ("first", "last")]
    for word, end in rng.sample(pairs, len(pairs)):
        gold = word[0] if end == "first" else word[-1]
        yield DemoQuestion(id=f"letters-{end}-{word}", ask=f'What is the {end} letter of the word "{word}"?', gold=gold)


def lists(rng: random.Random) -> Iterator[DemoQuestion]:
    families = sorted(FAMILIES)
    members = [(family, member) for family in families for member in FAMILIES[family]]
    for number, (family, member) in enumerate(rng.sample(members, len(members)), start=1):
        others = rng.sample([f for f in families if f != family], 2)
        options = [member, *(rng.choice(FAMILIES[other]) for other in others)]
        rng.shuffle(options)
        article = "an" if family[0] in "aeiou" else "a"
        yield DemoQuestion(
            id=f"lists-{family}-{member}",
            ask=f"Which of these is {article} {family}: {options[0]}, {options[1]} or {options[2]}?",
            gold=member,
        )
        low, high = sorted(rng.sample(range(10, 100), 2))
        first, second = (low, high) if rng.random() < 0.5 else (high, low)
        yield DemoQuestion(
            id=f"lists-larger-{number:02d}-{first}-{second}",
            ask=f"Which number is larger, {first} or {second}?",
            gold=str(high),
        )


def chains(rng: random.Random) -> Iterator[DemoQuestion]:
    """Sums of three or four numbers of at most two digits, with plus and minus; never below zero."""
    seen: set[str] = set()
    while True:
        total = rng.randint(10, 60)
        text = str(total)
        for _ in range(rng.choice((2, 3))):
            value = rng.randint(3, 40)
            if rng.random() < 0.5 and total - value >= 0:
                total, text = total - value, f"{text} - {value}"
            else:
                total, text = total + value, f"{text} + {value}"
        if text not in seen:
            seen.add(text)
            yield DemoQuestion(id=f"chains-{text.replace(' ', '')}", ask=f"Calculate {text}.", gold=str(total))


def _packed_minus(rng: random.Random) -> tuple[str, int]:
    name, box, thing = rng.choice(NAMES), rng.choice(BOXES), rng.choice(THINGS)
    n, each = rng.randint(2, 9), rng.randint(3, 12)
    gone = rng.randint(2, n * each - 1)
    return (
        f"{name} has {n} {box} with {each} {thing} each and gives away {gone} {thing}. How many {thing} are left?"
    ), n * each - gone


def _packed_plus(rng: random.Random) -> tuple[str, int]:
    name, box, thing = rng.choice(NAMES), rng.choice(BOXES), rng.choice(THINGS)
    n, each, more = rng.randint(2, 9), rng.randint(3, 12), rng.randint(2, 30)
    return (
        f"{name} buys {n} {box} with {each} {thing} each and already has {more} {thing} at home. "
        f"How many {thing} does {name} have in total?"
    ), n * each + more


def _buy_and_give(rng: random.Random) -> tuple[str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    start, more = rng.randint(8, 40), rng.randint(5, 30)
    gone = rng.randint(3, start + more - 1)
    return (
        f"{name} has {start} {thing}, finds {more} more and then loses {gone}. How many {thing} does {name} have now?"
    ), start + more - gone


def _share(rng: random.Random) -> tuple[str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    friends, each = rng.randint(2, 8), rng.randint(3, 10)
    first = rng.randint(2, friends * each - 2)
    return (
        f"{name} has {first} {thing} and gets {friends * each - first} more. {name} shares all of them "
        f"equally among {friends} friends. How many {thing} does each friend get?"
    ), each


def _earn(rng: random.Random) -> tuple[str, int]:
    name = rng.choice(NAMES)
    hours, wage = rng.randint(3, 9), rng.randint(6, 15)
    spent = rng.randint(5, hours * wage - 5)
    return (
        f"{name} works {hours} hours for {wage} dollars an hour and then spends {spent} dollars. "
        f"How many dollars are left?"
    ), hours * wage - spent


def _ages(rng: random.Random) -> tuple[str, int]:
    young, old = rng.sample(NAMES, 2)
    age, gap, years = rng.randint(5, 30), rng.randint(2, 12), rng.randint(3, 15)
    return (
        f"{young} is {age} years old. {old} is {gap} years older than {young}. How old will {old} be in {years} years?"
    ), age + gap + years


def _two_prices(rng: random.Random) -> tuple[str, int]:
    name, (one, two) = rng.choice(NAMES), rng.sample(THINGS, 2)
    n, price, m, other = (rng.randint(2, 9) for _ in range(4))
    return (
        f"{name} buys {n} {one} for {price} dollars each and {m} {two} for {other} dollars each. "
        f"How many dollars does {name} pay?"
    ), n * price + m * other


def _rows(rng: random.Random) -> tuple[str, int]:
    rows, seats = rng.randint(3, 12), rng.randint(4, 12)
    taken = rng.randint(3, rows * seats - 2)
    return (
        f"A hall has {rows} rows of {seats} seats. {taken} seats are taken. How many seats are free?"
    ), rows * seats - taken


def _pages(rng: random.Random) -> tuple[str, int]:
    name = rng.choice(NAMES)
    a_day, days = rng.randint(5, 20), rng.randint(3, 9)
    rest = rng.randint(5, 60)
    return (
        f"{name} reads {a_day} pages a day of a book with {a_day * days + rest} pages. "
        f"How many pages are left after {days} days?"
    ), rest


STORIES: tuple[Callable[[random.Random], tuple[str, int]], ...] = (
    _packed_minus,
    _packed_plus,
    _buy_and_give,
    _share,
    _earn,
    _ages,
    _two_prices,
    _rows,
    _pages,
)


def stories(rng: random.Random) -> Iterator[DemoQuestion]:
    seen: set[str] = set()
    number = 0
    while True:
        text, answer = STORIES[number % len(STORIES)](rng)
        if text in seen:
            continue
        seen.add(text)
        number += 1
        yield DemoQuestion(id=f"stories-{number:04d}", ask=text, gold=str(answer))


def largest(rng: random.Random) -> Iterator[DemoQuestion]:
    seen: set[tuple[int, ...]] = set()
    while True:
        listed = tuple(rng.sample(range(10, 100), rng.choice((4, 5))))
        if listed not in seen:
            seen.add(listed)
            text = ", ".join(map(str, listed[:-1])) + f" or {listed[-1]}"
            yield DemoQuestion(
                id=f"largest-{'-'.join(map(str, listed))}",
                ask=f"Which number is the largest: {text}?",
                gold=str(max(listed)),
            )


def series(rng: random.Random) -> Iterator[DemoQuestion]:
    """The next number of a series with a constant step, up or down; never below zero."""
    seen: set[tuple[int, ...]] = set()
    while True:
        step = rng.choice((-1, 1)) * rng.randint(2, 12)
        first = rng.randint(1, 40) - min(0, 4 * step)
        listed = tuple(first + step * k for k in range(4))
        if listed not in seen:
            seen.add(listed)
            yield DemoQuestion(
                id=f"series-{'-'.join(map(str, listed))}",
                ask=f"Which number comes next: {', '.join(map(str, listed))}?",
                gold=str(first + 4 * step),
            )


FAMILIES_OF_QUESTIONS: Mapping[str, Callable[[random.Random], Iterator[DemoQuestion]]] = {
    "capitals": capitals,
    "sentiment": sentiment,
    "sums": sums,
    "letters": make_letters_question,
    "lists": lists,
    "chains": chains,
    "stories": stories,
    "largest": largest,
    "series": series,
}
