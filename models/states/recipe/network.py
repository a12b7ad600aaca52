"""The network: a Llama with tied embeddings. Its parameters bear the names that transformers gives them."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    vocab: int
    layers: int = 6
    width: int = 128
    heads: int = 4
    mlp: int = 384
    context: int = 128
    theta: float = 10000.0
    eps: float = 1e-5

    def huggingface(self):
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.width // self.heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "bfloat16",
        }


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(config.width, config.width, bias=False))

    def forward(self, x, angles, mask):
        batch, tokens, width = x.shape
        q, k, v = (proj(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotate(part, angles).to(v.dtype) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def rotate(x, angles):
    low, high = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-high, low), -1) * angles.sin()


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = Norm(config.width, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.width, config.eps)
        self.mlp = Mlp(config)


class Trunk(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = Norm(config.width, config.eps)


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        std = 0.02 * math.sqrt(768 / config.width) / 1.5
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * config.layers))
            elif name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=std)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.05)
        self.frequencies = config.theta ** (-torch.arange(0, config.width // config.heads, 2) / (config.width // config.heads))

    def hidden(self, ids, positions=None, mask=None, edit=None):
        """Normalised last residual, [batch, tokens, width]. `mask` [batch, 1, tokens, tokens] is True where a token may
        look (causal where None). `edit(place, layer, x)` may replace the residual ("residual"; layer -1 is the embedding)
        and the outputs of attention ("attention") and MLP ("mlp")."""
        edit = edit or (lambda place, layer, x: x)
        positions = torch.arange(ids.shape[1])[None] if positions is None else positions
        angles = (positions[..., None] * self.frequencies).repeat(1, 1, 2)[:, None]
        x = edit("residual", -1, self.model.embed_tokens(ids))
        for layer, block in enumerate(self.model.layers):
            x = x + edit("attention", layer, block.self_attn(block.input_layernorm(x), angles, mask))
            x = x + edit("mlp", layer, block.mlp(block.post_attention_layernorm(x)))
            x = edit("residual", layer, x)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)

    def checkpoint(self):
        return {"config": asdict(self.config), "weights": self.state_dict()}

    @staticmethod
    def restore(checkpoint):
        model = Llama(Config(**checkpoint["config"]))
        model.load_state_dict(checkpoint["weights"])
        return model
