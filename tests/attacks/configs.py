"""Attacks on recipes, activations files, stores, checkpoints, graphs, groups and arguments."""
import json
import shutil

from places import CLT, MODEL, Attack, mutated, recipe, spoil_json, spoil_safetensors

GROUPS = ["check", "--model", str(MODEL), "--clt", str(CLT), "--tokens", "1,2,3,4", "--controls", "1", "--groups", "g.json"]


def attacks(bases, random, mutations):
    yield from recipes(bases, random, mutations)
    yield from sealed(bases, random, mutations)
    yield from groups(bases, random, mutations)
    yield from arguments(random)


def recipes(bases, random, mutations):
    def one(name, expect, data, more=()):
        def make(place):
            bases.training(place)
            shutil.rmtree(place / "work/out")
            (place / "work/made.toml").write_bytes(data if isinstance(data, bytes) else data.encode())
            return ["train", "made.toml", *more]

        return Attack("TOML", name, expect, make)

    text = recipe(store=False)
    yield one("as it is", "good", text)
    yield one("the store", "good", recipe().replace("stored", "again"))
    lines = text.splitlines()
    for n, line in enumerate(lines):
        if "=" not in line:
            continue
        key = line.split("=")[0].strip()
        for value in ["nan", "inf", "-inf", "-1", "9223372036854775807", "1e300", "[]", "{}", "true", "1979-05-27", '"\\u001b]0;x"', "[" * 5000, "0.5.5", "'''"]:
            changed = "\n".join([*lines[:n], f"{key} = {value}", *lines[n + 1 :], ""])
            yield one(f"{key} = {value[:20]}", "any" if value in ("1e300", "9223372036854775807") else "bad", changed)
    for table, key, values in [("train", "lr", ["nan", "-1.0", "inf", '"x"', "0"]), ("train", "clip", ["nan", "-1.0", "0.0"]), ("train", "target_l0", ["nan", "-3.0"]), ("train", "betas", ["[0.9]", "[0.9, 1.5]", "[-1.0, 0.9]", "[nan, 0.9]", "7"]), ("train", "eps", ["nan", "-1.0"]), ("train", "seed", ["-1", "1.5", '"x"']), ("train", "dead", ["-1.0", "nan"]), ("train", "unknown", ["1"]), ("clt", "layers", ["9", "-1"]), ("clt", "width", ["9", "0"]), ("clt", "activation", ['"x"', "{ top_k = { k = 0 } }", "{ top_k = { k = 99999999999 } }", "{ jump_relu = { threshold = -1.0, bandwidth = 0.0 } }", "{ nothing = 1 }", "{ top_k = { k = 4 }, relu = {} }"]), ("clt", "unknown", ["1"]), ("output", "dtype", ['"i8"', '"\\u001b"', "7"])]:
        for value in values:
            other = "\n".join(line for line in lines if not line.startswith(f"{key} ="))
            yield one(f"{table}.{key} = {value[:40]}", "any" if (key, value) in [("lr", "0"), ("clip", "0.0"), ("dead", "-1.0")] else "bad", other.replace(f"[{table}]", f"[{table}]\n{key} = {value}") + "\n")
            yield one(f"--set {table}.{key} = {value[:40]}", "any" if (key, value) in [("lr", "0"), ("clip", "0.0"), ("dead", "-1.0")] else "bad", text, ["--set", f"{table}.{key}={value}"])
    for argument in ["", "=", "a", "a=1", "a.b=1", ".=", "train.=1", "train.steps=", "train.steps.x=1", "[train]\nsteps=1", "\x1b.x=1", "train.steps=1\n[x]\ny=1", "x" * 100_000]:
        yield one(f"--set {argument[:20]!r}", "bad", text, ["--set", argument])
    for folder in ["made.toml", "activations.safetensors", "/dev/null", "/proc/x", "\\u0000", "out/" + "x" * 300]:
        yield one(f"folder {folder[:20]!r}", "bad", text.replace('"out/run"', f'"{folder}"'))
    for other in ["", "x", "[", "[a]\n[a]\n", "a=1\na=1", "[train]\n" * 2, "a." * 5000 + "b=1", "[" + "a." * 5000 + "a]", "a = " + "{a=" * 3000, '"\\u001b]0;x" = 1', "\0", "preset = \"x\"", "preset = 7", "[clt]\n" + "k" * 1_000_000 + " = 1", "[" + "t" * 1_000_000 + "]"]:
        yield one(f"is {other[:20]!r}", "bad", other)
    for n in range(10 * mutations):
        yield one(f"mutated {n}", "any", mutated(text.encode(), random).replace(b"steps = 3", b"steps = 2"), ["--set", "train.steps=2", "--set", "output.folder=out/run"])


