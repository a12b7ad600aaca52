#!/usr/bin/env python3
"""Attribution side by side with circuit-tracer: one random model and CLT, one prompt, same nodes.

usage: attribution.py CLTLAB FOLDER [--shape gpt2|small] [--tokens 16,64] [--rows 512,128] [--batch 32,16]
Prints one row a prompt length and program: rows per second end to end (attribute, prune, export;
loading apart), CPU seconds, peak memory, and whether the same features were selected. Each program
runs alone, in a process of its own, one after the other. CPU seconds are there because wall time on
a machine that others use says little. requirements-attribution.txt names what this needs.
"""
import argparse, json, os, re, resource, subprocess, sys, time

SHAPES = {"gpt2": dict(L=12, d=768, F=9216, heads=12), "small": dict(L=6, d=256, F=2048, heads=4)}
VOCAB, CONTEXT, L0 = 5000, 1024, 30


def make(folder, shape):
    """A random GPT-2 with lively norms and attention, and a ReLU CLT with L0 active features a layer and token."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    if os.path.exists(f"{folder}/done"):
        return
    L, d, F, heads = (SHAPES[shape][k] for k in ("L", "d", "F", "heads"))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=d, n_layer=L, n_head=heads, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_((1 if "weight" in name else 0) + 0.1 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.4 if "wte" in name else 0.1 if "wpe" in name else 0.9 * p.shape[0] ** -0.5))
    model.save_pretrained(f"{folder}/model", safe_serialization=True)
    words = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {k: "<|endoftext|>" for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(f"{folder}/model")

    inputs = {}
    for i, block in enumerate(model.transformer.h):
        block.ln_2.register_forward_pre_hook(lambda module, args, i=i: inputs.__setitem__(i, args[0].flatten(0, 1)))
    with torch.no_grad():
        ids = torch.randint(1, VOCAB, (128, 16))
        ids[:, 0] = 0
        model(ids)
    later = torch.arange(ids.numel()) % ids.shape[1] != 0
    os.makedirs(f"{folder}/clt", exist_ok=True)
    for l in range(L):
        encoder = torch.randn(F, d)
        encoder /= encoder.norm(dim=1, keepdim=True) * inputs[l][later].std()
        pre = inputs[l][later] @ encoder.T
        bias = -torch.quantile(pre, 1 - L0 / F, dim=0)
        save_file({f"W_enc_{l}": encoder, f"b_enc_{l}": bias, f"b_dec_{l}": torch.zeros(d)}, f"{folder}/clt/W_enc_{l}.safetensors")
        save_file({f"W_dec_{l}": torch.randn(F, L - l, d) * 0.2 * d**-0.5}, f"{folder}/clt/W_dec_{l}.safetensors")
    with open(f"{folder}/clt/config.yaml", "w") as f:
        f.write("model_name: random\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\nscan: random\n")
    open(f"{folder}/done", "w").close()


def prompt(tokens):
    return [0] + [(i * 997) % (VOCAB - 1) + 1 for i in range(1, tokens)]


def peer(folder, tokens, rows, batch, shape):
    """circuit-tracer, in this process; prints its figures as JSON."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from circuit_tracer import __version__ as version
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.utils.create_graph_files import create_graph_files
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
    from transformers import AutoTokenizer, GPT2LMHeadModel

    hf = GPT2LMHeadModel.from_pretrained(f"{folder}/model").eval()
    s = SHAPES[shape]
    config = HookedTransformerConfig(
        n_layers=s["L"], d_model=s["d"], n_ctx=CONTEXT, d_head=s["d"] // s["heads"], n_heads=s["heads"], d_mlp=4 * s["d"], d_vocab=VOCAB,
        act_fn="gelu_new", normalization_type="LN", eps=1e-5, model_name="random", original_architecture="GPT2LMHeadModel",
        tokenizer_name=f"{folder}/model", init_weights=False, attention_dir="causal", positional_embedding_type="standard", device="cpu",
        default_prepend_bos=True, dtype=torch.float32, seed=None)
    model = TransformerLensReplacementModel(config, tokenizer=AutoTokenizer.from_pretrained(f"{folder}/model"))
    weights = {k: v.detach() for k, v in convert_gpt2_weights(hf, config).items()}
    model.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    del hf, weights
    clt = load_clt(f"{folder}/clt", scan="random", device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=True)
    model._configure_replacement_model(clt)
    cpu, start = time.process_time(), time.perf_counter()
    graph = attribute(torch.tensor(prompt(tokens)), model, batch_size=batch, max_feature_nodes=rows, update_interval=4)
    attributed = time.perf_counter() - start
    create_graph_files(graph, slug="peer", output_path=folder, scan="random", node_threshold=0.8, edge_threshold=0.98)
    whole = time.perf_counter() - start
    selected = graph.active_features[graph.selected_features].tolist()
    print(json.dumps(dict(version=f"circuit-tracer {version}", attribute=attributed, whole=whole, cpu=time.process_time() - cpu,
                          rows=len(selected) + len(graph.logit_targets), active=len(graph.active_features),
                          peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, selected=selected)))


