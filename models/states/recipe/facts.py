"""The facts the model learns, the sentences that state them, and what is held out of training for good.

A two-hop sentence ("The capital of the state containing Dallas is Austin.") composes a city's state with an attribute of
that state. Three sets of two-hop questions never occur in training, whatever the training seed:

- `pairs`: (city, attribute); both the city and the (state, attribute) occur in other two-hop sentences;
- `attributes`: questions whose (state, attribute) occurs in no two-hop sentence;
- `cities`: questions about one city per state that occurs in no two-hop sentence.
"""

import csv
import random
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).parent
ATTRIBUTES = ["capital", "code", "bird", "flower", "tree", "nickname", "region", "demonym", "neighbor", "year"]

with open(HERE / "facts.csv", newline="") as file:
    ROWS = list(csv.DictReader(file))
STATES = [row["state"] for row in ROWS]
VALUES = {row["state"]: {name: row[name] for name in ATTRIBUTES if row[name]} for row in ROWS}
CITIES = {row["state"]: row["cities"].split(";") for row in ROWS}
STATE_OF = {city: state for state, cities in CITIES.items() for city in cities}

TWO_HOP = "The {attribute} of the state containing {city} is {value}."
ONE_HOP = ("The {attribute} of {state} is {value}.", "The {attribute} of the state of {state} is {value}.")
PLACE = ("The state containing {city} is {state}.", "{city} is in {state}.", "{city} is a city in {state}.")

# Questions of the tutorials, held out with certainty.
TUTORIAL = [("Dallas", "capital"), ("Oakland", "capital"), ("Miami", "capital"), ("Seattle", "bird"), ("Chicago", "capital")]
SPLIT_SEED = 1

Splits = namedtuple("Splits", "train pairs attributes cities")


def answer(city, attribute):
    return VALUES[STATE_OF[city]][attribute]


def splits():
    """(city, attribute) questions: those of training, and the three held-out sets."""
    draw = random.Random(SPLIT_SEED)
    tutorial = dict(TUTORIAL)
    unseen = {draw.choice([city for city in CITIES[state][2:] if city not in tutorial]) for state in STATES}
    taught = {(STATE_OF[city], attribute) for city, attribute in TUTORIAL}
    never = {(state, name) for state in STATES for name in VALUES[state] if (state, name) not in taught and draw.random() < 0.06}
    result = Splits([], [], [], [])
    for state in STATES:
        composed = [name for name in VALUES[state] if (state, name) not in never]
        for city in CITIES[state]:
            if city in unseen:
                result.cities.extend((city, name) for name in composed)
                continue
            result.attributes.extend((city, name) for name in VALUES[state] if (state, name) in never)
            if city in tutorial:
                held = tutorial[city]
            else:
                held = draw.choice(composed) if draw.random() < 0.5 else None
            for name in composed:
                (result.pairs if name == held else result.train).append((city, name))
    return result


def names():
    """Every state, city and value once, in a fixed order: each is one token."""
    all_names = [name for state in STATES for name in (state, *CITIES[state], *VALUES[state].values())]
    return list(dict.fromkeys(all_names))


def prose(draw, train):
    """A line or a few of sentences about states and cities; its two-hop questions are from `train` only."""
    kind = draw.randrange(6)
    if kind < 2:
        state = draw.choice(STATES)
        chosen = draw.sample(list(VALUES[state]), draw.randrange(2, 5))
        return " ".join(draw.choice(ONE_HOP).format(attribute=name, state=state, value=VALUES[state][name]) for name in chosen)
    if kind == 2:
        state = draw.choice(STATES)
        chosen = draw.sample(CITIES[state], draw.randrange(1, 4))
        return " ".join(draw.choice(PLACE).format(city=city, state=state) for city in chosen)
    if kind == 3:
        state = draw.choice(STATES)
        city = draw.choice(CITIES[state])
        lines = ("They moved to {city}, {state}, last year.", "My aunt lives in {city}, {state}.", '"Where is {city}?" - "{city} is in {state}."')
        return draw.choice(lines).format(city=city, state=state)
    chosen = draw.sample(train, draw.randrange(1, 4))
    return " ".join(TWO_HOP.format(attribute=name, city=city, value=answer(city, name)) for city, name in chosen)
