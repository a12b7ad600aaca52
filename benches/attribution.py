#!/usr/bin/env python3
"""Attribution side by side with circuit-tracer: one random model and CLT, one prompt, same nodes.

usage: attribution.py CLTLAB FOLDER [--shape gpt2|small] [--tokens 16,64] [--rows 512,128] [--batch 32,16]
                                  [--device cuda]
       attribution.py CLTLAB FOLDER --scaling [--tokens 512,1024,2048,4096] [--rows 8192]
Prints one row a prompt length and program: rows per second end to end (attribute, prune, export;
loading apart), CPU seconds, peak memory, and whether the same features were selected. Each program
runs alone, in a process of its own, one after the other. CPU seconds are there because wall time on
a machine that others use says little. Both rank features after the same number of rows (the peer's
batch times its interval of 4). Floor: the multiply-adds that the linear passes need for the selected
features (values, outputs and patterns at the positions that each reaches, products with the decoder
rows there), and the share of them in what the cores can do, measured by NumPy's product just before.
--scaling is ours alone: long prompts on a small model (L 4, d 128, F 1024, 8 features a token and
layer); the peer keeps a copy of the prompt for each target of a batch and a dense matrix.
--device cuda: both in f32 on a GPU, CLTLAB from ./x build-cuda. Each side runs twice and the second run counts (kernels
are compiled for the card in the first); decoders lie on the device for both, peak MB is the device's memory by
nvidia-smi, the share is of PyTorch's f32 product on the card.
requirements-attribution.txt names what this needs.
"""
import argparse, json, os, re, resource, shutil, subprocess, sys, threading, time

SHAPES = {
    "gpt2": dict(L=12, d=768, F=9216, heads=12, context=1024, l0=30),
    "small": dict(L=6, d=256, F=2048, heads=4, context=1024, l0=30),
    "long": dict(L=4, d=128, F=1024, heads=2, context=4096, l0=8),
}
VOCAB, INTERVAL = 5000, 4


def make(folder, shape):
    """A random GPT-2 with lively norms and attention, and a ReLU CLT with L0 active features a layer and token."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    if os.path.exists(f"{folder}/done"):
        return
    L, d, F, heads, context, l0 = (SHAPES[shape][k] for k in ("L", "d", "F", "heads", "context", "l0"))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_positions=context, n_embd=d, n_layer=L, n_head=heads, bos_token_id=0, eos_token_id=0)
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
        bias = -torch.quantile(pre, 1 - l0 / F, dim=0)
        save_file({f"W_enc_{l}": encoder, f"b_enc_{l}": bias, f"b_dec_{l}": torch.zeros(d)}, f"{folder}/clt/W_enc_{l}.safetensors")
        save_file({f"W_dec_{l}": torch.randn(F, L - l, d) * 0.2 * d**-0.5}, f"{folder}/clt/W_dec_{l}.safetensors")
    with open(f"{folder}/clt/config.yaml", "w") as f:
        f.write("model_name: random\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\nscan: random\n")
    open(f"{folder}/done", "w").close()


def prompt(tokens):
    return [0] + [(i * 997) % (VOCAB - 1) + 1 for i in range(1, tokens)]


def peer(folder, tokens, rows, batch, shape, device):
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
        n_layers=s["L"], d_model=s["d"], n_ctx=s["context"], d_head=s["d"] // s["heads"], n_heads=s["heads"], d_mlp=4 * s["d"], d_vocab=VOCAB,
        act_fn="gelu_new", normalization_type="LN", eps=1e-5, model_name="random", original_architecture="GPT2LMHeadModel",
        tokenizer_name=f"{folder}/model", init_weights=False, attention_dir="causal", positional_embedding_type="standard", device=device,
        default_prepend_bos=True, dtype=torch.float32, seed=None)
    model = TransformerLensReplacementModel(config, tokenizer=AutoTokenizer.from_pretrained(f"{folder}/model"))
    weights = {k: v.detach() for k, v in convert_gpt2_weights(hf, config).items()}
    model.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    del hf, weights
    clt = load_clt(f"{folder}/clt", scan="random", device=torch.device(device), dtype=torch.float32, lazy_decoder=device == "cpu")
    model._configure_replacement_model(clt)
    explain = lambda: attribute(torch.tensor(prompt(tokens), device=device), model, batch_size=batch, max_feature_nodes=rows, update_interval=INTERVAL)
    if device == "cuda":
        explain()
        torch.cuda.synchronize()
    cpu, start = time.process_time(), time.perf_counter()
    graph = explain()
    if device == "cuda":
        torch.cuda.synchronize()
    attributed = time.perf_counter() - start
    create_graph_files(graph, slug="peer", output_path=folder, scan="random", node_threshold=0.8, edge_threshold=0.98)
    whole = time.perf_counter() - start
    selected = graph.active_features[graph.selected_features].tolist()
    print(json.dumps(dict(version=f"circuit-tracer {version}", attribute=attributed, whole=whole, cpu=time.process_time() - cpu,
                          rows=len(selected) + len(graph.logit_targets), active=len(graph.active_features),
                          peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, selected=selected)))


def floor(shape, active, selected):
    """GFLOP of the linear passes for the selected features, by the formulas of cltlab's `replacement::linear`."""
    import numpy as np

    L, d, heads = (SHAPES[shape][k] for k in ("L", "d", "heads"))
    tokens = int(active[:, 1].max()) + 1
    here = np.zeros((L, tokens))
    np.add.at(here, (active[:, 0], active[:, 1]), 1)
    rows = here.cumsum(0).cumsum(0).cumsum(1)  # decoder rows below a layer's end and up to a position
    layer, reach = active[selected, 0].astype(float), active[selected, 1] + 1.0
    maps = layer * 4 * reach * d * d + 4 * d * d
    patterns = layer * reach * (reach + 1) * d + 2 * reach * heads * d
    products = np.where(layer > 0, rows[np.maximum(active[selected, 0] - 1, 0), active[selected, 1]], 0) * 2 * d
    return (maps + patterns + products).sum() / 1e9


