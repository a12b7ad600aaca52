"""Attacks on models: folders of every family, index files, GGUF, llama2.c, tokenizers, chat templates."""
import json
import os
import shutil
import struct

from places import FIXTURES, HUGE, MODEL, ODD, Attack, mutated, read_safetensors, spoil_json, spoil_safetensors, write_safetensors

TOKENS = ["--tokens", "1,2,3", "--top", "2"]
# Sizes that the weights contradict when they are one more.
SIZES = ["hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_layers", "vocab_size", "intermediate_size", "n_inner", "num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim"]
NUMBERS = ["rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "rope_theta", "query_pre_attn_scalar", "rope_local_base_freq", "attn_logit_softcapping", "final_logit_softcapping"]


def copied(place, source, name="model"):
    target = place / "work" / name
    shutil.copytree(source, target)
    for extra in ["expected.safetensors", "halves.safetensors"]:
        (target / extra).unlink(missing_ok=True)
    return target


def attacks(bases, random, mutations):
    yield from folders(random, mutations)
    yield from indexed(random, mutations)
    yield from gguf(random, mutations)
    yield from llama2c(random, mutations)
    yield from tokenizers(random, mutations)
    yield from templates(random)


def folder_attack(reader, name, expect, source, file, data, arguments=TOKENS):
    """A model folder with another file in it: bytes, or a function of the file's path."""

    def make(place):
        target = copied(place, source)
        if callable(data):
            data(target / file)
        else:
            (target / file).write_bytes(data)
        return ["run", "--model", "model", *arguments]

    return Attack(reader, name, expect, make)


def folders(random, mutations):
    families = sorted(folder for folder in (FIXTURES / "parity").iterdir() if (folder / "model.safetensors").exists()) + [MODEL]
    for folder in families:
        config = json.loads((folder / "config.json").read_text())
        label = folder.name if folder != MODEL else "words"
        yield folder_attack("config.json", f"{label} as it is", "good", folder, "config.json", json.dumps(config).encode())
        for name, expect, data in spoil_json(config, random, 3 * mutations):
            yield folder_attack("config.json", f"{label} {name}", expect, folder, "config.json", data)
        for key in SIZES:
            if isinstance(config.get(key), int):
                for value in [config[key] + 1, -1, 0, 2**31, 2**63, 10**25, str(config[key]), [config[key]], 1.5]:
                    # A head count of another divisor may fit the same weights.
                    expect = "any" if "head" in key and value == config[key] + 1 else "bad"
                    yield folder_attack("config.json", f"{label} {key} = {str(value)[:20]}", expect, folder, "config.json", json.dumps({**config, key: value}).encode())
        for key in NUMBERS:
            if isinstance(config.get(key), (int, float)):
                for value in [-1.0, float("nan"), float("inf"), -float("inf"), "1", [], {}]:
                    yield folder_attack("config.json", f"{label} {key} = {value}", "bad", folder, "config.json", json.dumps({**config, key: value}).encode())
        for scaling in [[], "linear", 7, {"rope_type": "linear", "factor": 0}, {"rope_type": "linear", "factor": -2.0}, {"rope_type": "unknown", "factor": 2.0}, {"rope_type": "yarn", "factor": float("nan")}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}]:
            if "rope_theta" in config and "rope_scaling" in config:
                yield folder_attack("config.json", f"{label} rope_scaling {str(scaling)[:40]}", "bad", folder, "config.json", json.dumps({**config, "rope_scaling": scaling}).encode())
        for name, expect, change in spoil_safetensors(folder / "model.safetensors", random):
            if random.random() < 0.35 or label == "llama":
                yield folder_attack("safetensors", f"{label} {name}", expect, folder, "model.safetensors", change)
        for file in ["config.json", "model.safetensors"]:
            whole = (folder / file).read_bytes()
            for n in range(mutations // 4 + 1):
                yield folder_attack(f"{file} mutated", f"{label} {n}", "any", folder, file, mutated(whole, random))


def indexed(random, mutations):
    source = FIXTURES / "parity/llama"
    tensors, notes = read_safetensors(source / "model.safetensors")
    names = sorted(tensors)
    half = len(names) // 2

    def split(place):
        target = copied(place, source)
        (target / "model.safetensors").unlink()
        write_safetensors(target / "a.safetensors", {name: tensors[name] for name in names[:half]}, notes)
        write_safetensors(target / "b.safetensors", {name: tensors[name] for name in names[half:]}, notes)
        return target

    index = {"metadata": {"total_size": sum(len(data) for _, _, data in tensors.values())}, "weight_map": {name: "a.safetensors" if n < half else "b.safetensors" for n, name in enumerate(names)}}

    def one(name, expect, data, more=None):
        def make(place):
            target = split(place)
            shutil.copy(source / "model.safetensors", place / "secret.safetensors")
            if more:
                more(target)
            (target / "model.safetensors.index.json").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
            return ["run", "--model", "model", *TOKENS]

        return Attack("index.json", name, expect, make)

    yield one("as it is", "good", index)
    for name, expect, data in spoil_json(index, random, 4 * mutations):
        yield one(name, expect, data)
    for shard in ["../../secret.safetensors", "/etc/passwd", "..", ".", "", "a.safetensors/", "./a.safetensors/../b.safetensors", "none.safetensors", "a\0", "a\nb", "a?b", "a%2e", "x" * 300, "\x1b[2J", "C:\\x", "~/x", "b.safetensors"]:
        yield one(f"first in {shard!r}", "bad", {**index, "weight_map": {**index["weight_map"], names[0]: shard}})
    yield one("all elsewhere", "bad", {**index, "weight_map": dict.fromkeys(names, "../../secret.safetensors")})
    yield one("one missing", "bad", {**index, "weight_map": {name: shard for name, shard in index["weight_map"].items() if name != names[3]}})
    yield one("a stranger", "bad", {**index, "weight_map": {**index["weight_map"], "zzz": "a.safetensors"}})
    yield one("twice", "bad", index, lambda target: write_safetensors(target / "b.safetensors", {name: tensors[name] for name in names[half - 1 :]}, notes))
    yield one("a fifo", "bad", {**index, "weight_map": {**index["weight_map"], names[0]: "pipe.safetensors"}}, lambda target: os.mkfifo(target / "pipe.safetensors"))


def text(words):
    raw = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(raw)) + raw


