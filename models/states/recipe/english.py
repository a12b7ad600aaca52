"""Simple English from a grammar: short stories, and sentences of patterns that a small model can learn.

The stories give the model plain sentences to write; the patterns (agreement, order, opposites, indirect objects) give it
behaviours whose right answer is known. No text of any book is used here (books.py reads those).
"""

BOYS = "Tom Ben Sam Max Jack Tim Dan Leo Bob Will John Peter".split()
GIRLS = "Mary Anna Lucy Sue Kate Emma Rose Jane Lily Amy Ella Nora".split()
ANIMALS = "cat dog bear fox rabbit mouse frog duck hen pig horse cow goat bird owl squirrel".split()
MOODS = "little big old young kind happy sad brave clever hungry sleepy funny quiet good".split()
COLOURS = "red blue green yellow white black brown".split()
PLACES = "house garden forest park farm field barn market school river hill lake".split()
THINGS = "ball hat book cake apple box cup key boat bell kite coat basket flower stone spoon".split()
FOODS = "bread cake honey soup milk apples berries nuts cheese".split()
WEATHERS = "sunny rainy windy cold warm snowy".split()
OPPOSITES = [pair.split("/") for pair in "big/small hot/cold up/down old/young happy/sad fast/slow day/night open/closed black/white wet/dry good/bad high/low".split()]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "one two three four five six seven eight nine ten".split()


def plural(word):
    return {"mouse": "mice", "box": "boxes"}.get(word, word + "s")


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


class Cast:
    """Who and what a story is about."""

    def __init__(self, draw):
        pick = draw.choice
        boy = draw.random() < 0.5
        self.name = pick(BOYS if boy else GIRLS)
        self.friend = pick([name for name in BOYS + GIRLS if name != self.name])
        self.he, self.him, self.his = ("he", "him", "his") if boy else ("she", "her", "her")
        self.He = self.he.capitalize()
        self.kind = pick(ANIMALS) if draw.random() < 0.45 else ("boy" if boy else "girl")
        self.animal = pick([animal for animal in ANIMALS if animal != self.kind])
        self.here, self.there = draw.sample(PLACES, 2)
        self.thing, self.colour, self.food, self.weather = pick(THINGS), pick(COLOURS), pick(FOODS), pick(WEATHERS)
        self.mood, self.other = article(pick(MOODS)), article(pick(MOODS))


OPENINGS = (
    "Once upon a time there was {mood} {kind} named {name}.",
    "There was once {mood} {kind} whose name was {name}.",
    "Long ago {mood} {kind} named {name} lived near the {here}.",
)
SETTINGS = (
    "{name} had a small house by the {here}.",
    "{He} liked to play in the {here} with {his} friend {friend}.",
    "{name} had a {colour} {thing} and took it everywhere.",
    "Every morning {he} walked to the {here} and back.",
)
MORNINGS = (
    "One {weather} day {name} went to the {there}.",
    "One morning {name} looked out of the window and saw that it was a {weather} day.",
    'One day {his} mother said, "{name}, please bring me some {food} from the {there}."',
    "One {weather} afternoon {he} went out to look at the {there}.",
)
PLOTS = (
    (
        "At the {there} {he} saw that {his} {colour} {thing} was gone.",
        "{name} looked near the {here} and behind the {there}, but the {thing} was not there.",
        "Then {other} {animal} came by.",
        '"Why do you look so sad?" asked the {animal}.',
        '"I cannot find my {thing}," said {name}.',
        '"Let us look for it together," said the {animal}.',
        "At last they found the {thing} under a tree, and {name} was happy again.",
    ),
    (
        "There {he} met {other} {animal} who had nothing to eat.",
        '"I have some {food} in my basket," said {name}. "You can have half of it."',
        '"Thank you," said the {animal}.',
        "They sat down by the {there} and ate the {food}.",
        "From that day on {name} and the {animal} were friends.",
    ),
    (
        "{friend} was at the {there} with a {colour} {thing}.",
        '"Can I play with it too?" asked {name}.',
        '"Yes, you can," said {friend}, "but we must be careful."',
        "{name} and {friend} played with the {thing} until it was dark.",
        'Then {name} said "good night" and went home.',
    ),
    (
        "Soon the sky was dark and it began to rain.",
        "{name} was wet and cold, and {he} ran to a big tree.",
        "{other} {animal} sat under the tree.",
        '"Come and sit with me," said the {animal}. "It is dry here."',
        "{name} sat with the {animal}, and they told each other stories.",
        "When the rain was over, {name} thanked the {animal} and went home.",
    ),
    (
        "On the ground {he} found a {colour} {thing}.",
        '"Whose {thing} is this?" asked {name}.',
        "The {animal} did not know, and the {animal} shook its head.",
        '{friend} said, "It is mine! Thank you, {name}."',
        "So {friend} gave {name} a big piece of {food}.",
    ),
    (
        "{name} wanted to make some {food} for {friend}.",
        "{He} worked all day in the kitchen.",
        "When the {food} was ready, {name} put it into a {colour} basket.",
        '"This is for you," said {name}, and {friend} smiled.',
        "They sat down and ate the {food} together.",
    ),
    (
        "{other} {animal} ran past, and {name} ran after it.",
        "The {animal} ran over the {there} and into the {here}.",
        "It was too fast, and soon {name} could not see it any more.",
        "{name} did not know the way home and began to cry.",
        "Then {his} mother came and took {him} by the hand.",
    ),
)
ENDINGS = (
    "That night {name} slept very well.",
    "{name} never forgot that day.",
    '"What a good day," said {name}.',
    "And {he} was never lonely again.",
)