def ours(program, folder, tokens, rows, batch):
    import numpy as np
    from safetensors.numpy import load_file

    args = [program, "attribute", "--model", f"{folder}/model", "--clt", f"{folder}/clt", "--tokens", ",".join(map(str, prompt(tokens))), "-o", f"{folder}/ours.json"]
    budget = ["--max-features", str(rows), "--batch-size", str(batch), "--update-interval", "4"] if rows else []
    done = subprocess.run(["/usr/bin/env", "python3", "-c", TIMED, *args, *budget], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    laps = dict((name, float(value)) for name, value in re.findall(r"· (\w+) ([\d.]+) s", done.stdout))
    count = int(re.search(r"rows (\d+)", done.stdout)[1])
    raw = f"{folder}/ours.safetensors"
    subprocess.run([*args, *budget, "--raw", raw], check=True, capture_output=True)
    arrays = load_file(raw)
    selected = arrays["active_features"][arrays["selected_features"]].tolist()
    whole = laps["attribute"] + laps["prune"] + laps["export"]
    return dict(version="cltlab", attribute=laps["attribute"], whole=whole, cpu=figures["cpu"], rows=count,
                active=len(arrays["active_features"]), peak=figures["peak"], selected=selected)


TIMED = """import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps(dict(cpu=used.ru_utime + used.ru_stime, peak=used.ru_maxrss / 1024)))
sys.exit(code)"""


def line(tokens, f, note=""):
    print(f"| {tokens} | {f['version']} | {f['active']} | {f['rows']} | {f['attribute']:.2f} | {f['whole']:.2f} | {f['rows'] / f['whole']:.1f} | {f['cpu']:.1f} | {f['peak']:.0f} | {note} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--shape", default="gpt2", choices=SHAPES)
    parser.add_argument("--tokens", default="16,64")
    parser.add_argument("--rows", default="512,128")
    parser.add_argument("--batch", default="32,16")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help="without circuit-tracer")
    args = parser.parse_args()
    numbers = [[int(n) for n in text.split(",")] for text in (args.tokens, args.rows, args.batch)]
    folder = os.path.join(os.path.abspath(args.folder), args.shape)
    if args.peer:
        return peer(folder, *(n[0] for n in numbers), args.shape)
    os.makedirs(folder, exist_ok=True)
    make(folder, args.shape)
    print(f"{args.shape}: {SHAPES[args.shape]}, load average {os.getloadavg()[0]:.1f}")
    print("| tokens | program | active features | rows | attribute s | with prune and export s | rows/s | CPU s (ours with loading) | peak MB | |\n|---|---|---|---|---|---|---|---|---|---|")
    for tokens, rows, batch in zip(*numbers):
        mine = ours(args.program, folder, tokens, rows, batch)
        if args.alone:
            line(tokens, mine)
            continue
        command = [sys.executable, __file__, "-", args.folder, "--shape", args.shape, "--tokens", str(tokens), "--rows", str(rows), "--batch", str(batch), "--peer"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        line(tokens, theirs)
        same = len({tuple(f) for f in mine["selected"]} & {tuple(f) for f in theirs["selected"]})
        rate = (mine["rows"] / mine["whole"]) / (theirs["rows"] / theirs["whole"])
        line(tokens, mine, f"{rate:.1f} x the rows per second, {mine['peak'] / theirs['peak']:.2f} of the memory, {same} of {len(theirs['selected'])} features the same")
        line(tokens, ours(args.program, folder, tokens, 0, batch), "all features")


if __name__ == "__main__":
    main()
