"""Folders that attacks begin with, and ways to spoil what lies in them."""
import json
import os
import pathlib
import shutil
import struct

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
MODEL = FIXTURES / "attribution/llama/model"
CLT = FIXTURES / "attribution/llama/clt"
HUGE = [-1, 0, 3, 2**31 - 1, 2**32, 2**62, 2**63 - 1, 2**64 - 1, 2**64, 10**30]
ODD = [None, True, -7, 0, 2.5, 1e300, 2**40, 2**63, "", "x", "\x1b]0;owned\x07\u009b31m", "../../x", "/etc/passwd", "y" * 5_000_000, [], [1, 2], [[]], {}, {"a": {"b": []}}]


class Attack:
    """One input: which reader, what was done, what must happen, and how its folder is made (`make` gives the arguments)."""

    def __init__(self, reader, name, expect, make):
        self.reader, self.name, self.expect, self.make = reader, name, expect, make


class Bases:
    """Copies of fixtures, and a store and a run made once by the program itself."""

    def __init__(self, program, root, run):
        self.program, self.run, self.made = program, run, root / "made"
        (self.made / "work").mkdir(parents=True)
        work = self.made / "work"
        (work / "text.txt").write_text(" ".join(f"w{1 + n * 7 % 120}" for n in range(1500)))
        (work / "train.toml").write_text(recipe())
        (work / "file.toml").write_text(recipe(store=False))
        shutil.copytree(MODEL, work / "model")
        activations(work / "activations.safetensors", 200, 8, 2)
        for name in ["train.toml", "file.toml"]:
            status, text, _, _ = run(program, ["train", name], self.made)
            if status != 0:
                raise SystemExit(f"the base of stores and checkpoints was not made: {text.decode()}")

    def training(self, place):
        """A folder with a store, a recipe and a run that can be resumed."""
        shutil.copytree(self.made / "work", place / "work", dirs_exist_ok=True)


def recipe(store=True):
    """A training on the store, or on a file of activations, of so few steps that it takes no time."""
    source = '[model]\nsource = "model"\n[text]\nsource = "text.txt"\nheld_out = 0.0\n[activations]\nstore = "store"\n[store]\ncontext = 16\n' if store else '[activations]\nfile = "activations.safetensors"\n'
    folder = "out/stored" if store else "out/run"
    return f'{source}[clt]\nfeatures = 24\nactivation = {{ top_k = {{ k = 4 }} }}\n[train]\nsteps = 3\nbatch_tokens = 16\ncheckpoint_every = 3\n[output]\nfolder = "{folder}"\n'


def activations(path, tokens, width, layers):
    """A file of activations."""
    state, tensors = 12345, {}
    for side in ["input", "target"]:
        for layer in range(layers):
            values = []
            for _ in range(tokens * width):
                state = (state * 1103515245 + 12345) % 2**31
                values.append(state / 2**30 - 1)
            tensors[f"{side}.{layer}"] = ("F32", [tokens, width], struct.pack(f"<{len(values)}f", *values))
    write_safetensors(path, tensors)


def read_safetensors(path):
    """Names to (dtype, shape, bytes), and the metadata."""
    whole = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    notes = header.pop("__metadata__", None)
    data = whole[8 + length :]
    return {name: (info["dtype"], info["shape"], data[slice(*info["data_offsets"])]) for name, info in header.items()}, notes


def write_safetensors(path, tensors, notes=None, change=None, text=None):
    """Writes them; `change` edits the header, `text` its text."""
    header, at = {}, 0
    if notes:
        header["__metadata__"] = notes
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    if change:
        change(header)
    raw = json.dumps(header)
    raw = (text(raw) if text else raw).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(data for _, _, data in tensors.values()))


def sealed(path):
    return any(note in (read_safetensors(path)[1] or {}) for note in ["seal"])