def peak_rate(device):
    """GFLOP/s of a single-precision product: NumPy's on all cores, or PyTorch's on the GPU."""
    if device == "cuda":
        done = subprocess.run([sys.executable, "-c", GPU_RATE], capture_output=True, text=True, check=True)
        return float(done.stdout)
    import numpy as np

    a = np.ones((1536, 1536), np.float32)
    best = 0
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 1536**3 / (time.perf_counter() - start) / 1e9)
    return best


GPU_RATE = """import time, torch
a, best = torch.randn(8192, 8192, device='cuda'), 0
for _ in range(12):
    torch.cuda.synchronize()
    start = time.perf_counter()
    a @ a
    torch.cuda.synchronize()
    best = max(best, 2 * 8192**3 / (time.perf_counter() - start) / 1e9)
print(best)"""


class CardMemory:
    """The most memory of the first GPU in use while a block runs, in MB, less what was before."""

    def __enter__(self):
        self.peak, self.stop = 0, threading.Event()
        self.before = self.used()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def used(self):
        if not shutil.which("nvidia-smi"):
            return 0
        done = subprocess.run(["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True)
        return int(done.stdout.split()[0]) if done.returncode == 0 else 0

    def look(self):
        while not self.stop.wait(0.1):
            self.peak = max(self.peak, self.used() - self.before)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def ours(program, folder, shape, tokens, rows, step, device):
    """cltlab, `rows` features (0: all) ranked again after every `step`."""
    from safetensors.numpy import load_file

    args = [program, "attribute", "--model", f"{folder}/model", "--clt", f"{folder}/clt", "--tokens", ",".join(map(str, prompt(tokens))), "-o", f"{folder}/ours.json"]
    if device == "cuda":
        args += ["--dtype", "f32"]
    budget = ["--max-features", str(rows) if rows else "all"] + (["--batch", str(step), "--rank-every", str(step)] if rows and step else [])
    rate = peak_rate(device)
    for _ in range(2 if device == "cuda" else 1):
        with CardMemory() as card:
            done = subprocess.run(["/usr/bin/env", "python3", "-c", TIMED, *args, *budget], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    if device == "cuda":
        figures["peak"] = card.peak
    laps = dict((name, float(value)) for name, value in re.findall(r"· (\w+) ([\d.]+) s", done.stdout))
    count = int(re.search(r"rows (\d+)", done.stdout)[1])
    edges = int(re.search(r"(\d+) edges", done.stdout)[1])
    whole = laps["attribute"] + laps["prune"] + laps["export"]
    out = dict(version="cltlab", attribute=laps["attribute"], whole=whole, cpu=figures["cpu"], rows=count, edges=edges, peak=figures["peak"])
    if tokens > 1024:  # Arrays of some GB.
        return dict(out, active=0, selected=[], floor=0, share=0)
    raw = f"{folder}/ours.safetensors"
    subprocess.run([*args, *budget, "--raw", raw], check=True, capture_output=True)
    arrays = load_file(raw)
    os.remove(raw)
    active, selected = arrays["active_features"], arrays["selected_features"]
    needed = floor(shape, active, selected)
    return dict(out, active=len(active), selected=active[selected].tolist(), floor=needed, share=needed / rate / laps["attribute"])


TIMED = """import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps(dict(cpu=used.ru_utime + used.ru_stime, peak=used.ru_maxrss / 1024)))
sys.exit(code)"""


def line(tokens, f, note=""):
    least = f"{f['floor']:.1f} ({100 * f['share']:.0f} %)" if f.get("floor") else ""
    print(f"| {tokens} | {f['version']} | {f['active'] or ''} | {f['rows']} | {f.get('edges', '')} | {f['attribute']:.2f} | {f['whole']:.2f} | {f['rows'] / f['whole']:.1f} "
          f"| {f['cpu']:.1f} | {f['peak']:.0f} | {least} | {note} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--shape", default="gpt2", choices=SHAPES)
    parser.add_argument("--tokens")
    parser.add_argument("--rows")
    parser.add_argument("--batch", default="32,16")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--scaling", action="store_true", help="long prompts, without circuit-tracer")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help="without circuit-tracer")
    args = parser.parse_args()
    if args.scaling:
        args.shape = "long"
    tokens = [int(n) for n in (args.tokens or ("512,1024,2048,4096" if args.scaling else "16,64")).split(",")]
    rows = [int(n) for n in (args.rows or ("8192" if args.scaling else "512,128")).split(",")]
    batches = [int(n) for n in args.batch.split(",")]
    folder = os.path.join(os.path.abspath(args.folder), args.shape)
    if args.peer:
        return peer(folder, tokens[0], rows[0], batches[0], args.shape, args.device)
    os.makedirs(folder, exist_ok=True)
    make(folder, args.shape)
    print(f"{args.shape}: {SHAPES[args.shape]}, load average {os.getloadavg()[0]:.1f}, {peak_rate(args.device):.0f} GFLOP/s")
    print("| tokens | program | active features | rows | edges | attribute s | with prune and export s | rows/s | CPU s (ours with loading) | peak MB "
          "| floor GFLOP (share of peak) | |\n|---|---|---|---|---|---|---|---|---|---|---|---|")
    if args.scaling:
        for count in tokens:
            line(count, ours(args.program, folder, args.shape, count, rows[0], 0, args.device))
        return
    for count, budget, batch in zip(tokens, rows, batches):
        mine = ours(args.program, folder, args.shape, count, budget, INTERVAL * batch, args.device)
        if args.alone:
            line(count, mine)
            continue
        command = [sys.executable, __file__, "-", args.folder, "--shape", args.shape, "--tokens", str(count), "--rows", str(budget), "--batch", str(batch), "--device", args.device, "--peer"]
        with CardMemory() as card:
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        if args.device == "cuda":
            theirs["peak"] = card.peak
        line(count, theirs)
        same = len({tuple(f) for f in mine["selected"]} & {tuple(f) for f in theirs["selected"]})
        rate = (mine["rows"] / mine["whole"]) / (theirs["rows"] / theirs["whole"])
        line(count, mine, f"{rate:.1f} x the rows per second, {mine['peak'] / max(theirs['peak'], 1):.2f} of the memory, {same} of {len(theirs['selected'])} features the same")
        line(count, ours(args.program, folder, args.shape, count, 0, 0, args.device), "all features")


if __name__ == "__main__":
    main()
