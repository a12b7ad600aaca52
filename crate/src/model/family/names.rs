//! Names of the tensors: which part of the block lies under which name, and in which form.

use crate::model::weights::Weights;

/// How query, key and value are stored.
#[derive(Clone, Copy)]
pub(super) enum Qkv {
    /// A tensor each.
    Apart([&'static str; 3]),
    /// One tensor: all queries, then all keys, then all values.
    Blocks(&'static str),
    /// One tensor: query, key and value of the first head, then of the next (GPT-NeoX).
    Heads(&'static str),
}

/// How the MLP's first maps are stored.
#[derive(Clone, Copy)]
pub(super) enum Up {
    /// Without a gate.
    Plain(&'static str),
    /// Gate and up, a tensor each.
    Gated([&'static str; 2]),
    /// One tensor: gate, then up.
    Blocks(&'static str),
}

/// Names without `.weight` and `.bias`. Layer `l`'s tensors are `{prefix}{layer}{l}.{name}`. A name
/// that the configuration does not ask for is not looked for.
#[derive(Clone, Copy)]
pub(super) struct Names {
    /// What stands before all names but the unembedding's: the first under which the model is found.
    pub prefixes: &'static [&'static str],
    pub embedding: &'static str,
    pub positions: &'static str,
    pub layer: &'static str,
    pub attn_norm: &'static str,
    pub qkv: Qkv,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    pub output: &'static str,
    pub attn_post_norm: &'static str,
    pub mlp_norm: &'static str,
    pub up: Up,
    pub down: &'static str,
    pub mlp_post_norm: &'static str,
    pub final_norm: &'static str,
    pub unembedding: &'static str,
    /// Other names of the unembedding, looked for where that one is not there.
    pub unembeddings: &'static [&'static str],
    /// The maps of the blocks are stored `[in, out]`.
    pub transposed: bool,
    /// Parts of the file that are not the language model's, by the beginnings of their names.
    pub others: &'static [&'static str],
}

impl Names {
    /// The names with the unembedding's as these weights have it.
    pub fn of(&self, weights: &Weights) -> Names {
        let there = |name: &&&str| weights.contains(&format!("{name}.weight"));
        let other = if there(&&self.unembedding) { None } else { self.unembeddings.iter().find(there) };
        Names { unembedding: other.unwrap_or(&self.unembedding), ..*self }
    }
}

/// Llama's in Hugging Face files, which most families share.
pub(super) const LLAMA: Names = Names {
    prefixes: &["model.", ""],
    embedding: "embed_tokens",
    positions: "",
    layer: "layers.",
    attn_norm: "input_layernorm",
    qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    output: "self_attn.o_proj",
    attn_post_norm: "post_attention_layernorm",
    mlp_norm: "post_attention_layernorm",
    up: Up::Gated(["mlp.gate_proj", "mlp.up_proj"]),
    down: "mlp.down_proj",
    mlp_post_norm: "post_feedforward_layernorm",
    final_norm: "norm",
    unembedding: "lm_head",
    unembeddings: &[],
    transposed: false,
    others: &[],
};

/// llama.cpp's, which all families share in GGUF files.
pub(super) const GGUF: Names = Names {
    prefixes: &[""],
    embedding: "token_embd",
    positions: "position_embd",
    layer: "blk.",
    attn_norm: "attn_norm",
    qkv: Qkv::Apart(["attn_q", "attn_k", "attn_v"]),
    query_norm: "attn_q_norm",
    key_norm: "attn_k_norm",
    output: "attn_output",
    attn_post_norm: "post_attention_norm",
    mlp_norm: "ffn_norm",
    up: Up::Gated(["ffn_gate", "ffn_up"]),
    down: "ffn_down",
    mlp_post_norm: "post_ffw_norm",
    final_norm: "output_norm",
    unembedding: "output",
    unembeddings: &[],
    transposed: false,
    others: &[],
};
