"""Writes a trained checkpoint as a Hugging Face folder in bf16: `python export.py CHECKPOINT_FOLDER MODEL_FOLDER`."""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from network import Config
from tokenizer import SPECIAL


def export(source, target):
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    checkpoint = torch.load(source / "checkpoint.pt", weights_only=True)
    config = Config(**checkpoint["config"])
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in checkpoint["weights"].items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    write = lambda name, value: (target / name).write_text(json.dumps(value, indent=1) + "\n")
    write("config.json", config.huggingface())
    write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL,
            "eos_token": SPECIAL,
            "model_max_length": config.context,
            "add_bos_token": True,
            "add_prefix_space": True,
            "clean_up_tokenization_spaces": False,
        },
    )
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")


if __name__ == "__main__":
    export(*sys.argv[1:])
