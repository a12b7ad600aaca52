"""Writes known.json, which the library holds: facts, held-out questions, and the figures of each seed.

    python known.py KNOWN.JSON CHECKPOINT_FOLDER...

Folders are those that train.py wrote, one a seed, in the order of the seeds from 0. The seed that is kept is the one whose
mean accuracy over the three held-out sets is the median.
"""

import json
import sys

import facts
import measure


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def held_out(figures):
    return sum(figures["accuracy"][f"two_hop_{name}"] for name in ("pairs", "attributes", "cities")) / 3


def main(target, folders):
    measured = []
    for seed, folder in enumerate(folders):
        measured.append({"seed": seed} | rounded(measure.everything(folder)))
        print(json.dumps(measured[-1]), flush=True)
    splits = facts.splits()
    kept = sorted(measured, key=held_out)[len(measured) // 2]["seed"]
    known = {
        "question": facts.TWO_HOP.split(" {value}")[0],
        "attributes": facts.ATTRIBUTES,
        "states": [{"name": state, "cities": facts.CITIES[state], "attributes": facts.VALUES[state]} for state in facts.STATES],
        "held_out": {name: getattr(splits, name) for name in ("pairs", "attributes", "cities")},
        "measured": measured,
        "seed": kept,
    }
    with open(target, "w") as file:
        file.write(json.dumps(known, separators=(",", ":")) + "\n")
    print(f"kept: seed {kept}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
