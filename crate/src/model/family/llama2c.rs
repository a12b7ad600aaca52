//! llama2.c checkpoints (version 0): seven i32, then f32 tensors in a fixed order. The tensors
//! get Llama's Hugging Face names; rotation is of neighbours.

use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::config::{Biases, MlpActivation, ModelConfig, NormKind, NormPlaces, Positions};
use crate::model::weights::Weights;
use crate::text::placeholder::stands_in;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::Path;

pub(crate) fn open(path: &Path) -> Result<(ModelConfig, Weights)> {
    let place = path.display();
    if let Some(error) = stands_in(path) {
        return Err(error);
    }
    let file_length = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    // As they lie in the file, and as tensors.
    require_memory(&format!("{place}"), file_length.saturating_mul(2), "take a smaller model")?;
    let bytes = files::read(path)?;
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
        return Err(Error::new(ErrorKind::Unsupported, format!("{place}: pickled weights of PyTorch, which are not read; expected a llama2.c checkpoint"))
            .help("convert them to safetensors and give the folder"));
    }
    let truncated = |got: usize, expected: usize| {
        Error::expected(ErrorKind::BadFile, format_args!("{place}: length"), format_args!("{got} bytes"), format_args!("{expected}"))
            .help("the file is not a llama2.c checkpoint or it is truncated")
    };
    if bytes.len() < 28 {
        return Err(truncated(bytes.len(), 28));
    }
    let words: Vec<i32> = bytes[..28].chunks_exact(4).map(|raw| i32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])).collect();
    let [width, mlp_width, layers, heads, kv_heads, vocab, context] = words[..] else { return Err(truncated(bytes.len(), 28)) };
    let sizes = [width, mlp_width, layers, heads, kv_heads, context];
    let impossible = words.iter().any(|word| word.unsigned_abs() > 1 << 24) || sizes.iter().any(|size| *size <= 0) || vocab == 0;
    if impossible || width % heads.max(1) != 0 {
        return Err(Error::expected(ErrorKind::BadFile, format_args!("{place}: header"), format_args!("{words:?}"), "seven sizes of a llama2.c checkpoint: all above 0 but the vocabulary, which may be negative; the width a multiple of the heads"));
    }
    let size = |word: i32| word.unsigned_abs() as usize;
    // A positive vocabulary size says that the classifier is the embedding.
    let tied = vocab > 0;
    let (d, h, l, vocab, context) = (size(width), size(mlp_width), size(layers), size(vocab), size(context));
    let head_dim = d / size(heads);
    let keys = head_dim * size(kv_heads);
    let config = ModelConfig {
        architecture: "llama".to_string(),
        layers: l,
        width: d,
        mlp_width: h,
        heads: size(heads),
        kv_heads: size(kv_heads),
        head_dim,
        vocab,
        context,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        norm_places: NormPlaces::Pre,
        norm_offset: false,
        parallel: false,
        positions: Positions::Rotary { base: 10_000.0, interleaved: true, rotated: head_dim, scaling: None },
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_cap: None,
        qk_norm: None,
        local: None,
        activation: MlpActivation::Silu,
        gated: true,
        biases: Biases::default(),
        embedding_scale: 1.0,
        tied,
        logit_scale: 1.0,
        logit_cap: None,
        special_token: Some(1),
        add_special: true,
        stop_tokens: vec![1, 2],
    };
    config.validate().map_err(|error| error.context(&place))?;
    let count = |sizes: &[usize]| sizes.iter().map(|size| *size as u128).product::<u128>();
    let layer = 2 * count(&[d]) + 2 * count(&[d, d]) + 2 * count(&[keys, d]) + 3 * count(&[h, d]);
    let tables = count(&[2, context, head_dim / 2]);
    let numbers = count(&[vocab, d]) * if tied { 1 } else { 2 } + l as u128 * layer + count(&[d]) + tables;
    let expected = 28 + 4 * numbers;
    if bytes.len() as u128 != expected {
        let got = format!("{} bytes", bytes.len());
        let error = Error::expected(ErrorKind::BadFile, format_args!("{place}: length"), got, format_args!("{expected} by its header {words:?}"));
        return Err(error.help(if (bytes.len() as u128) < expected { "the file is not a llama2.c checkpoint or it is truncated" } else { "the file is longer than its header says: it is no llama2.c checkpoint of version 0, or the header is damaged" }));
    }
    let values = &bytes[28..];
    let mut at = 0;
    let mut tensors = HashMap::new();
    let mut take = |shape: &[usize]| -> Result<Tensor> {
        let count = 4 * shape.iter().product::<usize>();
        let raw = values.get(at..at + count).ok_or_else(|| truncated(bytes.len(), 28 + at + count))?;
        at += count;
        let numbers: Vec<f32> = raw.chunks_exact(4).map(|raw| f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])).collect();
        Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
    };
    tensors.insert("model.embed_tokens.weight".to_string(), take(&[vocab, d])?);
    let order: [(&str, &[usize]); 9] = [
        ("input_layernorm", &[d]),
        ("self_attn.q_proj", &[d, d]),
        ("self_attn.k_proj", &[keys, d]),
        ("self_attn.v_proj", &[keys, d]),
        ("self_attn.o_proj", &[d, d]),
        ("post_attention_layernorm", &[d]),
        ("mlp.gate_proj", &[h, d]),
        ("mlp.down_proj", &[d, h]),
        ("mlp.up_proj", &[h, d]),
    ];
    for (name, shape) in order {
        for layer in 0..l {
            tensors.insert(format!("model.layers.{layer}.{name}.weight"), take(shape)?);
        }
    }
    tensors.insert("model.norm.weight".to_string(), take(&[d])?);
    // Tables of cosines and sines follow; they are computed, not read.
    take(&[2, context, head_dim / 2])?;
    if !tied {
        tensors.insert("lm_head.weight".to_string(), take(&[vocab, d])?);
    }
    Ok((config, Weights::Memory { tensors, path: path.to_path_buf() }))
}
