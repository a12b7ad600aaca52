//! Reading all tensors of a model by a family's names, each checked against the configuration.
//!
//! What is missing, misshapen or unexpected is collected and refused in one error that lists all of
//! it. Norm weights stored less 1 are made whole, and the logit scale goes into the unembedding, so
//! that the blocks know neither. Maps and embeddings are then held in the model's dtype; norms,
//! biases and positions, which are small, in f32.

use super::names::{Names, Qkv, Up};
use super::Parts;
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{ModelConfig, NormKind, NormPlaces, Positions, QkNorm};
use crate::model::parts::{Layer, Linear, Mlp, Norm};
use crate::model::weights::Weights;
use crate::text::placeholder::first_ten;
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::HashSet;

/// Frequencies' divisors in llama.cpp's files of Llama 3.
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Ends of the names of buffers that are computed, not read.
const BUFFERS: [&str; 5] = ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"];

struct Reader<'a> {
    config: &'a ModelConfig,
    weights: &'a Weights,
    names: &'a Names,
    prefix: &'static str,
    device: &'a Device,
    /// In which maps and embeddings are held.
    dtype: DType,
    found: RefCell<Found>,
    /// Only names and shapes are looked at; nothing is read, and no tensor is made.
    checks: bool,
    /// First rows as read, before they are rounded to `dtype`: see [`Parts::sample`].
    sample: RefCell<Vec<Vec<f32>>>,
}

#[derive(Default)]
struct Found {
    used: HashSet<String>,
    missing: Amiss,
    misshapen: Amiss,
}

/// The first of what is amiss, and how many there are.
#[derive(Default)]
struct Amiss {
    first: Vec<String>,
    all: usize,
}

impl Amiss {
    fn push(&mut self, text: impl FnOnce() -> String) {
        self.all += 1;
        if self.all <= 10 {
            self.first.push(text());
        }
    }
}

/// Reads every tensor, after all names and shapes were found to fit and the memory to be there.
pub(super) fn parts(config: &ModelConfig, weights: &Weights, names: &Names, device: &Device, dtype: DType) -> Result<Parts> {
    // A layer has several tensors of its own.
    if config.layers > weights.count() {
        let place = format!("{}: number of layers in the configuration", weights.path().display());
        return Err(Error::expected(ErrorKind::BadTensor, place, config.layers, format_args!("fewer than the {} tensors that are there", weights.count())));
    }
    let names = &names.of(weights);
    let is_there = |prefix: &&&str| [names.embedding, names.final_norm].iter().any(|name| weights.contains(&format!("{prefix}{name}.weight")));
    let prefix = names.prefixes.iter().find(is_there).or(names.prefixes.first()).copied().unwrap_or("");
    let reader = Reader { config, weights, names, prefix, device, dtype, found: RefCell::default(), checks: true, sample: RefCell::default() };
    reader.parts()?;
    reader.finish()?;
    if device.is_cpu() {
        let bytes = config.parameters().saturating_mul(dtype.size_in_bytes() as u64);
        require_memory(&format!("weights of {}", weights.path().display()), bytes, "take bf16 (LoadConfig::dtype), or a smaller model")?;
    }
    Reader { checks: false, found: RefCell::default(), sample: RefCell::default(), ..reader }.parts()
}