def story(draw):
    """A story of five to ten sentences."""
    cast = Cast(draw)
    lines = [draw.choice(OPENINGS)]
    if draw.random() < 0.6:
        lines.append(draw.choice(SETTINGS))
    lines.append(draw.choice(MORNINGS))
    lines.extend(draw.choice(PLOTS))
    if draw.random() < 0.5:
        lines.append(draw.choice(ENDINGS))
    sentences = (line.format(**vars(cast)) for line in lines)
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def indirect_object(draw):
    """Prompt, right answer and wrong answer: the one who is given something is the one who did not give it."""
    pair = draw.sample(BOYS + GIRLS, 2)
    giver = draw.choice(pair)
    other = pair[1] if giver == pair[0] else pair[0]
    prompt = f"When {pair[0]} and {pair[1]} went to the {draw.choice(PLACES)}, {giver} gave {article(draw.choice(THINGS))} to"
    return prompt, other, giver


def agreement(draw):
    """Prompt, right and wrong verb: the verb agrees with the subject, not with the nearer noun."""
    subject, near = draw.sample(THINGS + ANIMALS, 2)
    many = draw.random() < 0.5
    prompt = f"The {plural(subject) if many else subject} near the {near if many else plural(near)}"
    return (prompt, "are", "is") if many else (prompt, "is", "are")


def pronoun(draw):
    """Prompt, right and wrong pronoun."""
    boy = draw.random() < 0.5
    prompt = f"{draw.choice(BOYS if boy else GIRLS)} lost"
    return (prompt, "his", "her") if boy else (prompt, "her", "his")


def ordered():
    """All prompts with one right answer: days, months, opposites."""
    for name, words in (("day", DAYS), ("month", MONTHS)):
        for i, word in enumerate(words):
            yield f"The {name} after {word} is", words[(i + 1) % len(words)]
    for one, other in OPPOSITES:
        yield f"The opposite of {one} is", other
        yield f"The opposite of {other} is", one


ORDERED = list(ordered())


def pattern(draw):
    """One sentence of a pattern."""
    kind = draw.randrange(6)
    if kind == 0:
        prompt, answer, _ = indirect_object(draw)
    elif kind == 1:
        subject, near = draw.sample(THINGS + ANIMALS, 2)
        many, nearer = draw.random() < 0.5, draw.random() < 0.5
        prompt = f"The {plural(subject) if many else subject} near the {plural(near) if nearer else near} {'are' if many else 'is'}"
        answer = draw.choice(["little", "big", *COLOURS])
    elif kind == 2:
        prompt, answer, _ = pronoun(draw)
        answer += f" {draw.choice(THINGS)} in the {draw.choice(PLACES)}"
    elif kind == 3:
        start, length = draw.randrange(7), draw.randrange(3, 5)
        return "They counted: " + ", ".join(NUMBERS[start : start + length]) + "."
    else:
        prompt, answer = draw.choice(ORDERED)
    return f"{prompt} {answer}."


def text(draw):
    """A story, or one to three sentences of patterns."""
    if draw.random() < 0.45:
        return story(draw)
    return " ".join(pattern(draw) for _ in range(draw.randrange(1, 4)))