FORMS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


def value_bytes(kind, value):
    if kind == 8:
        return text(value)
    if kind == 9:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(value_bytes(inner, item) for item in items)
    return struct.pack(FORMS[kind], value)


def read_gguf(path):
    """Fields (key, kind, value), tensors (name, dims, kind, offset), data."""
    whole = path.read_bytes()
    at = 24

    def take(form):
        nonlocal at
        got = struct.unpack_from(form, whole, at)[0]
        at += struct.calcsize(form)
        return got

    def word():
        nonlocal at
        length = take("<Q")
        at += length
        return whole[at - length : at]

    def value(kind):
        if kind == 8:
            return word()
        if kind == 9:
            inner, count = take("<I"), take("<Q")
            return inner, [value(inner) for _ in range(count)]
        return take(FORMS[kind])

    counts = struct.unpack_from("<QQ", whole, 8)
    fields = []
    for _ in range(counts[1]):
        key, kind = word(), take("<I")
        fields.append((key, kind, value(kind)))
    tensors = []
    for _ in range(counts[0]):
        name, dims = word(), take("<I")
        tensors.append((name, [take("<Q") for _ in range(dims)], take("<I"), take("<Q")))
    return fields, tensors, whole[-(-at // 32) * 32 :]


def write_gguf(fields, tensors, data, version=3, counts=None):
    n_tensors, n_fields = counts or (len(tensors), len(fields))
    whole = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields)
    for key, kind, value in fields:
        whole += text(key) + struct.pack("<I", kind) + (value if isinstance(value, bytes) and kind not in (8,) else value_bytes(kind, value))
    for name, dims, kind, offset in tensors:
        whole += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return whole + b"\0" * (-len(whole) % 32) + data


def gguf(random, mutations):
    def one(name, expect, data):
        def make(place):
            (place / "work/model.gguf").write_bytes(data)
            return ["run", "--model", "model.gguf", *TOKENS]

        return Attack("gguf", name, expect, make)

    for path in sorted((FIXTURES / "gguf").glob("*.gguf")):
        label, whole = path.stem, path.read_bytes()
        fields, tensors, data = read_gguf(path)
        yield one(f"{label} as it is", "good", write_gguf(fields, tensors, data))
        for _ in range(2 * mutations):
            n = random.randrange(len(fields))
            key, kind, value = fields[n]
            if kind in FORMS and kind != 7:
                number = random.choice([float("nan"), float("inf"), -1.0, 0.0, 1e30]) if kind in (6, 12) else random.choice([0, 1, 2, 2**31 - 1, 2**32 - 1, 2**64 - 1]) % 2 ** (8 * struct.calcsize(FORMS[kind]))
                changed = (key, kind, struct.pack(FORMS[kind], number) if kind in (6, 12) else number.to_bytes(struct.calcsize(FORMS[kind]), "little"))
            elif kind == 9:
                changed = random.choice([(key, 9, struct.pack("<IQ", value[0], random.choice([2**62, 2**32, 2**20]))), (key, 9, (value[0], value[1][: len(value[1]) // 2])), (key, 9, (value[0], value[1] * 2)), (key, 9, (value[0], []))])
            else:
                changed = (key, 8, random.choice(["", "x", "\x1b]0;x\x07", "\u009b", "llama", "y" * 1000, b"\xff\xfe", "\0"]))
            yield one(f"{label} {key.decode()} {str(changed[2])[:24]}", "any", write_gguf([*fields[:n], changed, *fields[n + 1 :]], tensors, data))
        for n in random.sample(range(len(tensors)), 3):
            name, dims, kind, offset = tensors[n]
            others = [(name, dims, kind, offset + 1), (name, dims, kind, 2**63), (name, dims, kind, 2**64 - 32), (name, [2**63, 2], kind, offset), (name, [2**32, 2**32], kind, offset), (name, [*dims, 2], kind, offset), (name, [], kind, offset), (name, [0], kind, offset), (name, [1] * 70, kind, offset), (name, dims, 99, offset), (name, dims, 2**32 - 1, offset), ("\x1b]0;x\x07", dims, kind, offset), (name, [dims[0] + 32, *dims[1:]], kind, offset), (b"\xff", dims, kind, offset)]
            for other in others:
                yield one(f"{label} {name.decode()} {str(other)[:60]}", "bad", write_gguf(fields, [*tensors[:n], other, *tensors[n + 1 :]], data))
            # Another type of the same size, and half its data.
            if kind == 0:
                for type in [24, 26, 28]:
                    yield one(f"{label} {name.decode()} as type {type}", "bad", write_gguf(fields, [*tensors[:n], (name, dims, type, offset), *tensors[n + 1 :]], data))
                spoilt = data[:offset] + struct.pack("<f", float("nan")) + data[offset + 4 :]
                yield one(f"{label} NaN in {name.decode()}", "bad", write_gguf(fields, tensors, spoilt))
            yield one(f"{label} without {name.decode()}", "any" if b"bias" in name or name.startswith(b"output.") or b"rope" in name else "bad", write_gguf(fields, [*tensors[:n], *tensors[n + 1 :]], data))
        yield one(f"{label} twice", "bad", write_gguf([*fields, fields[2]], tensors, data))
        yield one(f"{label} tensor twice", "bad", write_gguf(fields, [*tensors, tensors[1]], data))
        yield one(f"{label} a stranger", "bad", write_gguf(fields, [*tensors, ("zzz.weight", [1], 0, tensors[0][3])], data))
        for version in [0, 1, 4, 2**31, 2**32 - 1]:
            yield one(f"{label} version {version}", "bad", write_gguf(fields, tensors, data, version))
        for counts in [(2**63, len(fields)), (len(tensors), 2**63), (0, len(fields)), (len(tensors) + 1, len(fields)), (len(tensors), len(fields) + 1), (len(tensors), 0)]:
            yield one(f"{label} counts {counts}", "bad", write_gguf(fields, tensors, data, 3, counts))
        for cut in [0, 4, 23, 24, *(random.randrange(len(whole)) for _ in range(4)), len(whole) - 1]:
            yield one(f"{label} cut to {cut}", "bad", whole[:cut])
        for _ in range(mutations):
            yield one(f"{label} mutated", "any", mutated(whole[:6000], random) + whole[6000:])
    deep = struct.pack("<IQ", 9, 1) * 100_000
    yield one("nested lists", "bad", write_gguf([("a", 9, deep)], [], b""))


def llama2c(random, mutations):
    import math

    def numbers(words):
        d, hidden, layers, heads, kv, vocab, context = words
        return abs(vocab) * d * (2 if vocab < 0 else 1) + layers * (2 * d + 2 * d * d + 2 * d * (d // heads * kv) + 3 * d * hidden) + d + context * (d // heads)

    words = [8, 12, 2, 2, 2, 5, 16]
    body = b"".join(struct.pack("<f", math.sin(n * 0.7) * 0.2) for n in range(numbers(words)))

    def one(name, expect, head, more=b"", tail=b"", tokenizer=None):
        def make(place):
            (place / "work/model.bin").write_bytes(struct.pack(f"<{len(head)}i", *head) + body + tail)
            if tokenizer is not None:
                (place / "work/tokenizer.bin").write_bytes(tokenizer)
            return ["run", "--model", "model.bin", *TOKENS]

        return Attack("llama2.c", name, expect, make)

    yield one("as it is", "good", words)
    for index in range(7):
        for value in [-(2**31), -1, 0, words[index] + 1, words[index] - 1, words[index] * 2, 2**31 - 1, 2**16, -words[index]]:
            if value != words[index]:
                head = [*words[:index], value, *words[index + 1 :]]
                yield one(f"word {index} = {value}", "bad", head)
    for tail in [b"\0", b"\0" * 4, b"\0" * 160]:
        yield one(f"{len(tail)} bytes more", "bad", words, tail=tail)

    def pieces(list):
        return struct.pack("<I", 9) + b"".join(struct.pack("<fI", 0.5, len(piece)) + piece for piece in list)

    usual = [b"<unk>", b"<s>", b"</s>", b"a", b"b"]
    yield one("a tokenizer", "good", words, tokenizer=pieces(usual))
    for name, raw in [("one piece less", pieces(usual[:4])), ("one more", pieces([*usual, b"c"])), ("cut", pieces(usual)[:-1]), ("empty", b""), ("longest piece", struct.pack("<I", 2**32 - 1) + pieces(usual)[4:]), ("a length", struct.pack("<IfI", 9, 0.5, 2**32 - 1)), ("NaN", struct.pack("<I", 9) + b"".join(struct.pack("<fI", float("nan"), len(piece)) + piece for piece in usual))]:
        yield one(f"tokenizer {name}", "any" if name in ("longest piece", "NaN") else "bad", words, tokenizer=raw)
    for n in range(2 * mutations):
        yield one(f"tokenizer mutated {n}", "any", words, tokenizer=mutated(pieces([*usual[:3], random.choice([b"", b"\xff", b"\xc3", b"<0x41>", b" a"]), b"b"]), random))


def tokenizers(random, mutations):
    words = json.loads((MODEL / "tokenizer.json").read_text())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    letters = {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789\u0120\u00c3\u00a9")}
    bpe = {"type": "BPE", "vocab": {**letters, "ab": 60, "w1": 61}, "merges": [["a", "b"], ["w", "1"]], "unk_token": None, "byte_fallback": False, "fuse_unk": False, "ignore_merges": False, "dropout": None}
    unigram = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [["<unk>", 0.0], *([letter, -2.0] for letter in "w1234\u2581"), ["w1", -1.0]]}
    pieces = {"type": "WordPiece", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"<|endoftext|>": 0, "w": 1, "##1": 2, "##2": 3}}
    sources = {"words": words, "BPE": {**words, "pre_tokenizer": level, "decoder": level, "model": bpe}, "Unigram": {**words, "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}, "model": unigram}, "WordPiece": {**words, "model": pieces}}
    for label, value in sources.items():
        for name, expect, data in spoil_json(value, random, 6 * mutations):
            # Another tokenizer's ids may lie beyond the tiny model's vocabulary.
            yield folder_attack("tokenizer.json", f"{label} {name}", "any" if expect == "good" and label != "words" else expect, MODEL, "tokenizer.json", data, ["--prompt", "w1 café <|endoftext|> w2", "--top", "2"])
        whole = json.dumps(value).encode()
        for n in range(2 * mutations):
            yield folder_attack("tokenizer.json", f"{label} mutated {n}", "any", MODEL, "tokenizer.json", mutated(whole, random), ["--prompt", "w1 w2", "--top", "2"])
    parts = [{"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"} for pattern in ["(a+)+$", "(?:a|a)*b", "(", "\\p{X}", "a{1000000}", "(?=a)*"]]
    parts += [{"type": "Precompiled", "precompiled_charsmap": value} for value in ["", "AAAA", "////////", "x"]]
    parts += [{"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": ""}, "content": "wwww"}] * 9}, {"type": "Prepend", "prepend": "w" * 10_000_000}, {"type": "Strip", "strip_left": 1}, {"type": "Nothing"}]
    for part in parts:
        yield folder_attack("tokenizer.json", f"normalizer {str(part)[:50]}", "any", MODEL, "tokenizer.json", json.dumps({**sources["words"], "normalizer": part}).encode(), ["--prompt", "w1 " + "a" * 40 + "!", "--top", "2"])
    for length in [10, 10**12]:
        padding = {"strategy": {"Fixed": length}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "w1"}
        yield folder_attack("tokenizer.json", f"padding to {length}", "good", MODEL, "tokenizer.json", json.dumps({**sources["words"], "padding": padding}).encode(), ["--prompt", "w1 w2", "--top", "2"])


def templates(random):
    loop = "{%% for i in range(%d) %%}%s{%% endfor %%}"
    grow = "{%% set n = namespace(x='abcd') %%}{%% for i in range(70) %%}{%% set n.x = %s %%}{%% endfor %%}{{ n.x|length }}"
    hostile = {
        "loops": loop % (90000, loop % (90000, loop % (90000, ""))),
        "output": loop % (90000, "{{ 'x' * 90000 }}"),
        "power": "{{ 10 ** 10000000 }}{{ 'x' * 10**12 }}",
        "lists": "{{ [0] * 10**12 }}{{ ([0] * 100000) * 100000 }}",
        "range": "{{ range(10**18)|list|length }}",
        "slices": "{{ ('a' * 1000)[::0] }}{{ 'a'[10**30:] }}",
        "division": "{{ 1 // 0 }}{{ 1 % 0 }}{{ -9223372036854775808 // -1 }}",
        "round": "{{ 1.5|round(10**9) }}{{ 1.5|round(-10**9) }}",
        "center": "{{ 'a'.center(10**10) }}{{ 'a'|center(10**10) }}",
        "ljust": "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}",
        "batch": "{{ range(9)|batch(10**12, 0)|list }}{{ range(9)|slice(10**12, 0)|list }}",
        "wordwrap": "{{ 'a b'|wordwrap(0) }}{{ ('a ' * 100000)|wordwrap(1, wrapstring='y' * 100000) }}",
        "lipsum": "{{ lipsum(10**9) }}",
        "expandtabs": "{{ '\t'.expandtabs(10**12) }}",
        "tojson": "{{ messages|tojson(indent=2**62) }}",
        "import": "{% import '/etc/passwd' as p %}{% include '../secret' %}",
        "attributes": "{{ messages.__class__.__mro__ }}{{ ''.__init__.__globals__ }}",
        "macro": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "recursive loop": "{% for i in [[[1]]] recursive %}{{ loop([i]) }}{% endfor %}",
        "call": "{% macro m(n) %}{{ caller(n) }}{% endmacro %}{% call(x) m([1]) %}{{ x }}{% endcall %}",
        "escape": "\x1b]0;owned\x07{{ '\x9b31m' }}{{ undefined.x.y }}",
        "raise": "{{ raise_exception('\x1b[2J' ~ 'x' * 100000) }}",
        "strftime": "{{ strftime_now('%' * 100000) }}{{ strftime_now('%999999999d') }}",
        "date": "{{ strftime_now('%Y-%Q-%') }}",
    }
    for name, expression in {"add": "n.x ~ n.x", "join": "[n.x, n.x]|join(n.x)", "replace": "n.x|replace('a', n.x)", "split": "n.x.replace('a', n.x)", "multiply": "n.x * 9", "list": "[n.x, n.x, n.x]", "map": "{'a': n.x, 'b': n.x}", "upper": "(n.x ~ n.x)|upper", "tojson": "(n.x|tojson) ~ (n.x|tojson)", "urlencode": "(n.x ~ '%%')|urlencode ~ n.x", "format": "'%%s%%s' | format(n.x, n.x)", "escape": "(n.x ~ '<')|escape ~ n.x", "indent": "(n.x ~ '\\n')|indent(9) ~ n.x", "batch": "[n.x]|batch(3, n.x)|list"}.items():
        hostile[f"grows by {name}"] = grow % expression
    for part, count in [("(", 50_000), ("not ", 30_000), ("-", 90_000), ("[", 90_000), ("{'a':", 40_000), ("1 if 1 else ", 20_000), ("1 ~ ", 40_000), ("a.", 60_000), ("1 and ", 40_000), ("1 in ", 30_000), ("1 < ", 40_000)]:
        hostile[f"{count} of {part}"] = "{{ " + part * count + "a }}"
    for part, count in [("{% if 1 %}", 30_000), ("{% for a in [1] %}", 20_000), ("{% set a %}", 20_000), ("{% filter upper %}", 20_000), ("{% macro a() %}", 20_000), ("{# ", 30_000), ("{% raw %}", 9_000), ("{% block a %}", 9_000), ("{% with a=1 %}", 20_000), ("{% autoescape true %}", 9_000), ("{{ a }}", 900_000)]:
        hostile[f"{count} of {part}"] = part * count
    for part in ["|upper", ".a", "[0]", "|f()", "()", " is defined", "|default(1)"]:
        hostile[f"chain of {part}"] = "{{ messages" + part * 30_000 + " }}"
    for name, template in hostile.items():
        for file in ["chat_template.jinja", "tokenizer_config.json"]:

            def make(place, template=template, file=file):
                target = copied(place, MODEL)
                (target / file).write_text(template if file.endswith("jinja") else json.dumps({"chat_template": template}))
                return ["generate", "--model", "model", "--chat", "--prompt", "w1", "--max-tokens", "1"]

            if file.endswith("jinja") or random.random() < 0.15:
                yield Attack("chat template", f"{name} in {file}", "any", make)
    for value in ODD + HUGE + [[{"name": "default", "template": 7}], [{"name": "default"}], [{}]]:
        for key in ["chat_template", "bos_token", "eos_token", "add_bos_token", "model_max_length", "added_tokens_decoder", "tokenizer_class", "additional_special_tokens"]:
            if random.random() < 0.5:
                yield folder_attack("tokenizer_config.json", f"{key} = {str(value)[:20]!r}", "any", MODEL, "tokenizer_config.json", json.dumps({key: value}).encode(), ["--prompt", "w1 w2", "--top", "2"])
