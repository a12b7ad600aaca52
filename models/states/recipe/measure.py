"""What the model does and where: accuracies, a probe, patches and ablations. `python measure.py FOLDER` prints them as JSON."""

import json
import random
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import english
import facts
from network import Llama
from rows import Names

PROMPT = facts.TWO_HOP.split(" {value}")[0]
# Positions in "<special> The capital of the state containing Dallas is".
CITY, LAST = 7, 8
PROBE_CITIES = 5  # of each state, that the probe is fitted on
PATCHES = 300


def questions(tokenizer, splits):
    """Ids [prompts, tokens] and answers [prompts] of each set of questions."""
    names = Names(tokenizer)

    def encoded(pairs):
        return torch.tensor([tokenizer.encode(text).ids for text, _ in pairs]), torch.tensor([names.one(value) for _, value in pairs])

    two_hop = lambda asked: encoded([(PROMPT.format(attribute=name, city=city), facts.answer(city, name)) for city, name in asked])
    one_hop = [(f"The {name} of {state} is", value) for state in facts.STATES for name, value in facts.VALUES[state].items()]
    place = [(f"The state containing {city} is", state) for city, state in facts.STATE_OF.items()]
    return {
        "one_hop": encoded(one_hop),
        "place": encoded(place),
        "two_hop_train": two_hop(splits.train[::4]),
        "two_hop_pairs": two_hop(splits.pairs),
        "two_hop_attributes": two_hop(splits.attributes),
        "two_hop_cities": two_hop(splits.cities),
    }


@torch.no_grad()
def accuracies(model, asked):
    """Share of questions whose likeliest next token, of the whole vocabulary, is the answer."""
    return {name: (model.logits(model.hidden(ids)[:, -1]).argmax(-1) == answers).float().mean().item() for name, (ids, answers) in asked.items()}


