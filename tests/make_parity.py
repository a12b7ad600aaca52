#!/usr/bin/env python3
"""Forward-parity fixtures: tiny random models run by Hugging Face transformers.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch==2.9.1 transformers==4.57.3 safetensors
    HF_HUB_OFFLINE=1 /tmp/venv/bin/python tests/make_parity.py [NAME...]

writes tests/fixtures/parity/<name>/{config.json, model.safetensors, expected.safetensors}. Computed in
float32 on the CPU with eager attention from weights that float16 can hold; norms and biases are random, so that none can be left out
unseen. expected: `input_ids [2, 16]`, `logits [2, 16, V]` and for each layer l, `[2, 16, d]`:
`mlp_norm_in.l` (the residual before the MLP's norm), `mlp_in.l` (what the MLP reads), `mlp_out.l`
(what it writes), and `mlp_out_postnorm.l` where a norm follows it.
"""
import math
import os
import shutil
import sys

import torch
import transformers as T
from safetensors.torch import save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "parity")
VOCAB = 96
IDS = torch.tensor([
    [0, 17, 5, 90, 42, 17, 63, 8, 71, 5, 77, 31, 54, 9, 1, 88],
    [0, 3, 3, 3, 80, 11, 64, 95, 2, 7, 19, 23, 29, 31, 37, 41],
])
LLAMA = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0)
PLAIN = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
SLIDE = ["sliding_attention", "full_attention", "sliding_attention"]

LLAMA3 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=0.5)
AFTER = "post_attention_layernorm"

# name: (class, configuration, (path of the layers, norm before the MLP or None, norm after it or None))
MODELS = {
    "gpt2": (T.GPT2LMHeadModel, T.GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0,
    ), ("transformer.h", "ln_2", None)),
    "gpt_neox": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**PLAIN, rotary_pct=0.25, hidden_act="gelu"), ("gpt_neox.layers", AFTER, None)),
    "llama": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA, rope_theta=5e5, rope_scaling=LLAMA3), ("model.layers", AFTER, None)),
    "qwen3": (T.Qwen3ForCausalLM, T.Qwen3Config(**LLAMA, head_dim=16, rope_theta=1e6, tie_word_embeddings=True), ("model.layers", AFTER, None)),
    "gpt_neo": (T.GPTNeoForCausalLM, T.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=64, max_position_embeddings=64,
        window_size=5, attention_types=[[["global", "local"], 1], [["global"], 1]], bos_token_id=0, eos_token_id=0,
    ), ("transformer.h", "ln_2", None)),
    "mistral": (T.MistralForCausalLM, T.MistralConfig(**LLAMA, sliding_window=6, rope_theta=1e4), ("model.layers", AFTER, None)),
    "qwen2_sliding": (T.Qwen2ForCausalLM, T.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=4, max_window_layers=1, rope_theta=1e6,
    ), ("model.layers", AFTER, None)),
    "gemma": (T.GemmaForCausalLM, T.GemmaConfig(**LLAMA, head_dim=16), ("model.layers", AFTER, None)),
    "gemma2_sliding": (T.Gemma2ForCausalLM, T.Gemma2Config(
        **LLAMA, head_dim=16, query_pre_attn_scalar=24, sliding_window=6, attn_logit_softcapping=5.0, final_logit_softcapping=8.0,
    ), ("model.layers", "pre_feedforward_layernorm", "post_feedforward_layernorm")),
    "gemma3_text": (T.Gemma3ForCausalLM, T.Gemma3TextConfig(
        **LLAMA, head_dim=16, query_pre_attn_scalar=24, sliding_window=6, layer_types=SLIDE, rope_theta=1e6,
        rope_local_base_freq=1e2, rope_scaling=dict(rope_type="linear", factor=8.0),
    ), ("model.layers", "pre_feedforward_layernorm", "post_feedforward_layernorm")),
    "gpt_neox_serial": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(
        **PLAIN, rotary_pct=0.5, use_parallel_residual=False, hidden_act="gelu",
    ), ("gpt_neox.layers", AFTER, None)),
    "phi": (T.PhiForCausalLM, T.PhiConfig(**PLAIN, partial_rotary_factor=0.5), ("model.layers", "input_layernorm", None)),
    "phi3": (T.Phi3ForCausalLM, T.Phi3Config(**LLAMA, sliding_window=7, partial_rotary_factor=0.5), ("model.layers", AFTER, None)),
    "phi3_longrope": (T.Phi3ForCausalLM, T.Phi3Config(
        **LLAMA, sliding_window=None, partial_rotary_factor=0.5, original_max_position_embeddings=40,
        rope_scaling=dict(type="longrope", short_factor=[1.1, 1.7], long_factor=[2.0, 9.0]),
    ), ("model.layers", AFTER, None)),
    "olmo2": (T.Olmo2ForCausalLM, T.Olmo2Config(**LLAMA), ("model.layers", None, "post_feedforward_layernorm")),
    "qwen3_yarn": (T.Qwen3ForCausalLM, T.Qwen3Config(**LLAMA, head_dim=16, rope_theta=1e2, rope_scaling=YARN), ("model.layers", AFTER, None)),
    "llama_yarn": (T.LlamaForCausalLM, T.LlamaConfig(
        **LLAMA, head_dim=16, rope_theta=1e2, rope_scaling=dict(YARN, truncate=False, mscale=0.7, mscale_all_dim=0.4),
    ), ("model.layers", AFTER, None)),
}


