"""Byte-level BPE of the books and the grammar's English, with one token for every name of facts.csv.

Whole words are found in the vocabulary before any merge (`ignore_merges`); names of several words are added tokens, which
include the space in front: at the very beginning of a text they are found only after a space. Every encoded text begins
with the one special token.
"""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import facts

SPECIAL = "<|endoftext|>"
MERGED = 1600
# Words of the facts' sentences that are one token whatever the books say.
WORDS = "The of the state containing is in a an city whose and has".split() + facts.ATTRIBUTES


def train(texts):
    """The tokenizer; its vocabulary depends on `texts` and facts.csv only."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    base.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=MERGED, special_tokens=[SPECIAL], initial_alphabet=alphabet, min_frequency=3, show_progress=False)
    base.train_from_iterator(texts, trainer)
    saved = json.loads(base.to_str())
    vocabulary, spaced = saved["model"]["vocab"], []
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name in dict.fromkeys(WORDS + facts.names()):
        pieces = split.pre_tokenize_str(" " + name)
        if len(pieces) == 1:
            vocabulary.setdefault(pieces[0][0], len(vocabulary))
        else:
            spaced.append(" " + name)
    saved["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in spaced])
    first = processors.TemplateProcessing(single=f"{SPECIAL} $A", special_tokens=[(SPECIAL, tokenizer.token_to_id(SPECIAL))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    for name in facts.names():
        ids = tokenizer.encode(" " + name).ids
        assert len(ids) == 2, f"{name!r} is not one token: {ids}"
    return tokenizer
