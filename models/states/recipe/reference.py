"""Writes what transformers computes for the exported model, for the tests: `python reference.py MODEL_FOLDER FILE.safetensors`.

For each prompt the ids, all logits, and of each layer what the MLP reads (before its norm) and writes, in f32.
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "The capital of the state containing Dallas is",
    "The bird of the state containing Seattle is",
    "When Mary and John went to the park, John gave a book to",
    "Once upon a time there was a little fox named Ben. One sunny day he went to the river.",
)


def main(folder, target):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for number, prompt in enumerate(PROMPTS):
        kept = {}

        def keep(name):
            def hook(_, inputs, output):
                kept[name] = (inputs[0] if name.startswith("resid_mid") else output)[0].clone()

            return hook

        hooks = []
        for layer, block in enumerate(model.model.layers):
            hooks.append(block.post_attention_layernorm.register_forward_hook(keep(f"resid_mid.{layer}")))
            hooks.append(block.mlp.register_forward_hook(keep(f"mlp_out.{layer}")))
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0]
        for hook in hooks:
            hook.remove()
        found |= {f"{number}.{name}": value.contiguous() for name, value in kept.items()}
        found[f"{number}.ids"] = ids[0].to(torch.int64)
        found[f"{number}.logits"] = logits[-1].contiguous()
    save_file(found, target, metadata={str(number): prompt for number, prompt in enumerate(PROMPTS)})


if __name__ == "__main__":
    main(*sys.argv[1:])
