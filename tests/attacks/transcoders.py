"""Attacks on CLTs in every format, on numpy archives, and on YAML."""
import io
import json
import shutil
import struct
import warnings
import zipfile

from places import CLT, FIXTURES, Attack, mutated, spoil_json, spoil_safetensors

FORMATS = {
    "circuit-tracer": [CLT, FIXTURES / "per_layer/llama", FIXTURES / "per_layer/gpt2_skip"],
    "clt-forge": ["clt_forge_clt", "clt_forge_plt", "clt_forge_shards"],
    "crosslayer-coding": ["crosslayer_coding_jumprelu", "crosslayer_coding_per_source", "crosslayer_coding_per_target"],
    "crosslayer-transcoder": ["crosslayer_transcoder_folded", "crosslayer_transcoder_plt", "crosslayer_transcoder_unfolded"],
    "gemma-scope": ["gemma_scope"],
    "gemma-scope-2": ["gemma_scope_2_clt", "gemma_scope_2_plt"],
    "saelens": ["saelens_jumprelu_skip", "saelens_relu"],
    "sparsify": ["sparsify_concat", "sparsify_per_layer", "sparsify_plt", "sparsify_untied", "sparsify_window"],
}
# Fields that the weights contradict when they are one more.
SIZES = ["d_in", "num_latents", "d_sae", "d_latent", "n_layers", "num_features", "num_layers", "d_model", "d_out"]


def check(reader, name, expect, source, change):
    def make(place):
        target = place / "work/clt"
        shutil.copytree(source, target)
        (target / "expected.safetensors").unlink(missing_ok=True)
        more = change(target) if change else None
        return ["clt", "check", "clt", *(more or [])]

    return Attack(reader, name, expect, make)


def attacks(bases, random, mutations):
    for reader, sources in FORMATS.items():
        for source in sources:
            source = FIXTURES / "formats" / source if isinstance(source, str) else source
            yield check(reader, f"{source.name} as it is", "good", source, None)
            yield from of_folder(reader, source, random, mutations)
    yield from archives(random, mutations)
    yield from yamls(random, mutations)


def of_folder(reader, source, random, mutations):
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file() and path.name != "expected.safetensors"]
    for file in files:
        label, whole = f"{source.name}/{file}", (source / file).read_bytes()

        def write(data, file=file):
            return lambda target: (target / file).write_bytes(data) and None

        if file.suffix == ".json":
            value = json.loads(whole)
            for name, expect, data in spoil_json(value, random, 2 * mutations):
                # The hub's files beside the weights are not read where they do not matter.
                yield check(reader, f"{label} {name}", "any" if file.name == "norm_stats.json" else expect, source, write(data))
            for key in SIZES:
                if isinstance(value, dict) and isinstance(value.get(key), int):
                    for other in [value[key] + 1, -1, 0, 2**31, 2**63, 10**20, "x", []]:
                        yield check(reader, f"{label} {key} = {other}", "any", source, write(json.dumps({**value, key: other}).encode()))
        if file.suffix == ".safetensors":
            for name, expect, change in spoil_safetensors(source / file, random):
                # A last layer less is a CLT of fewer layers, where layers are folders.
                if name == "a folder" and len(file.parts) > 1:
                    expect = "any"
                if random.random() < 0.5 or len(files) < 4:
                    yield check(reader, f"{label} {name}", expect, source, lambda target, change=change, file=file: change(target / file))
        for n in range(mutations):
            yield check(f"{reader} mutated", f"{label} {n}", "any", source, write(mutated(whole, random)))

        def gone(target, file=file):
            (target / file).unlink()

        # A last layer less is a CLT of fewer layers in formats without a list; a gap is none.
        yield check(reader, f"{label} gone", "any", source, gone)
        yield check(reader, f"{label} empty", "bad", source, write(b""))


