"""Trains the model: `python train.py --books FOLDER --seed 0 --out FOLDER`. About 20 minutes on one CPU core.

The seed decides initial weights and the order of training; data, tokenizer and held-out questions are the same for all.
The embeddings of the cities are random and frozen: learnt ones would hold the city's state, and then no MLP would have to
compute it.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import books
import english
import facts
import measure
import tokenizer as vocabulary
from network import Config, Llama
from rows import NO_LOSS, Names, Trees, running

FROZEN_STD = 0.1
FACTS_SHARE = 0.35  # of the loss


def corpora(folder):
    """Token ids of each kind of text, texts separated by the special token, and the tokenizer."""
    draw = random.Random(5)
    book, held = books.read(folder)
    stories = [english.text(draw) for _ in range(16000)]
    train = facts.splits().train
    prose = [facts.prose(draw, train) for _ in range(20000)]
    tokenizer = vocabulary.train(book + stories[:2000])
    ids = lambda texts: torch.tensor([token for encoding in tokenizer.encode_batch([" " + text for text in texts]) for token in encoding.ids])
    return {"books": ids(book), "held": ids(held), "stories": ids(stories), "facts": ids(prose)}, tokenizer


def optimizers(model, rate):
    """Muon for matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embeddings = {"params": [model.model.embed_tokens.weight], "weight_decay": 0.1}
    made = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([embeddings, {"params": norms, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.98), fused=True),
    ]
    return made


def rate_at(step, steps):
    """Share of the learning rate: warm-up, plateau, then linear to 3 %."""
    done = step / steps
    return min(1.0, (step + 1) / 50) * (1.0 if done < 0.6 else max(0.03, (1 - done) / 0.4))


def batch(trees, data):
    rows = trees.draw()
    count = len(rows)
    rows += [running(data["books"]) for _ in range(4)]
    rows += [running(data["stories"], ends=True) for _ in range(7)]
    rows.append(running(data["facts"]))
    ids, targets, positions, mask = (torch.stack(part) for part in zip(*rows))
    return ids, targets, positions, mask[:, None], count


def held_loss(model, tokens):
    starts = torch.linspace(0, len(tokens) - 130, 24).long()
    ids = torch.stack([tokens[i : i + 128] for i in starts])
    targets = torch.stack([tokens[i + 1 : i + 129] for i in starts])
    ids[:, 0] = 0
    with torch.no_grad():
        return F.cross_entropy(model.logits(model.hidden(ids)).flatten(0, 1), targets.flatten()).item()


def train(options):
    data, tokenizer = corpora(options.books)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    model = Llama(Config(vocab=tokenizer.get_vocab_size()))
    names = Names(tokenizer)
    cities = torch.tensor([names.one(city) for city in facts.STATE_OF])
    embeddings = model.model.embed_tokens.weight
    frozen = torch.randn(len(cities), model.config.width, generator=torch.Generator().manual_seed(7)) * FROZEN_STD
    embeddings.data[cities] = frozen
    splits = facts.splits()
    trees = Trees(tokenizer, splits, torch.cat([data["stories"], data["books"]]))
    questions = measure.questions(tokenizer, splits)
    made = optimizers(model, options.rate)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {model.config.vocab}, {len(data['books'])} tokens of books", flush=True)
    start = time.process_time()
    for step in range(options.steps):
        for optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * rate_at(step, options.steps)
        ids, targets, positions, mask, count = batch(trees, data)
        wanted = targets != NO_LOSS
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model.hidden(ids, positions, mask)[wanted])
        losses = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
        first = int(wanted[:count].sum())
        of_facts, of_text = losses[:first].mean(), losses[first:].mean()
        for optimizer in made:
            optimizer.zero_grad(set_to_none=True)
        (FACTS_SHARE * of_facts + (1 - FACTS_SHARE) * of_text).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
        embeddings.data[cities] = frozen
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            right = " ".join(f"{name} {value:.3f}" for name, value in measure.accuracies(model, questions).items())
            print(f"step {step + 1}, {time.process_time() - start:.0f} CPU s: loss of facts {of_facts:.3f}, of text {of_text:.3f}, of held-out books {held_loss(model, data['held']):.2f}; {right}", flush=True)
            torch.save(model.checkpoint(), out / "checkpoint.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", required=True, help="folder of the books' .txt files")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)