def sealed(bases, random, mutations):
    """Activations files, stores and checkpoints: what has a seal is whole or refused."""

    def one(reader, name, expect, file, change, arguments):
        def make(place):
            bases.training(place)
            shutil.rmtree(place / "work/out")
            shutil.copytree(bases.made / "work/out", place / "work/out")
            change(place / "work" / file)
            return arguments

        return Attack(reader, name, expect, make)

    again = {"activations": ["train", "file.toml", "--set", "output.folder=out/again"], "store": ["train", "train.toml", "--set", "output.folder=out/again"], "checkpoint": ["train", "file.toml", "--resume", "--set", "train.steps=5"]}
    # A store that is not whole is made anew from model and text: only without them is it refused.
    only = '[activations]\nstore = "store"\n' + recipe().split("[store]\ncontext = 16\n")[1]
    files = [("activations", "activations.safetensors", again["activations"]), ("checkpoint", "out/run/checkpoints/step-00000003.safetensors", again["checkpoint"]), ("checkpoint", "out/stored/checkpoints/step-00000003.safetensors", ["train", "train.toml", "--resume", "--set", "train.steps=5"])]
    for path in sorted((bases.made / "work/store").rglob("*.safetensors")):
        files.append(("store", str(path.relative_to(bases.made / "work")), ["train", "only.toml"]))

    def with_recipe(change):
        def apply(path):
            work = path
            while work.name != "work":
                work = work.parent
            (work / "only.toml").write_text(only.replace("out/stored", "out/again"))
            change(path)

        return apply

    for reader, file, arguments in files:
        source = bases.made / "work" / file
        whole = source.read_bytes()
        yield one(reader, f"{file} as it is", "good", file, with_recipe(lambda path: None), arguments)
        for name, expect, change in spoil_safetensors(source, random):
            if expect == "any" and "names swapped" in name and reader == "activations":
                continue
            yield one(reader, f"{file} {name}", expect, file, with_recipe(change), arguments)
        for n in range(6 * mutations):
            spoilt = mutated(whole, random)
            expect = "any" if reader == "activations" or spoilt == whole else "bad"
            yield one(reader, f"{file} mutated {n}", expect, file, with_recipe(lambda path, spoilt=spoilt: path.write_bytes(spoilt)), arguments)
    manifest = "store/activations.json"
    value = json.loads((bases.made / "work" / manifest).read_text())
    for name, expect, data in spoil_json(value, random, 6 * mutations):
        yield one("store", f"manifest {name}", expect, manifest, with_recipe(lambda path, data=data: path.write_bytes(data)), ["train", "only.toml"])
    for key, number in value.items():
        if isinstance(number, int) and not isinstance(number, bool):
            for other in [number + 1, -1, 0, 2**31, 2**62, 2**63, 2**64 - 1, 1.5, "x", None, []]:
                if other != number:
                    yield one("store", f"manifest {key} = {other}", "bad", manifest, with_recipe(lambda path, key=key, other=other: path.write_text(json.dumps({**value, key: other}))), ["train", "only.toml"])


def groups(bases, random, mutations):
    def one(reader, name, expect, data, arguments=GROUPS):
        def make(place):
            (place / "work/g.json").write_bytes(data if isinstance(data, bytes) else data.encode())
            return arguments

        return Attack(reader, name, expect, make)

    path = bases.made / "work/graph.json"
    status, said, _, _ = bases.run(bases.program, ["attribute", "--model", str(MODEL), "--clt", str(CLT), "--tokens", "1,2,3,4", "--supernodes", "3", "-o", "graph.json"], bases.made)
    if status:
        raise SystemExit(f"the base of graphs was not made: {said.decode()}")
    graph = json.loads(path.read_text())
    path.unlink()
    supernodes = graph["qParams"]["supernodes"]
    yield one("graph JSON", "as it is", "good", json.dumps(graph))
    yield one("supernodes", "as they are", "good", json.dumps(supernodes))
    for name, expect, data in spoil_json(graph, random, 15 * mutations):
        yield one("graph JSON", name, expect, data)
    for name, expect, data in spoil_json(supernodes, random, 15 * mutations, needs_object=False):
        yield one("supernodes", name, expect, data)
    node = supernodes[0][1]
    for value in [[], {}, 3, None, "x", [[]], [["a"]], [[1, node]], [["a", 1]], [["a", "x"]], [["a", "1_2"]], [["a", "-1_0_0"]], [["a", "0_99999999_0"]], [["a", "9_0_0"]], [["a", "0_0_99"]], [["a", f"{2**64}_0_0"]], [["a", node, node]], [["\x1b]0;x\x07", "x"]], ["a", node], [["a", [node]]], [["a", "0_0_0_0"]], [["a", ""]], [["a", "_"]], [["a"] + ["0_0_1"] * 50_000]]:
        yield one("supernodes", str(value)[:60], "bad", json.dumps(value))
    for n in range(4 * mutations):
        yield one("graph JSON", f"mutated {n}", "any", mutated(json.dumps(graph).encode(), random))
        yield one("supernodes", f"mutated {n}", "any", mutated(json.dumps(supernodes).encode(), random))