impl Reader<'_> {
    /// A tensor of this shape; while names and shapes are checked a single 0.
    fn tensor(&self, name: String, shape: &[usize]) -> Result<Tensor> {
        if !self.checks {
            return self.weights.read(&name, self.device);
        }
        let mut found = self.found.borrow_mut();
        match self.weights.shape(&name) {
            None => found.missing.push(|| format!("{name} {shape:?}")),
            Some(got) => {
                if got != shape {
                    found.misshapen.push(|| format!("{name}: got {got:?}, expected {shape:?}"));
                }
                found.used.insert(name);
            }
        }
        Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?)
    }

    fn finish(&self) -> Result<()> {
        let found = self.found.borrow();
        let tied = format!("{}.weight", self.names.unembedding);
        let known = |name: &String| {
            found.used.contains(name)
                || BUFFERS.iter().any(|end| name.ends_with(end))
                || self.names.others.iter().any(|start| name.starts_with(start))
                || (self.config.tied && *name == tied)
        };
        let mut extra: Vec<String> = self.weights.names().into_iter().filter(|name| !known(name)).collect();
        extra.sort_unstable();
        let lists = [
            ("missing", &found.missing.first, found.missing.all),
            ("of another shape", &found.misshapen.first, found.misshapen.all),
            ("unexpected", &extra, extra.len()),
        ];
        let wrong: Vec<String> = lists.iter().filter(|(_, _, all)| *all > 0).map(|(what, list, all)| format!("{what}: {}", first_ten(list, *all))).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let place = format!("{}: tensors of a {} model", self.weights.path().display(), self.config.architecture);
        let codes = [".qweight", ".qzeros", ".weight_scale", ".weight_scale_inv", ".SCB", ".absmax", ".weight_packed"];
        let quantised = extra.iter().any(|name| codes.iter().any(|end| name.ends_with(end)));
        let help = if quantised { "the weights are quantised, which is not read; take the model in floating point, or a GGUF file" } else { "the weights do not belong to this configuration" };
        Err(Error::new(ErrorKind::BadTensor, format!("{place}: {}", wrong.join("; "))).help(help))
    }

    fn parts(&self) -> Result<Parts> {
        let (c, n) = (self.config, self.names);
        let layers = (0..c.layers).map(|index| self.layer(index)).collect::<Result<Vec<_>>>()?;
        let embedding = self.tensor(format!("{}{}.weight", self.prefix, n.embedding), &[c.vocab, c.width])?;
        self.sample(&embedding)?;
        let mut sample = self.sample.borrow_mut();
        let last = sample.len().min(1);
        sample.rotate_right(last);
        drop(sample);
        let tied = (c.tied && c.logit_scale != 1.0).then(|| embedding.clone());
        let embedding = self.held(embedding)?;
        let bias = c.biases.unembedding.then(|| self.tensor(format!("{}.bias", n.unembedding), &[c.vocab])).transpose()?;
        let scaled = |tensor: Tensor| -> Result<Tensor> { Ok(if c.logit_scale == 1.0 { tensor } else { (tensor * c.logit_scale)? }) };
        let positions = match c.positions {
            Positions::Learned => Some(self.tensor(format!("{}{}.weight", self.prefix, n.positions), &[c.context, c.width])?),
            Positions::Rotary { .. } | Positions::None => None,
        };
        let rope_divisors = match c.positions {
            Positions::Rotary { rotated, .. } if self.weights.contains(ROPE_DIVISORS) => Some(self.tensor(ROPE_DIVISORS.to_string(), &[rotated.div_ceil(2)])?),
            _ => None,
        };
        Ok(Parts {
            positions,
            layers,
            final_norm: self.norm(format!("{}{}", self.prefix, n.final_norm), c.width, c.norm)?,
            unembedding: match tied {
                Some(whole) => self.held(scaled(whole)?)?,
                None if c.tied => embedding.clone(),
                None => self.held(scaled(self.tensor(format!("{}.weight", n.unembedding), &[c.vocab, c.width])?)?)?,
            },
            embedding,
            sample: self.sample.take(),
            unembedding_bias: bias.map(scaled).transpose()?,
            rope_divisors,
        })
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let (c, n) = (self.config, self.names);
        let at = |part: &str| format!("{}{}{index}.{part}", self.prefix, n.layer);
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let [query, key, value] = match n.qkv {
            Qkv::Apart([query, key, value]) => [
                self.linear(at(query), queries, c.width, c.biases.qkv)?,
                self.linear(at(key), keys, c.width, c.biases.qkv)?,
                self.linear(at(value), keys, c.width, c.biases.qkv)?,
            ],
            Qkv::Blocks(name) => self.cut(&self.linear(at(name), queries + 2 * keys, c.width, c.biases.qkv)?, [queries, keys, keys])?,
            Qkv::Heads(name) => {
                let fused = self.linear(at(name), 3 * queries, c.width, c.biases.qkv)?;
                let regrouped = |tensor: &Tensor| -> Result<Tensor> {
                    if self.checks {
                        return Ok(tensor.clone());
                    }
                    let shape = tensor.dims().to_vec();
                    Ok(tensor.reshape((c.heads, 3, c.head_dim, ()))?.transpose(0, 1)?.contiguous()?.reshape(shape)?)
                };
                let bias = fused.bias.as_ref().map(regrouped).transpose()?;
                self.cut(&Linear { weight: regrouped(&fused.weight)?, bias }, [queries, queries, queries])?
            }
        };
        let (gate, up) = match n.up {
            Up::Plain(up) => (None, self.linear(at(up), c.mlp_width, c.width, c.biases.mlp)?),
            Up::Gated([gate, up]) => {
                (Some(self.linear(at(gate), c.mlp_width, c.width, c.biases.mlp)?), self.linear(at(up), c.mlp_width, c.width, c.biases.mlp)?)
            }
            Up::Blocks(name) => {
                let [gate, up] = self.cut(&self.linear(at(name), 2 * c.mlp_width, c.width, c.biases.mlp)?, [c.mlp_width, c.mlp_width])?;
                (Some(gate), up)
            }
        };
        let before = |name: &str| (c.norm_places != NormPlaces::Post).then(|| self.norm(at(name), c.width, c.norm)).transpose();
        let after = |name: &str| (c.norm_places != NormPlaces::Pre).then(|| self.norm(at(name), c.width, c.norm)).transpose();
        let inner = |name: &str, heads: usize| {
            let width = if c.qk_norm == Some(QkNorm::Whole) { heads * c.head_dim } else { c.head_dim };
            c.qk_norm.map(|_| self.norm(at(name), width, NormKind::Rms)).transpose()
        };
        let down = self.whole(at(n.down), c.width, c.mlp_width, c.biases.mlp)?;
        self.sample(&down.weight)?;
        Ok(Layer {
            attn_norm: before(n.attn_norm)?,
            query,
            key,
            value,
            output: self.linear(at(n.output), c.width, queries, c.biases.output)?,
            query_norm: inner(n.query_norm, c.heads)?,
            key_norm: inner(n.key_norm, c.kv_heads)?,
            attn_post_norm: after(n.attn_post_norm)?,
            mlp_norm: before(n.mlp_norm)?,
            mlp: Mlp { activation: c.activation, gate, up, down: Linear { weight: self.held(down.weight)?, bias: down.bias } },
            mlp_post_norm: after(n.mlp_post_norm)?,
        })
    }

    fn norm(&self, name: String, width: usize, kind: NormKind) -> Result<Norm> {
        let weight = self.tensor(format!("{name}.weight"), &[width])?;
        let weight = if self.config.norm_offset { (weight + 1.0)? } else { weight };
        let bias = (kind == NormKind::Layer).then(|| self.tensor(format!("{name}.bias"), &[width])).transpose()?;
        Ok(Norm { kind, eps: self.config.norm_eps, weight, bias })
    }

    fn linear(&self, name: String, out: usize, inner: usize, bias: bool) -> Result<Linear> {
        let whole = self.whole(name, out, inner, bias)?;
        Ok(Linear { weight: self.held(whole.weight)?, bias: whole.bias })
    }

    /// Keeps the first row.
    fn sample(&self, weight: &Tensor) -> Result<()> {
        if self.checks {
            return Ok(());
        }
        self.sample.borrow_mut().push(weight.get(0)?.to_vec1()?);
        Ok(())
    }

    /// A matrix in the dtype in which the model holds it.
    fn held(&self, weight: Tensor) -> Result<Tensor> {
        const MOST: f32 = 65_504.0;
        if self.checks {
            return Ok(weight);
        }
        if self.dtype == DType::F16 {
            let most = weight.abs()?.max_all()?.to_scalar::<f32>()?;
            if most > MOST {
                let place = format!("{}: a weight in f16", self.weights.path().display());
                return Err(Error::expected(ErrorKind::BadConfig, place, most, format_args!("at most {MOST}, the largest number of f16")).help("load it in bf16 or f32"));
            }
        }
        Ok(weight.to_dtype(self.dtype)?)
    }

    /// A map in f32.
    fn whole(&self, name: String, out: usize, inner: usize, bias: bool) -> Result<Linear> {
        let bias = bias.then(|| self.tensor(format!("{name}.bias"), &[out])).transpose()?;
        let name = format!("{name}.weight");
        let weight = if self.names.transposed { self.tensor(name, &[inner, out])? } else { self.tensor(name, &[out, inner])? };
        let turned = self.names.transposed && !self.checks;
        Ok(Linear { weight: if turned { weight.t()?.contiguous()? } else { weight }, bias })
    }

    /// As [`cut`]; while names and shapes are checked there is nothing to cut.
    fn cut<const N: usize>(&self, fused: &Linear, sizes: [usize; N]) -> Result<[Linear; N]> {
        if self.checks { Ok(std::array::from_fn(|_| fused.clone())) } else { cut(fused, sizes) }
    }
}

/// Cuts the outputs of a fused map into maps of `sizes` outputs.
fn cut<const N: usize>(fused: &Linear, sizes: [usize; N]) -> Result<[Linear; N]> {
    let mut start = 0;
    let mut parts = Vec::with_capacity(N);
    for size in sizes {
        let part = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.narrow(0, start, size)?.force_contiguous()?) };
        parts.push(Linear { weight: part(&fused.weight)?, bias: fused.bias.as_ref().map(part).transpose()? });
        start += size;
    }
    parts.try_into().map_err(|_| Error::new(ErrorKind::Tensor, "a fused map was cut wrongly"))
}
