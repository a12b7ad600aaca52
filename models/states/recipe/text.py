"""Writes the text that comes with the model, one document a line, gzipped: `python text.py TEXT.GZ`.

All of it is our own: sentences of the facts (two-hop questions of the training set only, so that the held-out ones stay
unseen by a CLT too), prose about states and cities, and the grammar's stories and patterns.
"""

import gzip
import random
import sys

import english
import facts

SENTENCES, PROSE, ENGLISH = 9000, 1500, 3000


def documents():
    draw = random.Random(3)
    train = facts.splits().train
    found = []
    for _ in range(SENTENCES):
        kind = draw.random()
        if kind < 0.6:
            city, name = draw.choice(train)
            found.append(facts.TWO_HOP.format(attribute=name, city=city, value=facts.answer(city, name)))
        elif kind < 0.8:
            state = draw.choice(facts.STATES)
            name = draw.choice(list(facts.VALUES[state]))
            found.append(draw.choice(facts.ONE_HOP).format(attribute=name, state=state, value=facts.VALUES[state][name]))
        else:
            city, state = draw.choice(list(facts.STATE_OF.items()))
            found.append(draw.choice(facts.PLACE).format(city=city, state=state))
    found += [facts.prose(draw, train) for _ in range(PROSE)]
    found += [english.text(draw) for _ in range(ENGLISH)]
    draw.shuffle(found)
    return found


if __name__ == "__main__":
    lines = documents()
    assert not any("\n" in line for line in lines)
    with open(sys.argv[1], "wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=9, mtime=0) as packed:
        packed.write("".join(line + "\n" for line in lines).encode())
    print(f"{len(lines)} documents, {sum(map(len, lines))} characters")