def randomise(name, model):
    """Norms about 1 (about 0 where the scale is 1 + w), biases about 0, maps that keep the scale."""
    for key, p in model.named_parameters():
        if p.ndim == 1:
            offset = 0.0 if key.endswith("bias") or name.startswith("gemma") else 1.0
            p.normal_(offset, 0.1 if key.endswith("bias") else 0.2)
        elif "wpe" in key:
            p.normal_(0, 0.1)
        elif any(part in key for part in ("wte", "embed", "lm_head")):
            p.normal_(0, 0.4)
        else:
            p.normal_(0, 1.2 / math.sqrt(p.shape[0] if name == "gpt2" else p.shape[1]))
        # Saved as f16, half the size. Parameters only: rotary frequencies must keep their digits.
        p.copy_(p.half().float())


def watch(model, where, kept):
    path, before, after = where
    for l, block in enumerate(model.get_submodule(path)):
        def mlp(module, args, out, l=l):
            kept[f"mlp_in.{l}"], kept[f"mlp_out.{l}"] = args[0].clone(), out.clone()
            if before is None:
                kept[f"mlp_norm_in.{l}"] = args[0].clone()
        block.mlp.register_forward_hook(mlp)
        if before is not None:
            getattr(block, before).register_forward_pre_hook(lambda module, args, l=l: kept.__setitem__(f"mlp_norm_in.{l}", args[0].clone()))
        if after is not None:
            getattr(block, after).register_forward_hook(lambda module, args, out, l=l: kept.__setitem__(f"mlp_out_postnorm.{l}", out.clone()))


def main():
    for number, (name, (cls, config, where)) in enumerate(MODELS.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(300 + number)
        config._attn_implementation = "eager"
        model, kept = cls(config).eval().float(), {}
        with torch.no_grad():
            randomise(name, model)
            watch(model, where, kept)
            logits = model(IDS, use_cache=False).logits
        out = os.path.join(ROOT, name)
        shutil.rmtree(out, ignore_errors=True)
        model.half().save_pretrained(out, safe_serialization=True)
        os.remove(os.path.join(out, "generation_config.json"))
        kept.update(logits=logits, input_ids=IDS)
        save_file({key: value.contiguous() for key, value in kept.items()}, os.path.join(out, "expected.safetensors"),
                  metadata={"transformers": T.__version__, "torch": torch.__version__, "script": "tests/make_parity.py"})
        size = sum(os.path.getsize(os.path.join(out, file)) for file in os.listdir(out))
        print(name, sum(p.numel() for p in model.parameters()), f"{size / 1e3:.0f} kB", f"largest logit {logits.abs().max():.2f}")


if __name__ == "__main__":
    main()