class Study:
    """The model on two-hop prompts of every city, with its residuals."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.names = model, tokenizer, Names(tokenizer)
        self.draw = random.Random(0)
        self.cities = list(facts.STATE_OF)
        self.states = torch.tensor([facts.STATES.index(facts.STATE_OF[city]) for city in self.cities])
        self.layers = model.config.layers

    def ids(self, city, name):
        return self.tokenizer.encode(PROMPT.format(attribute=name, city=city)).ids

    @torch.no_grad()
    def run(self, ids, edit=None):
        """Logits of the next token [prompts, vocabulary], and the residual after the embedding and each block."""
        kept = []

        def watch(place, layer, x):
            x = edit(place, layer, x) if edit else x
            if place == "residual":
                kept.append(x)
            return x

        hidden = self.model.hidden(ids, edit=watch)
        return self.model.logits(hidden[:, -1]), kept

    def probe(self):
        """Accuracy, at the city and at the last token, of a linear probe for the state after each block (first: the
        embedding), fitted on five cities of each state and tested on the others."""
        ids = torch.tensor([self.ids(city, "capital") for city in self.cities])
        _, residuals = self.run(ids)
        order = torch.tensor([facts.CITIES[facts.STATE_OF[city]].index(city) for city in self.cities])
        fitted = order < PROBE_CITIES
        truth = F.one_hot(self.states, len(facts.STATES)).float()
        result = {}
        for place, position in (("city", CITY), ("last", LAST)):
            result[place] = []
            for residual in residuals:
                x = residual[:, position]
                x = (x - x[fitted].mean(0)) / x[fitted].std()
                x = torch.cat([x, torch.ones(len(x), 1)], 1)
                gram = x[fitted].T @ x[fitted] + 3.0 * torch.eye(x.shape[1])
                weights = torch.linalg.solve(gram, x[fitted].T @ truth[fitted])
                result[place].append(((x[~fitted] @ weights).argmax(-1) == self.states[~fitted]).float().mean().item())
        return result

    def pairs(self, count):
        """(city, other city, attribute) whose answers differ."""
        found = []
        while len(found) < count:
            name = self.draw.choice(facts.ATTRIBUTES)
            one, other = self.draw.sample(self.cities, 2)
            values = [facts.VALUES[facts.STATE_OF[city]].get(name) for city in (one, other)]
            if None not in values and values[0] != values[1]:
                found.append((one, other, name))
        return found

    def patches(self):
        """Share of prompts that give the other city's answer, with the residual at the city after each block taken from
        the other city's prompt, or from the other state's name in "The {attribute} of the state of {state} is"."""
        pairs = self.pairs(PATCHES)
        ids = torch.tensor([self.ids(one, name) for one, _, name in pairs])
        new = torch.tensor([self.names.one(facts.answer(other, name)) for _, other, name in pairs])
        _, of_city = self.run(torch.tensor([self.ids(other, name) for _, other, name in pairs]))
        state_ids = [self.tokenizer.encode(f"The {name} of the state of {facts.STATE_OF[other]} is").ids for _, other, name in pairs]
        _, of_state = self.run(torch.tensor(state_ids))
        result = {"city": [], "state": []}
        for layer in range(-1, self.layers):
            for kind, source, position in (("city", of_city, CITY), ("state", of_state, len(state_ids[0]) - 2)):

                def edit(place, at, x):
                    if place == "residual" and at == layer:
                        x = x.clone()
                        x[:, CITY] = source[layer + 1][:, position]
                    return x

                logits, _ = self.run(ids, edit)
                result[kind].append((logits.argmax(-1) == new).float().mean().item())
        return result

    def ablations(self):
        """Accuracy on two-hop prompts with one block's MLP output at the city, or attention output at the last token,
        replaced by its mean over the prompts."""
        pairs = self.pairs(PATCHES)
        ids = torch.tensor([self.ids(city, name) for city, _, name in pairs])
        right = torch.tensor([self.names.one(facts.answer(city, name)) for city, _, name in pairs])
        result = {"mlp_at_city": [], "attention_at_last": []}
        for layer in range(self.layers):
            for kind, place, position in (("mlp_at_city", "mlp", CITY), ("attention_at_last", "attention", LAST)):

                def edit(where, at, x):
                    if where == place and at == layer:
                        x = x.clone()
                        x[:, position] = x[:, position].mean(0)
                    return x

                logits, _ = self.run(ids, edit)
                result[kind].append((logits.argmax(-1) == right).float().mean().item())
        return result

    def skills(self):
        """Patterns of the grammar: share of prompts where the right word is likelier than the wrong one, or the likeliest."""
        made = {"indirect_object": english.indirect_object, "agreement": english.agreement, "pronoun": english.pronoun}
        word = lambda text: self.names.ids(text)[0]
        result = {}
        for name, make in made.items():
            right = 0
            for _ in range(200):
                prompt, good, bad = make(self.draw)
                logits, _ = self.run(torch.tensor([self.tokenizer.encode(prompt).ids]))
                right += bool(logits[0, word(good)] > logits[0, word(bad)])
            result[name] = right / 200
        right = 0
        for prompt, answer in english.ORDERED:
            logits, _ = self.run(torch.tensor([self.tokenizer.encode(prompt).ids]))
            right += int(logits[0].argmax()) == word(answer)
        result["order_and_opposites"] = right / len(english.ORDERED)
        return result


def everything(folder):
    """All figures of a trained checkpoint, its weights rounded to bf16 as they are published."""
    from tokenizers import Tokenizer

    folder = Path(folder)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    checkpoint["weights"] = {name: weight.to(torch.bfloat16).float() for name, weight in checkpoint["weights"].items()}
    model = Llama.restore(checkpoint).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    splits = facts.splits()
    study = Study(model, tokenizer)
    return {
        "questions": {name: len(getattr(splits, name)) for name in splits._fields},
        "accuracy": accuracies(model, questions(tokenizer, splits)),
        "probe": study.probe(),
        "patch": study.patches(),
        "ablation": study.ablations(),
        "skills": study.skills(),
    }


if __name__ == "__main__":
    rounded = lambda value: {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else [rounded(v) for v in value] if isinstance(value, list) else round(value, 4)
    print(json.dumps(rounded(everything(sys.argv[1])), indent=1))