def npy(descr, shape, data, order=False, version=1, header=None):
    text = header if header is not None else f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    raw = text.encode()
    raw += b" " * (-(len(raw) + 11) % 64) + b"\n"
    length = struct.pack("<H", len(raw)) if version == 1 else struct.pack("<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + data


def archives(random, mutations):
    source = FIXTURES / "formats/gemma_scope"
    file = "layer_0/width_12/average_l0_3/params.npz"
    with zipfile.ZipFile(source / file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    # Members that are there twice are made on purpose.
    warnings.filterwarnings("ignore", "Duplicate name")

    def packed(members, method=zipfile.ZIP_STORED):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", method) as archive:
            for name, data in members if isinstance(members, list) else members.items():
                if isinstance(data, tuple):
                    with archive.open(name, "w") as member:
                        member.write(data[0])
                        for _ in range(data[1] >> 20):
                            member.write(bytes(1 << 20))
                else:
                    archive.writestr(name, data)
        return made.getvalue()

    def one(name, expect, data):
        return check("npz", name, expect, source, lambda target: (target / file).write_bytes(data() if callable(data) else data) and None)

    whole = packed(members)
    yield one("as it is", "good", whole)
    yield one("deflated", "good", packed(members, zipfile.ZIP_DEFLATED))
    for method in [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]:
        yield one(f"method {method}", "any", packed(members, method))
    names = sorted(members)
    data = {name: members[name][members[name].index(b"\n") + 1 :] for name in names}
    count = {name: len(data[name]) // 4 for name in names}
    for name in names:
        n, wide = count[name], count[name] > 12
        # W_enc [8, 12], W_dec [12, 8].
        shape = {"W_enc.npy": (8, 12), "W_dec.npy": (12, 8)}.get(name, (n,))
        heads = {
            "integers": npy("<i4", shape, data[name]), "big-endian integers": npy(">i4", shape, data[name]), "objects": npy("|O", shape, data[name]),
            "text": npy("<U1", shape, data[name]), "f8 of half": npy("<f8", shape, data[name]), "complex": npy("<c8", (n // 2,), data[name]),
            "records": npy([("a", "<f4")], shape, data[name]), "one more": npy("<f4", (n + 1,), data[name]), "one less": npy("<f4", (n - 1,), data[name]),
            "bytes more": npy("<f4", shape, data[name] + b"\0" * 8), "huge": npy("<f4", (2**62, 2), data[name]), "huge and zero": npy("<f4", (2**62, 0), b""),
            "negative": npy("<f4", (-1, n), data[name]), "no shape": npy("<f4", (), data[name][:4]), "deep": npy("<f4", (1,) * 500 + (n,), data[name]),
            "flat": npy("<f4", (n,), data[name]) if wide else npy("<f4", (1, n, 1, 1), data[name]),
            "version 9": npy("<f4", shape, data[name], version=9), "long header": npy("", "", data[name], header="{" * 60_000), "no header": b"\x93NUMPY\x01\0\xff\xff",
            "code": npy("", "", data[name], header="__import__('os').system('touch owned')"), "empty": b"", "a pickle": b"\x80\x04}.",
            "doubled key": npy("", "", data[name], header=f"{{'descr': '<f4', 'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}"),
            "NaN": npy("<f4", shape, struct.pack("<f", float("nan")) + data[name][4:]),
        }
        for what, array in heads.items():
            yield one(f"{name} {what}", "bad", packed({**members, name: array}))
        yield one(f"without {name}", "bad", packed({other: members[other] for other in names if other != name}))
        yield one(f"{name} twice", "bad", packed([*members.items(), (name, members[name])]))
        yield one(f"{name} elsewhere", "bad", packed({f"../../{other}" if other == name else other: members[other] for other in names}))
    yield one("a stranger", "bad", packed({**members, "zzz.npy": npy("<f4", (1,), b"\0" * 4)}))
    yield one("a stranger of 512 MB", "bad", lambda: packed({**members, "zzz.npy": (b"", 1 << 29)}, zipfile.ZIP_DEFLATED))
    yield one("a stranger that writes", "bad", packed({**members, "../../../owned.npy": npy("<f4", (1,), b"\0" * 4)}))
    yield one("an escape", "bad", packed({**members, "\x1b]0;x\x07.npy": b""}))
    for name in names:
        yield one(f"{name} is a bomb", "bad", lambda name=name: packed({**members, name: (npy("<f4", (1 << 27,), b""), 1 << 29)}, zipfile.ZIP_DEFLATED))
    for cut in [0, 1, 22, *(random.randrange(len(whole)) for _ in range(12)), len(whole) - 1]:
        yield one(f"cut to {cut}", "bad", whole[:cut])
    for n in range(6 * mutations):
        yield one(f"mutated {n}", "any", mutated(whole, random))
    # The directory's numbers.
    at = whole.rindex(b"PK\x05\x06")
    for place, form, value in [(8, "<H", 0), (8, "<H", 65535), (10, "<H", 65535), (12, "<I", 2**32 - 1), (16, "<I", 2**32 - 1), (16, "<I", 0), (20, "<H", 65535)]:
        raw = bytearray(whole)
        struct.pack_into(form, raw, at + place, value)
        yield one(f"end {place} = {value}", "any", bytes(raw))
    first = whole.index(b"PK\x01\x02")
    for place, form, value in [(10, "<H", 99), (16, "<I", 7), (20, "<I", 2**32 - 1), (24, "<I", 2**32 - 1), (24, "<I", 1), (28, "<H", 65535), (42, "<I", 2**32 - 2), (42, "<I", 3)]:
        raw = bytearray(whole)
        struct.pack_into(form, raw, first + place, value)
        yield one(f"entry {place} = {value}", "bad", bytes(raw))


def yamls(random, mutations):
    for source in [CLT, FIXTURES / "per_layer/llama", FIXTURES / "formats/crosslayer_transcoder_plt"]:
        text = (source / "config.yaml").read_text()

        def one(name, expect, data, source=source):
            return check("YAML", f"{source.name} {name}", expect, source, lambda target: (target / "config.yaml").write_bytes(data if isinstance(data, bytes) else data.encode()) and None)

        yield one("as it is", "good", text)
        bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
        merge = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  b: *a{n - 1}\n  c: *a{n - 1}\n" for n in range(1, 40))
        itself = "a: &a\n  b: *a\n"
        for name, more in {"aliases": bomb, "maps": merge, "itself": itself, "an alias of nothing": "a: *b\n", "a tag": "a: !!python/object/apply:os.system ['touch owned']\n", "documents": "---\n" * 50_000, "nested": "a: " + "[" * 100_000 + "\n", "blocks": "a:\n" + "".join(" " * n + "- \n" for n in range(1, 3000)), "flow maps": "a: " + "{a: " * 50_000 + "\n", "a long key": "? " + "k" * 3_000_000 + "\n: 1\n", "a tab": "\ta: 1\n", "a control": "a: \x07\n", "twice": text.splitlines()[0] + "\n"}.items():
            yield one(name, "any" if name in ("documents", "a long key", "a tag", "maps", "aliases", "blocks") else "bad", text + more)
        for data in [b"", b"3", b"[]", b"- a", b"\xff\xfe", b"\0", b"%YAML 9.9\n---\na: 1", b"a: b: c", b"{", b"? ? ? ?", b"&a *a", b"!!map []"]:
            yield one(f"is {data[:10]}", "bad", data)
        lines = text.splitlines()
        for n, line in enumerate(lines):
            if ":" in line and line.split(":", 1)[1].strip():
                key = line.split(":", 1)[0]
                for value in [".nan", "-1", "0", "99999999999999999999", "18446744073709551615", "x", "[]", "{}", "null", "true", "'\\e]0;x'", '"\\e]0;x\\a"', "1e400", "0x10", "!!binary //8=", "../../x", "'" + "y" * 1_000_000 + "'"]:
                    yield one(f"{key.strip()}: {value[:20]}", "any", "\n".join([*lines[:n], f"{key}: {value}", *lines[n + 1 :], ""]))
        for n in range(3 * mutations):
            yield one(f"mutated {n}", "any", mutated(text.encode(), random))
    # Lists of layers that name files.
    listed = (CLT / "config.yaml").read_text().replace("cross_layer_transcoder", "transcoder_set")
    for name in ["../../x.safetensors", "/dev/zero", "/etc/passwd", "hf://a/b/c.safetensors", "hf://../x", "hf://a/b/../../x", "", ".", "layer_0.safetensors\0", "~/.bashrc", "\\x", "a?b", "a#b", "%2e%2e/x", "x" * 5000]:
        yield check("YAML", f"transcoders: {name!r:.40}", "bad", FIXTURES / "per_layer/llama", lambda target, name=name: (target / "config.yaml").write_text(listed + "transcoders:\n" + f"- {json.dumps(name)}\n" * 3) and None)