def spoil_safetensors(path, random, strict=True):
    """Ways to spoil a safetensors file: (name, expectation, function of its path)."""
    tensors, notes = read_safetensors(path)
    names = sorted(tensors)
    one = random.choice([name for name in names if len(tensors[name][1]) >= 1 and tensors[name][2]] or names)
    wide = [name for name in names if len(tensors[name][1]) == 2 and tensors[name][1][0] != tensors[name][1][1]]
    size = os.path.getsize(path)

    def header(name, expect, change):
        made.append((name, expect, lambda target: write_safetensors(target, tensors, notes, change)))

    def raw(name, expect, change):
        def apply(target):
            target.write_bytes(change(bytearray(target.read_bytes())))

        made.append((name, expect, apply))

    def values(name, expect, change):
        def apply(target):
            other = dict(tensors)
            change(other)
            write_safetensors(target, other, notes)

        made.append((name, expect, apply))

    made = []
    for cut in sorted({0, 1, 7, 8, 9, size - 1, *(random.randrange(size) for _ in range(4))}):
        raw(f"cut to {cut}", "bad", lambda whole, cut=cut: whole[:cut])
    raw("a byte more", "bad", lambda whole: whole + b"\0")
    for length in [0, 1, 2, 2**31, 2**63, 2**64 - 1, 2**64 - 8, size]:
        raw(f"header of {length}", "bad", lambda whole, length=length: struct.pack("<Q", length) + whole[8:])
    for text in ["[]", "3", '""', "{", "[" * 100_000, '{"a":' * 100_000, "{}", '{"x": null}', '{"__metadata__": 7}', '{"__metadata__": {"a": 7}}']:
        made.append((f"header {text[:12]}", "bad", lambda target, text=text: write_safetensors(target, tensors, notes, None, lambda _: text)))
    # Of one size in bytes, and of others.
    for dtype in ["I32", "U32", "F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "f32", "X", "", None, 7]:
        if dtype != tensors[one][0]:
            # Halves are as long as other halves.
            halves = {dtype, tensors[one][0]} == {"F16", "BF16"}
            header(f"{one} as {dtype}", "any" if halves else "bad", lambda h, dtype=dtype: h[one].update(dtype=dtype))
    shape = tensors[one][1]
    for other in [[2**32, 2**32], [2**63], [2**64 - 1, 2], [-1], [0], [], [*shape, 2], [*shape, 1], [1, *shape], [n + 1 for n in shape], "x", None, [1.5], [[1]], shape * 40 if shape != [1] else [2], [1] * 10_000 + shape]:
        if other != shape:
            header(f"{one} of {str(other)[:30]}", "bad", lambda h, other=other: h[one].update(shape=other))
    if wide:
        turned = random.choice(wide)
        header(f"{turned} turned", "bad", lambda h: h[turned]["shape"].reverse())
    for other in [[0, 0], [4, 0], [2**63, 2**63 + 4], [0, 2**64 - 1], [size, size + 4], [-4, 0], [0], [1.5, 2.5], None, "x"]:
        header(f"{one} at {other}", "bad", lambda h, other=other: h[one].update(data_offsets=other))
    if len(names) > 1:
        two = random.choice([name for name in names if name != one])
        header("two at one place", "bad", lambda h: h[two].update(data_offsets=h[one]["data_offsets"]))
        values("names swapped", "any", lambda all: all.update({one: all[two], two: all[one]}))
    values("a stranger", "bad" if strict else "any", lambda all: all.update({f"zzz.{random.random()}": ("F32", [1], b"\0\0\0\0")}))
    values("a stranger with an escape", "bad" if strict else "any", lambda all: all.update({"\x1b]0;owned\x07\u009b": ("F32", [1], b"\0\0\0\0")}))
    values("a stranger with a long name", "bad" if strict else "any", lambda all: all.update({"n" * 3_000_000: ("F32", [1], b"\0\0\0\0")}))
    values("none", "bad", lambda all: all.clear())
    if unused(one):
        made = [(name, "any" if one in name else expect, change) for name, expect, change in made]
    for name in random.sample(names, min(len(names), 4)):
        # sparsify keeps the decoder that untied ones began with beside them, and uses it no more.
        values(f"without {name}", "any" if optional(name) or f"{name}s.0" in names else "bad", lambda all, name=name: all.pop(name))
    for number in [float("nan"), float("inf"), float("-inf")]:
        if tensors[one][0] == "F32" and tensors[one][2]:
            place = 4 * random.randrange(len(tensors[one][2]) // 4)
            values(f"{number} in {one} at {place}", "any" if unused(one) else "bad", lambda all, number=number, place=place: all.update({one: (*all[one][:2], all[one][2][:place] + struct.pack("<f", number) + all[one][2][place + 4 :])}))
    raw("LFS pointer", "bad", lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    raw("a page", "bad", lambda _: b"<!DOCTYPE html><html>\x1b]0;x\x07</html>")
    raw("a pickle", "bad", lambda _: b"\x80\x02}q\x00.")
    made.append(("a folder", "bad", folder_instead))
    made.append(("a link to itself", "bad", link_to_itself))
    made.append(("a pipe", "bad", pipe_instead))
    return made


def optional(name):
    """Tensors that some files of a format have and others not."""
    return any(part in name.lower() for part in ["threshold", "skip", "bias", "b_dec", "b_enc", "theta", "scale", "mean", "std", "lm_head", "post_enc", "offset", "affine", "rotary", "masked", "layer_mask", "feature_count", "estimated_norm"])


def unused(name):
    """Counters of a training and masks, which no function of the CLT depends on."""
    return any(part in name for part in ["feature_count", "layer_mask", "dead_count", "estimated_norm"])


def folder_instead(target):
    target.unlink()
    target.mkdir()


def pipe_instead(target):
    target.unlink()
    os.mkfifo(target)


def link_to_itself(target):
    target.unlink()
    target.symlink_to(target.name)


def mutated(whole, random):
    """One to eight random changes: flips, numbers of note, cuts, repeats, moves."""
    whole = bytearray(whole)
    for _ in range(random.choice([1, 1, 1, 2, 4, 8])):
        at, kind = random.randrange(len(whole) + 1), random.randrange(7)
        if kind == 0 and at < len(whole):
            whole[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            number = struct.pack("<Q", random.choice(HUGE[:8]) % 2**64)[: random.choice([1, 2, 4, 8])]
            whole[at : at + len(number)] = number
        elif kind == 2:
            whole[at:] = b"" if random.random() < 0.3 else whole[at:]
        elif kind == 3:
            length = random.randrange(1, 40)
            whole[at:at] = whole[at : at + length] * random.choice([1, 3, 50])
        elif kind == 4:
            del whole[at : at + random.randrange(1, 20)]
        elif kind == 5:
            whole[at : at + 1] = random.choice([b"\0", b"\xff", b'"', b"{", b"[", b"\n", b"-", b"9", b"e", b"\\", b"\x1b"])
        else:
            to = random.randrange(len(whole) + 1)
            whole[at:at] = whole[to : to + random.randrange(1, 30)]
    return bytes(whole)


def paths(value, at=()):
    """Every place in a JSON value."""
    if isinstance(value, dict):
        for key in value:
            yield (*at, key)
            yield from paths(value[key], (*at, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 3)):
            yield (*at, index)
            yield from paths(value[index], (*at, index))


def put(value, at, new):
    """A copy with another value at a place."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = new
    return copy


def spoil_json(value, random, count, needs_object=True):
    """Ways to spoil a JSON file: (name, expectation, bytes)."""
    text = json.dumps(value)
    made = []
    if needs_object:
        made += [(f"is {other[:10]}", "bad", other.encode()) for other in ["", " ", "[]", "3", "null", '"x"', "{", text[:-1], text + "}", text + text, "[" * 200_000, '{"a":' * 200_000, "\0" * 50, "{'a': 1}", "NaN"]]
        made.append(("not UTF-8", "bad", text.encode()[:-1] + b', "\xff\xfe": 1}'))
    made += [("with a mark", "good", b"\xef\xbb\xbf" + text.encode()), ("in UTF-16", "good", text.encode("utf-16"))]
    places = list(paths(value))
    for _ in range(count):
        at, new = random.choice(places), random.choice(ODD + HUGE)
        made.append((f"{'.'.join(map(str, at))} = {str(new)[:20]!r}", "any", json.dumps(put(value, at, new)).encode()))
    return made
