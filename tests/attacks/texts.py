"""Attacks on texts of every kind, plain and compressed, by `cltlab eval`."""
import gzip
import json
import os
import struct

from places import CLT, MODEL, ODD, Attack, mutated

WORDS = " ".join(f"w{1 + n * 7 % 120}" for n in range(400))
LINES = "".join(json.dumps({"text": WORDS[n * 40 : n * 40 + 200]}) + "\n" for n in range(6))


def zst(parts):
    """A frame without a checksum or a content size; parts are bytes, or (byte, count) run over and over."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0x70])
    blocks = []
    for part in parts:
        if isinstance(part, tuple):
            byte, count = part
            while count:
                n = min(count, 128 << 10)
                blocks.append((1, n, bytes([byte])))
                count -= n
        else:
            blocks += [(0, len(part[at : at + (128 << 10)]), part[at : at + (128 << 10)]) for at in range(0, len(part), 128 << 10)]
    out = [frame]
    for n, (kind, size, data) in enumerate(blocks):
        out.append(struct.pack("<I", (n == len(blocks) - 1) | kind << 1 | size << 3)[:3] + data)
    return b"".join(out)


def gz_bomb(begin, count, end=b""):
    """Megabytes of one byte, packed as members that repeat."""
    member = gzip.compress(b"a" * (1 << 24), 9)
    return gzip.compress(begin) + member * count + gzip.compress(end)


def attacks(bases, random, mutations):
    def one(name, expect, file, data, more=()):
        def make(place):
            (place / "work" / file).write_bytes(data() if callable(data) else data)
            return ["eval", "--model", str(MODEL), "--clt", str(CLT), "--text", file, "--context", "8", "--tokens", "32", "--fidelity-tokens", "0", *more]

        return Attack("texts", f"{file} {name}", expect, make)

    words, lines = WORDS.encode(), LINES.encode()
    array = json.dumps([json.loads(line) for line in LINES.splitlines()]).encode()
    table = ("id,text\r\n" + "".join(f'{n},"{WORDS[n * 40 : n * 40 + 200]}"\r\n' for n in range(6))).encode()
    good = {"a.txt": words, "a.md": words, "a.jsonl": lines, "a.json": array, "a.csv": table, "a.tsv": table.replace(b",", b"\t")}
    for file, data in good.items():
        yield one("as it is", "good", file, data)
        yield one("with a mark", "good", file, b"\xef\xbb\xbf" + data)
        yield one("in UTF-16", "good", file, data.decode().encode("utf-16"))
        yield one("empty", "bad", file, b"")
        yield one("zeros", "bad" if file != "a.txt" and file != "a.md" else "any", file, b"\0" * 5000)
        for pack, suffix in [(gzip.compress, "gz"), (lambda data: zst([data]), "zst")]:
            packed = pack(data)
            if file in ("a.txt", "a.jsonl", "a.json"):
                yield one("packed", "good", f"{file}.{suffix}", packed)
                for cut in [0, 1, 3, len(packed) // 2, len(packed) - 1]:
                    yield one(f"cut to {cut}", "bad", f"{file}.{suffix}", packed[:cut])
                for n in range(mutations):
                    yield one(f"mutated {n}", "any", f"{file}.{suffix}", mutated(packed, random))
                yield one("noise after", "any", f"{file}.{suffix}", packed + b"noise after the end")
        for n in range(4 * mutations):
            yield one(f"mutated {n}", "any", file, mutated(data, random))
    for value in ODD:
        if not isinstance(value, str) or len(value) > 1_000_000:
            yield one(f"text = {str(value)[:20]!r}", "any" if value is None or isinstance(value, str) else "bad", "a.jsonl", lines + json.dumps({"text": value}).encode() + b"\n")
    for name, data in {"nested": b"[" * 1_000_000, "nested objects": b'{"text":' * 500_000, "no quote": b'{"text": "' + b"a" * 1_000_000, "surrogate": b'{"text": "\\ud800"}\n', "two on a line": lines.replace(b"\n", b" "), "number": b"9" * 1_000_000, "exponent": b"1e999999999\n", "keys": b"{" + b",".join(b'"k%d":1' % n for n in range(200_000)) + b"}\n", "escape": b'{"\x1b]0;x\x07": 1}\n', "escaped": b'{"\\u001b]0;x": 1}\n', "twice": b'{"text": "w1", "text": "w2"}\n' + lines}.items():
        for file in ["a.jsonl", "a.json"]:
            yield one(name, "any" if name in ("twice", "surrogate", "two on a line") else "bad", file, data)
    yield one("a quote that never ends", "bad", "a.csv", table + b'7,"' + b"x" * 1_000_000)
    yield one("a row too long", "bad", "a.csv", table + b"1,2,3,4\r\n")
    yield one("columns", "bad", "a.csv", b"," * 3_000_000 + b"\n")
    yield one("names with escapes", "bad", "a.csv", b"\x1b]0;x\x07,b\n1,2\n")
    yield one("a bomb", "bad", "a.txt.gz", lambda: gz_bomb(b"w1 ", 260))
    yield one("one line", "bad", "a.jsonl.gz", lambda: gz_bomb(b'{"text": "', 260, b'"}\n'))
    yield one("one value", "bad", "a.json.gz", lambda: gz_bomb(b'["', 260, b'"]'))
    yield one("one field", "bad", "a.csv.gz", lambda: gz_bomb(b'text\n"', 260, b'"\n'))
    for file, begin in [("a.txt.zst", b"w1 "), ("a.jsonl.zst", b'{"text": "'), ("a.json.zst", b'["')]:
        yield one("20 GB", "bad", file, lambda begin=begin: zst([begin, (97, 20 << 30)]))
    yield one("spaces", "bad", "a.jsonl.zst", lambda: zst([(32, 8 << 30)]))
    yield one("lines", "bad", "a.jsonl.zst", lambda: zst([(10, 8 << 30)]))
    yield one("many files", "any", "a.txt.gz", gzip.compress(b"w1 ") * 100_000)
    yield one("a window of 2 GiB", "bad", "a.txt.zst", b"\x28\xb5\x2f\xfd\x00\xa8" + zst([words])[6:])
    yield one("a size of 2^60", "bad", "a.txt.zst", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**60) + zst([words])[6:])
    yield one("a dictionary", "bad", "a.txt.zst", b"\x28\xb5\x2f\xfd\x03" + struct.pack("<I", 7) + zst([words])[6:])
    for name, begin in {"parquet": b"PAR1", "zip": b"PK\x03\x04", "arrow": b"ARROW1\0\0", "gzip": b"\x1f\x8b\x08", "zst": b"\x28\xb5\x2f\xfd", "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a program": b"\x7fELF\x02\x01\x01\0" + bytes(range(256)), "pdf": b"%PDF-1.7\n\xff\xfe\xfd\0\0", "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"}.items():
        for file in ["a.txt", "a.jsonl", "a.parquet"]:
            yield one(f"is {name}", "any" if name == "pdf" and file == "a.txt" else "bad", file, begin + b"\0" * 200 + bytes(random.randrange(256) for _ in range(500)))
    footers = [(b"\0" * 8, 4), (b"\x15\x02", 2**32 - 1), (b"\xff" * 64, 64), (b"\x15\x02\x19\xfc\xff\xff\xff\xff\x0f", 9), (b"\x1c" * 5000, 5000), (b"\x19\xfc" * 2000, 4000), (b"\x18\xff\xff\xff\xff\x07", 6)]
    for body, length in footers:
        yield one(f"footer {body[:4]} of {length}", "bad", "a.parquet", b"PAR1" + body + struct.pack("<I", length) + b"PAR1")
    for size in [0, 1, 2**63, 2**64]:
        for option in ["--context", "--tokens", "--fidelity-tokens"]:
            yield Attack("arguments", f"eval {option} {size}", "any", lambda place, option=option, size=size: (place / "work/a.txt").write_bytes(words) and ["eval", "--model", str(MODEL), "--clt", str(CLT), "--text", "a.txt", option, str(size)])
    yield Attack("texts", "a fifo", "any", lambda place: (os.mkfifo(place / "work/a.txt"), ["eval", "--model", str(MODEL), "--clt", str(CLT), "--text", "a.txt"])[1])
    yield Attack("texts", "/dev/zero", "bad", lambda place: ["eval", "--model", str(MODEL), "--clt", str(CLT), "--text", "/dev/zero"])
