//! What a training on a GPU takes, from configurations alone, in builds without CUDA too: bytes on the device, which
//! configurations are refused, and where codes are multiplied as dense matrices.

use crate::clt::{Activation, CltConfig, Tied};
use crate::error::{Error, ErrorKind, Result};

/// Steps whose figures the device keeps until they are asked for.
pub(crate) const RING: u64 = 64;

/// Numbers in one layer's line of figures, as `report.cu` has them.
pub(crate) const LINE: usize = 9;

/// Warps that collect a row, and what each has room for: as in `found.cuh`.
pub(crate) const WARPS: usize = 8;
pub(crate) const CANDIDATES: usize = 256;
/// Entries that a token has room for while a ranking looks for the largest.
pub(crate) const FOUND: usize = WARPS * CANDIDATES;

/// Entries of one layer that can stay, of a token or on average; `None` where only counting tells.
pub(crate) fn most_kept(config: &CltConfig) -> Option<usize> {
    let k = config.activation.k()?;
    // Ranked together, one layer may get what all are given.
    Some(if config.activation.ranks_layers() { config.most_of_layers(k) } else { k })
}

/// Which half of a step.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Forward,
    Backward,
}

/// An H100's rates, of which only ratios matter: bytes a second of memory and of cache, flops a second.
pub(crate) const MEMORY: f64 = 3e12;
pub(crate) const CACHE: f64 = 6e12;

/// Whether dense products are the faster way for `kept` of `features` entries a token, with weights of `bytes` bytes.
pub(crate) fn dense_pays(side: Side, tokens: usize, features: usize, kept: f64, bytes: f64) -> bool {
    let (t, f) = (tokens as f64, features as f64);
    let rate = if bytes == 2.0 { 6e14 } else { 5e13 };
    let (dense, lists) = match side {
        Side::Forward => ((2.0 * t * f / rate).max(f * bytes / MEMORY), t * kept * bytes / MEMORY),
        Side::Backward => (4.0 * t * f / rate + 8.0 * f / MEMORY, t * kept * bytes / CACHE),
    };
    dense < lists
}

/// What of a training's configuration decides whether a GPU can do it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Nested groups of features.
    pub groups: usize,
    /// Dead features of a token and layer in an auxiliary loss; 0 without.
    pub aux_k: usize,
}

/// Refuses what is trained on the CPU only.
pub(crate) fn check(config: &CltConfig, eight: bool) -> Result<()> {
    let refuse = |field: &str, got: String, expected: &str| Err(Error::expected(ErrorKind::Unsupported, format_args!("{field} on CUDA"), got, expected).help("train it on the CPU"));
    let multiple = if eight { 64 } else { 8 };
    if !config.width.is_multiple_of(multiple) || config.width > 8192 {
        return refuse("CltConfig::width", config.width.to_string(), if eight { "a multiple of 64 up to 8192, with moments in eight bits" } else { "a multiple of 8 up to 8192" });
    }
    Ok(())
}

/// Bytes of weights of `weight` bytes each and of their moments on a GPU.
pub(crate) fn bytes_of_weights(config: &CltConfig, weight: u64, eight: bool) -> u64 {
    config.trained_parameters() * if eight { weight * 64 + 130 } else { (weight + 8) * 64 } / 64
}

/// Bytes on a GPU for weights of `weight` bytes each, moments and a step of `tokens`.
pub(crate) fn bytes(config: &CltConfig, weight: u64, eight: bool, tokens: usize, wanted: Wanted) -> u64 {
    let (groups, aux) = (wanted.groups, wanted.aux_k as u64);
    let g = if aux > 0 { 2 } else { 1 } * groups as u64;
    let (l, d, f, t) = (config.layers as u64, config.width as u64, config.features as u64, tokens as u64);
    let weights = bytes_of_weights(config, weight, eight);
    // Without a k as many as at random weights.
    let kept = config.activation.k().map_or(f / 2, |k| k as u64);
    let pays = |side| dense_pays(side, tokens, config.features, kept as f64, weight as f64);
    let lists = groups > 1 || aux > 0 || config.tied == Tied::PerTarget;
    let (dense, backward) = (!lists && pays(Side::Forward), !lists && pays(Side::Backward));
    let skips = if config.skip { 16 * l * d * d + 2 * d * d } else { 0 };
    let batch = 2 * l * t * d * weight;
    let places = most_kept(config).map_or(kept, |most| most as u64);
    let place = if matches!(config.activation, Activation::JumpRelu { .. }) { 36 } else { 28 };
    // Products with parts of decoder rows: of all layers' entries, or of one layer's where these are dense.
    let parts = if backward { 1 } else { (0..config.layers).map(|layer| if config.tied == Tied::PerSource { 1 } else { config.slots(layer) as u64 }).sum() };
    let entries = t * (places + aux) * (l * place + 4 * parts);
    let also = |there: bool, bytes: u64| if there { bytes } else { 0 };
    let runs = t * l * (16 + also(config.activation.ranks_layers(), 8) + also(aux > 0, 12) + also(groups > 1, 8 * groups as u64));
    let slabs = t * l * d * (g * weight + if dense || config.skip || groups > 1 { 4 } else { 0 });
    let both = if config.activation.is_ranked() { 4 } else { 8 };
    let matrices = t * f * (both + if dense || backward { weight } else { 0 }) + if backward { 4 * f * config.columns(0) as u64 } else { 0 };
    let found = if config.activation.ranks_batch() { 8 * t * FOUND as u64 } else { 0 };
    // Norms of rows, before and of gradients, and some ten numbers a feature.
    let parts = (0..config.layers).map(|layer| config.columns(layer) as u64 / d).sum::<u64>();
    let figures = f * (8 * parts + 48 * l);
    let lines = 4 * (RING * LINE as u64 * l + 2048);
    lines + weights + skips + batch + entries + runs + slabs + matrices + found + figures
}