def arguments(random):
    both = ["--model", str(MODEL), "--clt", str(CLT), "--tokens", "1,2,3,4"]
    numbers = ["0", "-1", "1", str(2**31), str(2**32), str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64), "1.5", "nan", "", "x", "1e3"]
    reals = ["nan", "inf", "-inf", "-1", "0", "1e300", "-0.0", "x", ""]

    def one(name, expect, words):
        return Attack("arguments", name, expect, lambda place: words)

    attribute = ["attribute", *both, "-o", "out/g.json"]
    integers = {"--max-logits": attribute, "--max-features": attribute, "--batch": attribute, "--supernodes": attribute, "--paths": attribute, "--targets": attribute, "--rank-every": [*attribute, "--max-features", "9"]}
    check = ["check", *both, "-o", "out/c.json"]
    integers.update({"--controls": check, "--seed": check, "--top": ["run", "--model", str(MODEL), "--tokens", "1"], "--max-tokens": ["generate", "--model", str(MODEL), "--tokens", "1"], "--top-k": ["generate", "--model", str(MODEL), "--tokens", "1", "--temperature", "1"]})
    attention = ["attention", *both]
    for option in ["--layer", "--head", "--query", "--key"]:
        integers[option] = [*attention, *(word for other in ["--layer", "--head", "--query", "--key"] if other != option for word in [other, "1"])]
    integers["--pairs"] = [*attention, "--layer", "1", "--head", "1", "--query", "2", "--key", "1"]
    for option, words in integers.items():
        for number in numbers:
            yield one(f"{words[0]} {option} {number!r}", "bad" if number in ("-1", "1.5", "nan", "", "x", "1e3", str(2**64)) else "any", [*words, option, number])
    for option, words in {"--logit-mass": attribute, "--node-threshold": attribute, "--edge-threshold": attribute, "--temperature": ["generate", "--model", str(MODEL), "--tokens", "1"], "--top-p": ["generate", "--model", str(MODEL), "--tokens", "1", "--temperature", "1"], "--factors": check}.items():
        for number in reals:
            yield one(f"{words[0]} {option} {number!r}", "bad" if number in ("nan", "inf", "-inf", "x", "") else "any", [*words, option, number])
    for place in ["", "0", "0_0", "0_0_0", "0_0_0=", "0_0_0=nan", "0_0_0=inf", "9_0_0=1", "0_0_9=1", "0_9999999_0=1", "0_0_:=1,1", "-1_0_0=1", "0_0_3:1=1", f"0_0_{2**64}=1", f"0_0_:{2**64 - 1}=1", f"0_0_{2**64 - 1}:=1", "0_0_1:1=1", "a_b_c=d", "\x1b_0_0=1", "0_0_0=1e39", "0_0_0==1", "0,0,0=1", "0_0_0_0=1"]:
        for option in ["--set", "--scale", "--add"]:
            yield one(f"intervene {option} {place!r}", "bad", ["intervene", *both, option, place])
    for layers in ["", ":", "1", "1:1", "2:1", "0:9", f"0:{2**64}", "a:b", "-1:2"]:
        yield one(f"intervene --layers {layers!r}", "any" if layers in (":", "0:9", "1") else "bad", ["intervene", *both, "--set", "0_1_1=1", "--layers", layers])
    for tokens in ["", ",", "1,", "-1", "128", str(2**32), str(2**64), "1," * 200 + "1", "x", "1;2", "\x1b"]:
        yield one(f"run --tokens {tokens[:20]!r}", "bad", ["run", "--model", str(MODEL), "--tokens", tokens])
    for prompt in ["", "\0x"[1:] * 100_000, "\u200b", "\x1b]0;x\x07", "w1 " * 100]:
        yield one(f"run --prompt {prompt[:10]!r}", "any", ["run", "--model", str(MODEL), "--prompt", prompt])
    for model in ["", ".", "/", "/dev/null", "/dev/zero", "..", "a/b/c/d", "hf://x", "http://127.0.0.1:1/x", "x" * 5000, "\x1b]0;x\x07", "a/b@../../x", "a/b//../../../x", "~", "-"]:
        yield one(f"run --model {model[:20]!r}", "bad", ["run", f"--model={model}", "--tokens", "1"])
        yield one(f"clt check {model[:20]!r}", "bad", ["clt", "check", "--", model])
    for pair in ["1", "1,1", "1,2,3", "a,b", "1,999", ""]:
        yield one(f"attribute --difference {pair!r}", "bad", [*attribute, "--difference", pair])
