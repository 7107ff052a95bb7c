"""Three small data sets that a model can learn and has not seen, made by a seed; for benchmarks/learning.py.

- `extraction`: a message in, its facts as JSON out; 1000 samples. To be learned is a form; the content is in the question.
- `knowledge`: 120 invented facts in five wordings each; the validation asks for them in a sixth. To be learned is content.
- `style`: 300 short questions of customers, answered in the voice and with the rules of an invented company: form and content.

Every answer follows from its question, so that an answer is right or wrong. `python benchmarks/learning_data.py FOLDER` writes
them as JSONL, a folder each, for `--dataset_path`.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

Pair = tuple[str, str]  # question, answer
VALIDATION_SAMPLES = 120
NAMES = (
    *("Ada", "Bruno", "Chloe", "Daan", "Emre", "Fatima", "Goran", "Hana", "Ivo", "Jun"),
    *("Kemal", "Lena", "Mina", "Nils", "Olga", "Pavel", "Quinn", "Rosa", "Sven", "Tala"),
)
SURNAMES = ("Abbot", "Berg", "Castell", "Duarte", "Eklund", "Ferrer", "Grau", "Holm", "Ibsen", "Jansen", "Kovac", "Lindt")
ITEMS = ("oak shelves", "desk lamps", "steel bolts", "paper rolls", "garden chairs", "tea sets", "bike tires", "glass jars")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
ORDERS = (
    "{name} here. Please send {count} {item} to {city} before {day} {month}.",
    "Hi, we need {count} {item} in {city}; {day} {month} at the latest. Regards, {name}",
    "Order by phone from {name}: {item}, {count} pieces, {city}, due {day} {month}.",
    "Could you deliver {count} {item} by {month} {day}? The address is in {city}. {name}",
    "{city}, urgent: {name} asks for {count} {item}, not later than {day} {month}.",
)
CITIES = ("Antwerp", "Bergen", "Cadiz", "Dresden", "Espoo", "Faro", "Ghent", "Haifa", "Izmir", "Krakow", "Lyon", "Malmo")
COLORS = ("amber", "azure", "black", "coral", "green", "ivory", "lilac", "olive", "pink", "red", "teal", "white")
KINDS = ("pump", "crane", "valve", "oven", "mixer", "press", "winch", "drill")
QUALITIES: dict[str, Callable[[random.Random], str]] = {
    "largest load": lambda draw: f"{draw.randrange(11, 99)}0 kilograms",
    "color": lambda draw: draw.choice(COLORS),
    "place of origin": lambda draw: draw.choice(CITIES),
}
WORDINGS = (
    "What is the {quality} of the {thing}?",
    "Tell me the {quality} of the {thing}.",
    "The {thing}: what is its {quality}?",
    "I need to know the {quality} of the {thing}.",
    "Which {quality} does the {thing} have?",
    "Please look up the {thing} and give me its {quality}.",  # the validation's
)
RULES = {
    "return a parcel": "send it back within 40 days, postage is on us",
    "change my address": "open the page called Harbor and press Move",
    "get a refund": "your coins come back within 6 days",
    "cancel my order": "write to the bosun before noon of the same day",
    "find my invoice": "look below deck, under Papers",
    "reach a person": "ring the ship's bell at extension 72",
    "reset my password": "whistle twice at the login page and wait for a letter",
    "use my voucher": "type it in capital letters in the last box",
    "track my delivery": "follow the gull on the map that we mailed",
    "order a spare part": "name the part and the year, and we carve a new one",
}
QUESTIONS = (
    "Hello, {name} speaking. How can I {wish}?",
    "How do I {wish}? Thanks, {name}",
    "My name is {name} and I would like to {wish}.",
    "{name} again, I want to {wish}. What must I do?",
    "Can you help me to {wish}? {name}",
)


def data_sets(seed: int = 7) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """Training and validation samples of each data set; no question is in both."""
    return {
        "extraction": _split(_distinct(_order, 1000 + VALIDATION_SAMPLES, random.Random(seed))),
        "knowledge": _knowledge(random.Random(seed + 1)),
        "style": _split(_distinct(_letter, 300 + VALIDATION_SAMPLES, random.Random(seed + 2))),
    }


def _order(draw: random.Random) -> Pair:
    name = f"{draw.choice(NAMES)} {draw.choice(SURNAMES)}"
    item, city, count = draw.choice(ITEMS), draw.choice(CITIES), draw.randrange(2, 400)
    month, day = draw.randrange(12), draw.randrange(1, 29)
    question = draw.choice(ORDERS).format(name=name, item=item, city=city, count=count, month=MONTHS[month], day=day)
    answer = {"customer": name, "item": item, "count": count, "city": city, "due": f"{month + 1:02d}-{day:02d}"}
    return question, json.dumps(answer)


def _letter(draw: random.Random) -> Pair:
    wish, name = draw.choice(sorted(RULES)), f"{draw.choice(NAMES)} {draw.choice(SURNAMES)}"
    first = name.split()[0]
    return draw.choice(QUESTIONS).format(name=name, wish=wish), f"Ahoy {first}! To {wish}, {RULES[wish]}. Fair winds, the crew"


def _knowledge(draw: random.Random) -> tuple[list[Pair], list[Pair]]:
    syllables = ["ba", "do", "fi", "ga", "ke", "lu", "mo", "na", "pi", "ra", "su", "ve", "zo"]
    things: list[str] = []
    while len(things) < VALIDATION_SAMPLES // len(QUALITIES):
        thing = f"{''.join(draw.sample(syllables, 3)).title()} {draw.choice(KINDS)}"
        things += [thing] if thing not in things else []
    training, validation = [], []
    for thing in things:
        for quality, value in QUALITIES.items():
            fact = value(draw)
            questions = [wording.format(quality=quality, thing=thing) for wording in WORDINGS]
            answer = f"The {quality} of the {thing} is {fact}."
            training += [(question, answer) for question in questions[:-1]]
            validation.append((questions[-1], answer))
    draw.shuffle(training)
    return training, validation


def _distinct(make: Callable[[random.Random], Pair], count: int, draw: random.Random) -> list[Pair]:
    found: dict[str, Pair] = {}
    while len(found) < count:
        pair = make(draw)
        found.setdefault(pair[0], pair)
    return list(found.values())


def _split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    return pairs[:-VALIDATION_SAMPLES], pairs[-VALIDATION_SAMPLES:]


def main(target: Path) -> None:
    for name, splits in data_sets().items():
        (target / name).mkdir(parents=True, exist_ok=True)
        for split, pairs in zip(("training", "validation"), splits, strict=True):
            lines = [json.dumps({"input": question, "output": answer}) + "\n" for question, answer in pairs]
            (target / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
