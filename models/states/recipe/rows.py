"""Rows of a training batch: facts as trees, English as running text.

A tree row is one shared prefix ("The capital of the state containing") followed by many branches (" Dallas is") that see
the prefix and themselves only, each at the positions it would have in a sentence of its own. It trains as many sentences
as it has branches, with the same result as separate rows, in a fraction of the time.
"""

import random

import torch

import facts

CONTEXT = 128
NO_LOSS = -1


class Names:
    """Token ids of words and names."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def ids(self, text):
        return self.tokenizer.encode(" " + text).ids[1:]

    def one(self, name):
        (found,) = self.ids(name)
        return found


def layout(prefix, branch):
    """Mask, positions and number of branches of a tree row with a prefix of `prefix` tokens and branches of `branch`."""
    count = (CONTEXT - prefix) // branch
    mask = torch.zeros(CONTEXT, CONTEXT, dtype=torch.bool)
    positions = torch.zeros(CONTEXT, dtype=torch.long)
    mask[:prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    positions[:prefix] = torch.arange(prefix)
    for start in range(prefix, prefix + count * branch, branch):
        own = slice(start, start + branch)
        mask[own, :prefix] = True
        mask[own, own] = torch.ones(branch, branch, dtype=torch.bool).tril()
        positions[own] = prefix + torch.arange(branch)
    rest = torch.arange(prefix + count * branch, CONTEXT)
    mask[rest, rest] = True
    return mask, positions, count


class Trees:
    """Tree rows of the three kinds of fact."""

    def __init__(self, tokenizer, splits, context_tokens):
        names = Names(tokenizer)
        self.context_tokens = context_tokens
        self.layouts = {}
        self.fact = names.ids("Fact: the")
        self.prefixes, self.branches = {}, {}
        is_, in_ = names.one("is"), names.one("in")
        for name in facts.ATTRIBUTES:
            with_value = [state for state in facts.STATES if name in facts.VALUES[state]]
            one_hop = [([names.one(state), is_], names.one(facts.VALUES[state][name])) for state in with_value]
            two_hop = [([names.one(city), is_], names.one(facts.answer(city, name))) for city, asked in splits.train if asked == name]
            self.add(("two", name), names.ids(f"The {name} of the state containing"), two_hop)
            self.add(("one", name), names.ids(f"The {name} of"), one_hop)
            self.add(("one", name, "long"), names.ids(f"The {name} of the state of"), one_hop)
        pairs = [(names.one(city), names.one(state)) for city, state in facts.STATE_OF.items()]
        self.add(("place",), names.ids("The state containing"), [([city, is_], state) for city, state in pairs])
        self.add(("place", "short"), [], [([city, is_, in_], state) for city, state in pairs])

    def add(self, key, prefix, branches):
        self.prefixes[key] = prefix
        self.branches[key] = torch.tensor([tokens for tokens, _ in branches]), torch.tensor([value for _, value in branches])

    def prefix(self, key):
        """The special token and the kind's own words; sometimes after other text, after "Fact:", or without the token."""
        own = self.prefixes[key]
        if key[0] != "place" and random.random() < 0.15:
            own = self.fact + own[1:]
        before = []
        if random.random() < 0.4:
            length = random.randrange(4, 48)
            start = random.randrange(len(self.context_tokens) - length)
            before = [token for token in self.context_tokens[start : start + length].tolist() if token != 0]
        if own and random.random() < 0.1:
            return before + own
        return [0] + before + own

    def row(self, key):
        prefix = self.prefix(key)
        tokens, values = self.branches[key]
        shape = len(prefix), tokens.shape[1]
        if shape not in self.layouts:
            self.layouts[shape] = layout(*shape)
        mask, positions, count = self.layouts[shape]
        chosen = torch.randperm(len(values))[:count]
        if len(chosen) < count:
            chosen = torch.cat([chosen, torch.randint(len(values), (count - len(chosen),))])
        ids, targets = torch.zeros(CONTEXT, dtype=torch.long), torch.full((CONTEXT,), NO_LOSS)
        ids[: len(prefix)] = torch.tensor(prefix)
        end = len(prefix) + count * shape[1]
        ids[len(prefix) : end] = tokens[chosen].flatten()
        targets[len(prefix) + shape[1] - 1 : end : shape[1]] = values[chosen]
        return ids, targets, positions, mask

    def draw(self, two=4, one=1, place=1):
        keys = [("two", name) for name in random.sample(facts.ATTRIBUTES, two)]
        for _ in range(one):
            name = random.choice(facts.ATTRIBUTES)
            keys.append(random.choice([("one", name), ("one", name, "long")]))
        keys += [random.choice([("place",), ("place", "short")]) for _ in range(place)]
        return [self.row(key) for key in keys]


CAUSAL = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()


def running(tokens, ends=False):
    """A row of running text from anywhere in `tokens`, with the special token in front. Where `ends`, the end of each text
    is learnt too."""
    start = random.randrange(len(tokens) - CONTEXT - 1)
    ids, targets = tokens[start : start + CONTEXT].clone(), tokens[start + 1 : start + CONTEXT + 1].clone()
    ids[0] = 0
    if not ends:
        targets[targets == 0] = NO_LOSS
    return ids, targets, torch.arange(CONTEXT), CAUSAL
